//! The seeded order of all rows that defines every exact draw: draw `j` of a cap is the row inside that comes first.
//!
//! The order is a bijection of the row numbers `0..n` that runs both ways: [`Order::add_rows`] gives the rows at
//! places, [`Order::place`] the place of a row. Rows are cells of a grid of `high * 2^low_bits` cells, hardly more than
//! `n`; a Feistel network of [`ROUNDS`] keyed rounds permutes the cells, and cells that are no rows are walked over
//! (Black and Rogaway, *Ciphers with arbitrary finite domains*, 2002). All arithmetic is on 32-bit words, so that a GPU
//! repeats it cheaply. docs/sampling.md defines every step; `captree.testing` repeats them.

mod kernel;

pub(super) use kernel::WIDTH;

/// Rounds of the network, each with 64 bits of key. Six let the order of 257 rows be told from chance, eight no order
/// that was tried, over 10^7 keys and more.
const ROUNDS: usize = 8;

/// Least number of cells: in smaller grids few rounds mix badly. Fewer rows only take a longer walk.
const LEAST_CELLS: u32 = 1 << 10;

/// 2^64 over the golden ratio, odd: the step of the SplitMix64 generator.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014).
#[inline(always)]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What a round makes of half a cell, with the two words of its key. (The multipliers are those of MurmurHash3's
/// finalizer.)
#[inline(always)]
fn hash(x: u32, key: [u32; 2]) -> u32 {
    let x = (x ^ key[0]).wrapping_mul(0x85EB_CA6B);
    (x ^ (x >> 15)).wrapping_add(key[1]).wrapping_mul(0xC2B2_AE35)
}

/// The grid of a number of rows, the same for all orders.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    rows: u32,
    high: u32,
    low_bits: u32,
}

impl Grid {
    /// For `rows` rows, at least one.
    pub fn new(rows: u32) -> Self {
        let cells = rows.max(LEAST_CELLS);
        let low_bits = (u32::BITS - (cells - 1).leading_zeros()).div_ceil(2);
        Grid { rows, high: cells.div_ceil(1 << low_bits), low_bits }
    }
}

/// One order.
#[derive(Clone, Debug)]
pub(super) struct Order {
    grid: Grid,
    keys: [[u32; 2]; ROUNDS],
}

impl Order {
    /// Order number `draw` of a cap, which its key names: a hash of the seed, the cap and its occurrence.
    pub fn new(grid: Grid, key: u128, draw: u64) -> Self {
        let start = mix(((key >> 64) as u64).wrapping_add(draw.wrapping_mul(STEP))) ^ key as u64;
        Order { grid, keys: kernel::round_keys(start) }
    }

    /// The cells that some cells are moved to. Written so that the loops over them need no branch.
    #[inline(always)]
    fn forward<const N: usize>(&self, cells: [u32; N]) -> [u32; N] {
        forward(self.grid, cells, |round, _| self.keys[round])
    }

    /// The cells that are moved to these.
    #[inline(always)]
    fn backward<const N: usize>(&self, cells: [u32; N]) -> [u32; N] {
        let Grid { high, low_bits, .. } = self.grid;
        let (mut top, mut low) = (cells.map(|cell| cell >> low_bits), cells.map(|cell| cell & ((1 << low_bits) - 1)));
        for pair in self.keys.chunks_exact(2).rev() {
            low.iter_mut().zip(&top).for_each(|(low, top)| *low ^= hash(*top, pair[1]) >> (u32::BITS - low_bits));
            for (top, low) in top.iter_mut().zip(&low) {
                let difference = top.wrapping_sub(scaled(hash(*low, pair[0]), high));
                *top = difference.min(difference.wrapping_add(high));
            }
        }
        std::array::from_fn(|i| top[i] << low_bits | low[i])
    }

    /// The place of a row.
    #[inline]
    pub fn place(&self, row: u32) -> u32 {
        let [mut place] = self.backward([row]);
        while place >= self.grid.rows {
            [place] = self.backward([place]);
        }
        place
    }

    /// The row that comes first among some, of which there is at least one.
    pub fn first(&self, rows: &[u32]) -> u32 {
        kernel::first(self, rows)
    }

