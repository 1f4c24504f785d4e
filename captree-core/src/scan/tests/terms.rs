//! Each term of an error alone: sketches made by hand in which one term has to cover all that a value is off by. With
//! it the decisions are right; without it one must be wrong.

use super::*;
use crate::sketch::Fold;
use crate::sketch::levels::{Bounds, TERMS, field};
use crate::store::Array;

/// Columns are the first axes, rows and queries have coordinates beyond them.
const DIM: usize = 80;
const WIDTHS: Widths = Widths { first: 4, second: 68, third: 72, all: 76 };

/// An axis, and one beside it, of each kind: read by the first level, by the second and refined, by the second and not
/// refined, by the third, by the fourth, by none.
const FIRST: [usize; 2] = [0, 1];
const SECOND: [usize; 2] = [4, 5];
const UNREFINED: [usize; 2] = [64, 65];
const THIRD: [usize; 2] = [68, 69];
const FOURTH: [usize; 2] = [72, 73];
const NONE: usize = 76;

/// The step of all codes, and a coordinate that lies in the middle between two codes.
const STEP: f32 = 1.0 / 64.0;
const HALFWAY: f32 = 32.5 * STEP;
/// One that a code hits.
const CODED: f32 = 32.0 * STEP;

/// Where the numbers of [`Bounds`] start, which are stored as they are declared.
const BOUNDS: usize = TERMS - size_of::<Bounds>() / size_of::<f32>();

/// A term and what it has to cover.
struct Case {
    name: &'static str,
    /// The place of its factor on the side of the rows (of all of them: `places` numbers), and whether it is a tile's.
    factor: usize,
    is_tile: bool,
    /// Coordinates of two rows, which take turns, and of the query.
    rows: [Vec<(usize, f32)>; 2],
    query: Vec<(usize, f32)>,
    steps: Steps,
    /// The mean's coordinate on the first axis.
    mean: f32,
    /// What the stored `shift` is made off by; `spread` is made to say so.
    off: f32,
    /// Takes the term's factor away, if it belongs to the tree.
    folded: Option<fn(&mut Fold)>,
}

impl Case {
    fn of(name: &'static str, factor: usize, row: &[(usize, f32)], query: &[(usize, f32)]) -> Self {
        let (rows, query) = ([row.to_vec(), row.to_vec()], query.to_vec());
        let steps = Steps { first: STEP, second: STEP, third: STEP, fourth: STEP };
        Case { name, factor, is_tile: false, rows, query, steps, mean: 0.0, off: 0.0, folded: None }
    }

    /// What a row's code loses, where a query's loses nothing.
    fn lost(name: &'static str, bound: usize, axis: [usize; 2]) -> Self {
        Case::of(name, BOUNDS + bound, &[(axis[0], HALFWAY)], &[(axis[0], 1.0)])
    }

    /// What a query's code loses, where a row's loses nothing: a small coordinate, between two codes, beside a large
    /// one that the row has not.
    fn length(name: &'static str, bound: usize, axis: [usize; 2]) -> Self {
        let large = 0.996;
        let small = 10.5 / 127.0 * large;
        Case::of(name, BOUNDS + bound, &[(axis[0], CODED)], &[(axis[0], small), (axis[1], large)])
    }

    /// A product of coordinates that the level doesn't read.
    fn left(name: &'static str, factor: usize, axis: usize) -> Self {
        Case::of(name, factor, &[(axis, CODED)], &[(axis, 1.0)])
    }

    fn rows(&self, count: usize) -> Vec<f32> {
        (0..count).flat_map(|r| vector(&self.rows[r % 2])).collect()
    }

