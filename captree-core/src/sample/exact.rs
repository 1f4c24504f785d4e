//! Exact draws: draw `j` of a cap is the row inside that comes first in the seeded order `j` of all rows
//! ([`super::order`]).
//!
//! Two ways find that row, and find the same one:
//!
//! 1. tries: the rows in their order, one after the other, until one lies inside;
//! 2. the list of all rows inside, which the scan makes, and among them the one with the first place.
//!
//! Which way a cap goes is a matter of speed alone. Every cap begins with a few tries. A fixed pilot set of tiles then
//! tells how many rows the caps that are left may hold, and which of them go on with tries.

use std::collections::HashSet;
use std::ops::Range;

use rayon::prelude::*;

use super::order::{Grid, Order, WIDTH};
use super::pilots::{Hits, Pilots};
use super::{SampleOptions, occurrences};
use crate::caps::Caps;
use crate::control::Call;
use crate::element::Element;
use crate::error::Result;
use crate::memory::filled;
use crate::scan::{BATCH, RowDecider, Scan, Sink, positions_of};
use crate::tree::{Tree, Typed, with_segments};
use crate::vectors::row;

/// Tries that every cap may take at first: most caps need few.
const FIRST_TRIES: usize = 96;

/// Rows that a list looks at for the cost of one try.
const ROWS_PER_TRY: usize = 40;

/// Rows that are tested together at most: enough to hide the latency of memory.
const TOGETHER: usize = 32;

/// Rows that are listed at a time, about: bounds the memory for lists.
const LISTED: usize = 1 << 26;

/// Places of an order that are looked up in the time that the places of this many rows take.
const LOOKED_UP: usize = 2;

impl Tree {
    /// `k` rows per cap (`q * k` row numbers), each uniform over the rows inside and independent of all others;
    /// -1 where the cap is empty or, without replacement, has no rows left.
    ///
    /// Errors: [`crate::error::Error::InvalidParameter`] for `k` of 0, and as [`Tree::count`].
    pub fn sample(&self, caps: &Caps<'_>, options: SampleOptions, call: &Call) -> Result<Vec<i64>> {
        options.check()?;
        self.check_dim(caps)?;
        let mut rows = filled(caps.len(), options.k, -1)?;
        let keys = draw_keys(caps, options.seed);
        call.phase("sample", caps.len() as u64);
        if self.alive() > 0 {
            with_segments!(self, typed => {
                let grid = Grid::new(self.len() as u32);
                let sampler = Sampler { tree: self, typed: &typed, caps, keys: &keys, grid, options, call };
                sampler.run(&mut rows)?;
            });
        }
        Ok(rows)
    }
}

/// The keys of the caps' orders. docs/sampling.md says which bytes are hashed.
pub(crate) fn draw_keys(caps: &Caps<'_>, seed: u64) -> Vec<u128> {
    let key = |(content, before): (u128, u64)| {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&content.to_le_bytes());
        bytes[16..24].copy_from_slice(&before.to_le_bytes());
        bytes[24..].copy_from_slice(&seed.to_le_bytes());
        xxhash_rust::xxh3::xxh3_128(&bytes)
    };
    occurrences(caps).map(key).collect()
}

/// A call of [`Tree::sample`].
struct Sampler<'a, E: Element> {
    tree: &'a Tree,
    typed: &'a [Typed<'a, E>],
    caps: &'a Caps<'a>,
    keys: &'a [u128],
    grid: Grid,
    options: SampleOptions,
    call: &'a Call,
}

/// A cap whose draws are not complete.
struct Draws<'a> {
    cap: usize,
    out: &'a mut [i64],
    unfinished: Vec<Draw>,
    /// A guess at how many rows lie inside.
    expected: usize,
    /// Rows that a list has to look at.
    scanned: usize,
}

/// One order that has not given all its rows: its number, and how many of its places were tested.
#[derive(Clone, Copy)]
struct Draw {
    number: usize,
    tested: usize,
}

