//! Checks that stored codes and terms keep what the certified inequality needs of them.

use std::ops::Range;

use super::TILE;
use super::encode::{Sketch, Split, split};
use super::levels::{Bounds, FINE, FINER, GROUP, GROUP_TERMS, ROW_TERMS, field, fine_width, full_bytes, padded};
use crate::element::Element;
use crate::error::Result;

/// Relative room for this check's own float64 sums.
const SLACK: f64 = 1e-6;

impl Sketch {
    /// Says what is wrong with the basis, if anything.
    pub fn basis_fault(&self) -> Option<String> {
        let measured = self.basis.measured_skew();
        // The sums may come out differently by their rounding on another machine.
        (!(measured <= self.basis.skew * (1.0 + SLACK) + 1e-9))
            .then(|| format!("expected a basis with a skew of at most {}, found {measured}", self.basis.skew))
    }

    /// Says what is wrong with the sketch of a tile (by its number) and of its rows, if anything.
    pub fn tile_fault<E: Element>(&self, tile: usize, rows: &[&[E]]) -> Result<Option<String>> {
        let (basis, bytes) = (&self.basis, padded(self.basis.width));
        let span = |size: usize, at: usize| -> Range<usize> { at * size..(at + 1) * size };
        let (codes, terms) =
            (self.row_codes.slice(span(TILE * bytes, tile))?, self.row_terms.slice(span(ROW_TERMS, tile))?);
        let group = tile / TILE;
        let (tile_codes, tile_terms) =
            (self.tile_codes.slice(span(TILE * bytes, group))?, self.tile_terms.slice(span(GROUP_TERMS, group))?);
        let whole = Interleaved { codes: tile_codes, terms: tile_terms, number: tile % TILE };
        let mut wide = vec![0.0f32; basis.dim];
        for (r, (row, split)) in rows.iter().zip(split(basis, rows, |_| 1.0)).enumerate() {
            E::widen(row, &mut wide);
            let shift = super::basis::dot(&wide, &basis.mean) - basis.mean_square;
            let full = self.full_codes.slice(span(full_bytes(basis.dim), tile * TILE + r))?;
            let own = Interleaved { codes, terms, number: r };
            let fault = self.row_fault(&own, full, &split, shift).or_else(|| self.mean_fault(&whole, &split, shift));
            if let Some(what) = fault {
                return Ok(Some(format!("the sketch of position {}: {what}", tile * TILE + r)));
            }
        }
        Ok(None)
    }

    fn step_of(&self, k: usize) -> f64 {
        f64::from(if k < self.basis.first { self.steps.first } else { self.steps.second })
    }

    /// What a projection comes out differently by on another machine: its error, here and there.
    fn error(&self) -> f64 {
        2.0 * self.basis.projection_error
    }

