//! Query caps and what a cap says about a node: inside, outside or crossing.

use crate::distance::f32_error;
use crate::error::{Error, Result};
use crate::limits::{MAX_COS_DISTANCE, Precision};
use crate::vectors::{NormRange, norm};

/// A batch of closed spherical caps {x : 1 - <center, x> <= bound} over the real dot product.
#[derive(Clone, Debug)]
pub struct Caps<'a> {
    dim: usize,
    centers: &'a [f32],
    bounds: &'a [f64],
    norms: Vec<NormRange>,
}

impl<'a> Caps<'a> {
    /// `centers`: `q * dim` coordinates, row by row; `bounds`: `q` cosine distances in [0, 2].
    ///
    /// Centers are taken as given, unit within the widest tolerance of any dtype. Errors: [`Error::InvalidCaps`].
    pub fn new(dim: usize, centers: &'a [f32], bounds: &'a [f64]) -> Result<Self> {
        if dim == 0 || centers.len() != bounds.len() * dim {
            let expected = format!("{} centers of dim {dim}, one per bound", bounds.len());
            return Err(Error::caps(expected, format!("{} coordinates", centers.len())));
        }
        if let Some((i, b)) = bounds.iter().enumerate().find(|(_, b)| !(0.0..=MAX_COS_DISTANCE).contains(*b)) {
            let expected = format!("max_cos_distance in [0, {MAX_COS_DISTANCE}]");
            return Err(Error::caps(expected, format!("{b} for cap {i}")));
        }
        let mut norms = Vec::with_capacity(bounds.len());
        for (i, center) in centers.chunks_exact(dim).enumerate() {
            let length = norm(center);
            // A NaN or an infinite coordinate makes the length one too, and fails this test.
            if !((length - 1.0).abs() <= Precision::BFloat16.tolerance()) {
                return Err(Error::caps("unit centers", format!("length {length} for cap {i}")));
            }
            norms.push(NormRange::of(length));
        }
        Ok(Caps { dim, centers, bounds, norms })
    }

    /// Number of caps.
    pub fn len(&self) -> usize {
        self.bounds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bounds.is_empty()
    }

    /// Number of dimensions.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Center of cap `i`.
    #[inline]
    pub fn center(&self, i: usize) -> &'a [f32] {
        &self.centers[i * self.dim..(i + 1) * self.dim]
    }

    /// Bound of cap `i`.
    #[inline]
    pub fn bound(&self, i: usize) -> f64 {
        self.bounds[i]
    }

    /// What the float32 dot product of a row with center `i` decides.
    pub(crate) fn test(&self, i: usize) -> RowTest {
        RowTest::new(1.0 - self.bounds[i], f32_error(self.dim))
    }

    /// Norm range of center `i`.
    pub(crate) fn norm(&self, i: usize) -> NormRange {
        self.norms[i]
    }
}

/// Thresholds on a float32 dot product: at least `inside` is surely inside, below `outside` surely outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowTest {
    pub inside: f32,
    pub outside: f32,
}

impl RowTest {
    /// For the condition `real dot >= threshold`, where `threshold` is rounded by at most 2^-53 and the float32 dot
    /// product is off by at most `error`.
    pub fn new(threshold: f64, error: f64) -> Self {
        let error = error + f64::EPSILON;
        RowTest { inside: above(threshold + error), outside: below(threshold - error) }
    }
}

/// A float32 surely greater than the real number that `x` stands for within one rounding.
fn above(x: f64) -> f32 {
    (x as f32).next_up().next_up()
}

fn below(x: f64) -> f32 {
    (x as f32).next_down().next_down()
}

/// A node against a query cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Inside,
    Outside,
    Crossing,
}

/// A node's cap as the triangle inequality needs it: the largest angle between its center and its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeAngle {
    cos: f64,
    sin: f64,
}

/// What a dot product of a query and a node's center says of the node's rows depends on these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// The query's norm.
    pub query: NormRange,
    /// The norms of the nodes' centers.
    pub centers: NormRange,
    /// The norms of the rows.
    pub rows: NormRange,
    /// How far the dot product may be from the real one.
    pub error: f64,
}

/// Slack for the few float64 operations in [`NodeAngle`], each off by at most 2^-52 relative to values of at most 2.
const SLACK: f64 = 1e-14;

