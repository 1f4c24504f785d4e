//! Exactly uniform and independent draws.
//!
//! A draw tries random rows of the tree and keeps the first that lies inside the cap: given that one of a fixed number
//! of tries succeeds, each row inside is equally likely to be it. A cap whose draw runs out of tries is a needle: its
//! rows are listed, and this draw and the ones after it pick by rank. Whether a draw ran out of tries says nothing about
//! which rows it would have found, so every draw is uniform whichever way it was made, and draws use separate streams of
//! random numbers, so they are independent. (The problem is known as independent range sampling: Hu, Qiao and Tao, 2014.)

use std::collections::HashSet;
use std::ops::Range;

use rayon::prelude::*;

use super::{SampleOptions, keys};
use crate::caps::Caps;
use crate::control::Control;
use crate::element::Element;
use crate::error::Result;
use crate::query::{BATCH, Decider, Sink, Walk, positions_of};
use crate::rng::{Key, Purpose};
use crate::sketch::Queries;
use crate::store::Array;
use crate::threads::Threads;
use crate::tree::Tree;
use crate::vectors::{row, with_elements};

/// Tries after which a cap is encoded for the sketches.
const ENCODE_AFTER: usize = 14;

/// Rows that are listed at a time, about: bounds the memory for lists.
const LISTED: usize = 1 << 26;

/// Draws by rank use the streams from here on, so that no number serves twice.
const RANKS: u64 = 1 << 63;

impl Tree {
    /// `k` rows per cap (`q * k` row numbers), each uniform over the rows inside and independent of all others;
    /// -1 where the cap is empty or, without replacement, has no rows left.
    ///
    /// Errors: [`crate::error::Error::InvalidParameter`] for `k` of 0, and as [`Tree::count`].
    pub fn sample(
        &self,
        caps: &Caps<'_>,
        options: SampleOptions,
        threads: &Threads,
        control: &Control,
    ) -> Result<Vec<i64>> {
        options.check()?;
        self.check_dim(caps)?;
        let keys = keys(caps, Purpose::ExactDraws, options.seed);
        control.phase("sample", caps.len() as u64);
        let mut drawn: Vec<Vec<usize>> = threads.run(|| {
            keys.par_iter()
                .enumerate()
                .map(|(cap, key)| {
                    control.check()?;
                    let drawn = with_elements!(&self.vectors, a => self.reject(a, caps, cap, key, &options))?;
                    control.add(u64::from(drawn.len() == options.k));
                    Ok(drawn)
                })
                .collect::<Result<_>>()
        })?;
        let needles: Vec<usize> = (0..caps.len()).filter(|c| drawn[*c].len() < options.k).collect();
        let expected = |cap: usize| (drawn[cap].len() + 1) * self.len() / self.tries(options.k);
        let batches: Vec<Vec<usize>> = batches(&needles, expected).into_iter().map(<[usize]>::to_vec).collect();
        for batch in &batches {
            let blocks = threads
                .run(|| Walk::new(self, caps, batch, control)?.run(|block| Lists(vec![Vec::new(); block.len()])))?;
            let mut batch = batch.iter();
            for (size, parts) in blocks {
                for (i, cap) in batch.by_ref().take(size).enumerate() {
                    let inside: Vec<u32> = parts.iter().flat_map(|p| &p.0[i]).copied().collect();
                    by_rank(&mut drawn[*cap], &inside, &keys[*cap], &options);
                    control.add(1);
                }
            }
        }
        let mut rows = vec![-1; caps.len() * options.k];
        for (out, positions) in rows.chunks_exact_mut(options.k).zip(&drawn) {
            for (row, position) in out.iter_mut().zip(positions) {
                *row = self.rows.get(*position)?;
            }
        }
        Ok(rows)
    }

    /// Tries per cap: about what listing its rows costs, and a few for each draw.
    fn tries(&self, k: usize) -> usize {
        (self.len() / 256).max(256) + 8 * k
    }

    /// Draws until the cap runs out of tries; returns the tree positions drawn.
    fn reject<E: Element>(
        &self,
        array: &Array<E>,
        caps: &Caps<'_>,
        cap: usize,
        key: &Key,
        options: &SampleOptions,
    ) -> Result<Vec<usize>> {
        let n = self.len() as u64;
        let active = [cap];
        let mut decider = Decider::new(caps, &active);
        let mut queries = None;
        let mut drawn = Vec::with_capacity(options.k);
        let mut taken = HashSet::new();
        let (tries, mut left) = (self.tries(options.k), self.tries(options.k));
        while drawn.len() < options.k {
            let mut stream = key.stream(drawn.len() as u64);
            let (mut size, mut found) = (2, None);
            while left > 0 && found.is_none() {
                // A few candidates at a time hide the latency of memory; wide caps rarely need more than two.
                let candidates: Vec<usize> = (0..size.min(left)).map(|_| stream.below(n) as usize).collect();
                let (mut inside, mut unsure) = (0u64, (1u64 << candidates.len()) - 1);
                // Encoding a cap pays once it needs more than a handful of rows.
                if tries - left >= ENCODE_AFTER {
                    let queries = queries.get_or_insert_with(|| Queries::new(&self.sketch, caps, &active));
                    let full = candidates.iter().map(|p| queries.full(*p..*p + 1)).collect::<Result<Vec<_>>>()?;
                    full.iter().for_each(|row| row.prefetch(0));
                    for (bit, row) in full.iter().enumerate() {
                        if let Some(yes) = row.decide(0, 0) {
                            unsure &= !(1 << bit);
                            inside |= u64::from(yes) << bit;
                        }
                    }
                }
                inside |= decider.decide_some(0, unsure, |bit| row(array, candidates[bit], self.dim()))?;
                found = positions_of(0, inside).map(|i| candidates[i]).find(|p| options.replace || taken.insert(*p));
                left -= candidates.len();
                size = (size * 2).min(32);
            }
            match found {
                Some(position) => drawn.push(position),
                None => break,
            }
        }
        Ok(drawn)
    }
}

/// Cuts caps into batches whose lists of rows fit in memory, going by how often their tries succeeded.
fn batches(needles: &[usize], rows: impl Fn(usize) -> usize) -> Vec<&[usize]> {
    let mut cuts = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (i, cap) in needles.iter().enumerate() {
        if i > start && (i - start == BATCH || sum + rows(*cap) > LISTED) {
            cuts.push(&needles[start..i]);
            (start, sum) = (i, 0);
        }
        sum += rows(*cap);
    }
    if start < needles.len() {
        cuts.push(&needles[start..]);
    }
    cuts
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

/// Tree positions inside each cap of a block.
struct Lists(Vec<Vec<u32>>);

impl Sink for Lists {
    fn all(&mut self, i: usize, positions: Range<usize>) -> Result<()> {
        self.0[i].extend(positions.start as u32..positions.end as u32);
        Ok(())
    }

    fn some(&mut self, i: usize, start: usize, mask: u64) -> Result<()> {
        self.0[i].extend(positions_of(start, mask).map(|p| p as u32));
        Ok(())
    }

    fn is_done(&self, _i: usize) -> bool {
        false
    }
}
