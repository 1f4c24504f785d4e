//! Levels for processors with a matrix unit: all rows of a tile for 32 queries at a time, written once over the unit
//! ([`Blocks`]) and over what tests its sums ([`BlockLanes`]).
//!
//! A unit multiplies 16 queries with 16 rows, 64 columns at a time, and needs the codes of its queries at a constant
//! distance from each other, so those that are not are copied first.

// Only x86-64 has a unit that is used today.
#![cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]

use super::generic::{Lanes, ROWS};
use super::{Decision, FullTile, Joint, OpenRows, Second, WideTest};
use crate::memory::AlignedVec;
use crate::sketch::TILE;
use crate::sketch::levels::Bounds;

/// Queries that go through a unit together.
pub(super) const QUERIES: usize = 32;

const PARTS: usize = TILE / ROWS;

/// Sums of a block: of each query, those of all rows of a tile.
#[repr(C, align(64))]
pub(super) struct Sums(pub [[i32; TILE]; QUERIES]);

/// A matrix unit.
///
/// # Safety
/// All methods need a processor that has it. `sums` is between `enter` and `leave` on one thread; it needs [`QUERIES`]
/// codes of `bytes` bytes, a positive multiple of 64, `stride` from one to the next, and a tile of interleaved codes of
/// as many bytes.
pub(super) trait Blocks {
    unsafe fn enter();
    unsafe fn leave();
    /// All sums of products of signed queries and unsigned rows. They may wrap around.
    unsafe fn sums(queries: *const i8, stride: usize, rows: *const u8, bytes: usize, out: &mut Sums);
}

/// What tests the sums of a unit, sixteen at a time.
///
/// # Safety
/// As for [`Lanes`]; `add_shifted` and `values` need 16 readable numbers.
pub(super) trait BlockLanes: Lanes {
    /// Sixteen values, one per row.
    type Values: Copy;
    /// Adds `2^shift` times stored sums.
    unsafe fn add_shifted(sums: Self::Sums, stored: *const i32, shift: u32) -> Self::Sums;
    /// Stored values.
    unsafe fn values(stored: *const f32) -> Self::Values;
    /// `values + scale sums`.
    unsafe fn plus(values: Self::Values, sums: Self::Sums, scale: f32) -> Self::Values;
    /// Bits of rows surely inside, and of rows not surely outside, where all errors are part of the test.
    unsafe fn decide(values: Self::Values, test: &WideTest) -> (u16, u16);
}

/// The levels of a unit.
#[derive(Clone, Copy)]
pub(super) struct BlockKernels {
    pub first: JointLevel,
    pub second: SecondLevel,
    pub full: FullLevel,
}

type JointLevel = unsafe fn(&Joint<'_>, &[u32], Option<u64>, &mut Workspace, &mut [u64], &mut [[i32; TILE]]);
type SecondLevel = unsafe fn(&Second<'_>, &OpenRows<'_>, &mut [Decision], &mut [[f32; TILE]]);
type FullLevel = unsafe fn(&FullTile<'_>, &mut Workspace, &[[f32; TILE]], &mut [Decision]);

/// What the levels of a unit work in.
#[derive(Default)]
pub(crate) struct Workspace {
    codes: AlignedVec<i8>,
    sums: Vec<Sums>,
}

impl Workspace {
    fn sums(&mut self) -> (&mut AlignedVec<i8>, &mut [Sums; 3]) {
        if self.sums.is_empty() {
            self.sums.extend((0..3).map(|_| Sums([[0; TILE]; QUERIES])));
        }
        let sums: &mut [Sums] = &mut self.sums;
        (&mut self.codes, sums.try_into().expect("three"))
    }
}

/// From so many queries among [`QUERIES`] that lie next to each other, the others are multiplied, too, since that costs
/// less than copying codes.
const DENSE: usize = 20;

/// Some queries, and where the unit finds their codes.
struct Gathered<'a> {
    queries: &'a [u32],
    codes: *const i8,
    stride: usize,
    /// The number of the query whose sums come first; if codes were copied, sums are in the order of `queries`.
    first: Option<usize>,
}

impl Gathered<'_> {
    /// Where the sums of the query are that is number `q` of these.
    #[inline(always)]
    fn place(&self, q: usize) -> usize {
        self.first.map_or(q, |first| self.queries[q] as usize - first)
    }
}

