//! The loops of an order over many rows, compiled for each instruction set. They are plain Rust that the compiler turns
//! into vector instructions; whichever runs, the answer is the same.

#![allow(unsafe_code)]

use super::{Order, ROUNDS};
use crate::instructions;

/// Rows that are taken together.
pub(crate) const WIDTH: usize = 16;

/// The loops of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    name: &'static str,
    pub first: fn(&Order, &[u32]) -> u32,
    pub some: fn(&Order, u32) -> [u32; WIDTH],
    pub each: fn(&[(&Order, u32)]) -> [u32; WIDTH],
    pub round_keys: fn(u64) -> [[u32; 2]; ROUNDS],
}

/// See [`Order::first`].
#[inline]
pub(super) fn first(order: &Order, rows: &[u32]) -> u32 {
    (best().first)(order, rows)
}

/// See [`Order::some`].
#[inline]
pub(super) fn some(order: &Order, start: u32) -> [u32; WIDTH] {
    (best().some)(order, start)
}

/// The rows at some places of orders of one grid, at most [`WIDTH`].
#[inline]
pub(super) fn each(places: &[(&Order, u32)]) -> [u32; WIDTH] {
    (best().each)(places)
}

/// See [`super::round_keys`].
#[inline]
pub(super) fn round_keys(start: u64) -> [[u32; 2]; ROUNDS] {
    (best().round_keys)(start)
}

fn best() -> &'static Kernel {
    static BEST: std::sync::OnceLock<Kernel> = std::sync::OnceLock::new();
    BEST.get_or_init(|| instructions::choose(&available(), |kernel| kernel.name))
}

/// All that this CPU can run, fastest first.
pub(super) fn available() -> Vec<Kernel> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    found.extend(x86_64::available());
    found.push(Kernel {
        name: "portable",
        first: first_of,
        some: some_from,
        each: each_of,
        round_keys: super::round_keys,
    });
    found
}

#[inline(always)]
fn first_of(order: &Order, rows: &[u32]) -> u32 {
    let (mut best, mut of) = ([u32::MAX; WIDTH], [rows[0]; WIDTH]);
    let mut take = |rows: [u32; WIDTH]| {
        let places = walked(order.backward(rows), order.grid.rows, |_, place| order.backward([place])[0]);
        for lane in 0..WIDTH {
            let is_before = places[lane] < best[lane];
            best[lane] = if is_before { places[lane] } else { best[lane] };
            of[lane] = if is_before { rows[lane] } else { of[lane] };
        }
    };
    let (whole, rest) = rows.as_chunks::<WIDTH>();
    whole.iter().for_each(|rows| take(*rows));
    if !rest.is_empty() {
        let mut filled = [rest[0]; WIDTH];
        filled[..rest.len()].copy_from_slice(rest);
        take(filled);
    }
    best.into_iter().zip(of).min().map_or(rows[0], |(_, row)| row)
}

#[inline(always)]
fn some_from(order: &Order, start: u32) -> [u32; WIDTH] {
    let rows = order.grid.rows;
    let place = |lane| ((u64::from(start) + lane as u64) % u64::from(rows)) as u32;
    let fits = rows - start >= WIDTH as u32;
    let places = std::array::from_fn(|lane| if fits { start.wrapping_add(lane as u32) } else { place(lane) });
    walked(order.forward(places), rows, |_, row| order.forward([row])[0])
}

#[inline(always)]
fn each_of(places: &[(&Order, u32)]) -> [u32; WIDTH] {
    let grid = places[0].0.grid;
    let (mut keys, mut cells) = ([[[0; 2]; WIDTH]; ROUNDS], [0; WIDTH]);
    for (lane, (order, place)) in places.iter().take(WIDTH).enumerate() {
        keys.iter_mut().zip(order.keys).for_each(|(keys, key)| keys[lane] = key);
        cells[lane] = *place;
    }
    let found = super::forward(grid, cells, |round, lane| keys[round][lane]);
    walked(found, grid.rows, |lane, row| places.get(lane).map_or(0, |(order, _)| order.forward([row])[0]))
}

/// Cells that were moved to, each moved on until it is one of the first `rows`.
#[inline(always)]
fn walked(mut cells: [u32; WIDTH], rows: u32, on: impl Fn(usize, u32) -> u32) -> [u32; WIDTH] {
    if cells.iter().fold(false, |any, cell| any | (*cell >= rows)) {
        for (lane, cell) in cells.iter_mut().enumerate() {
            while *cell >= rows {
                *cell = on(lane, *cell);
            }
        }
    }
    cells
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::*;

    pub fn available() -> Vec<Kernel> {
        let mut found = Vec::new();
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            found.push(avx512());
        }
        if is_x86_feature_detected!("avx2") {
            found.push(avx2());
        }
        found
    }

    /// The loops, compiled with some features, for a CPU that has them.
    macro_rules! compiled {
        ($name:ident, $features:literal) => {
            fn $name() -> Kernel {
                #[target_feature(enable = $features)]
                fn first(order: &Order, rows: &[u32]) -> u32 {
                    first_of(order, rows)
                }

                #[target_feature(enable = $features)]
                fn some(order: &Order, start: u32) -> [u32; WIDTH] {
                    some_from(order, start)
                }

                #[target_feature(enable = $features)]
                fn each(places: &[(&Order, u32)]) -> [u32; WIDTH] {
                    each_of(places)
                }

                #[target_feature(enable = $features)]
                fn round_keys(start: u64) -> [[u32; 2]; ROUNDS] {
                    super::super::round_keys(start)
                }

                Kernel {
                    name: stringify!($name),
                    // SAFETY: a kernel is only handed out where the CPU was just seen to have its features.
                    first: |order, rows| unsafe { first(order, rows) },
                    // SAFETY: as above.
                    some: |order, start| unsafe { some(order, start) },
                    // SAFETY: as above.
                    each: |places| unsafe { each(places) },
                    // SAFETY: as above.
                    round_keys: |start| unsafe { round_keys(start) },
                }
            }
        };
    }

    compiled!(avx512, "avx512f,avx512dq");
    compiled!(avx2, "avx2");
}
