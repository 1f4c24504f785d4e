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
use crate::query::{Decider, Sink, Walk, positions_of};
use crate::rng::{Key, Purpose};
use crate::store::Array;
use crate::threads::Threads;
use crate::tree::Tree;
use crate::vectors::{row, with_elements};

/// Caps whose rows are listed at a time: bounds the memory for lists.
const BLOCK: usize = 128;

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
        let walk = Walk::new(self, caps, control)?;
        for block in needles.chunks(BLOCK) {
            let listed = threads.run(|| list(&walk, block))?;
            for (cap, inside) in block.iter().zip(listed) {
                by_rank(&mut drawn[*cap], &inside, &keys[*cap], &options);
                control.add(1);
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

    /// Tries per draw: about what listing the cap's rows costs.
    fn tries(&self) -> usize {
        (self.len() / 16).clamp(64, 1 << 16)
    }

    /// Draws until one runs out of tries; returns the tree positions drawn.
    fn reject<E: Element>(
        &self,
        array: &Array<E>,
        caps: &Caps<'_>,
        cap: usize,
        key: &Key,
        options: &SampleOptions,
    ) -> Result<Vec<usize>> {
        let n = self.len() as u64;
        let mut decider = Decider::new(caps, &[cap]);
        let mut drawn = Vec::with_capacity(options.k);
        let mut taken = HashSet::new();
        for draw in 0..options.k {
            let mut stream = key.stream(draw as u64);
            let (mut left, mut size, mut found) = (self.tries(), 2, None);
            while left > 0 && found.is_none() {
                // A few candidates at a time hide the latency of memory; wide caps rarely need more than two.
                let candidates: Vec<usize> = (0..size.min(left)).map(|_| stream.below(n) as usize).collect();
                let rows = candidates.iter().map(|p| row(array, *p, self.dim())).collect::<Result<Vec<_>>>()?;
                decider.decide(&[cap], &rows, |_, mask| {
                    found = positions_of(0, mask).map(|i| candidates[i]).find(|p| options.replace || taken.insert(*p));
                    Ok(())
                })?;
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
struct Lists<'a> {
    caps: &'a [usize],
    lists: Vec<Vec<u32>>,
}

impl Lists<'_> {
    fn of(&mut self, cap: usize) -> &mut Vec<u32> {
        // The block's caps stand in rising order.
        let at = self.caps.partition_point(|c| *c < cap);
        &mut self.lists[at]
    }
}

impl Sink for Lists<'_> {
    fn all(&mut self, cap: usize, positions: Range<usize>) -> Result<()> {
        self.of(cap).extend(positions.start as u32..positions.end as u32);
        Ok(())
    }

    fn some(&mut self, cap: usize, start: usize, mask: u64) -> Result<()> {
        self.of(cap).extend(positions_of(start, mask).map(|p| p as u32));
        Ok(())
    }

    fn is_done(&self, _cap: usize) -> bool {
        false
    }
}

/// Lists the rows inside each cap, in tree order.
fn list(walk: &Walk<'_>, block: &[usize]) -> Result<Vec<Vec<u32>>> {
    let parts: Vec<Vec<Vec<u32>>> = (0..walk.tasks())
        .into_par_iter()
        .map(|task| {
            let mut sink = Lists { caps: block, lists: vec![Vec::new(); block.len()] };
            walk.run(block, task, &mut sink)?;
            Ok(sink.lists)
        })
        .collect::<Result<_>>()?;
    let mut lists = vec![Vec::new(); block.len()];
    for part in parts {
        lists.iter_mut().zip(part).for_each(|(list, more)| list.extend(more));
    }
    Ok(lists)
}