/// Takes at most [`QUERIES`] of `queries`: in place where many lie next to each other, otherwise copied to `into`, the
/// last one also in place of those that are missing.
///
/// # Safety
/// `codes` has `bytes` bytes, a multiple of 64, of every query, `stride` from one to the next. Numbers of queries
/// ascend.
#[inline(always)]
unsafe fn gather<'a>(
    codes: &[i8],
    stride: usize,
    bytes: usize,
    queries: &mut &'a [u32],
    into: &mut AlignedVec<i8>,
) -> Gathered<'a> {
    let count = codes.len() / stride;
    let most = &queries[..queries.len().min(QUERIES)];
    let first = (most[0] as usize).min(count.saturating_sub(QUERIES));
    let near = most.partition_point(|query| (*query as usize) < first + QUERIES);
    if near >= DENSE.min(most.len()) && count >= QUERIES {
        let (now, later) = queries.split_at(near);
        *queries = later;
        // SAFETY: `QUERIES` codes from the first on are there.
        let codes = unsafe { codes.as_ptr().add(first * stride) };
        return Gathered { queries: now, codes, stride, first: Some(first) };
    }
    let (now, later) = queries.split_at(most.len());
    *queries = later;
    into.resize(QUERIES * bytes);
    let into = into.as_mut_ptr();
    for q in 0..QUERIES {
        let query = now[q.min(now.len() - 1)] as usize;
        // SAFETY: every query has so many codes, and there is room for those of 32.
        unsafe { std::ptr::copy_nonoverlapping(codes.as_ptr().add(query * stride), into.add(q * bytes), bytes) };
    }
    Gathered { queries: now, codes: into, stride: bytes, first: None }
}

/// The first level of all columns that lie interleaved, for all `queries`.
///
/// # Safety
/// As for [`BlockLanes`] and [`Blocks`], and the lengths that [`super::IntKernels`] checks.
#[inline(always)]
pub(super) unsafe fn first<L: BlockLanes, B: Blocks>(
    joint: &Joint<'_>,
    mut queries: &[u32],
    kept_if_open: Option<u64>,
    workspace: &mut Workspace,
    open: &mut [u64],
    kept: &mut [[i32; TILE]],
) {
    let (mut number, mut count) = (0, 0);
    let (keep, keeps_all) = (kept_if_open.unwrap_or(0), kept_if_open.is_none());
    // SAFETY: there are as many masks and kept sums as queries; a tile has as many pairs as rows.
    unsafe {
        B::enter();
        let (codes, [leading, others, _]) = workspace.sums();
        while !queries.is_empty() {
            let block = gather(joint.query_codes, joint.bytes, joint.bytes, &mut queries, codes);
            B::sums(block.codes, block.stride, joint.codes.as_ptr(), joint.split, leading);
            if joint.split < joint.bytes {
                let rows = joint.codes.as_ptr().add(joint.split * TILE);
                B::sums(block.codes.add(joint.split), block.stride, rows, joint.bytes - joint.split, others);
            }
            for (q, query) in block.queries.iter().enumerate() {
                let (terms, at) = (joint.query_terms.get_unchecked(*query as usize), block.place(q));
                let (least, start) = (terms.least_open(joint.bounds), L::start(terms.joint_start));
                let (mask, mut wanted) = (open.get_unchecked_mut(number), 0);
                let kept = kept.get_unchecked_mut(count).as_mut_ptr();
                for p in 0..PARTS {
                    let mut sums =
                        L::add_shifted(start, leading.0.get_unchecked(at).as_ptr().add(p * ROWS), terms.shift);
                    if joint.split < joint.bytes {
                        sums = L::add_shifted(sums, others.0.get_unchecked(at).as_ptr().add(p * ROWS), 0);
                    }
                    L::store(sums, kept.add(p * ROWS));
                    let sums = L::add_pairs(sums, joint.pairs.as_ptr().cast::<f32>().add(p * ROWS), terms.pair);
                    let bits = L::at_least(sums, least);
                    super::set(mask, p, bits);
                    wanted |= u64::from(bits) & (keep >> (p * ROWS));
                }
                // Without a branch, which the processor would mispredict: the next query overwrites what is not kept.
                count += usize::from(wanted != 0 || keeps_all);
                number += 1;
            }
        }
        B::leave();
    }
}

