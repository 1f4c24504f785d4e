//! The dot-product loops, written once over [`Simd`].

use super::Element;

/// No kernel sums fewer chains than this per dot product; the error bound counts on it.
pub(super) const MIN_LANES: usize = 8;

/// A register of `LANES` float32.
///
/// # Safety
/// All methods need the CPU feature of the implementing instruction set; loads need `LANES` readable elements.
pub(crate) trait Simd {
    type V: Copy;
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    unsafe fn load_f32(p: *const f32) -> Self::V;
    unsafe fn load_f16(p: *const half::f16) -> Self::V;
    /// `a * b + c`, fused or not.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    /// As many float64.
    type W: Copy;
    unsafe fn wide_zero() -> Self::W;
    /// `a * b + c` in float64, fused or not, with `LANES` readable numbers at `b`.
    unsafe fn wide_mul_add(a: Self::V, b: *const f64, c: Self::W) -> Self::W;
    unsafe fn wide_sum(v: Self::W) -> f64;
}

/// Dot products of `R` rows with `C` centers, all of length `d`, kept in registers until the end.
///
/// Each (row, center) pair is summed in the same order whatever `R` and `C`, so a result does not depend on where in a
/// tile its row lies.
///
/// # Safety
/// As for [`Simd`]; every row and center has `d` elements and `out` reaches `(C - 1) * stride + R` elements.
#[inline(always)]
unsafe fn block<S: Simd, E: Element, const R: usize, const C: usize>(
    rows: &[&[E]],
    centers: &[&[f32]],
    d: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: `i` stays below d, `r` and `c` below R and C, which are the lengths that this function asks for.
    unsafe {
        let mut acc = [[S::zero(); R]; C];
        let whole = d - d % S::LANES;
        let mut i = 0;
        while i < whole {
            let mut x = [S::zero(); R];
            for r in 0..R {
                x[r] = E::load::<S>(rows.get_unchecked(r).as_ptr().add(i));
            }
            for c in 0..C {
                let q = S::load_f32(centers.get_unchecked(c).as_ptr().add(i));
                for r in 0..R {
                    acc[c][r] = S::mul_add(x[r], q, acc[c][r]);
                }
            }
            i += S::LANES;
        }
        for c in 0..C {
            for r in 0..R {
                let rest = tail(rows.get_unchecked(r), centers.get_unchecked(c), whole);
                *out.add(c * stride + r) = S::sum(acc[c][r]) + rest;
            }
        }
    }
}

/// A whole tile: 4 x 4 blocks and their borders.
///
/// # Safety
/// As for [`super::TileKernel`].
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, E: Element>(rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]) {
    let (n, d) = (rows.len(), centers.first().map_or(0, |c| c.len()));
    let out = out.as_mut_ptr();
    let mut c = 0;
    while c < centers.len() {
        let wide = centers.len() - c >= 4;
        let mut r = 0;
        while r < n {
            let tall = n - r >= 4;
            // SAFETY: the block's rows and centers are in range, and so is its place in `out`.
            unsafe {
                let (x, q, o) = (rows.get_unchecked(r..), centers.get_unchecked(c..), out.add(c * n + r));
                match (tall, wide) {
                    (true, true) => block::<S, E, 4, 4>(x, q, d, o, n),
                    (true, false) => block::<S, E, 4, 1>(x, q, d, o, n),
                    (false, true) => block::<S, E, 1, 4>(x, q, d, o, n),
                    (false, false) => block::<S, E, 1, 1>(x, q, d, o, n),
                }
            }
            r += if tall { 4 } else { 1 };
        }
        c += if wide { 4 } else { 1 };
    }
}

/// Dot products of `rows[i]` with `centers[i]`: eight or four at a time where these share a center, which is then
/// loaded once, otherwise four, to hide the latency of the sums.
///
/// # Safety
/// As for [`super::TileKernel`], but for `out`, which has one element per row and center.
#[inline(always)]
pub(super) unsafe fn pairs<S: Simd, E: Element>(rows: &[&[E]], centers: &[&[f32]], out: &mut [f32]) {
    let d = centers.first().map_or(0, |c| c.len());
    let mut i = 0;
    while i < rows.len() {
        let (rows, centers, out) = (&rows[i..], &centers[i..], &mut out[i..]);
        let share = |n: usize| rows.len() >= n && centers[1..n].iter().all(|c| std::ptr::eq(*c, centers[0]));
        // SAFETY: every row and center has `d` elements, and there are as many rows and places as a block takes.
        i += unsafe {
            if share(8) {
                block::<S, E, 8, 1>(rows, centers, d, out.as_mut_ptr(), 8);
                8
            } else if share(4) {
                block::<S, E, 4, 1>(rows, centers, d, out.as_mut_ptr(), 4);
                4
            } else {
                four_pairs::<S, E>(rows, centers, d, out)
            }
        };
    }
}

