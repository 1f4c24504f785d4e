//! Steps 5 and 6, the third and the fourth level, the wide ones: the rows that the first two levels leave open.
//!
//! Both read codes that lie row by row, since few rows need them: the third level those of more columns, the fourth
//! those of all other columns and the refinement, 8 bits more of the leading ones, to which it adds the refinement of
//! the queries' codes. Both decide in both directions. They cost one byte per row and column. Where queries have many
//! open rows in a tile, its codes are interleaved once, and these queries take all of its rows together; the others
//! take their rows one by one.
//!
//! They are one file because they differ in nothing but which bytes they read, whose terms they test by, and the
//! queries' refinement.

use std::ops::Range;

use super::levels::{Open, Tile};
use super::masks::positions_of;
use super::observer::{Observer, Step};
use super::tiles::TILES_TOGETHER;
use crate::error::Result;
use crate::memory::AlignedVec;
use crate::sketch::kernel::{QUARTER, Quarters, WideRows, WideTest, WideTile};
use crate::sketch::levels::{Bounds, field, third_bytes};
use crate::sketch::{Decision, IntKernels, MANY_ROWS, TILE, Widths, wide_bytes};

/// Open rows, of all queries with many of them, from which interleaving a tile's codes pays.
const MANY_PAIRS: u32 = 240;

/// One of the wide levels, with its buffers.
pub(super) struct Wide {
    step: Step,
    quarters: Quarters,
    many: Many,
    /// Places of the queries that take their rows one by one.
    few: Vec<usize>,
    /// What was read of the last tiles.
    read: [ReadTile; TILES_TOGETHER],
}

/// The queries with many open rows: numbers, places among those that have open rows, tests, what is decided.
#[derive(Default)]
struct Many {
    queries: Vec<u32>,
    places: Vec<usize>,
    tests: Vec<WideTest>,
    decisions: Vec<Decision>,
}

/// What a level has read of a tile.
#[derive(Default)]
pub(super) struct ReadTile {
    tile: Option<usize>,
    fetched: u64,
    interleaved: AlignedVec<u8>,
    is_interleaved: bool,
}

/// The codes of a tile's rows, as the level reads them.
struct Codes<'a> {
    /// From one row to the next, `stride` bytes; a last tile has fewer than 64.
    rows: &'a [u8],
    stride: usize,
    /// The level's bytes of a query's wide code; `rows` starts with them.
    span: Range<usize>,
    bounds: &'a Bounds,
    /// What the third level's columns leave of each row.
    residuals: &'a [f32; TILE],
}

impl Wide {
    pub fn new(step: Step) -> Self {
        Wide { step, quarters: Quarters::default(), many: Many::default(), few: Vec::new(), read: Default::default() }
    }

    /// Decides the open rows, `wanted` of any query; returns which rows any query has left.
    pub fn decide(
        &mut self,
        tile: &Tile<'_>,
        wanted: u64,
        observer: impl Observer,
        open: &mut Open,
        out: &mut [Decision],
    ) -> Result<u64> {
        let span = self.span(tile.codes.widths());
        if span.is_empty() {
            return Ok(wanted);
        }
        let codes = Codes {
            rows: &tile.codes.wide_rows(tile.number)?[span.start..],
            stride: wide_bytes(tile.codes.widths()),
            span,
            bounds: Bounds::of(tile.rows.terms),
            residuals: tile.rows.terms[field::THIRD_RESIDUAL..].first_chunk::<TILE>().expect("a tile"),
        };
        self.read[tile.number % TILES_TOGETHER].fetch(tile.codes.kernels(), tile.number, wanted, &codes);
        if self.step == Step::Fourth {
            self.refine(tile, open);
        }
        if self.list(open) >= MANY_PAIRS {
            self.take_tile(tile, &codes, observer, open, out);
        } else {
            self.few.append(&mut self.many.places);
        }
        self.take_rows(tile, &codes, observer, open, out);
        Ok(keep_left(open, out))
    }

    /// The bytes of a wide code that the level reads.
    fn span(&self, widths: Widths) -> Range<usize> {
        let third = third_bytes(widths);
        if self.step == Step::Third { 0..third } else { third..wide_bytes(widths) }
    }

    #[inline(always)]
    fn test(&self, tile: &Tile<'_>, bounds: &Bounds, query: u32, observer: impl Observer) -> WideTest {
        let terms = tile.codes.wide_terms(query);
        let test = if self.step == Step::Third { terms.third(bounds) } else { terms.fourth(bounds) };
        if observer.counts(self.step) { test } else { test.undecided() }
    }

    /// Adds the refinement of the queries' codes to the values of those sixteen rows among which some are open.
    fn refine(&mut self, tile: &Tile<'_>, open: &mut Open) {
        self.quarters.clear(open.left.len());
        open.left.iter().for_each(|place| self.quarters.note(*place as usize, open.masks[*place as usize]));
        tile.codes.kernels().refine(&tile.rows, &open.queries, &self.quarters, &mut open.values);
    }

