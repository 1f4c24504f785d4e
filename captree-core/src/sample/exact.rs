//! Exactly uniform and independent draws.
//!
//! A draw tries random rows and keeps the first that lies inside the cap: given that one of the tries succeeds, each row
//! inside is equally likely to be it. Three ways follow each other, each with its own random numbers:
//!
//! 1. a few tries among all rows, which is enough for wide caps;
//! 2. for the others, more of them among the rows that the tree does not exclude, while they pay;
//! 3. for the needles, a list of all rows inside, and picks by rank.
//!
//! Whether tries pay is decided by how many were made and how many of them succeeded, and for the second way by how many
//! rows of a fixed pilot set's tiles lie inside, found out for all such caps of a batch together. These numbers say nothing about
//! *which* rows were found, so every draw is uniform whichever way it was made; and every draw has streams of random
//! numbers of its own, so draws are independent. (The problem is known as independent range sampling: Hu, Qiao and Tao,
//! 2014.) The sketches decide nothing here but how fast the list comes, so draws are the same on every processor.

use std::collections::HashSet;
use std::ops::Range;

use rayon::prelude::*;

use super::open::Open;
use super::pilots::{Met, Pilots};
use super::{SampleOptions, keys};
use crate::caps::Caps;
use crate::control::Call;
use crate::element::Element;
use crate::error::Result;
use crate::memory::filled;
use crate::rng::{Key, Purpose, Stream};
use crate::scan::{BATCH, RowDecider, Scan, Sink, positions_of};
use crate::store::Array;
use crate::tree::Tree;
use crate::vectors::{row, with_elements};

/// Tries that every draw may take at first: most caps need few.
const FIRST_TRIES: usize = 96;

/// Rows of the tree whose part in a list costs as much as one try.
const ROWS_PER_TRY: usize = 40;

/// Most candidates that are loaded together.
const MOST_AT_ONCE: usize = 32;

/// Rows that are listed at a time, about: bounds the memory for lists.
const LISTED: usize = 1 << 26;

/// Each way of drawing has its own streams, so that no random number serves twice.
const ANYWHERE: u64 = 0;
const LONGER: u64 = 1 << 62;
const RANKS: u64 = 1 << 63;

impl Tree {
    /// `k` rows per cap (`q * k` row numbers), each uniform over the rows inside and independent of all others;
    /// -1 where the cap is empty or, without replacement, has no rows left.
    ///
    /// Errors: [`crate::error::Error::InvalidParameter`] for `k` of 0, and as [`Tree::count`].
    pub fn sample(&self, caps: &Caps<'_>, options: SampleOptions, call: &Call) -> Result<Vec<i64>> {
        options.check()?;
        self.check_dim(caps)?;
        let mut rows = filled(caps.len(), options.k, -1)?;
        let keys = keys(caps, Purpose::ExactDraws, options.seed);
        call.phase("sample", caps.len() as u64);
        let tries = |drawn: Drawn, cap: usize, streams: u64, open: &Open, before: Tried| {
            call.check()?;
            let key = (&keys[cap], streams);
            with_elements!(&self.vectors, a => self.tried(a, caps, cap, open, key, &options, drawn, before))
        };
        let all = Open::all(self);
        let mut drawn: Vec<Drawn> = call.run(|| {
            let first = |cap| tries(Drawn::default(), cap, ANYWHERE, &all, Tried::default());
            (0..caps.len()).into_par_iter().map(first).collect::<Result<_>>()
        })?;
        let left: Vec<usize> = (0..caps.len()).filter(|c| drawn[*c].positions.len() < options.k).collect();
        call.add((caps.len() - left.len()) as u64);
        let pilots = Pilots::of(self.len());
        for left in left.chunks(BATCH) {
            let scan = call.run(|| Scan::new(self, caps, left, call))?;
            let longer: Vec<Drawn> = call.run(|| {
                let met = pilots.met(&scan)?;
                // What a cap would try if all rows were open; many go straight to their lists.
                let wanted = |(cap, met): (&usize, &Met)| {
                    let tried = options.k.saturating_mul(pilots.rows);
                    let pays = met.surely() * (self.len() / ROWS_PER_TRY) > tried;
                    (*cap, if pays { tried / met.rows.max(1) } else { 0 })
                };
                let wanted: Vec<(usize, usize)> = left.iter().zip(&met).map(wanted).collect();
                let open = Open::of(self, caps, &wanted)?;
                let longer = left.par_iter().zip(open).zip(met).map(|((cap, open), met)| {
                    // As if the pilots' rows that are open had been tried: about as many of them as of all rows.
                    let rows = (pilots.rows as u128 * open.rows() as u128 / self.len() as u128) as usize;
                    let before = Tried { rows, inside: met.surely() };
                    let drawn = tries(drawn[*cap].clone(), *cap, LONGER, &open, before)?;
                    let expected = drawn.expected.max(met.rows * self.len() / pilots.rows.max(1));
                    Ok(Drawn { expected, ..drawn })
                });
                longer.collect::<Result<_>>()
            })?;
            left.iter().zip(longer).for_each(|(cap, own)| drawn[*cap] = own);
            let needles: Vec<usize> = left.iter().copied().filter(|c| drawn[*c].positions.len() < options.k).collect();
            call.add((left.len() - needles.len()) as u64);
            let expected: Vec<usize> = needles.iter().map(|c| drawn[*c].expected).collect();
            for range in batches(&expected) {
                listed(&scan, left, &needles[range], call, |cap, inside| {
                    by_rank(&mut drawn[cap].positions, inside, &keys[cap], &options);
                    call.add(1);
                })?;
            }
        }
        let drawn: Vec<Vec<usize>> = drawn.into_iter().map(|d| d.positions).collect();
        for (out, positions) in rows.chunks_exact_mut(options.k).zip(&drawn) {
            for (row, position) in out.iter_mut().zip(positions) {
                *row = self.rows.get(*position)?;
            }
        }
        Ok(rows)
    }

