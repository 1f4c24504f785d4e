//! What the manifest says of a tree, and whether it can be true.

use super::{Norms, Params};
use crate::element::Storage;
use crate::limits::{MAX_DIM, MAX_FANOUT, MAX_ROWS, MIN_FANOUT, Precision};
use crate::sketch::{Fold, LONGEST, MAX_SECOND, MAX_STEP, Sketch, Steps, TERMS, TILE, Widths, padded, wide_bytes};
use crate::vectors::NormRange;

/// How many rows a tree is over, and of how many dims.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Extent {
    /// Row numbers, those of skipped rows included.
    pub rows: usize,
    pub skipped: usize,
    pub dim: usize,
}

/// The manifest's description of a tree.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meta {
    pub writer: String,
    /// Row numbers, those of skipped rows included.
    pub rows: usize,
    pub skipped: usize,
    pub dim: usize,
    pub storage: Storage,
    pub nodes: usize,
    pub fanout: usize,
    pub leaf_size: usize,
    pub seed: u64,
    pub widths: Widths,
    pub steps: Steps,
    pub fold: Fold,
    pub farthest: f64,
    pub skew: f64,
    pub projection_error: f64,
    pub norms: Norms,
}

impl Meta {
    pub fn new(
        Extent { rows, skipped, dim }: Extent,
        storage: Storage,
        params: &Params,
        norms: Norms,
        nodes: usize,
        sketch: &Sketch,
    ) -> Self {
        let basis = &sketch.basis;
        Meta {
            writer: concat!("captree ", env!("CARGO_PKG_VERSION")).into(),
            rows,
            skipped,
            dim,
            storage,
            nodes,
            fanout: params.fanout,
            leaf_size: params.leaf_size,
            seed: params.seed,
            widths: basis.widths,
            steps: sketch.steps,
            fold: sketch.fold,
            farthest: sketch.farthest,
            skew: basis.skew,
            projection_error: basis.projection_error,
            norms,
        }
    }

    pub fn params(&self) -> Params {
        Params { fanout: self.fanout, leaf_size: self.leaf_size, seed: self.seed }
    }

    /// Rows that have vectors. Asked for once [`Meta::fault`] has found nothing.
    pub fn kept(&self) -> usize {
        self.rows - self.skipped
    }

    pub fn sketch_shapes(&self) -> SketchShapes {
        let kept = self.kept();
        let (tiles, groups) = (kept.div_ceil(TILE), padded(self.widths.second) / 4);
        SketchShapes {
            tile_codes: [tiles.div_ceil(TILE), groups, TILE, 4],
            tile_terms: [tiles.div_ceil(TILE), TERMS],
            row_codes: [tiles, groups, TILE, 4],
            row_terms: [tiles, TERMS],
            wide_codes: [kept, wide_bytes(self.widths)],
        }
    }

    /// Says what no tree can have, if anything.
    pub fn fault(&self) -> Option<String> {
        let unit =
            |r: NormRange| (r.low - 1.0).abs().max((r.high - 1.0).abs()) <= 2.0 * Precision::BFloat16.tolerance();
        if self.rows <= self.skipped || self.rows > MAX_ROWS || self.nodes == 0 || !(1..=MAX_DIM).contains(&self.dim) {
            return Some(format!("expected rows, nodes and 1 to {MAX_DIM} dims, found {self:?}"));
        }
        if Params::new(self.fanout, Some(self.leaf_size), self.seed).is_err() {
            return Some(format!("expected a fanout of {MIN_FANOUT} to {MAX_FANOUT} and a leaf size, found {self:?}"));
        }
        if !unit(self.norms.rows) || !unit(self.norms.centers) {
            return Some(format!("expected unit norms, found {:?}", self.norms));
        }
        None
    }

    /// Says what no sketch can have, if anything.
    pub fn sketch_fault(&self) -> Option<String> {
        let Widths { first, second, third, all } = self.widths;
        if second == 0 || second > self.dim || second > MAX_SECOND {
            let most = self.dim.min(MAX_SECOND);
            return Some(format!("expected a second level of 1 to {most} columns, found {second}"));
        }
        if first == 0 || first > second || (!first.is_multiple_of(4) && first != second) {
            return Some(format!("expected a first level of whole groups of four columns, found {:?}", self.widths));
        }
        if !(second <= third && third <= all && all <= self.dim) {
            return Some(format!("expected levels each as wide as the one before, found {:?}", self.widths));
        }
        // Anything near these ends is no sketch that was ever made; the bounds' slack counts on it.
        if self.steps.each().iter().any(|s| !(0.0..MAX_STEP).contains(s)) {
            return Some(format!("expected code steps from 0 to {MAX_STEP}, found {:?}", self.steps));
        }
        if let Some(what) = self.fold.fault() {
            return Some(what);
        }
        if !(0.0..LONGEST).contains(&self.farthest) {
            return Some(format!("expected rows less than {LONGEST} from their mean, found {}", self.farthest));
        }
        if !(0.0..0.01).contains(&self.skew) || !(0.0..0.01).contains(&self.projection_error) {
            let found = (self.skew, self.projection_error);
            return Some(format!("expected a skew and a projection error below 0.01, found {found:?}"));
        }
        None
    }
}

/// Shapes of the sketch's arrays: tiles, groups of four dims, rows of a tile, four bytes.
pub struct SketchShapes {
    pub tile_codes: [usize; 4],
    pub tile_terms: [usize; 2],
    pub row_codes: [usize; 4],
    pub row_terms: [usize; 2],
    pub wide_codes: [usize; 2],
}
