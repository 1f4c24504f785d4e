//! The dot product of every instruction set that this processor has, at the dimensions of common embeddings.

use captree_core::Kernels;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Coordinates whose products and sums are exact in float64, so that there is one right answer.
fn vector(dim: usize, step: usize) -> Vec<f32> {
    (0..dim).map(|i| ((i * step) % 17) as f32 / 16.0 - 0.5).collect()
}

fn dot_pair(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dot_pair");
    for dim in [384, 768, 1536] {
        let (a, b) = (vector(dim, 5), vector(dim, 7));
        let expected: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        for kernels in Kernels::available() {
            let (high, low) = kernels.dot_pair(&a, &b);
            assert_eq!(high + low, expected, "{} at dim {dim}", kernels.name());
            group.throughput(Throughput::Elements(dim as u64));
            group
                .bench_function(BenchmarkId::new(kernels.name(), dim), |bench| bench.iter(|| kernels.dot_pair(&a, &b)));
        }
    }
    group.finish();
}

criterion_group!(benches, dot_pair);
criterion_main!(benches);