    /// Lists the queries with many open rows and those with few; returns the rows of the former, all together.
    fn list(&mut self, open: &Open) -> u32 {
        let (many, few, most) = (&mut self.many, &mut self.few, open.left.len());
        many.queries.resize(most, 0);
        many.places.resize(most, 0);
        few.resize(most, 0);
        // Without a branch, as in the first level.
        let (mut many_count, mut few_count, mut pairs) = (0, 0, 0);
        for place in open.left.iter().map(|place| *place as usize) {
            let rows = open.masks[place].count_ones();
            let are_many = rows >= MANY_ROWS;
            pairs += if are_many { rows } else { 0 };
            (many.queries[many_count], many.places[many_count]) = (open.queries[place], place);
            few[few_count] = place;
            many_count += usize::from(are_many);
            few_count += usize::from(!are_many);
        }
        many.queries.truncate(many_count);
        many.places.truncate(many_count);
        few.truncate(few_count);
        pairs
    }

    /// Decides all rows of the tile together for the queries with many open ones.
    fn take_tile(
        &mut self,
        tile: &Tile<'_>,
        codes: &Codes<'_>,
        observer: impl Observer,
        open: &mut Open,
        out: &mut [Decision],
    ) {
        let mut tests = std::mem::take(&mut self.many.tests);
        tests.clear();
        tests.extend(self.many.queries.iter().map(|query| self.test(tile, codes.bounds, *query, observer)));
        self.many.tests = tests;
        let (many, kernels) = (&mut self.many, tile.codes.kernels());
        many.decisions.resize(many.queries.len(), Decision::default());
        let wide_tile = WideTile {
            codes: self.read[tile.number % TILES_TOGETHER].interleaved(
                kernels,
                codes.rows,
                codes.stride,
                codes.span.len(),
            ),
            bytes: codes.span.len(),
            query_codes: tile.codes.wide_codes(),
            stride: codes.stride,
            from: codes.span.start,
            queries: &many.queries,
            places: &many.places,
            tests: &many.tests,
            residuals: codes.residuals,
        };
        kernels.wide_tile(&wide_tile, &mut open.values, &mut many.decisions);
        for (place, decision) in many.places.iter().zip(&many.decisions) {
            out[open.places[*place]].then(*decision);
        }
    }

    /// Decides the open rows of the other queries one by one.
    fn take_rows(
        &self,
        tile: &Tile<'_>,
        codes: &Codes<'_>,
        observer: impl Observer,
        open: &mut Open,
        out: &mut [Decision],
    ) {
        let rows = WideRows { codes: codes.rows, stride: codes.stride, residuals: codes.residuals };
        let (kernels, query_codes, values) = (tile.codes.kernels(), tile.codes.wide_codes(), &mut *open.values);
        for place in &self.few {
            let (known, query) = (&mut out[open.places[*place]], open.queries[*place]);
            let query_code = &query_codes[query as usize * codes.stride..][codes.span.clone()];
            let test = self.test(tile, codes.bounds, query, observer);
            let decision = kernels.wide_rows(&rows, query_code, open.masks[*place], &mut values[*place], &test);
            known.inside |= decision.inside;
            known.unsure = decision.unsure;
        }
    }
}

impl ReadTile {
    /// Forgets what was read of another tile.
    pub fn start(&mut self, tile: usize) {
        if self.tile != Some(tile) {
            (self.tile, self.fetched, self.is_interleaved) = (Some(tile), 0, false);
        }
    }

    /// Asks for the codes of rows that are wanted and were not asked for yet.
    fn fetch(&mut self, kernels: &IntKernels, tile: usize, wanted: u64, codes: &Codes<'_>) {
        self.start(tile);
        for r in positions_of(0, wanted & !self.fetched) {
            kernels.prefetch(&codes.rows[r * codes.stride..][..codes.span.len()]);
        }
        self.fetched |= wanted;
    }

    /// The first `bytes` of the codes of all `rows`, `stride` bytes from one to the next, interleaved like those of the
    /// second level.
    pub fn interleaved(&mut self, kernels: &IntKernels, rows: &[u8], stride: usize, bytes: usize) -> &[u8] {
        if !self.is_interleaved {
            self.is_interleaved = true;
            self.interleaved.resize(TILE * bytes);
            for start in (0..rows.len().div_ceil(stride)).step_by(QUARTER) {
                kernels.interleave(&rows[start * stride..], stride, bytes, &mut self.interleaved[start * 4..]);
            }
        }
        &self.interleaved
    }
}

/// Keeps the queries that have open rows still; returns which rows any has.
fn keep_left(open: &mut Open, out: &[Decision]) -> u64 {
    let (mut wanted, mut count) = (0, 0);
    for i in 0..open.left.len() {
        let place = open.left[i] as usize;
        let mask = out[open.places[place]].unsure;
        open.masks[place] = mask;
        wanted |= mask;
        open.left[count] = place as u32;
        count += usize::from(mask != 0);
    }
    open.left.truncate(count);
    wanted
}