    /// Goes on drawing from the rows that are `open` while that pays, `before` having been tried elsewhere.
    #[allow(clippy::too_many_arguments)]
    fn tried<E: Element>(
        &self,
        array: &Array<E>,
        caps: &Caps<'_>,
        cap: usize,
        open: &Open,
        (key, streams): (&Key, u64),
        options: &SampleOptions,
        mut drawn: Drawn,
        before: Tried,
    ) -> Result<Drawn> {
        let active = [cap];
        let mut decider = RowDecider::new(caps, &active);
        let (n, missing) = (open.rows(), options.k - drawn.positions.len());
        let goes_on = |own: Tried| {
            let (tried, found) = (own.rows + before.rows, own.inside + before.inside);
            (streams == ANYWHERE && own.rows < FIRST_TRIES)
                || found * (n / ROWS_PER_TRY) > (missing - own.inside) * tried
        };
        let pick = |stream: &mut Stream| open.at(stream.below(n as u64) as usize);
        let own = drawn.reject(options, key, streams, goes_on, pick, |candidates| {
            let all = u64::MAX >> (64 - candidates.len());
            decider.decide_some(0, all, |bit| row(array, candidates[bit], self.dim()))
        })?;
        let (tried, found) = (own.rows + before.rows, own.inside + before.inside);
        drawn.expected = (found + 1) * n / tried.max(1);
        Ok(drawn)
    }
}

/// Rows that were tried, and how many of them lie inside.
#[derive(Clone, Copy, Default)]
struct Tried {
    rows: usize,
    inside: usize,
}

/// What a cap has drawn so far.
#[derive(Clone, Default)]
struct Drawn {
    /// Tree positions.
    positions: Vec<usize>,
    /// A guess at how many rows lie inside.
    expected: usize,
}

impl Drawn {
    /// Draws while `goes_on`; `inside` gives the bits of the candidates that lie inside. Returns how many candidates were
    /// tried, and how many draws they made.
    ///
    /// Some draws at a time take turns, each with as many candidates as the others: together they hide the latency of memory.
    fn reject(
        &mut self,
        options: &SampleOptions,
        key: &Key,
        streams: u64,
        goes_on: impl Fn(Tried) -> bool,
        pick: impl Fn(&mut Stream) -> usize,
        mut inside: impl FnMut(&[usize]) -> Result<u64>,
    ) -> Result<Tried> {
        let mut taken: HashSet<usize> =
            if options.replace { HashSet::new() } else { self.positions.iter().copied().collect() };
        let (mut waiting, mut own) = (0..options.k - self.positions.len(), Tried::default());
        let (mut active, mut candidates) = (Vec::with_capacity(MOST_AT_ONCE), Vec::with_capacity(MOST_AT_ONCE));
        while goes_on(own) {
            let free = MOST_AT_ONCE - active.len();
            active.extend(waiting.by_ref().take(free).map(|draw| key.stream(streams + draw as u64)));
            if active.is_empty() {
                break;
            }
            // About as many for each as a draw has needed so far; one alone would wait for memory too often.
            let least = if active.len() == 1 { 2 } else { 1 };
            let each = (own.rows / (own.inside + 1)).clamp(least, MOST_AT_ONCE / active.len());
            candidates.clear();
            for stream in &mut active {
                candidates.extend((0..each).map(|_| pick(stream)));
            }
            let mask = inside(&candidates)?;
            own.rows += candidates.len();
            let mut draw = 0;
            active.retain(|_| {
                let first = draw * each;
                draw += 1;
                let found = positions_of(0, mask >> first & (u64::MAX >> (64 - each)))
                    .map(|i| candidates[first + i])
                    .find(|position| options.replace || taken.insert(*position));
                self.positions.extend(found);
                own.inside += usize::from(found.is_some());
                found.is_none()
            });
        }
        Ok(own)
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

/// Gives `each` the tree positions inside those of a scan's `caps` that are `wanted`.
fn listed(
    scan: &Scan<'_>,
    caps: &[usize],
    wanted: &[usize],
    call: &Call,
    mut each: impl FnMut(usize, &[u32]),
) -> Result<()> {
    let wanted: HashSet<usize> = wanted.iter().copied().collect();
    let blocks = call.run(|| scan.run(|block| Lists::of(block, &wanted), |_| ()))?;
    let mut caps = caps.iter();
    for (size, parts) in blocks {
        for (i, cap) in caps.by_ref().take(size).enumerate().filter(|(_, cap)| wanted.contains(cap)) {
            let inside: Vec<u32> = parts.iter().filter_map(|p| p.0[i].as_ref()).flatten().copied().collect();
            each(*cap, &inside);
        }
    }
    Ok(())
}

/// Completes the draws of a cap from the list of all its rows.
fn by_rank(drawn: &mut Vec<usize>, inside: &[u32], key: &Key, options: &SampleOptions) {
    if options.replace {
        for draw in drawn.len()..options.k {
            if !inside.is_empty() {
                let rank = key.stream(RANKS + draw as u64).below(inside.len() as u64);
                drawn.push(inside[rank as usize] as usize);
            }
        }
        return;
    }
    let taken: HashSet<usize> = drawn.iter().copied().collect();
    let mut left: Vec<usize> = inside.iter().map(|p| *p as usize).filter(|p| !taken.contains(p)).collect();
    for draw in drawn.len()..options.k.min(inside.len()) {
        let rank = key.stream(RANKS + draw as u64).below(left.len() as u64);
        drawn.push(left.swap_remove(rank as usize));
    }
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
