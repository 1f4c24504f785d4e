//! The workloads that `python -m benches.prepare` wrote under `target/bench-data`, and what reading them takes.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One workload: a tree, caps and the answer that must come out.
#[derive(Deserialize)]
pub struct Workload {
    pub name: String,
    pub operation: String,
    pub k: usize,
    pub tree: String,
    centers: String,
    bounds: String,
    pub expected: Expected,
}

/// The answer; a workload has the parts that fit its operation.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Expected {
    pub total: Option<u64>,
    pub checksum: Option<u64>,
    pub empty: Option<u64>,
}

/// The folder of the prepared data.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-data")
}

/// All workloads of the size that the variable CAPTREE_BENCH names: `quick`, or `full` by default.
pub fn workloads() -> Vec<Workload> {
    let size = std::env::var("CAPTREE_BENCH").unwrap_or_else(|_| "full".into());
    let flag = if size == "quick" { " --quick" } else { "" };
    let text = fs::read_to_string(folder().join(format!("{size}.json"))).unwrap_or_else(|error| {
        eprintln!("no benchmark data in target/bench-data ({error})");
        eprintln!("make them first: `.venv/bin/python -m benches.prepare{flag}`, or run `make bench`");
        std::process::exit(1);
    });
    serde_json::from_str(&text).expect("a list of workloads, as benches.prepare writes it")
}

impl Workload {
    /// Centers, row by row, and bounds.
    pub fn caps(&self) -> (Vec<f32>, Vec<f64>) {
        let centers = values(&folder().join(&self.centers), "<f4");
        let bounds = values(&folder().join(&self.bounds), "<f8");
        (
            centers.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            bounds.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        )
    }
}

/// The bytes of the values in a .npy file of element type `kind`.
fn values(path: &Path, kind: &str) -> Vec<u8> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}: expected .npy version 1", path.display());
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..start]);
    assert!(header.contains(kind) && header.contains("'fortran_order': False"), "{}: {header}", path.display());
    bytes[start..].to_vec()
}

/// Sum of value times place (from 1), modulo 2^64: `benches.workloads.checksum`.
pub fn checksum(values: &[i64]) -> u64 {
    values.iter().zip(1u64..).fold(0, |sum, (v, place)| sum.wrapping_add((*v as u64).wrapping_mul(place)))
}