    /// Adds the rows at places of some orders of one grid to `rows`.
    pub fn add_rows<'a>(mut places: impl Iterator<Item = (&'a Order, u32)>, rows: &mut Vec<u32>) {
        while let Some(first) = places.next() {
            let (mut some, mut count) = ([first; WIDTH], 1);
            for (slot, place) in some[1..].iter_mut().zip(&mut places) {
                *slot = place;
                count += 1;
            }
            rows.extend_from_slice(&kernel::each(&some[..count])[..count]);
        }
    }

    /// Rows at [`WIDTH`] places from `start` on; places beyond the last are wrapped around.
    pub fn some(&self, start: u32) -> [u32; WIDTH] {
        kernel::some(self, start)
    }

    /// The first `count` of some rows, or all, in their order.
    pub fn leading(&self, rows: &[u32], count: usize) -> Vec<u32> {
        let mut placed: Vec<(u32, u32)> = rows.iter().map(|row| (self.place(*row), *row)).collect();
        if count < placed.len() {
            placed.select_nth_unstable(count);
            placed.truncate(count);
        }
        placed.sort_unstable();
        placed.into_iter().map(|(_, row)| row).collect()
    }
}

/// The cells that some cells are moved to, `key` being the key of a round for the cell with a number.
#[inline(always)]
fn forward<const N: usize>(grid: Grid, cells: [u32; N], key: impl Fn(usize, usize) -> [u32; 2]) -> [u32; N] {
    let Grid { high, low_bits, .. } = grid;
    let (mut top, mut low) = (cells.map(|cell| cell >> low_bits), cells.map(|cell| cell & ((1 << low_bits) - 1)));
    for round in (0..ROUNDS).step_by(2) {
        for i in 0..N {
            let sum = top[i] + scaled(hash(low[i], key(round, i)), high);
            top[i] = sum.min(sum.wrapping_sub(high));
        }
        for i in 0..N {
            low[i] ^= hash(top[i], key(round + 1, i)) >> (u32::BITS - low_bits);
        }
    }
    std::array::from_fn(|i| top[i] << low_bits | low[i])
}

/// The keys of all rounds: numbers of a SplitMix64 generator.
#[inline(always)]
fn round_keys(start: u64) -> [[u32; 2]; ROUNDS] {
    std::array::from_fn(|round| {
        let word = mix(start.wrapping_add(STEP.wrapping_mul(round as u64 + 1)));
        [word as u32, (word >> 32) as u32]
    })
}

