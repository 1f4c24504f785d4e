//! The loops of an order over many rows, compiled for each instruction set. They are plain Rust that the compiler turns
//! into vector instructions; whichever runs, the answer is the same.

#![allow(unsafe_code)]

use super::Order;
use crate::instructions;

/// Rows that are taken together.
pub(crate) const WIDTH: usize = 16;

/// The loops of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    name: &'static str,
    pub first: fn(&Order, &[u32]) -> u32,
    pub some: fn(&Order, u32) -> [u32; WIDTH],
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

fn best() -> Kernel {
    static BEST: std::sync::OnceLock<Kernel> = std::sync::OnceLock::new();
    *BEST.get_or_init(|| instructions::choose(&available(), |kernel| kernel.name))
}

/// All that this CPU can run, fastest first.
pub(super) fn available() -> Vec<Kernel> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    found.extend(x86_64::available());
    found.push(Kernel { name: "portable", first: first_of, some: some_from });
    found
}

#[inline(always)]
fn first_of(order: &Order, rows: &[u32]) -> u32 {
    let (whole, rest) = rows.as_chunks::<WIDTH>();
    let (mut best, mut of) = ([u32::MAX; WIDTH], [rows[0]; WIDTH]);
    for rows in whole {
        let mut places = order.backward(*rows);
        if places.iter().fold(false, |any, place| any | (*place >= order.grid.rows)) {
            places = rows.map(|row| order.place(row));
        }
        for lane in 0..WIDTH {
            let is_before = places[lane] < best[lane];
            best[lane] = if is_before { places[lane] } else { best[lane] };
            of[lane] = if is_before { rows[lane] } else { of[lane] };
        }
    }
    let rest = rest.iter().map(|row| (order.place(*row), *row));
    best.into_iter().zip(of).chain(rest).min().map_or(rows[0], |(_, row)| row)
}

#[inline(always)]
fn some_from(order: &Order, start: u32) -> [u32; WIDTH] {
    let rows = order.grid.rows;
    let fits = rows - start >= WIDTH as u32;
    let found: [u32; WIDTH] = order.forward(std::array::from_fn(|lane| start.wrapping_add(lane as u32)));
    if fits && found.iter().fold(true, |all, row| all & (*row < rows)) {
        return found;
    }
    std::array::from_fn(|lane| order.at(((u64::from(start) + lane as u64) % u64::from(rows)) as u32))
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::*;

    pub fn available() -> Vec<Kernel> {
        let mut found = Vec::new();
        if is_x86_feature_detected!("avx512f") {
            found.push(Kernel {
                name: "avx512",
                // SAFETY: both closures are only handed out where the CPU was just seen to have AVX-512F.
                first: |order, rows| unsafe { first_avx512(order, rows) },
                // SAFETY: as above.
                some: |order, start| unsafe { some_avx512(order, start) },
            });
        }
        if is_x86_feature_detected!("avx2") {
            found.push(Kernel {
                name: "avx2",
                // SAFETY: both closures are only handed out where the CPU was just seen to have AVX2.
                first: |order, rows| unsafe { first_avx2(order, rows) },
                // SAFETY: as above.
                some: |order, start| unsafe { some_avx2(order, start) },
            });
        }
        found
    }

    #[target_feature(enable = "avx512f")]
    fn first_avx512(order: &Order, rows: &[u32]) -> u32 {
        first_of(order, rows)
    }

    #[target_feature(enable = "avx512f")]
    fn some_avx512(order: &Order, start: u32) -> [u32; WIDTH] {
        some_from(order, start)
    }

    #[target_feature(enable = "avx2")]
    fn first_avx2(order: &Order, rows: &[u32]) -> u32 {
        first_of(order, rows)
    }

    #[target_feature(enable = "avx2")]
    fn some_avx2(order: &Order, start: u32) -> [u32; WIDTH] {
        some_from(order, start)
    }
}