/// Rows that were tested, and how many of them lie inside.
#[derive(Clone, Copy, Default)]
struct Tested {
    rows: usize,
    inside: usize,
}

impl<E: Element> Sampler<'_, E> {
    fn run(&self, rows: &mut [i64]) -> Result<()> {
        let first = |(cap, out)| {
            let orders = if self.options.replace { self.options.k } else { 1 };
            let unfinished = (0..orders).map(|number| Draw { number, tested: 0 }).collect();
            let mut draws = Draws { cap, out, unfinished, expected: 0, scanned: self.tree.len() };
            self.tries(&mut draws, FIRST_TRIES, Tested::default())?;
            self.call.add(u64::from(draws.unfinished.is_empty()));
            Ok((!draws.unfinished.is_empty()).then_some(draws))
        };
        let left = self.call.run(|| {
            rows.par_chunks_exact_mut(self.options.k).enumerate().map(first).collect::<Result<Vec<Option<Draws<'_>>>>>()
        })?;
        let mut left: Vec<Draws<'_>> = left.into_iter().flatten().collect();
        left.chunks_mut(BATCH).try_for_each(|batch| self.call.run(|| self.rest(batch)))
    }

    /// Completes caps that their first tries have not.
    fn rest(&self, batch: &mut [Draws<'_>]) -> Result<()> {
        let numbers: Vec<usize> = batch.iter().map(|draws| draws.cap).collect();
        let scans = self.typed.iter().map(|typed| Scan::new(typed.segment, self.caps, &numbers, self.call));
        let scans = scans.collect::<Result<Vec<Scan<'_>>>>()?;
        let (mut pilot_rows, mut hits, mut open) = (0, vec![Hits::default(); batch.len()], vec![0; batch.len()]);
        for (typed, scan) in self.typed.iter().zip(&scans) {
            let pilots = Pilots::of(typed.segment.kept());
            pilot_rows += pilots.rows;
            hits.iter_mut().zip(pilots.hits(scan)?).for_each(|(all, some)| *all = *all + some);
            open.iter_mut().zip(scan.open_rows()?).for_each(|(all, some)| *all += some);
        }
        // Rows of an order that the pilot sets stand for: tries meet rows that cannot be found, too.
        let tested = (pilot_rows as u128 * self.tree.len() as u128 / self.tree.alive() as u128) as usize;
        batch.par_iter_mut().zip(hits).zip(open).try_for_each(|((draws, hits), open)| {
            draws.scanned = open;
            self.tries(draws, 0, Tested { rows: tested, inside: hits.surely() })?;
            draws.expected = draws.expected.max(hits.rows * self.tree.len() / tested.max(1));
            self.call.add(u64::from(draws.unfinished.is_empty()));
            Ok(())
        })?;
        let mut left: Vec<&mut Draws<'_>> = batch.iter_mut().filter(|draws| !draws.unfinished.is_empty()).collect();
        let expected: Vec<usize> = left.iter().map(|draws| draws.expected).collect();
        for range in batches(&expected) {
            let part = &mut left[range];
            let caps: Vec<usize> = part.iter().map(|draws| draws.cap).collect();
            let mut inside: Vec<Vec<u32>> = vec![Vec::new(); caps.len()];
            for (typed, scan) in self.typed.iter().zip(&scans) {
                let lists = listed(scan, &numbers, &caps)?;
                inside.par_iter_mut().zip(lists).try_for_each(|(inside, positions)| {
                    self.call.check()?;
                    let rows = positions.iter().map(|p| Ok(typed.segment.row_at(*p as usize)? as u32));
                    inside.extend(rows.collect::<Result<Vec<_>>>()?);
                    Ok(())
                })?;
            }
            part.par_iter_mut().zip(inside).for_each(|(draws, inside)| {
                self.choose(draws, &inside);
                self.call.add(1);
            });
        }
        Ok(())
    }

    fn order(&self, draws: &Draws<'_>, draw: Draw) -> Order {
        Order::new(self.grid, self.keys[draws.cap], draw.number as u64)
    }

    /// Tests rows in their orders: `least` of them, then as many as cost less than a list would, `before` having been
    /// tested elsewhere.
    ///
    /// Some draws at a time take turns, each with as many rows as the others: together they hide the latency of memory.
    fn tries(&self, draws: &mut Draws<'_>, least: usize, before: Tested) -> Result<()> {
        self.call.check()?;
        let (n, active) = (self.tree.len(), [draws.cap]);
        let mut decider = RowDecider::new(self.caps, &active);
        let wanted = if self.options.replace { 1 } else { self.options.k };
        let mut missing = draws.out.iter().filter(|row| **row < 0).count();
        let mut own = Tested::default();
        let list = draws.scanned / ROWS_PER_TRY;
        let goes_on = |own: Tested, missing: usize| {
            let (tested, inside) = (own.rows + before.rows, own.inside + before.inside);
            match self.options.tries {
                Some(most) => own.rows < most,
                None => own.rows < least || inside.saturating_mul(list) > missing * tested,
            }
        };
        let mut waiting = std::mem::take(&mut draws.unfinished).into_iter();
        let mut turns: Vec<(Draw, Order)> = Vec::with_capacity(TOGETHER);
        let mut candidates: Vec<u32> = Vec::with_capacity(TOGETHER);
        while goes_on(own, missing) {
            let free = TOGETHER - turns.len();
            turns.extend(waiting.by_ref().take(free).map(|draw| (draw, self.order(draws, draw))));
            if turns.is_empty() {
                break;
            }
            // About as many for each as a draw has needed so far; one alone would wait for memory too often.
            let fewest = if turns.len() == 1 { 2 } else { 1 };
            let each = (own.rows / (own.inside + 1)).clamp(fewest, TOGETHER / turns.len());
            candidates.clear();
            let places = |draw: &Draw| draw.tested..(draw.tested + each).min(n);
            let places = turns.iter().flat_map(|(draw, order)| places(draw).map(move |place| (order, place as u32)));
            Order::add_rows(places, &mut candidates);
            let mask = self.inside(&mut decider, &candidates)?;
            own.rows += candidates.len();
            let mut first = 0;
            turns.retain_mut(|(draw, _)| {
                let end = (draw.tested + each).min(n);
                let count = end - draw.tested;
                let found = positions_of(0, mask >> first & (u64::MAX >> (64 - count)));
                let mut at = draw.number;
                for candidate in found.map(|i| candidates[first + i]) {
                    // With replacement the draw's own place, otherwise the next free one.
                    while at < draw.number + wanted && draws.out[at] >= 0 {
                        at += 1;
                    }
                    if at == draw.number + wanted {
                        break;
                    }
                    draws.out[at] = i64::from(candidate);
                    own.inside += 1;
                    missing -= 1;
                }
                first += count;
                draw.tested = end;
                end < n && draws.out[draw.number..draw.number + wanted].last().is_some_and(|row| *row < 0)
            });
        }
        let (tested, inside) = (own.rows + before.rows, own.inside + before.inside);
        draws.expected = (inside + 1) * n / tested.max(1);
        draws.unfinished = turns.into_iter().map(|(draw, _)| draw).chain(waiting).collect();
        Ok(())
    }

    /// Bit `i` of the result: row `rows[i]` lies inside the decider's one cap.
    fn inside(&self, decider: &mut RowDecider<'_>, rows: &[u32]) -> Result<u64> {
        let (mut places, mut there) = ([(0, 0); TOGETHER], 0);
        for (bit, row) in rows.iter().enumerate() {
            let row = *row as usize;
            if let Some(i) = self.tree.segment_of(row)
                && let Some(position) = self.typed[i].segment.position(row)?
            {
                places[bit] = (i, position);
                there |= 1 << bit;
            }
        }
        decider.decide_some(0, there, |bit| {
            let (i, position) = places[bit];
            row(self.typed[i].array, position, self.tree.dim)
        })
    }

    /// Completes the draws of a cap from the rows inside.
    fn choose(&self, draws: &mut Draws<'_>, inside: &[u32]) {
        let unfinished = std::mem::take(&mut draws.unfinished);
        if inside.is_empty() {
            return;
        }
        if !self.options.replace {
            let leading = self.order(draws, unfinished[0]).leading(inside, self.options.k);
            draws.out.iter_mut().zip(leading).for_each(|(out, row)| *out = i64::from(row));
            return;
        }
        // An order gives its first row inside after n / |inside| places, about.
        let (n, places) = (self.tree.len(), inside.len() * unfinished.len());
        let members = (inside.len() * inside.len() > LOOKED_UP * n && places > n / 8).then(|| Members::of(n, inside));
        for draw in unfinished {
            let order = self.order(draws, draw);
            let row = match &members {
                Some(members) => members.first(&order, draw.tested as u32),
                None => order.first(inside),
            };
            draws.out[draw.number] = i64::from(row);
        }
    }
}

