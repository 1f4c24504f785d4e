//! Whole trees against a naive oracle: every query, on rows that are random, equal, opposite or clustered, built at
//! once or appended, some of them deleted.

use proptest::prelude::*;

use crate::distance::Kernels;
use crate::{
    Batch, Call, Caps, DistanceType, Distances, Error, Ingest, Params, RangeResult, Rows, SampleOptions, SearchOptions,
    Storage, Tree, exact,
};

/// Unit rows of `dim` dims: clusters of equal, near and opposite rows.
fn rows() -> impl Strategy<Value = (usize, Vec<f32>)> {
    (1usize..12, 1usize..300).prop_flat_map(|(dim, n)| {
        let row = (prop::collection::vec(-1.0f32..1.0, dim), 0usize..4);
        (Just(dim), prop::collection::vec(row, n)).prop_map(|(dim, raw)| {
            let mut out: Vec<f32> = Vec::with_capacity(raw.len() * dim);
            for (i, (x, kind)) in raw.iter().enumerate() {
                let earlier = (i / 2) * dim..(i / 2 + 1) * dim;
                let mut x: Vec<f64> = match kind {
                    0 if i > 1 => out[earlier].iter().map(|v| f64::from(*v)).collect(),
                    1 if i > 1 => out[earlier].iter().map(|v| -f64::from(*v)).collect(),
                    2 => x.iter().map(|v| 1.0 + 0.01 * f64::from(*v)).collect(),
                    _ => x.iter().map(|v| f64::from(*v)).collect(),
                };
                let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
                if norm < 1e-3 {
                    x = vec![0.0; dim];
                    x[i % dim] = 1.0;
                } else {
                    x.iter_mut().for_each(|v| *v /= norm);
                }
                out.extend(x.iter().map(|v| *v as f32));
            }
            (dim, out)
        })
    })
}

fn ingest(rows: &[f32], dim: usize, storage: Storage, call: &Call) -> Rows {
    let mut ingest = Ingest::new(storage, false);
    ingest.push(Batch::F32(rows), dim, call).unwrap();
    ingest.finish().unwrap()
}

fn build(rows: &[f32], dim: usize, storage: Storage, params: Params, call: &Call) -> Tree {
    Tree::build(ingest(rows, dim, storage, call), &params, None, call).unwrap()
}

/// The tree of rows that come in parts, without those of the numbers `dead`.
fn grown(parts: &[&[f32]], dim: usize, storage: Storage, params: Params, dead: &[i64], call: &Call) -> Tree {
    let mut tree = build(parts[0], dim, storage, params, call);
    for part in &parts[1..] {
        let before = tree.len();
        let (more, added) = tree.append(ingest(part, dim, storage, call), call).unwrap();
        assert_eq!((tree.len(), added), (before, before..before + part.len() / dim));
        tree = more;
    }
    let (less, gone) = tree.delete(dead).unwrap();
    assert_eq!((less.len(), less.alive() + gone), (tree.len(), tree.alive()));
    less
}

/// The stored rows, widened.
fn stored(tree: &Tree) -> Vec<Vec<f32>> {
    let all: Vec<i64> = (0..tree.len() as i64).collect();
    let values = match tree.storage() {
        Storage::Float16 => tree.take_f16(&all).unwrap().iter().map(|x| x.to_f32()).collect(),
        Storage::Float32 => tree.take_f32(&all).unwrap(),
    };
    values.chunks_exact(tree.dim()).map(<[f32]>::to_vec).collect()
}

