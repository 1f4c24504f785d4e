//! No work runs in rayon's global pool, which a forked child would wait for without end: here nothing can start it.

use captree_core::{Batch, Call, Caps, Ingest, Params, SampleOptions, SearchOptions, Storage, Tree};

const DIM: usize = 16;

fn rows(n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * DIM];
    for (i, row) in out.chunks_exact_mut(DIM).enumerate() {
        let angle = i as f32 * 0.37;
        (row[i % DIM], row[(i + 1) % DIM]) = (angle.cos(), angle.sin());
    }
    out
}

#[test]
fn every_call_runs_in_a_pool_of_its_own() {
    let broken = rayon::ThreadPoolBuilder::new().spawn_handler(|_| Err(std::io::Error::other("no threads")));
    assert!(broken.build_global().is_err());
    assert!(std::panic::catch_unwind(|| rayon::join(|| (), || ())).is_err(), "the global pool could start");

    let call = Call::new(Some(2)).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.captree");
    let mut ingest = Ingest::new(Storage::Float16, true);
    ingest.push(Batch::F32(&rows(20_000)), DIM, &call).unwrap();
    let params = Params::new(8, Some(100), 0).unwrap();
    let tree = Tree::build(ingest.finish().unwrap(), &params, Some(&path), &call).unwrap();
    let (centers, bounds) = (rows(40), [0.01, 0.3, 0.7, 1.2].repeat(10));
    let caps = Caps::new(DIM, &centers, &bounds).unwrap();
    for tree in [&tree, &Tree::open(&path).unwrap()] {
        tree.count(&caps, &call).unwrap();
        tree.search(&caps, SearchOptions::default(), &call).unwrap();
        tree.nearest(&centers, 3, &call).unwrap();
        tree.radius_for_count(&centers, &[10; 40], &call).unwrap();
        tree.estimate(&caps, 500, 0.95, 0, &call).unwrap();
        for replace in [true, false] {
            tree.sample(&caps, SampleOptions::new(20, replace, 0), &call).unwrap();
        }
        tree.sample_approximate(&caps, SampleOptions::new(2, true, 0), 10, &call).unwrap();
        tree.verify(&call).unwrap();
    }
    tree.save(&place.path().join("b.captree"), &call).unwrap();
}