impl NodeAngle {
    /// `threshold` = 1 - max_cos_distance, so that every row has a real dot product of at least that with the center.
    pub fn new(threshold: f64, center: NormRange, rows: NormRange) -> Self {
        // <c, x> = |c| |x| cos: dividing by the norms that make the quotient smallest gives a lower bound on the
        // cosine.
        let scale = if threshold >= 0.0 { center.high * rows.high } else { center.low * rows.low };
        let cos = (threshold / scale - SLACK).clamp(-1.0, 1.0);
        NodeAngle { cos, sin: ((1.0 - cos) * (1.0 + cos)).sqrt() }
    }

    /// Bounds on <query, row> for all rows of the node, given `dot` = <query, node center> within the error.
    ///
    /// With angles a = (query, center), r = (center, row) <= R, the triangle inequality on the sphere gives
    /// a - R <= (query, row) <= a + R; the cosine falls with the angle.
    pub fn dot_bounds(&self, dot: f64, lengths: &Lengths) -> (f64, f64) {
        let Lengths { query, centers, rows, error } = lengths;
        let cosine = |dot: f64, up: bool| {
            let widen = (dot >= 0.0) == up;
            let scale = if widen { query.low * centers.low } else { query.high * centers.high };
            (dot / scale + if up { SLACK } else { -SLACK }).clamp(-1.0, 1.0)
        };
        let (low, high) = (cosine(dot - error, false), cosine(dot + error, true));
        let sine = |c: f64| ((1.0 - c) * (1.0 + c)).sqrt();
        let most = if high >= self.cos { 1.0 } else { high * self.cos + sine(high) * self.sin + SLACK };
        let least = if low <= -self.cos { -1.0 } else { low * self.cos - sine(low) * self.sin - SLACK };
        let least_scale = if least >= 0.0 { query.low * rows.low } else { query.high * rows.high };
        let most_scale = if most >= 0.0 { query.high * rows.high } else { query.low * rows.low };
        (least * least_scale - SLACK, most * most_scale + SLACK)
    }

    /// Relation to the cap {dot >= 1 - bound}.
    pub fn relation(&self, dot: f64, lengths: &Lengths, bound: f64) -> Relation {
        let (least, most) = self.dot_bounds(dot, lengths);
        let threshold = 1.0 - bound;
        if most < threshold - f64::EPSILON {
            Relation::Outside
        } else if least > threshold + f64::EPSILON {
            Relation::Inside
        } else {
            Relation::Crossing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unit(x: f64, y: f64, z: f64) -> [f32; 3] {
        let n = (x * x + y * y + z * z).sqrt().max(1e-9);
        [(x / n) as f32, (y / n) as f32, (z / n) as f32]
    }

    fn point() -> impl Strategy<Value = [f32; 3]> {
        (-1.0f64..1.0, -1.0f64..1.0, 0.01f64..1.0).prop_map(|(x, y, z)| unit(x, y, z))
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    proptest! {
        #[test]
        fn node_bounds_hold(q in point(), c in point(), x in point(), flip in any::<bool>(), error in 0.0f64..1e-6) {
            let x = if flip { x.map(|v| -v) } else { x };
            let range = |v: &[f32]| NormRange::of(norm(v));
            let angle = NodeAngle::new(dot(&c, &x) - 1e-15, range(&c), range(&x));
            let lengths = Lengths { query: range(&q), centers: range(&c), rows: range(&x), error };
            for shift in [-error, 0.0, error] {
                let (least, most) = angle.dot_bounds(dot(&q, &c) + shift, &lengths);
                prop_assert!(least <= dot(&q, &x) && dot(&q, &x) <= most, "{least} {} {most}", dot(&q, &x));
            }
        }
    }

    #[test]
    fn bad_caps_say_what_came() {
        let bad = |centers: &[f32], bounds: &[f64]| Caps::new(2, centers, bounds).unwrap_err().to_string();
        assert!(bad(&[1.0, 0.0], &[2.5]).contains("got 2.5 for cap 0"));
        assert!(bad(&[1.0, 0.0], &[f64::NAN]).contains("NaN"));
        assert!(bad(&[1.0, 1.0], &[1.0]).contains("got length 1.414"));
        assert!(bad(&[f32::NAN, 1.0], &[1.0]).contains("NaN"));
        assert!(bad(&[1.0], &[1.0]).contains("got 1 coordinates"));
        assert!(Caps::new(2, &[], &[]).unwrap().is_empty());
    }
}
