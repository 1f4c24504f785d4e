//! Counts from a random sample, with an interval of stated confidence.

use rayon::prelude::*;
use statrs::distribution::{Beta, ContinuousCDF};

use crate::caps::Caps;
use crate::control::Call;
use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};
use crate::scan::hits;
use crate::tree::{Tree, with_segments};
use crate::vectors::row;

/// Estimated numbers of rows inside caps.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Unbiased estimates: share of the sample inside, times the rows.
    pub counts: Vec<f64>,
    /// Lower ends of the intervals.
    pub low: Vec<i64>,
    /// Upper ends of the intervals.
    pub high: Vec<i64>,
}

/// Caps that one task tests against the sample.
const BLOCK: usize = 256;

/// A row that can be found takes as many tries as there are rows for each of these; many times more are no chance.
const MOST_TRIES: usize = 100;

impl Tree {
    /// Estimates counts from `samples` rows drawn with replacement and shared by the batch.
    ///
    /// The interval is the one of Clopper and Pearson (1934): for every cap it holds the true count with a probability
    /// of at least `confidence` over the draw of the sample. A tree of at most `samples` rows is counted instead.
    /// Errors: [`Error::InvalidParameter`], and as [`Tree::count`].
    pub fn estimate(
        &self,
        caps: &Caps<'_>,
        samples: usize,
        confidence: f64,
        seed: u64,
        call: &Call,
    ) -> Result<Estimate> {
        if samples == 0 {
            return Err(Error::parameter("samples", "at least 1", 0));
        }
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(Error::parameter("confidence", "a number between 0 and 1", confidence));
        }
        if self.alive() <= samples {
            let counts = self.count(caps, call)?;
            return Ok(Estimate {
                counts: counts.iter().map(|c| *c as f64).collect(),
                low: counts.clone(),
                high: counts,
            });
        }
        self.check_dim(caps)?;
        let mut stream = Key::new(Purpose::Estimate, seed, &[]).stream(0);
        // By number, so that the sample does not depend on where rows stand.
        let mut places = Vec::with_capacity(samples);
        let mut tries = MOST_TRIES * samples * (self.len() / self.alive() + 1);
        while places.len() < samples {
            tries -= 1;
            if tries == 0 {
                return Err(self.corrupt(format!("expected {} rows with vectors, found fewer", self.alive())));
            }
            let row = stream.below(self.len() as u64) as usize;
            if let Some(i) = self.segment_of(row)
                && let Some(position) = self.segments()[i].position(row)?
            {
                places.push((i, position));
            }
        }
        let blocks: Vec<Vec<usize>> =
            (0..caps.len()).collect::<Vec<_>>().chunks(BLOCK).map(<[usize]>::to_vec).collect();
        call.phase("estimate", blocks.len() as u64);
        let hits = call.run(|| {
            with_segments!(self, typed => {
                let sampled = |(i, position): &(usize, usize)| row(typed[*i].array, *position, self.dim());
                let rows = places.iter().map(sampled).collect::<Result<Vec<_>>>()?;
                let of_block = |block: &Vec<usize>| {
                    call.check()?;
                    let mut counts = vec![0u64; block.len()];
                    hits(&rows, caps, block, |cap, _, mask| counts[cap] += u64::from(mask.count_ones()));
                    call.add(1);
                    Ok(counts)
                };
                Ok(blocks.par_iter().map(of_block).collect::<Result<Vec<_>>>()?.concat())
            })
        })?;
        let n = self.alive() as f64;
        let (m, tail) = (samples as f64, (1.0 - confidence) / 2.0);
        let mut result = Estimate { counts: Vec::new(), low: Vec::new(), high: Vec::new() };
        for hit in hits {
            let h = hit as f64;
            // Rounded away from the estimate, so that the interval never loses confidence.
            let low = if hit == 0 { 0.0 } else { quantile(h, m - h + 1.0, tail) };
            let high = if h == m { 1.0 } else { quantile(h + 1.0, m - h, 1.0 - tail) };
            result.counts.push(h / m * n);
            result.low.push(((low * n).floor() as i64).max(i64::from(hit > 0)));
            result.high.push(((high * n).ceil() as i64).min(n as i64 - i64::from(h < m)));
        }
        Ok(result)
    }
}

/// Quantile of the beta distribution; both shapes are at least 1 here, which it always accepts.
fn quantile(a: f64, b: f64, p: f64) -> f64 {
    Beta::new(a, b).map_or(0.5, |beta| beta.inverse_cdf(p))
}
