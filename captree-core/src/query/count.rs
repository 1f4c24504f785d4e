//! How many rows lie inside each cap.

use std::ops::Range;

use rayon::prelude::*;

use super::walk::{Sink, Walk};
use crate::caps::Caps;
use crate::control::Control;
use crate::error::Result;
use crate::threads::Threads;
use crate::tree::Tree;

/// Counts of a block of caps; memory does not grow with the matches.
struct Counts {
    first: usize,
    counts: Vec<i64>,
}

impl Sink for Counts {
    fn all(&mut self, cap: usize, positions: Range<usize>) -> Result<()> {
        self.counts[cap - self.first] += positions.len() as i64;
        Ok(())
    }

    fn some(&mut self, cap: usize, _start: usize, mask: u64) -> Result<()> {
        self.counts[cap - self.first] += i64::from(mask.count_ones());
        Ok(())
    }

    fn is_done(&self, _cap: usize) -> bool {
        false
    }
}

impl Tree {
    /// Number of rows inside each cap, exactly.
    ///
    /// Errors: [`crate::error::Error::InvalidCaps`] for a wrong dimension, what reading a tree on disk gives, and
    /// [`crate::error::Error::Interrupted`].
    pub fn count(&self, caps: &Caps<'_>, threads: &Threads, control: &Control) -> Result<Vec<i64>> {
        self.check_dim(caps)?;
        let walk = Walk::new(self, caps, control)?;
        let blocks = walk.blocks();
        control.phase("count", (blocks.len() * walk.tasks()) as u64);
        let parts: Vec<Counts> = threads.run(|| {
            (0..blocks.len() * walk.tasks())
                .into_par_iter()
                .map(|job| {
                    let block = &blocks[job / walk.tasks()];
                    let mut sink = Counts { first: block.start, counts: vec![0; block.len()] };
                    let active: Vec<usize> = block.clone().collect();
                    walk.run(&active, job % walk.tasks(), &mut sink)?;
                    control.add(1);
                    Ok(sink)
                })
                .collect::<Result<_>>()
        })?;
        let mut counts = vec![0; caps.len()];
        for part in parts {
            counts[part.first..].iter_mut().zip(part.counts).for_each(|(a, b)| *a += b);
        }
        Ok(counts)
    }
}