    /// The sketch; if not `whole`, without the term's factor.
    fn sketch(&self, rows: &[f32], whole: bool) -> Sketch {
        let at = |p: usize| Ok(&rows[p * DIM..(p + 1) * DIM]);
        let columns = (0..WIDTHS.all * DIM).map(|i| if i % (DIM + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let mut basis = Basis::new(DIM, WIDTHS, vector(&[(FIRST[0], self.mean)]), columns, 0.0, 0.0);
        // Projections on axes are exact.
        basis.projection_error = 0.0;
        let mut sketch = Sketch::with(basis, self.steps, &at, rows.len() / DIM, &Control::default()).unwrap();
        let [mut row_terms, mut tile_terms] =
            [&sketch.row_terms, &sketch.tile_terms].map(|terms| terms.slice(0..terms.len()).unwrap().to_vec());
        if self.off > 0.0 {
            row_terms[field::SHIFT..][..TILE].iter_mut().for_each(|shift| *shift += self.off);
            row_terms[BOUNDS + 15] += self.off;
            sketch.fold.shift_middle += self.off;
            sketch.fold.shift_lost += self.off;
        }
        if let (false, Some(take_away)) = (whole, self.folded) {
            take_away(&mut sketch.fold);
        } else if !whole {
            let terms = if self.is_tile { &mut tile_terms } else { &mut row_terms };
            let places = if self.factor < BOUNDS { TILE } else { 1 };
            terms[self.factor..][..places].fill(0.0);
        }
        (sketch.row_terms, sketch.tile_terms) = (Array::from_vec(row_terms), Array::from_vec(tile_terms));
        sketch
    }
}

fn vector(coordinates: &[(usize, f32)]) -> Vec<f32> {
    let mut out = vec![0.0; DIM];
    coordinates.iter().for_each(|(axis, x)| out[*axis] = *x);
    out
}

/// What the refinement of a query's code loses. Its step fits the largest loss, times the row's step: one of the
/// first level's columns, made large, leaves the others without a refinement. They are many, and each loses a little.
fn query_refinement() -> Case {
    let steps = Steps { first: STEP, second: STEP / 16.0, third: STEP, fourth: STEP };
    let (large, small) = (0.95, 0.04);
    // Steps of the query's codes, as they come out: its largest coordinate of each level is 127 of them.
    let [first, second] = [large / 127.0, small / 127.0];
    let columns = || WIDTHS.first..64;
    let row: Vec<(usize, f32)> = columns().map(|k| (k, 127.0 * steps.second)).collect();
    let mut query: Vec<(usize, f32)> = columns().map(|k| (k, 10.4 * second)).collect();
    query.extend([(FIRST[0], large), (FIRST[1], 20.5 * first), (UNREFINED[0], small)]);
    let rest = 1.0 - query.iter().map(|(_, x)| x * x).sum::<f32>();
    query.push((NONE, rest.max(0.0).sqrt()));
    Case { steps, ..Case::of("leading length", BOUNDS + 5, &row, &query) }
}

fn cases() -> Vec<Case> {
    let opposite = |name, axis: usize| Case {
        is_tile: true,
        rows: [vec![(axis, CODED)], vec![(axis, -CODED)]],
        ..Case::of(name, field::RADIUS, &[], &[(axis, 1.0)])
    };
    let along_mean =
        |name, factor| Case { mean: 0.5, ..Case::of(name, factor, &[(FIRST[0], 0.75)], &[(FIRST[0], 1.0)]) };
    let tile = |case: Case| Case { is_tile: true, ..case };
    let apart = || [vec![(FIRST[0], 0.75)], vec![(FIRST[0], 0.25)]];
    let clipped = Steps { first: 1.0 / 512.0, ..Case::lost("", 0, FIRST).steps };
    let finer = [(FIRST[0], 0.6), (FOURTH[0], 0.8)];
    vec![
        Case::lost("first lost", 0, FIRST),
        Case::length("first length", 1, FIRST),
        Case::lost("second lost", 2, SECOND),
        Case::length("second length", 3, SECOND),
        Case::lost("second lost, not refined", 2, UNREFINED),
        Case::length("second length, not refined", 3, UNREFINED),
        query_refinement(),
        // Beyond what both of the row's codes reach.
        Case { steps: clipped, ..Case::lost("refinement lost", 6, FIRST) },
        // The refinement shares its step with the columns of the fourth level, which makes it too coarse.
        Case::of("refinement length", BOUNDS + 7, &[(FIRST[0], HALFWAY)], &finer),
        Case::lost("unrefined lost", 8, UNREFINED),
        Case::length("unrefined length", 9, UNREFINED),
        Case::lost("third lost", 10, THIRD),
        Case::length("third length", 11, THIRD),
        Case::lost("fourth lost", 12, FOURTH),
        Case::length("fourth length", 13, FOURTH),
        Case::left("residual", BOUNDS + 14, NONE),
        Case { off: 0.01, ..along_mean("spread", BOUNDS + 15) },
        Case { folded: Some(|fold| fold.shift_lost = 0.0), off: 0.01, ..along_mean("folded shift lost", 0) },
        Case { rows: apart(), ..along_mean("folded shift", field::FOLDED) },
        Case { folded: Some(|fold| fold.first.least = 0.0), ..Case::left("least residual", 0, SECOND[0]) },
        Case { rows: [vec![], vec![(SECOND[0], CODED)]], ..Case::left("first residual", field::FOLDED, SECOND[0]) },
        Case::left("second residual", field::SECOND_RESIDUAL, THIRD[0]),
        Case::left("third residual", field::THIRD_RESIDUAL, FOURTH[0]),
        tile(Case::lost("a tile's first lost", 0, FIRST)),
        tile(Case::length("a tile's first length", 1, FIRST)),
        tile(Case::lost("a tile's second lost", 2, SECOND)),
        tile(Case::length("a tile's second length", 3, SECOND)),
        tile(Case::left("a tile's residual", field::SECOND_RESIDUAL, THIRD[0])),
        opposite("radius, first level", FIRST[0]),
        opposite("radius, second level", SECOND[0]),
        tile(Case { rows: apart(), ..along_mean("reach", field::REACH) }),
    ]
}

#[test]
fn every_term_is_needed() {
    for case in cases() {
        let name = case.name;
        let query = vector(&case.query);
        let centers: Vec<f32> =
            [1.0, -1.0].repeat(4).iter().flat_map(|sign| query.iter().map(move |x| sign * x)).collect();
        // Few rows are settled one by one, many together.
        for count in [2, TILE] {
            let rows = case.rows(count);
            let each: Vec<&[f32]> = rows.chunks_exact(DIM).collect();
            let (whole, lacking) = (case.sketch(&rows, true), case.sketch(&rows, false));
            let attack = |sketch: &Sketch| attack(sketch, (DIM, &rows), &centers, |q| q / 2 % 2, 1e-6);
            assert_eq!(whole.tile_fault(0, &each).unwrap(), None, "{name}");
            assert!(lacking.tile_fault(0, &each).unwrap().is_some(), "{name}: not noticed");
            assert!(attack(&whole).is_ok(), "{name}: {:?}", attack(&whole));
            assert!(attack(&lacking).is_err(), "{name}: not needed with {count} rows");
        }
    }
}

#[test]
fn rounded_factors_are_covered() {
    // Factors of the rows' two integers that lie in the middle between two whole numbers, and nothing else to hide
    // behind.
    let query = |c: f32| vec![(FIRST[0], c), (FIRST[1], (1.0 - c * c).sqrt())];
    let rows = [vec![(FIRST[0], 0.75)], vec![(FIRST[0], 0.25)]];
    let shift = Case { rows, mean: 0.5, ..Case::of("shift", 0, &[], &query(0.585)) };
    let query = vec![(FIRST[1], 0.8), (SECOND[0], 0.6)];
    let residual = Case { rows: [vec![], vec![(SECOND[0], CODED)]], ..Case::of("residual", 0, &[], &query) };
    for case in [shift, residual] {
        let rows = case.rows(TILE);
        let query = vector(&case.query);
        let centers: Vec<f32> =
            [1.0, -1.0].repeat(4).iter().flat_map(|sign| query.iter().map(move |x| sign * x)).collect();
        let tried = attack(&case.sketch(&rows, true), (DIM, &rows), &centers, |q| q / 2 % 2, 1e-6);
        assert!(tried.is_ok(), "{}: {tried:?}", case.name);
    }
}
