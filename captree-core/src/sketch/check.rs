//! Checks that stored codes and terms keep what the certified inequality needs of them.

use std::ops::Range;

use super::encode::{Sketch, Split, split};
use super::fold::{MOST_STEPS, unpair};
use super::levels::{Bounds, FINER, GROUP, REFINED, TERMS, field, padded, refined_width, third_bytes, wide_bytes};
use super::{TILE, up};
use crate::element::Element;
use crate::error::Result;

/// Relative room for this check's own float64 sums.
const SLACK: f64 = 1e-6;

/// No term is as large: lengths are of vectors shorter than 3, or of at most 512 integer codes.
const LARGEST: f32 = 1e5;

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
        let (basis, bytes) = (&self.basis, padded(self.basis.widths.second));
        let span = |size: usize, at: usize| -> Range<usize> { at * size..(at + 1) * size };
        let (codes, terms) =
            (self.row_codes.slice(span(TILE * bytes, tile))?, self.row_terms.slice(span(TERMS, tile))?);
        let group = tile / TILE;
        let (tile_codes, tile_terms) =
            (self.tile_codes.slice(span(TILE * bytes, group))?, self.tile_terms.slice(span(TERMS, group))?);
        let whole = Interleaved { codes: tile_codes, terms: tile_terms, number: tile % TILE };
        let mut wide = vec![0.0f32; basis.dim];
        let tiles = self.row_terms.len() / TERMS - group * TILE;
        if let Some(what) = terms_fault(terms, rows.len(), true).or_else(|| terms_fault(tile_terms, tiles, false)) {
            return Ok(Some(format!("the sketch of tile {tile}: {what}")));
        }
        for (r, (row, split)) in rows.iter().zip(split(basis, rows, |_| 1.0)).enumerate() {
            E::widen(row, &mut wide);
            let shift = super::basis::dot(&wide, &basis.mean) - basis.mean_square;
            let wide_code = self.wide_codes.slice(span(wide_bytes(basis.widths), tile * TILE + r))?;
            let place = Interleaved { codes, terms, number: r };
            let fault =
                self.row_fault(&place, wide_code, &split, shift).or_else(|| self.mean_fault(&whole, &split, shift));
            if let Some(what) = fault {
                return Ok(Some(format!("the sketch of position {}: {what}", tile * TILE + r)));
            }
        }
        Ok(None)
    }

    /// What a projection comes out differently by on another machine: its error, here and there.
    fn error(&self) -> f64 {
        2.0 * self.basis.projection_error
    }

    fn row_fault(&self, place: &Interleaved<'_>, wide: &[u8], split: &Split, shift: f64) -> Option<String> {
        let (widths, bounds, error) = (self.basis.widths, Bounds::of(place.terms), self.error());
        let (third_codes, others) = wide.split_at(third_bytes(widths));
        let (refinement_codes, fourth_codes) = others.split_at(REFINED);
        let leading = refined_width(widths.second);
        // Over the first columns, the others, those that are refined, and those that are not.
        let (mut lost, mut kept, mut leading_kept, mut refinement) = ([0.0f64; 4], [0.0f64; 4], 0.0f64, [0.0f64; 2]);
        for (k, z) in split.z[..widths.second].iter().enumerate() {
            let (step, i) = (self.steps.of(widths, k), place.code(k));
            let left = f64::from(*z) - step * i;
            for part in [usize::from(k >= widths.first), 2 + usize::from(k >= leading)] {
                (lost[part], kept[part]) = (lost[part] + left.powi(2), kept[part] + (step * i).powi(2));
            }
            if k < leading {
                let finer = f64::from(refinement_codes[k]) - 128.0;
                leading_kept += i * i;
                refinement = [refinement[0] + (left - step / FINER * finer).powi(2), refinement[1] + finer * finer];
            }
        }
        let of_level = |z: &[f32], codes: &[u8], step: f32| {
            z.iter().zip(codes).fold([0.0f64; 2], |[lost, length], (x, code)| {
                let stands_for = f64::from(step) * (f64::from(*code) - 128.0);
                [lost + (f64::from(*x) - stands_for).powi(2), length + stands_for.powi(2)]
            })
        };
        let third = of_level(&split.z[widths.second..widths.third], third_codes, self.steps.third);
        let fourth = of_level(&split.z[widths.third..], fourth_codes, self.steps.fourth);
        at_most("first lost", lost[0].sqrt(), bounds.first_lost, error)
            .or_else(|| at_most("first length", kept[0].sqrt(), bounds.first_length, 0.0))
            .or_else(|| at_most("second lost", lost[1].sqrt(), bounds.second_lost, error))
            .or_else(|| at_most("second length", kept[1].sqrt(), bounds.second_length, 0.0))
            .or_else(|| at_most("leading lost", lost[2].sqrt(), bounds.leading_lost, error))
            .or_else(|| at_most("leading length", leading_kept.sqrt(), bounds.leading_length, 0.0))
            .or_else(|| at_most("refinement lost", refinement[0].sqrt(), bounds.refinement_lost, error))
            .or_else(|| at_most("refinement length", refinement[1].sqrt(), bounds.refinement_length, 0.0))
            .or_else(|| at_most("unrefined lost", lost[3].sqrt(), bounds.unrefined_lost, error))
            .or_else(|| at_most("unrefined length", kept[3].sqrt(), bounds.unrefined_length, 0.0))
            .or_else(|| at_most("third lost", third[0].sqrt(), bounds.third_lost, error))
            .or_else(|| at_most("third length", third[1].sqrt(), bounds.third_length, 0.0))
            .or_else(|| at_most("fourth lost", fourth[0].sqrt(), bounds.fourth_lost, error))
            .or_else(|| at_most("fourth length", fourth[1].sqrt(), bounds.fourth_length, 0.0))
            .or_else(|| at_most("spread", (shift - place.term(field::SHIFT)).abs(), bounds.spread, 1e-9))
            .or_else(|| self.folded_fault(place, split, shift))
            .or_else(|| self.residual_fault(place, split))
            .or_else(|| {
                at_most("third residual", self.left(split, widths.third), place.term(field::THIRD_RESIDUAL) as f32, 0.0)
            })
            .or_else(|| at_most("residual", self.left(split, widths.all), bounds.residual, 0.0))
            .or_else(|| at_most("distance from the mean", split.square.sqrt(), up(self.farthest), 0.0))
    }

    /// The row must lie within the radius and reach of its tile.
    fn mean_fault(&self, whole: &Interleaved<'_>, split: &Split, shift: f64) -> Option<String> {
        let bounds = Bounds::of(whole.terms);
        let (mut far, mut kept) = ([0.0f64; 2], [0.0f64; 2]);
        let widths = self.basis.widths;
        for (k, z) in split.z[..widths.second].iter().enumerate() {
            let stands_for = self.steps.of(widths, k) * whole.code(k);
            let part = usize::from(k >= widths.first);
            far[part] += (f64::from(*z) - stands_for).powi(2);
            kept[part] += stands_for.powi(2);
        }
        // What the code of the mean loses is counted for each part, the rest for both together.
        let beyond = |part: usize, lost: f32| (far[part].sqrt() - f64::from(lost)).max(0.0);
        let rest = beyond(0, bounds.first_lost).hypot(beyond(1, bounds.second_lost));
        let reach = whole.term(field::REACH) as f32;
        at_most("radius", rest, whole.term(field::RADIUS) as f32, self.error())
            .or_else(|| at_most("first length", kept[0].sqrt(), bounds.first_length, 0.0))
            .or_else(|| at_most("second length", kept[1].sqrt(), bounds.second_length, 0.0))
            .or_else(|| at_most("reach", (shift - whole.term(field::SHIFT)).abs(), reach, 1e-9))
            .or_else(|| self.residual_fault(whole, split))
    }

    /// What the first `width` columns leave of a row, at least.
    fn left(&self, split: &Split, width: usize) -> f64 {
        (self.basis.residual(split.square, &split.z[..width]).powi(2) - 5.0 * self.error()).max(0.0).sqrt()
    }

    fn residual_fault(&self, place: &Interleaved<'_>, split: &Split) -> Option<String> {
        let second = self.left(split, self.basis.widths.second);
        at_most("second residual", second, place.term(field::SECOND_RESIDUAL) as f32, 0.0)
    }

    /// What the first level takes a row's shift and residual for.
    fn folded_fault(&self, place: &Interleaved<'_>, split: &Split, shift: f64) -> Option<String> {
        let (fold, integers) = (&self.fold, unpair(place.terms[field::FOLDED + place.number].to_bits()));
        let left = self.left(split, self.basis.widths.first);
        at_most("first residual", left, up(fold.first.residual(integers[0])), 0.0)
            .or_else(|| {
                let most = fold.second.residual(MOST_STEPS);
                at_most("the range of second residuals", place.term(field::SECOND_RESIDUAL), up(most), 0.0)
            })
            .or_else(|| at_most("folded shift", (shift - fold.shift(integers)).abs(), fold.shift_lost, 1e-9))
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

/// The terms of `used` rows, or of tiles, are finite, and all but shifts are lengths. Folded integers of rows are no
/// terms, and nobody looks at places without a row.
fn terms_fault(terms: &[f32], used: usize, of_rows: bool) -> Option<String> {
    let is_wrong = |(i, term): &(usize, &f32)| {
        let is_folded = of_rows && (field::FOLDED..field::FOLDED + TILE).contains(i);
        let is_used = *i >= 4 * TILE || i % TILE < used;
        is_used && !is_folded && !(term.abs() <= LARGEST && (*i < TILE || **term >= 0.0))
    };
    let (i, term) = terms.iter().enumerate().find(is_wrong)?;
    Some(format!("expected terms from 0 to {LARGEST}, found {term} at {i}"))
}

fn at_most(name: &str, value: f64, bound: f32, error: f64) -> Option<String> {
    let holds = value <= f64::from(bound) * (1.0 + SLACK) + error;
    (!holds).then(|| format!("expected {name} of at least {value}, found {bound}"))
}