/// The first four pairs, or all that there are; returns their number.
///
/// # Safety
/// As for [`pairs`]; every row and center has `d` elements.
#[inline(always)]
unsafe fn four_pairs<S: Simd, E: Element>(rows: &[&[E]], centers: &[&[f32]], d: usize, out: &mut [f32]) -> usize {
    let (whole, last) = (d - d % S::LANES, rows.len().min(4) - 1);
    // SAFETY: the last pair stands in for those that are missing, and every row and center has `d` elements.
    unsafe {
        let mut acc = [S::zero(); 4];
        for i in (0..whole).step_by(S::LANES) {
            for p in 0..4 {
                let x = E::load::<S>(rows.get_unchecked(p.min(last)).as_ptr().add(i));
                let q = S::load_f32(centers.get_unchecked(p.min(last)).as_ptr().add(i));
                acc[p] = S::mul_add(x, q, acc[p]);
            }
        }
        for p in 0..=last {
            out[p] = S::sum(acc[p]) + tail(rows[p], centers[p], whole);
        }
    }
    last + 1
}

/// What stands behind the last whole register. It has fewer than LANES products; summed apart in MIN_LANES chains.
#[inline(always)]
fn tail<E: Element>(row: &[E], center: &[f32], whole: usize) -> f32 {
    if whole == center.len() {
        return 0.0;
    }
    let mut tail = [0.0f32; MIN_LANES];
    for (t, (x, q)) in row[whole..].iter().zip(&center[whole..]).enumerate() {
        tail[t % MIN_LANES] += x.to_f32() * q;
    }
    tail.iter().sum()
}

/// Error-free sum: `a + b = s + e` exactly (Knuth's TwoSum).
#[inline(always)]
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let z = s - a;
    (s, (a - (s - z)) + (b - z))
}

/// Float64 dot products of `R` rows with a center.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn wide_block<S: Simd, E: Element, const R: usize>(rows: &[&[E]], center: &[f64], out: *mut f64) {
    // SAFETY: `i` stays below the length of rows and center, and `r` below R.
    unsafe {
        let mut acc = [S::wide_zero(); R];
        let whole = center.len() - center.len() % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            for r in 0..R {
                let x = E::load::<S>(rows.get_unchecked(r).as_ptr().add(i));
                acc[r] = S::wide_mul_add(x, center.as_ptr().add(i), acc[r]);
            }
        }
        for r in 0..R {
            let mut tail = [0.0f64; MIN_LANES];
            for (t, (x, q)) in rows.get_unchecked(r)[whole..].iter().zip(&center[whole..]).enumerate() {
                tail[t % MIN_LANES] += f64::from(x.to_f32()) * q;
            }
            *out.add(r) = S::wide_sum(acc[r]) + tail.iter().sum::<f64>();
        }
    }
}

/// Float64 dot products of rows with a center, four at a time.
///
/// # Safety
/// As for [`Simd`]; every row has as many elements as the center, and `out` as many as there are rows.
#[inline(always)]
pub(super) unsafe fn wide<S: Simd, E: Element>(rows: &[&[E]], center: &[f64], out: &mut [f64]) {
    let mut r = 0;
    while r < rows.len() {
        // SAFETY: so many rows and places are left.
        r += unsafe {
            let (rows, out) = (rows.get_unchecked(r..), out.as_mut_ptr().add(r));
            if rows.len() >= 4 {
                wide_block::<S, E, 4>(rows, center, out);
                4
            } else {
                wide_block::<S, E, 1>(rows, center, out);
                1
            }
        };
    }
}

/// Compensated dot product; the lanes vectorize under the caller's target features.
#[inline(always)]
pub(super) fn pair(a: &[f32], b: &[f32]) -> (f64, f64) {
    const LANES: usize = 16;
    let (mut sum, mut err) = ([0.0f64; LANES], [0.0f64; LANES]);
    // Arrays of a known length keep the sums in registers.
    let ((ac, at), (bc, bt)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (x, y) in ac.iter().zip(bc) {
        for l in 0..LANES {
            let (s, e) = two_sum(sum[l], f64::from(x[l]) * f64::from(y[l]));
            sum[l] = s;
            err[l] += e;
        }
    }
    for (l, (x, y)) in at.iter().zip(bt).enumerate() {
        let (s, e) = two_sum(sum[l], f64::from(*x) * f64::from(*y));
        sum[l] = s;
        err[l] += e;
    }
    let (mut hi, mut lo) = (0.0, 0.0);
    for l in 0..LANES {
        let (s, e) = two_sum(hi, sum[l]);
        hi = s;
        lo += e + err[l];
    }
    two_sum(hi, lo)
}
