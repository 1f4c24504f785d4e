//! Queries of the core on the workloads; each answer is checked before it is timed.

mod common;

use std::collections::HashMap;

use captree_core::{Call, Caps, SampleOptions, SearchOptions, Tree};
use common::{Expected, Workload, checksum, folder, workloads};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Queries that `nearest` is asked with, as in `benches/workloads.py`.
const NEAREST_QUERIES: usize = 64;
const DENSITY_SAMPLES: usize = 512;

struct Bench<'a> {
    workload: &'a Workload,
    tree: &'a Tree,
    centers: Vec<f32>,
    bounds: Vec<f64>,
    call: Call,
}

impl Bench<'_> {
    fn caps(&self) -> Caps<'_> {
        Caps::new(self.tree.dim(), &self.centers, &self.bounds).expect("prepared caps are good")
    }

    fn count(&self, caps: &Caps<'_>) -> Vec<i64> {
        self.tree.count(caps, &self.call).expect("count")
    }

    fn count_one_by_one(&self) -> Vec<i64> {
        let dim = self.tree.dim();
        let one = |i: usize| Caps::new(dim, &self.centers[i * dim..(i + 1) * dim], &self.bounds[i..=i]).expect("cap");
        (0..self.bounds.len()).flat_map(|i| self.count(&one(i))).collect()
    }

    fn search(&self) -> (Vec<i64>, Vec<i64>) {
        let caps = self.caps();
        let found = self.tree.search(&caps, SearchOptions::default(), &self.call).expect("search");
        (found.offsets, found.rows)
    }

    fn nearest(&self) -> Vec<i64> {
        let queries = &self.centers[..self.centers.len().min(NEAREST_QUERIES * self.tree.dim())];
        self.tree.nearest(queries, self.workload.k, &self.call).expect("nearest").rows
    }

    fn sample(&self, approximate: bool) -> Vec<i64> {
        let options = SampleOptions::new(self.workload.k, true, 1);
        let (caps, call) = (self.caps(), &self.call);
        if approximate {
            self.tree.sample_approximate(&caps, options, DENSITY_SAMPLES, call)
        } else {
            self.tree.sample(&caps, options, call)
        }
        .expect("sample")
    }

    /// What is timed; rows or counts come back.
    fn run(&self) -> Vec<i64> {
        match self.workload.operation.as_str() {
            "count" => self.count(&self.caps()),
            "count_one_by_one" => self.count_one_by_one(),
            "search" => self.search().1,
            "nearest" => self.nearest(),
            "sample" => self.sample(false),
            "sample_approximate" => self.sample(true),
            other => panic!("unknown operation {other} of workload {}", self.workload.name),
        }
    }

    fn check(&self) {
        let expected = &self.workload.expected;
        let found = match self.workload.operation.as_str() {
            "count" | "count_one_by_one" => {
                let counts = self.run();
                let total = counts.iter().sum::<i64>() as u64;
                Expected { total: Some(total), checksum: Some(checksum(&counts)), empty: None }
            }
            "search" => {
                let (offsets, mut rows) = self.search();
                offsets.windows(2).for_each(|w| rows[w[0] as usize..w[1] as usize].sort_unstable());
                Expected { total: Some(rows.len() as u64), checksum: Some(checksum(&rows)), empty: None }
            }
            "nearest" => Expected { checksum: Some(checksum(&self.run())), ..Expected::default() },
            _ => {
                let empty = self.run().iter().filter(|row| **row < 0).count() as u64;
                Expected { empty: Some(empty), ..Expected::default() }
            }
        };
        assert_eq!(&found, expected, "workload {}: the answer is not the expected one", self.workload.name);
    }
}

fn queries(criterion: &mut Criterion) {
    let listed = workloads();
    let mut trees: HashMap<&str, Tree> = HashMap::new();
    for workload in &listed {
        let tree = trees
            .entry(&workload.tree)
            .or_insert_with(|| Tree::open(&folder().join(&workload.tree)).expect("a tree that benches.prepare made"));
        let (centers, bounds) = workload.caps();
        let bench = Bench { workload, tree, centers, bounds, call: Call::new(None).expect("threads") };
        bench.check();
        let mut group = criterion.benchmark_group("queries");
        group.sample_size(10).throughput(Throughput::Elements(bench.bounds.len() as u64));
        group.bench_function(&workload.name, |b| b.iter(|| bench.run()));
        group.finish();
    }
}

criterion_group!(benches, queries);
criterion_main!(benches);