    fn row_fault(&self, own: &Interleaved<'_>, full: &[u8], split: &Split, shift: f64) -> Option<String> {
        let (basis, bounds, error) = (&self.basis, Bounds::of(own.terms), self.error());
        let (mut lost, mut kept, mut lead, mut fine) = ([0.0f64; 3], [0.0f64; 3], 0.0f64, [0.0f64; 2]);
        for (k, z) in split.z.iter().enumerate() {
            let (step, i) = (self.step_of(k), own.code(k));
            let left = f64::from(*z) - step * i;
            let part = usize::from(k >= basis.first);
            (lost[part], kept[part]) = (lost[part] + left.powi(2), kept[part] + (step * i).powi(2));
            if k < fine_width(basis.width) {
                let finer = f64::from(full[k]) - 128.0;
                lead += i * i;
                fine = [fine[0] + (left - step / FINER * finer).powi(2), fine[1] + finer * finer];
            } else {
                (lost[2], kept[2]) = (lost[2] + left.powi(2), kept[2] + (step * i).powi(2));
            }
        }
        let (mut rest_lost, mut rest_kept) = (0.0, 0.0);
        for (x, code) in split.rest.iter().zip(&full[FINE..]) {
            let kept = f64::from(self.steps.rest) * (f64::from(*code) - 128.0);
            (rest_lost, rest_kept) = (rest_lost + (x - kept).powi(2), rest_kept + kept * kept);
        }
        at_most("first lost", lost[0].sqrt(), bounds.first_lost, error)
            .or_else(|| at_most("first length", kept[0].sqrt(), bounds.first_length, 0.0))
            .or_else(|| at_most("second lost", lost[1].sqrt(), bounds.second_lost, error))
            .or_else(|| at_most("second length", kept[1].sqrt(), bounds.second_length, 0.0))
            .or_else(|| at_most("lead length", lead.sqrt(), bounds.lead_length, 0.0))
            .or_else(|| at_most("fine lost", fine[0].sqrt(), bounds.fine_lost, error))
            .or_else(|| at_most("fine length", fine[1].sqrt(), bounds.fine_length, 0.0))
            .or_else(|| at_most("plain lost", lost[2].sqrt(), bounds.plain_lost, error))
            .or_else(|| at_most("plain length", kept[2].sqrt(), bounds.plain_length, 0.0))
            .or_else(|| at_most("rest lost", rest_lost.sqrt(), bounds.rest_lost, 2.0 * error))
            .or_else(|| at_most("rest length", rest_kept.sqrt(), bounds.rest_length, 0.0))
            .or_else(|| at_most("spread", (shift - own.term(field::SHIFT)).abs(), bounds.spread, 1e-9))
            .or_else(|| self.residual_fault(own, split))
    }

    /// The row must lie within the radius and reach of its tile.
    fn mean_fault(&self, whole: &Interleaved<'_>, split: &Split, shift: f64) -> Option<String> {
        let bounds = Bounds::of(whole.terms);
        let (mut far, mut kept) = (0.0f64, [0.0f64; 2]);
        for (k, z) in split.z.iter().enumerate() {
            let own = self.step_of(k) * whole.code(k);
            far += (f64::from(*z) - own).powi(2);
            kept[usize::from(k >= self.basis.first)] += own.powi(2);
        }
        let lost = f64::from(bounds.first_lost).hypot(f64::from(bounds.second_lost));
        let radius = (whole.term(field::RADIUS) + lost) as f32;
        let reach = whole.term(field::REACH) as f32;
        at_most("radius", far.sqrt(), radius, self.error())
            .or_else(|| at_most("first length", kept[0].sqrt(), bounds.first_length, 0.0))
            .or_else(|| at_most("second length", kept[1].sqrt(), bounds.second_length, 0.0))
            .or_else(|| at_most("reach", (shift - whole.term(field::SHIFT)).abs(), reach, 1e-9))
            .or_else(|| self.residual_fault(whole, split))
    }

    fn residual_fault(&self, own: &Interleaved<'_>, split: &Split) -> Option<String> {
        let left = |z: &[f32]| (self.basis.residual(split.square, z).powi(2) - 5.0 * self.error()).max(0.0).sqrt();
        let first = own.term(field::FIRST_RESIDUAL) as f32;
        at_most("first residual", left(&split.z[..self.basis.first]), first, 0.0)
            .or_else(|| at_most("residual", left(&split.z), own.term(field::RESIDUAL) as f32, 0.0))
    }
}

/// One row, or tile, of an interleaved tile, or group.
struct Interleaved<'a> {
    codes: &'a [u8],
    terms: &'a [f32],
    number: usize,
}

impl Interleaved<'_> {
    fn code(&self, k: usize) -> f64 {
        f64::from(self.codes[(k / GROUP * TILE + self.number) * GROUP + k % GROUP]) - 128.0
    }

    fn term(&self, field: usize) -> f64 {
        f64::from(self.terms[field + self.number])
    }
}

fn at_most(name: &str, value: f64, bound: f32, error: f64) -> Option<String> {
    let holds = value <= f64::from(bound) * (1.0 + SLACK) + error;
    (!holds).then(|| format!("expected {name} of at least {value}, found {bound}"))
}