/// The second level: the same sums, compared in both directions, for those sixteen rows of each query of which some are
/// open. `values` has one entry per query.
///
/// # Safety
/// As for [`first`].
#[inline(always)]
pub(super) unsafe fn second<L: BlockLanes>(
    second: &Second<'_>,
    rows: &OpenRows<'_>,
    out: &mut [Decision],
    values: &mut [[f32; TILE]],
) {
    let (bounds, nothing) = (Bounds::of(second.terms), [0; ROWS]);
    // SAFETY: there are as many masks, decisions and values as queries, and at least as many sums.
    unsafe {
        for (i, query) in rows.queries.iter().enumerate() {
            let test = second.query_terms.get_unchecked(*query as usize).test(bounds);
            let sums = rows.sums.get_unchecked(i).as_ptr();
            let (mask, decision) = (*rows.masks.get_unchecked(i), out.get_unchecked_mut(i));
            let values = values.get_unchecked_mut(i).as_mut_ptr();
            *decision = Decision::default();
            for p in 0..PARTS {
                if mask >> (p * ROWS) & 0xffff != 0 {
                    let (at, sums) = (p * ROWS, L::add_shifted(L::start(0), sums.add(p * ROWS), 0));
                    let terms = second.terms.as_ptr().add(at);
                    let (inside, open) = L::test::<false>(sums, nothing.as_ptr(), terms, &test, values.add(at));
                    decision.set(p, inside, open);
                }
            }
        }
    }
}

/// The third and the fourth level at once, for all rows of a tile and all queries of `tile`.
///
/// # Safety
/// As for [`first`].
#[inline(always)]
pub(super) unsafe fn full<L: BlockLanes, B: Blocks>(
    tile: &FullTile<'_>,
    workspace: &mut Workspace,
    values: &[[f32; TILE]],
    out: &mut [Decision],
) {
    // SAFETY: there are as many places and decisions as queries, and values at every place.
    unsafe {
        B::enter();
        let (codes, [third, fourth, refinement]) = workspace.sums();
        let others = tile.stride - tile.third;
        let (mut wide_queries, mut refined_queries, mut number) = (tile.queries, tile.queries, 0);
        while !wide_queries.is_empty() {
            let block = gather(tile.query_codes, tile.stride, tile.stride, &mut wide_queries, codes);
            let (query, stride) = (block.codes, block.stride);
            if tile.third > 0 {
                B::sums(query, stride, tile.codes.as_ptr(), tile.third, third);
            }
            B::sums(query.add(tile.third), stride, tile.codes.as_ptr().add(tile.third * TILE), others, fourth);
            let refined = gather(tile.refinement_codes, tile.leading, tile.leading, &mut refined_queries, codes);
            B::sums(refined.codes, refined.stride, tile.leading_codes.as_ptr(), tile.leading, refinement);
            for (q, query) in block.queries.iter().enumerate() {
                let terms = tile.terms.get_unchecked(*query as usize);
                let finer = tile.refinement_terms.get_unchecked(*query as usize);
                let test = terms.fourth(tile.bounds);
                let place = block.place(q);
                let values = values.get_unchecked(*tile.places.get_unchecked(number)).as_ptr();
                let decision = out.get_unchecked_mut(number);
                number += 1;
                for p in 0..PARTS {
                    let sums = |sums: &Sums, start| {
                        L::add_shifted(L::start(start), sums.0.get_unchecked(place).as_ptr().add(p * ROWS), 0)
                    };
                    let mut value = L::values(values.add(p * ROWS));
                    if tile.third > 0 {
                        value = L::plus(value, sums(third, terms.third_start), terms.third_scale);
                    }
                    value = L::plus(value, sums(refinement, finer.start), finer.scale);
                    value = L::plus(value, sums(fourth, test.start), test.scale);
                    let (inside, open) = L::decide(value, &test);
                    decision.set(p, inside, open);
                }
            }
        }
        B::leave();
    }
}