/// Rows of a list, to be looked up: a bit for each row of the tree.
struct Members(Vec<u64>);

impl Members {
    fn of(n: usize, rows: &[u32]) -> Self {
        let mut bits = vec![0; n.div_ceil(64)];
        rows.iter().for_each(|row| bits[*row as usize / 64] |= 1 << (row % 64));
        Members(bits)
    }

    /// The first of the rows in an order, of which none stands before `place`.
    fn first(&self, order: &Order, mut place: u32) -> u32 {
        loop {
            let rows = order.some(place);
            if let Some(row) = rows.into_iter().find(|row| self.0[*row as usize / 64] >> (row % 64) & 1 != 0) {
                return row;
            }
            place += WIDTH as u32;
        }
    }
}

/// Cuts caps into ranges whose lists of rows fit in memory, going by the rows that each is expected to have.
fn batches(expected: &[usize]) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (i, rows) in expected.iter().enumerate() {
        if i > start && sum + rows > LISTED {
            cuts.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += rows;
    }
    if start < expected.len() {
        cuts.push(start..expected.len());
    }
    cuts
}

/// The tree positions inside those of a scan's `caps` that are `wanted`, which stand in the same order.
fn listed(scan: &Scan<'_>, caps: &[usize], wanted: &[usize]) -> Result<Vec<Vec<u32>>> {
    let set: HashSet<usize> = wanted.iter().copied().collect();
    let blocks = scan.run(|block| Lists::of(block, &set), |_| ())?;
    let (mut caps, mut lists) = (caps.iter(), Vec::with_capacity(wanted.len()));
    for (size, mut parts) in blocks {
        for (i, _) in caps.by_ref().take(size).enumerate().filter(|(_, cap)| set.contains(cap)) {
            lists.push(parts.iter_mut().filter_map(|part| part.0[i].take()).flatten().collect());
        }
    }
    Ok(lists)
}

/// Tree positions inside each cap of a block, for those that are wanted.
struct Lists(Vec<Option<Vec<u32>>>);

impl Lists {
    fn of(block: &[usize], wanted: &HashSet<usize>) -> Self {
        Lists(block.iter().map(|cap| wanted.contains(cap).then(Vec::new)).collect())
    }
}

impl Sink for Lists {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        if let Some(list) = &mut self.0[i] {
            list.extend(positions.start as u32..positions.end as u32);
        }
        Ok(())
    }

    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()> {
        if let Some(list) = &mut self.0[i] {
            list.extend(positions_of(start, mask).map(|p| p as u32));
        }
        Ok(())
    }

    fn is_done(&self, i: usize) -> bool {
        self.0[i].is_none()
    }
}
