//! Round trips and the file layout of a segment's folder; damage, new trees and their states are in their own files.

mod damage;
mod versions;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};
use half::f16;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;
use crate::control::Control;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Node {
    parent: i64,
    bound: f64,
    depth: u32,
    leaf: u32,
}

impl Element for Node {
    const DTYPE: Dtype = Dtype::Record(&[("parent", "<i8"), ("bound", "<f8"), ("depth", "<u4"), ("leaf", "<u4")]);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Body {
    dim: usize,
    note: String,
}

/// Everything the sample folder holds.
#[derive(Debug, Clone, PartialEq)]
struct Contents {
    body: Body,
    vectors: Vec<f16>,
    nodes: Vec<Node>,
    codes: Vec<i8>,
    empty: Vec<f32>,
}

const ROWS: usize = 1_500;
const DIM: usize = 96;

impl Contents {
    /// Vectors span five chunks, nodes two; codes end within their first, and one array is empty.
    fn sample() -> Self {
        let node = |i: i64| Node { parent: i - 1, bound: 1.0 / (i as f64 + 1.0), depth: i as u32 % 7, leaf: 1 };
        Contents {
            body: Body { dim: DIM, note: "é ∎ \"quoted\"".into() },
            vectors: (0..ROWS * DIM).map(|i| f16::from_f32((i % 2_003) as f32 / 2_003.0)).collect(),
            nodes: (0..3_000).map(node).collect(),
            codes: (0..1_000).map(|i| (i % 251) as i8).collect(),
            empty: Vec::new(),
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut folder = FolderWriter::create(path, path)?;
        let mut vectors = folder.array::<f16>("vectors", &[ROWS, DIM])?;
        self.vectors.chunks(7_001).try_for_each(|part| vectors.write(part))?;
        vectors.finish()?;
        write_one(&mut folder, "nodes", &[self.nodes.len()], &self.nodes)?;
        write_one(&mut folder, "codes", &[self.codes.len()], &self.codes)?;
        write_one(&mut folder, "empty", &[0, DIM], &self.empty)?;
        folder.finish(&self.body)
    }

    fn read(path: &Path) -> Result<Self> {
        let (folder, body) = Folder::open::<Body>(path)?;
        let rows = |name| folder.shape(name).map(|shape| shape[0]);
        Ok(Contents {
            vectors: read_one(&folder, "vectors", &[ROWS, DIM])?,
            nodes: read_one(&folder, "nodes", &[rows("nodes")?])?,
            codes: read_one(&folder, "codes", &[rows("codes")?])?,
            empty: read_one(&folder, "empty", &[0, DIM])?,
            body,
        })
    }

    fn verify(path: &Path) -> Result<()> {
        let (folder, _) = Folder::open::<Body>(path)?;
        let control = Control::default();
        folder.array::<f16>("vectors", &[ROWS, DIM])?.verify(&control)?;
        folder.array::<Node>("nodes", &[3_000])?.verify(&control)?;
        folder.array::<i8>("codes", &[1_000])?.verify(&control)?;
        folder.array::<f32>("empty", &[0, DIM])?.verify(&control)
    }
}

fn write_one<T: Element>(folder: &mut FolderWriter, name: &str, shape: &[usize], elements: &[T]) -> Result<()> {
    let mut array = folder.array::<T>(name, shape)?;
    array.write(elements)?;
    array.finish()
}

fn read_one<T: Element>(folder: &Folder, name: &str, shape: &[usize]) -> Result<Vec<T>> {
    let array = folder.array::<T>(name, shape)?;
    array.slice(0..array.len()).map(<[T]>::to_vec)
}

/// An empty folder to work in, and a path in it.
fn workplace() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("photos.captree");
    (place, path)
}

/// The sample folder, in a workplace of its own.
fn sample() -> (tempfile::TempDir, PathBuf) {
    let (place, path) = workplace();
    Contents::sample().write(&path).unwrap();
    (place, path)
}

/// What the small trees of these tests say of themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    note: String,
    segments: Vec<u64>,
    deleted: Option<u64>,
}

impl Names for State {
    fn names(&self) -> Vec<PathBuf> {
        let segments = self.segments.iter().map(|number| Path::new(SEGMENTS).join(numbered("", *number, "")));
        let deleted = self.deleted.map(|number| Path::new(DELETED).join(numbered("", number, SET)));
        segments.chain(deleted).collect()
    }
}

/// A segment of a tree, of one array.
fn write_segment(tree: &Path, number: u64, codes: &[i8]) -> Result<()> {
    let mut folder = FolderWriter::create(&tree.join(SEGMENTS).join(numbered("", number, "")), tree)?;
    write_one(&mut folder, "codes", &[codes.len()], codes)?;
    folder.finish(&())
}