/// A number below `below` in proportion to a word.
#[inline(always)]
fn scaled(word: u32, below: u32) -> u32 {
    ((u64::from(word) * u64::from(below)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Order {
        /// The row at a place, both below the number of rows: what the kernels are compared with.
        fn at(&self, place: u32) -> u32 {
            let [mut row] = self.forward([place]);
            while row >= self.grid.rows {
                [row] = self.forward([row]);
            }
            row
        }
    }

    fn key(i: u64) -> u128 {
        u128::from(mix(i)) << 64 | u128::from(mix(!i))
    }

    /// How far a chi-square statistic of equally likely outcomes is above what is expected, in standard deviations.
    fn excess(seen: &[u64]) -> f64 {
        let freedom = seen.len() as f64 - 1.0;
        let expected = seen.iter().sum::<u64>() as f64 / seen.len() as f64;
        let statistic: f64 = seen.iter().map(|n| (*n as f64 - expected).powi(2) / expected).sum();
        (statistic - freedom) / (2.0 * freedom).sqrt()
    }

    /// No chance result over the fixed keys of all tests here, as a chi-square with one degree of freedom would give
    /// it.
    const MOST: f64 = 9.0;

    proptest! {
        #[test]
        fn orders_run_both_ways(rows in 1u32..=u32::MAX, i in any::<u64>(), draw in any::<u64>(), at in any::<u32>()) {
            let order = Order::new(Grid::new(rows), key(i), draw);
            let place = at % rows;
            prop_assert!(order.at(place) < rows);
            prop_assert_eq!(order.place(order.at(place)), place);
            prop_assert_eq!(order.at(order.place(place)), place);
        }

        #[test]
        fn kernels_agree_with_one_row_at_a_time(
            rows in 1u32..3000, i in any::<u64>(), some in prop::collection::vec(any::<u32>(), 1..100),
            start in any::<u32>(),
        ) {
            let order = Order::new(Grid::new(rows), key(i), 0);
            let some: Vec<u32> = some.into_iter().map(|row| row % rows).collect();
            let first = some.iter().copied().min_by_key(|row| order.place(*row)).unwrap();
            let others: Vec<Order> = (0..WIDTH as u64).map(|draw| Order::new(Grid::new(rows), key(i), draw)).collect();
            for kernel in kernel::available() {
                prop_assert_eq!((kernel.round_keys)(i), round_keys(i));
                let places: Vec<(&Order, u32)> = others.iter().zip(some.iter().copied()).collect();
                let want: Vec<u32> = places.iter().map(|(order, place)| order.at(*place)).collect();
                prop_assert_eq!(&(kernel.each)(&places)[..want.len()], &want);
                prop_assert_eq!((kernel.first)(&order, &some), first);
                let start = start % rows;
                let place = |i: usize| ((start as u64 + i as u64) % u64::from(rows)) as u32;
                let want: [u32; WIDTH] = std::array::from_fn(|i| order.at(place(i)));
                prop_assert_eq!((kernel.some)(&order, start), want);
            }
            let leading = order.leading(&some, 5);
            prop_assert!(leading.iter().map(|row| order.place(*row)).is_sorted());
            prop_assert_eq!(leading.first(), Some(&first));
        }
    }

    #[test]
    fn small_orders_are_permutations() {
        for rows in 1..200 {
            let order = Order::new(Grid::new(rows), key(u64::from(rows)), 3);
            let mut all: Vec<u32> = (0..rows).map(|place| order.at(place)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..rows));
        }
    }

    #[test]
    fn the_first_places_are_uniform_alone_in_pairs_and_from_draw_to_draw() {
        for rows in [2u32, 3, 5, 10, 16, 33, 257] {
            let (grid, n) = (Grid::new(rows), rows as usize);
            let (mut one, mut two, mut next) = (vec![0; n], vec![0; n * n], vec![0; n * n]);
            for i in 0..60_000 {
                let order = Order::new(grid, key(i), 0);
                let (a, b) = (order.at(0) as usize, order.at(1) as usize);
                let c = Order::new(grid, key(i), 1).at(0) as usize;
                one[a] += 1;
                two[a * n + b] += 1;
                next[a * n + c] += 1;
            }
            let distinct: Vec<u64> = (0..n * n).filter(|at| at / n != at % n).map(|at| two[at]).collect();
            assert!(two.iter().step_by(n + 1).all(|seen| *seen == 0));
            for seen in [&one, &distinct, &next] {
                assert!(excess(seen) < MOST, "{rows} rows: {}", excess(seen));
            }
        }
        assert_eq!(Order::new(Grid::new(1), key(0), 7).at(0), 0);
    }

    #[test]
    fn whole_orders_of_few_rows_are_uniform() {
        let ranks = |rows: &[u32]| {
            let smaller = |i: usize| rows[i + 1..].iter().filter(|row| **row < rows[i]).count();
            (0..rows.len()).fold(0, |code, i| code * (rows.len() - i) + smaller(i))
        };
        for (rows, orders) in [(3u32, 6), (4, 24), (5, 120)] {
            let mut seen = vec![0; orders];
            for i in 0..60_000 {
                let order = Order::new(Grid::new(rows), key(i), 0);
                seen[ranks(&(0..rows).map(|place| order.at(place)).collect::<Vec<_>>())] += 1;
            }
            assert!(excess(&seen) < MOST, "{rows} rows: {}", excess(&seen));
        }
    }

    #[test]
    fn the_first_of_some_rows_is_uniform_whatever_they_are() {
        for rows in [1000u32, 4096, 100_000, 25_000_000, u32::MAX] {
            let grid = Grid::new(rows);
            for some in [
                (0..10).collect::<Vec<u32>>(),
                (rows - 7..rows).collect(),
                (0..8).map(|i| i * 64).collect(),
                (0..8).map(|i| i * (rows / 8)).collect(),
                vec![0, 1],
            ] {
                let (n, mut first, mut two) = (some.len(), vec![0; some.len()], vec![0; some.len() * some.len()]);
                for i in 0..20_000 {
                    let order = Order::new(grid, key(i), 2);
                    let at = |row: u32| some.iter().position(|x| *x == row).unwrap();
                    let leading = order.leading(&some, 2);
                    first[at(leading[0])] += 1;
                    two[at(leading[0]) * n + at(leading[1])] += 1;
                }
                let distinct: Vec<u64> = (0..n * n).filter(|at| at / n != at % n).map(|at| two[at]).collect();
                assert!(excess(&first) < MOST, "{rows} rows, of {some:?}: {}", excess(&first));
                assert!(excess(&distinct) < MOST, "{rows} rows, pairs of {some:?}: {}", excess(&distinct));
            }
        }
    }
}
