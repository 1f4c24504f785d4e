//! The distances that a search reports: as float64, as float32, or none; each the real-number value, rounded once.

use std::ops::Range;

use crate::distance::{Kernels, TILE};
use crate::element::Element;
use crate::error::Result;
use crate::exact;
use crate::scan::positions_of;
use crate::store::Array;
use crate::tree::Segment;
use crate::vectors::with_elements;

/// What a search reports beside rows. Float32 distances cost a fraction of float64 ones, rows alone next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DistanceType {
    /// Rounded to float64.
    #[default]
    Float64,
    /// Rounded to float32.
    Float32,
    /// Rows alone.
    None,
}

/// Distances of the rows found, in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Distances {
    /// Real cosine distances rounded to float64.
    Float64(Vec<f64>),
    /// The same rounded to float32, once.
    Float32(Vec<f32>),
    /// None were asked for.
    None,
}

impl Default for Distances {
    fn default() -> Self {
        Distances::Float64(Vec::new())
    }
}

impl Distances {
    /// None of these, of a type.
    pub(super) fn empty(kind: DistanceType) -> Self {
        match kind {
            DistanceType::Float64 => Distances::Float64(Vec::new()),
            DistanceType::Float32 => Distances::Float32(Vec::new()),
            DistanceType::None => Distances::None,
        }
    }
}

/// Measures rows for one cap after the other.
pub(super) trait Measure {
    type Distance: Copy + Send;
    /// The next rows are for this center.
    fn start(&mut self, center: &[f32]);
    /// Adds the distances of rows from that center: of those that `bits` names among the rows from a tree position on.
    fn extend(&mut self, segment: &Segment, center: &[f32], bits: Bits, out: &mut Vec<Self::Distance>) -> Result<()>;
}

/// Bit `b` of `mask` stands for tree position `start + b`.
#[derive(Clone, Copy)]
pub(super) struct Bits {
    pub start: usize,
    pub mask: u64,
}

impl Bits {
    /// The positions of the bits.
    pub fn positions(self) -> impl Iterator<Item = usize> {
        positions_of(self.start, self.mask)
    }

    /// All positions up to the last bit.
    pub fn range(self) -> Range<usize> {
        self.start..self.start + (u64::BITS - self.mask.leading_zeros()) as usize
    }

    /// The first bits, at most so many.
    pub fn first(self, most: usize) -> Self {
        if most >= self.mask.count_ones() as usize {
            return self;
        }
        let left = (0..most).fold(self.mask, |left, _| left & left.wrapping_sub(1));
        Bits { mask: self.mask & !left, ..self }
    }
}

/// Float64 distances.
#[derive(Default)]
pub(super) struct Exact {
    row: Vec<f32>,
}

impl Measure for Exact {
    type Distance = f64;

    fn start(&mut self, center: &[f32]) {
        self.row.resize(center.len(), 0.0);
    }

    fn extend(&mut self, segment: &Segment, center: &[f32], bits: Bits, out: &mut Vec<f64>) -> Result<()> {
        for position in bits.positions() {
            segment.vectors.widen(position, &mut self.row)?;
            out.push(exact::distance(Kernels::get(), center, &self.row));
        }
        Ok(())
    }
}

/// Float32 distances.
#[derive(Default)]
pub(super) struct Rounded {
    center: Vec<f64>,
    row: Vec<f32>,
    dots: Vec<f64>,
}

impl Rounded {
    fn extend_with<E: Element>(
        &mut self,
        array: &Array<E>,
        center: &[f32],
        bits: Bits,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (d, range) = (center.len(), bits.range());
        let stored = array.slice(range.start * d..range.end * d)?;
        let mut rows: [&[E]; TILE] = [&[]; TILE];
        let mut count = 0;
        for position in bits.positions() {
            rows[count] = &stored[(position - bits.start) * d..][..d];
            count += 1;
        }
        self.dots.resize(count, 0.0);
        Kernels::get().wide(&rows[..count], &self.center, &mut self.dots);
        for (row, dot) in rows.iter().zip(&self.dots) {
            out.push(exact::distance32_of(*dot, d).unwrap_or_else(|| {
                E::widen(row, &mut self.row);
                exact::distance32(Kernels::get(), center, &self.row)
            }));
        }
        Ok(())
    }
}

impl Measure for Rounded {
    type Distance = f32;

    fn start(&mut self, center: &[f32]) {
        self.row.resize(center.len(), 0.0);
        self.center.clear();
        self.center.extend(center.iter().map(|x| f64::from(*x)));
    }

    fn extend(&mut self, segment: &Segment, center: &[f32], bits: Bits, out: &mut Vec<f32>) -> Result<()> {
        with_elements!(&segment.vectors, array => self.extend_with(array, center, bits, out))
    }
}

/// No distances.
pub(super) struct Omitted;

impl Measure for Omitted {
    type Distance = ();

    fn start(&mut self, _: &[f32]) {}

    fn extend(&mut self, _: &Segment, _: &[f32], bits: Bits, out: &mut Vec<()>) -> Result<()> {
        out.resize(out.len() + bits.mask.count_ones() as usize, ());
        Ok(())
    }
}