/// The parts of a tree of one segment, before it is put into its place.
fn fill_tree(new: &NewTree, note: &str, codes: &[i8]) -> Result<()> {
    for kind in [SEGMENTS, DELETED] {
        fs::create_dir(new.folder().join(kind)).unwrap();
    }
    write_segment(new.folder(), 1, codes)?;
    commit(new.folder(), new.target(), 1, &State { note: note.into(), segments: vec![1], deleted: None })
}

/// A tree of one segment at `path`, replacing another one.
fn write_tree(path: &Path, note: &str, codes: &[i8]) -> Result<()> {
    let new = NewTree::create(path)?;
    fill_tree(&new, note, codes)?;
    new.finish()
}

/// The note and the codes of all segments.
fn read_tree(path: &Path) -> Result<(String, Vec<i8>)> {
    read::<State>(path).and_then(|version| read_state(path, &version.body))
}

fn read_state(path: &Path, state: &State) -> Result<(String, Vec<i8>)> {
    let mut codes = Vec::new();
    for number in &state.segments {
        let (folder, ()) = Folder::open(&path.join(SEGMENTS).join(numbered("", *number, "")))?;
        codes.extend(read_one::<i8>(&folder, "codes", &[folder.shape("codes")?[0]])?);
    }
    Ok((state.note.clone(), codes))
}

/// A small tree, in a workplace of its own.
fn small_tree() -> (tempfile::TempDir, PathBuf) {
    let (place, path) = workplace();
    write_tree(&path, "small", &[1, 2, 3]).unwrap();
    (place, path)
}

fn assert_small(path: &Path) {
    assert_eq!(read_tree(path).unwrap(), ("small".into(), vec![1, 2, 3]));
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn everything_comes_back() {
    let (_place, path) = sample();
    assert_eq!(Contents::read(&path).unwrap(), Contents::sample());
    Contents::verify(&path).unwrap();
    assert_eq!(
        entries(&path),
        ["checksums.npy", "codes.npy", "empty.npy", "manifest.json", "nodes.npy", "vectors.npy"]
    );
    let (folder, _) = Folder::open::<Body>(&path).unwrap();
    let sizes = entries(&path).iter().map(|name| fs::metadata(path.join(name)).unwrap().len()).sum::<u64>();
    assert_eq!(folder.bytes(), sizes);
    assert_eq!(folder.shape("vectors").unwrap(), [ROWS, DIM]);
}

#[test]
fn a_folder_without_arrays() {
    let (_place, path) = workplace();
    FolderWriter::create(&path, &path).unwrap().finish(&7u8).unwrap();
    let (_, body) = Folder::open::<u8>(&path).unwrap();
    assert_eq!(body, 7);
}

/// Headers are what `numpy.lib.format` documents and what `numpy.save` writes, but for the padding.
#[test]
fn files_are_npy() {
    let (_place, path) = sample();
    for (name, dict, data) in [
        (
            "vectors",
            "{'descr': '<f2', 'fortran_order': False, 'shape': (1500, 96), }",
            bytemuck::cast_slice::<f16, u8>(&Contents::sample().vectors).to_vec(),
        ),
        (
            "nodes",
            "{'descr': [('parent', '<i8'), ('bound', '<f8'), ('depth', '<u4'), ('leaf', '<u4')], \
             'fortran_order': False, 'shape': (3000,), }",
            bytemuck::cast_slice::<Node, u8>(&Contents::sample().nodes).to_vec(),
        ),
        ("empty", "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 96), }", Vec::new()),
    ] {
        let file = fs::read(path.join(format!("{name}.npy"))).unwrap();
        assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
        let start = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
        assert_eq!(start % 64, 0);
        let header = std::str::from_utf8(&file[10..start]).unwrap();
        assert!(header.ends_with('\n'));
        assert_eq!(header.trim_end(), dict);
        assert_eq!(file[start..], data);
    }
}

fn round_trip<T: Element + PartialEq + std::fmt::Debug>(elements: &[T], shape: &[usize]) {
    let (_place, path) = workplace();
    let mut folder = FolderWriter::create(&path, &path).unwrap();
    write_one(&mut folder, "a", shape, elements).unwrap();
    folder.finish(&()).unwrap();
    let (folder, ()) = Folder::open(&path).unwrap();
    let array = folder.array::<T>("a", shape).unwrap();
    assert!(array.is_mapped());
    array.advise_random();
    assert_eq!(array.slice(0..elements.len()).unwrap(), elements);
    assert_eq!((array.len(), array.byte_len()), (elements.len(), size_of_val(elements) as u64));
    let control = Control::default();
    array.verify(&control).unwrap();
    assert_eq!(control.snapshot().1, array.byte_len());
}

#[test]
fn each_type_and_rank() {
    round_trip::<i8>(&[-128, 127], &[2]);
    round_trip::<u8>(&[0, 255], &[2, 1]);
    round_trip::<i16>(&[i16::MIN, 7], &[1, 2]);
    round_trip::<u16>(&[u16::MAX], &[1, 1, 1]);
    round_trip::<i32>(&[i32::MIN, 7], &[2]);
    round_trip::<u32>(&[u32::MAX, 7], &[2]);
    round_trip::<i64>(&[i64::MIN, 7], &[2]);
    round_trip::<u64>(&[u64::MAX, 7], &[2]);
    round_trip::<f16>(&[f16::MAX, f16::NEG_INFINITY], &[2]);
    round_trip::<f32>(&[f32::MIN_POSITIVE, -0.0], &[2]);
    round_trip::<f64>(&[f64::MAX, f64::EPSILON], &[2]);
    // No axes at all: one element.
    round_trip::<f64>(&[1.0], &[]);
    round_trip::<f64>(&[], &[3, 0]);
    // Files that end at a chunk's border: 128 bytes of header.
    round_trip::<u8>(&vec![5; CHUNK_BYTES - 128], &[CHUNK_BYTES - 128]);
    round_trip::<u8>(&vec![5; 65 * CHUNK_BYTES - 128], &[65 * CHUNK_BYTES - 128]);
}

#[test]
fn arrays_in_memory() {
    let array = Array::from_vec(vec![1i32, 2, 3]);
    assert_eq!(array.slice(1..3).unwrap(), [2, 3]);
    assert_eq!(array.get(0).unwrap(), 1);
    assert_eq!((array.len(), array.byte_len(), array.is_mapped(), array.is_empty()), (3, 12, false, false));
    array.verify(&Control::default()).unwrap();
    array.advise_random();
    assert_eq!(array.clone().slice(0..3).unwrap().as_ptr(), array.slice(0..3).unwrap().as_ptr());
    for range in [0..4, 4..4, usize::MAX..usize::MAX] {
        assert!(matches!(array.slice(range), Err(Error::RowOutOfRange { .. })));
    }
    assert!(matches!(array.get(usize::MAX), Err(Error::RowOutOfRange { .. })));
}

#[test]
fn ranges_outside_a_stored_array() {
    let (_place, path) = sample();
    let (folder, _) = Folder::open::<Body>(&path).unwrap();
    let nodes = folder.array::<Node>("nodes", &[3_000]).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "a damaged tree may ask for anything")]
    for range in [0..3_001, 3_001..3_001, usize::MAX - 1..usize::MAX, 5..4] {
        let error = nodes.slice(range).unwrap_err();
        assert!(matches!(&error, Error::Corrupt { .. }) && error.to_string().contains("nodes.npy"), "{error}");
    }
    assert!(nodes.get(3_000).is_err() && nodes.get(usize::MAX).is_err());
    assert!(nodes.slice(3_000..3_000).unwrap().is_empty());
}

