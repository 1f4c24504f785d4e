//! Integer dot products of a tile of codes with many queries, and the test that follows: one loop, one instantiation per
//! instruction set, chosen once at run time.

mod generic;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

use super::{TERMS, TILE};

/// What a level knows of one query beside its code; the counterpart of [`super::Terms`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueryTerms {
    /// Step of the code.
    pub step: f32,
    /// `<q, mu>`.
    pub offset: f32,
    /// `lambda`.
    pub along: f32,
    /// At least `|a - s_q j|`.
    pub rounding: f32,
    /// At least `|a|`.
    pub length: f32,
    /// At least `|p|`.
    pub residual: f32,
    /// At least `|lambda|`.
    pub spread: f32,
    /// Codes of rows are stored plus 128; this takes the surplus away again.
    pub start: i32,
    /// A value this large, less its error, is inside.
    pub inside: f32,
    /// A value below this, plus its error, is outside.
    pub outside: f32,
    /// What rounding and the basis may hide.
    pub slack: f64,
}

impl QueryTerms {
    /// The test is `real dot >= threshold`.
    pub fn set_threshold(&mut self, threshold: f64) {
        self.inside = super::up(threshold + self.slack);
        self.outside = -super::up(self.slack - threshold);
    }
}

/// One bit per row of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Surely inside.
    pub inside: u64,
    /// Neither surely inside nor surely outside.
    pub unsure: u64,
}

/// Arguments of the tile loop; see [`IntKernels::tile`].
struct Tile<'a> {
    codes: &'a [u8],
    terms: &'a [f32],
    bytes: usize,
    query_codes: &'a [i8],
    query_terms: &'a [QueryTerms],
    queries: &'a [u32],
}

/// The kernels of one instruction set. Holding one proves that the CPU has it.
#[derive(Clone, Copy)]
pub(crate) struct IntKernels {
    name: &'static str,
    tile: unsafe fn(&Tile<'_>, &mut [Decision]),
    dot: unsafe fn(&[u8], &[i8]) -> i32,
}

impl IntKernels {
    /// All kernels that this CPU can run, fastest first; the portable one is always last.
    pub fn available() -> Vec<IntKernels> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        found.extend(x86_64::available());
        found.push(portable::KERNELS);
        found
    }

    /// The fastest kernels of this CPU.
    #[inline]
    pub fn get() -> &'static IntKernels {
        static BEST: OnceLock<IntKernels> = OnceLock::new();
        BEST.get_or_init(|| IntKernels::available()[0])
    }

    /// The instruction set's name, for reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `out[i]` decides the 64 rows of a tile for query `queries[i]`.
    ///
    /// `codes`: 64 rows of `bytes` bytes, interleaved by groups of four; `terms`: [`TERMS`] times 64 numbers;
    /// `query_codes` and `query_terms`: of all queries.
    ///
    /// # Panics
    /// If lengths do not fit.
    #[allow(clippy::too_many_arguments)]
    pub fn tile(
        &self,
        codes: &[u8],
        terms: &[f32],
        bytes: usize,
        query_codes: &[i8],
        query_terms: &[QueryTerms],
        queries: &[u32],
        out: &mut [Decision],
    ) {
        assert!(bytes.is_multiple_of(4) && codes.len() == TILE * bytes && terms.len() == TILE * TERMS);
        assert!(query_codes.len() == query_terms.len() * bytes && out.len() == queries.len());
        assert!(queries.iter().all(|q| (*q as usize) < query_terms.len()));
        let tile = Tile { codes, terms, bytes, query_codes, query_terms, queries };
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.tile)(&tile, out) }
    }

    /// Hints that `codes` will be read soon.
    #[inline]
    pub fn prefetch(&self, codes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        x86_64::prefetch(codes);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = codes;
    }

    /// Sum of products of a row's code (plus 128) and a query's.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of 64.
    #[inline]
    pub fn dot(&self, row: &[u8], query: &[i8]) -> i32 {
        assert!(row.len() == query.len() && row.len().is_multiple_of(64));
        // SAFETY: `self` exists only where the CPU has the instruction set; the lengths were checked above.
        unsafe { (self.dot)(row, query) }
    }
}