/// Rows inside and their distances, nearest first, by exact sums alone.
fn oracle(stored: &[Vec<f32>], dead: &[i64], center: &[f32], bound: f64) -> Vec<(f64, i64)> {
    let kernels = Kernels::available().pop().unwrap();
    let inside = |x: &Vec<f32>| exact::is_inside(&kernels, center, x, bound);
    let mut found: Vec<(f64, i64)> = stored
        .iter()
        .enumerate()
        .filter(|(row, x)| !dead.contains(&(*row as i64)) && inside(x))
        .map(|(row, x)| (exact::distance(&kernels, center, x), row as i64))
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn every_query_agrees_with_the_oracle(
        (dim, rows) in rows(), fanout in 2usize..9, leaf_size in 1usize..40, half in any::<bool>(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), -1i64..2), 1..9),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        dead in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let storage = if half { Storage::Float16 } else { Storage::Float32 };
        let (one, two) = (Call::new(Some(1)).unwrap(), Call::new(Some(2)).unwrap());
        let params = Params::new(fanout, Some(leaf_size), 5).unwrap();
        let n = rows.len() / dim;
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(n)).chain([0, n]).collect();
        ends.sort_unstable();
        ends.dedup();
        let parts: Vec<&[f32]> = ends.windows(2).map(|ends| &rows[ends[0] * dim..ends[1] * dim]).collect();
        let mut dead: Vec<i64> = dead.iter().map(|row| row.index(n) as i64).collect();
        let tree = grown(&parts, dim, storage, params, &dead, &two);
        tree.verify(&two).unwrap();
        prop_assert!(tree.nodes() == grown(&parts, dim, storage, params, &dead, &one).nodes());
        let stored = stored(&build(&rows, dim, storage, params, &one));
        dead.sort_unstable();
        dead.dedup();
        prop_assert_eq!((tree.deleted(), tree.skipped().unwrap()), (dead.clone(), Vec::new()));
        prop_assert_eq!(tree.alive(), n - dead.len());
        // Centers are rows as they came in; bounds are the distance of some row, or one ulp to either side.
        let (mut centers, mut bounds) = (Vec::new(), Vec::new());
        for (c, r, ulps) in &picks {
            let center = &rows[c.index(stored.len()) * dim..][..dim];
            let distance = exact::distance(Kernels::get(), center, &stored[r.index(stored.len())]);
            let moved = match ulps { -1 => distance.next_down(), 1 => distance.next_up(), _ => distance };
            centers.extend_from_slice(center);
            bounds.push(moved.clamp(0.0, 2.0));
        }
        let caps = Caps::new(dim, &centers, &bounds).unwrap();
        let want: Vec<_> = (0..caps.len()).map(|i| oracle(&stored, &dead, caps.center(i), bounds[i])).collect();

        let counts: Vec<i64> = want.iter().map(|w| w.len() as i64).collect();
        prop_assert_eq!(&tree.count(&caps, &two).unwrap(), &counts);

        let options = SearchOptions { sort: true, ..SearchOptions::default() };
        let found = tree.search(&caps, options, &two).unwrap();
        let expected = RangeResult {
            offsets: (0..=counts.len()).map(|i| counts[..i].iter().sum()).collect(),
            rows: want.iter().flatten().map(|f| f.1).collect(),
            distances: Distances::Float64(want.iter().flatten().map(|f| f.0).collect()),
        };
        prop_assert_eq!(&found, &expected);
        let narrowed = |found: &RangeResult| match &found.distances {
            Distances::Float32(distances) => distances.iter().map(|d| f64::from(*d)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let single = |sort| SearchOptions { sort, distances: DistanceType::Float32, ..SearchOptions::default() };
        let (sorted, unsorted) =
            (tree.search(&caps, single(true), &two).unwrap(), tree.search(&caps, single(false), &one).unwrap());
        prop_assert_eq!((&sorted.offsets, &sorted.rows), (&expected.offsets, &expected.rows));
        for (near, far) in narrowed(&sorted).iter().zip(want.iter().flatten()) {
            prop_assert!((near - far.0).abs() <= far.0.abs() * 2f64.powi(-24) + f64::from(f32::MIN_POSITIVE));
        }
        // However they are found, float32 distances are the same, and in tree order so are the rows of all types.
        let pairs = |found: &RangeResult| {
            let mut pairs: Vec<(i64, u64)> =
                found.rows.iter().copied().zip(narrowed(found).into_iter().map(f64::to_bits)).collect();
            found.offsets.windows(2).for_each(|ends| pairs[ends[0] as usize..ends[1] as usize].sort_unstable());
            pairs
        };
        prop_assert_eq!(pairs(&sorted), pairs(&unsorted));
        for distances in [DistanceType::Float64, DistanceType::None] {
            let other = tree.search(&caps, SearchOptions { distances, ..SearchOptions::default() }, &two).unwrap();
            prop_assert_eq!((&other.offsets, &other.rows), (&unsorted.offsets, &unsorted.rows));
            prop_assert_eq!(other.distances == Distances::None, distances == DistanceType::None);
        }
        let nearest_three = SearchOptions { limit: Some(3), ..options };
        let some = tree.search(&caps, nearest_three, &one).unwrap();
        prop_assert_eq!(some.rows, want.iter().flat_map(|w| w.iter().take(3)).map(|f| f.1).collect::<Vec<_>>());

        let nearest = tree.nearest(&centers, 4, &two).unwrap();
        for (i, got) in nearest.rows.chunks_exact(4).enumerate() {
            let all = oracle(&stored, &dead, caps.center(i), 4.0);
            let expected: Vec<i64> = (0..4).map(|j| all.get(j).map_or(-1, |f| f.1)).collect();
            prop_assert_eq!(got, &expected[..]);
        }

        for replace in [true, false] {
            let options = SampleOptions::new(5, replace, 11);
            let drawn = tree.sample(&caps, options, &two).unwrap();
            prop_assert_eq!(&drawn, &tree.sample(&caps, options, &one).unwrap());
            for (i, got) in drawn.chunks_exact(5).enumerate() {
                let real: Vec<i64> = got.iter().copied().filter(|r| *r >= 0).collect();
                let expected = if replace && counts[i] > 0 { 5 } else { counts[i].min(5) };
                prop_assert_eq!(real.len() as i64, expected);
                prop_assert!(real.iter().all(|r| want[i].iter().any(|f| f.1 == *r)));
                if !replace {
                    prop_assert_eq!(real.iter().collect::<std::collections::HashSet<_>>().len(), real.len());
                }
            }
        }
        let rough = tree.estimate(&caps, 64, 0.99, 3, &two).unwrap();
        prop_assert!((0..caps.len()).all(|i| rough.low[i] <= rough.high[i] && rough.high[i] <= tree.alive() as i64));
    }
}

