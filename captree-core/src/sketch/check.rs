//! Checks that stored codes and terms keep what the certified inequality needs of them.

use std::ops::Range;

use super::encode::{GROUP, Sketch, full_width, padded};
use super::{TERMS, TILE, Terms};
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
        let basis = &self.basis;
        let (bytes, width) = (padded(basis.width), full_width(basis.dim));
        let span = |size: usize, tile: usize| -> Range<usize> { tile * size..(tile + 1) * size };
        let row_codes = self.row_codes.slice(span(TILE * bytes, tile))?;
        let row_terms = self.row_terms.slice(span(TILE * TERMS, tile))?;
        let tile_codes = self.tile_codes.slice(span(TILE * bytes, tile / TILE))?;
        let tile_terms = self.tile_terms.slice(span(TILE * TERMS, tile / TILE))?;
        let whole = (code(tile_codes, tile % TILE), terms(tile_terms, tile % TILE));
        let mut z = vec![0.0f32; rows.len() * basis.width];
        basis.project(rows, |_| 1.0, &mut z);
        let mut wide = vec![0.0f32; basis.dim];
        for (r, (row, z)) in rows.iter().zip(z.chunks_exact(basis.width)).enumerate() {
            E::widen(row, &mut wide);
            let position = tile * TILE + r;
            let centered: Vec<f64> = wide.iter().zip(&basis.mean).map(|(x, m)| f64::from(*x) - f64::from(*m)).collect();
            let shift = super::basis::dot(&wide, &basis.mean) - basis.mean_square;
            let square: f64 = centered.iter().map(|x| x * x).sum();
            let projected: Vec<f64> = z.iter().map(|z| f64::from(*z)).collect();
            let full_terms = self.full_terms.get(position)?;
            let full_code = self.full_codes.slice(span(width, position))?.iter().map(|c| f64::from(*c) - 128.0);
            let full = (full_code.collect::<Vec<f64>>(), full_terms);
            // At full width nothing is projected; a projection may come out differently by its error, here and there.
            let error = 2.0 * basis.projection_error;
            let fault = level_fault(&full, &centered, shift, 0.0, 0.0).or_else(|| {
                let own = (code(row_codes, r), terms(row_terms, r));
                let residual = (basis.residual(square, z).powi(2) - 5.0 * error).max(0.0).sqrt();
                level_fault(&own, &projected, shift, residual, error)
                    .or_else(|| level_fault(&whole, &projected, shift, residual, error))
            });
            if let Some(what) = fault {
                return Ok(Some(format!("the sketch of position {position}: {what}")));
            }
        }
        Ok(None)
    }
}

/// Code number `r` of an interleaved tile.
fn code(codes: &[u8], r: usize) -> Vec<f64> {
    let groups = codes.chunks_exact(TILE * GROUP);
    groups.flat_map(|g| &g[r * GROUP..(r + 1) * GROUP]).map(|c| f64::from(*c) - 128.0).collect()
}

/// Terms number `r` of an interleaved tile.
fn terms(terms: &[f32], r: usize) -> Terms {
    let field = |f: usize| terms[f * TILE + r];
    Terms {
        step: field(0),
        shift: field(1),
        rounding: field(2),
        length: field(3),
        residual: field(4),
        spread: field(5),
    }
}

fn level_fault((code, terms): &(Vec<f64>, Terms), z: &[f64], shift: f64, residual: f64, error: f64) -> Option<String> {
    let step = f64::from(terms.step);
    let padding = std::iter::repeat(&0.0);
    let lost: f64 = code.iter().zip(z.iter().chain(padding)).map(|(c, z)| (z - step * c).powi(2)).sum();
    let length = code.iter().map(|c| c * c).sum::<f64>().sqrt() * step;
    let at_most = |name: &str, value: f64, bound: f32, error: f64| {
        let holds = value <= f64::from(bound) * (1.0 + SLACK) + error;
        (!holds).then(|| format!("expected {name} of at least {value}, found {bound}"))
    };
    at_most("rounding", lost.sqrt(), terms.rounding, error)
        .or_else(|| at_most("length", length, terms.length, 0.0))
        .or_else(|| at_most("residual", residual, terms.residual, 0.0))
        .or_else(|| at_most("spread", (shift - f64::from(terms.shift)).abs(), terms.spread, 1e-9))
}