#[test]
fn verify_obeys_cancel() {
    let (_place, path) = sample();
    let (folder, _) = Folder::open::<Body>(&path).unwrap();
    let control = Control::default();
    control.cancel();
    let vectors = folder.array::<f16>("vectors", &[ROWS, DIM]).unwrap();
    assert!(matches!(vectors.verify(&control), Err(Error::Interrupted)));
}

#[test]
fn many_threads_share_an_array() {
    let (_place, path) = sample();
    let (folder, _) = Folder::open::<Body>(&path).unwrap();
    let vectors = folder.array::<f16>("vectors", &[ROWS, DIM]).unwrap();
    let expected = Contents::sample().vectors;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (vectors, expected) = (vectors.clone(), &expected);
            scope.spawn(move || {
                for i in 0..4 * ROWS {
                    let row = (i * 7 + thread * 131) % ROWS;
                    let range = row * DIM..(row + 1) * DIM;
                    assert_eq!(vectors.slice(range.clone()).unwrap(), &expected[range]);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_records_in_any_pieces(
        elements in prop::collection::vec((any::<i64>(), -1e300..1e300, any::<u32>(), any::<u32>()), 0..9_000),
        piece in 1usize..5_000,
    ) {
        let elements: Vec<Node> =
            elements.iter().map(|&(parent, bound, depth, leaf)| Node { parent, bound, depth, leaf }).collect();
        let (place, path) = workplace();
        let mut folder = FolderWriter::create(&path, &path).unwrap();
        let mut array = folder.array::<Node>("nodes", &[elements.len()]).unwrap();
        let mut scratch = ScratchWriter::create(place.path()).unwrap();
        for part in elements.chunks(piece) {
            array.write(part).unwrap();
            scratch.write(part).unwrap();
        }
        array.finish().unwrap();
        folder.finish(&()).unwrap();
        let (folder, ()) = Folder::open(&path).unwrap();
        prop_assert_eq!(read_one::<Node>(&folder, "nodes", &[elements.len()]).unwrap(), elements.clone());
        let scratch = scratch.finish().unwrap();
        prop_assert_eq!(scratch.slice(0..elements.len()).unwrap(), elements);
    }
}