#[test]
fn draws_are_uniform_whichever_way_they_are_made() {
    // Draws of a wide cap are found by tries, those of a narrow one in the list of its rows.
    let n = 4000;
    let rows: Vec<f32> = (0..n)
        .flat_map(|i| {
            let angle = std::f64::consts::TAU * f64::from(i) / f64::from(n);
            [angle.cos() as f32, angle.sin() as f32]
        })
        .collect();
    let call = Call::new(Some(2)).unwrap();
    let tree = build(&rows, 2, Storage::Float32, Params::new(8, Some(64), 1).unwrap(), &call);
    let center = [1.0f32, 0.0];
    for bound in [1.0, 1e-2, 1e-4] {
        let (centers, bounds) = (center.repeat(20_000), vec![bound; 20_000]);
        let caps = Caps::new(2, &centers, &bounds).unwrap();
        let inside = tree.count(&Caps::new(2, &center, &[bound]).unwrap(), &call).unwrap()[0];
        let drawn = tree.sample(&caps, SampleOptions::new(1, true, 7), &call).unwrap();
        let mut seen = std::collections::HashMap::new();
        drawn.iter().for_each(|r| *seen.entry(*r).or_insert(0.0) += 1.0);
        let expected = 20_000.0 / inside as f64;
        let missing = (inside as usize - seen.len()) as f64 * expected;
        let chi2: f64 = seen.values().map(|c: &f64| (c - expected).powi(2) / expected).sum::<f64>() + missing;
        // Six standard deviations of a chi-square with inside - 1 degrees of freedom.
        let freedom = inside as f64 - 1.0;
        assert!(chi2 < freedom + 6.0 * (2.0 * freedom).sqrt() + 20.0, "{chi2} for {freedom} degrees of freedom");
    }
}

#[test]
fn many_draws_of_many_caps_are_uniform_around_their_centers() {
    // Rows evenly around a circle: offsets from the center's row are uniform, whatever the center. About one cap in a
    // hundred rows: some find their rows by a few tries, some by more, which the pilot set allows, and some by rank.
    let (n, reach, k) = (40_000i64, 200i64, 8);
    let angle = |i: f64| std::f64::consts::TAU * i / n as f64;
    let rows: Vec<f32> = (0..n).flat_map(|i| [angle(i as f64).cos() as f32, angle(i as f64).sin() as f32]).collect();
    let call = Call::new(Some(2)).unwrap();
    let tree = build(&rows, 2, Storage::Float32, Params::new(8, Some(64), 1).unwrap(), &call);
    let middles: Vec<i64> = (0..4000).map(|i| i * 10).collect();
    let centers: Vec<f32> = middles.iter().flat_map(|i| rows[2 * *i as usize..][..2].to_vec()).collect();
    let bounds = vec![1.0 - angle(reach as f64 + 0.5).cos(); middles.len()];
    let caps = Caps::new(2, &centers, &bounds).unwrap();
    let inside = 2 * reach + 1;
    assert!(tree.count(&caps, &call).unwrap().iter().all(|count| *count == inside));
    for replace in [true, false] {
        let drawn = tree.sample(&caps, SampleOptions::new(k, replace, 5), &call).unwrap();
        let mut seen = vec![0.0; inside as usize];
        for (middle, rows) in middles.iter().zip(drawn.chunks_exact(k)) {
            rows.iter().for_each(|row| seen[((row - middle + reach).rem_euclid(n)) as usize] += 1.0);
            let distinct: std::collections::HashSet<_> = rows.iter().collect();
            assert!(replace || distinct.len() == k);
        }
        let expected = (middles.len() * k) as f64 / inside as f64;
        let chi2: f64 = seen.iter().map(|c: &f64| (c - expected).powi(2) / expected).sum();
        // Six standard deviations of a chi-square with inside - 1 degrees of freedom.
        let freedom = inside as f64 - 1.0;
        assert!((chi2 - freedom).abs() < 6.0 * (2.0 * freedom).sqrt(), "{chi2} for {freedom} degrees of freedom");
    }
}

#[test]
fn trees_on_disk_answer_alike_and_bad_arguments_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tree");
    let rows: Vec<f32> = (0..500).flat_map(|i| [(f64::from(i)).cos() as f32, (f64::from(i)).sin() as f32]).collect();
    let call = Call::new(Some(2)).unwrap();
    let tree = build(&rows, 2, Storage::Float16, Params::new(4, Some(16), 1).unwrap(), &call);
    tree.save(&path, &call).unwrap();
    let opened = Tree::open(&path).unwrap();
    opened.verify(&call).unwrap();
    let caps = Caps::new(2, &[1.0, 0.0], &[0.3]).unwrap();
    let count = |tree: &Tree| tree.count(&caps, &call).unwrap();
    assert_eq!(count(&tree), count(&opened));
    assert_eq!(tree.stats().unwrap().nodes, opened.stats().unwrap().nodes);

    // The same after changes, made in memory or on disk, saved again, opened, and compacted.
    let more = || ingest(&rows[..2 * 40], 2, Storage::Float16, &call);
    let change = |tree: &Tree| tree.append(more(), &call).unwrap().0.delete(&[3, 4, 510]).unwrap().0;
    let (in_memory, on_disk) = (change(&tree), change(&opened));
    let copy = folder.path().join("copy");
    on_disk.save(&copy, &call).unwrap();
    let states = [Tree::open(&path).unwrap(), Tree::open(&copy).unwrap(), on_disk];
    for changed in &states {
        changed.verify(&call).unwrap();
        assert_eq!(count(changed), count(&in_memory));
        assert_eq!((changed.deleted(), changed.alive()), (vec![3, 4, 510], 537));
        assert!(changed.nodes() == in_memory.nodes());
        let compact = changed.compact(None, &call).unwrap();
        compact.verify(&call).unwrap();
        assert_eq!((count(&compact), compact.deleted(), compact.len()), (count(changed), vec![3, 4, 510], 540));
    }
    assert_eq!((opened.len(), count(&opened)), (500, count(&tree)));
    opened.verify(&call).unwrap();

    let wrong = Caps::new(3, &[1.0, 0.0, 0.0], &[0.3]).unwrap();
    assert_eq!(tree.count(&wrong, &call).unwrap_err().to_string(), "expected caps of dim 2, got 3");
    assert!(matches!(tree.nearest(&[1.0, 0.0], 0, &call), Err(Error::InvalidParameter { .. })));
    assert!(matches!(tree.take_f16(&[500]), Err(Error::RowOutOfRange { .. })));
    assert!(matches!(tree.take_f32(&[0]), Err(Error::InvalidParameter { .. })));
    assert!(matches!(tree.node_rows(10_000), Err(Error::RowOutOfRange { .. })));
    let huge = SampleOptions::new(usize::MAX / 2, true, 0);
    assert!(matches!(tree.sample(&caps, huge, &call), Err(Error::TooLarge { .. })));
    call.cancel();
    assert!(matches!(tree.count(&caps, &call), Err(Error::Interrupted)));
}

#[test]
fn progress_ends_at_its_total() {
    let rows: Vec<f32> =
        (0..20_000).flat_map(|i| [(f64::from(i) * 1e-4).cos() as f32, (f64::from(i) * 1e-4).sin() as f32]).collect();
    let call = Call::new(Some(2)).unwrap();
    let tree = build(&rows, 2, Storage::Float32, Params::new(8, Some(64), 1).unwrap(), &call);
    // More caps than are walked together.
    let centers: Vec<f32> = rows[..2 * 5000].to_vec();
    let bounds: Vec<f64> = (0..5000).map(|i| 1e-9 * f64::from(i)).collect();
    let caps = Caps::new(2, &centers, &bounds).unwrap();
    let ends = |call: &Call| {
        let (phase, done, total) = call.snapshot();
        assert!(done == total && total > 0, "{phase}: {done} of {total}");
    };
    tree.count(&caps, &call).unwrap();
    ends(&call);
    tree.search(&caps, SearchOptions::default(), &call).unwrap();
    ends(&call);
    tree.sample(&caps, SampleOptions::new(1, true, 0), &call).unwrap();
    ends(&call);
}
