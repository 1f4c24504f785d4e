//! Hostile folders: whatever is done to one, reading it is an error or the same data.

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::OnceLock;

use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::*;

/// One pristine sample for all cases.
fn pristine() -> &'static Path {
    static SAMPLE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &SAMPLE.get_or_init(sample).1
}

/// A copy of the pristine sample with one file changed.
fn altered(file: &str, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let (place, path) = workplace();
    fs::create_dir(&path).unwrap();
    for name in entries(pristine()) {
        fs::copy(pristine().join(&name), path.join(&name)).unwrap();
    }
    let mut bytes = fs::read(path.join(file)).unwrap();
    change(&mut bytes);
    fs::write(path.join(file), bytes).unwrap();
    (place, path)
}

/// A copy whose manifest's body is changed, under a checksum that is right.
fn forged(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, PathBuf) {
    altered("manifest.json", |text| {
        let mut manifest: Value = serde_json::from_slice(text).unwrap();
        change(&mut manifest["body"]);
        let body = manifest["body"].to_string();
        let checksum = manifest::to_hex(xxhash_rust::xxh3::xxh3_64(body.as_bytes()));
        *text = format!(r#"{{"format":"captree","version":1,"checksum":"{checksum}","body":{body}}}"#).into_bytes();
    })
}

/// Flips a bit of the file itself rather than of a copy.
fn flip_in_place(file: &Path, at: usize) {
    let mut file = fs::File::options().read(true).write(true).open(file).unwrap();
    let (mut byte, at) = ([0], SeekFrom::Start(at as u64));
    file.seek(at).and_then(|_| file.read_exact(&mut byte)).unwrap();
    file.seek(at).and_then(|_| file.write_all(&[byte[0] ^ 4])).unwrap();
}

fn assert_corrupt(path: &Path, names: &str) {
    for result in [Contents::read(path).map(|_| ()), Contents::verify(path)] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains(names), "{error} should name {names}");
    }
}

fn is_newer(path: &Path, version: u64) -> bool {
    let read = Contents::read(path);
    matches!(read, Err(Error::NewerVersion { found, supported: FORMAT_VERSION, .. }) if found == version)
}

const NPY_FILES: [&str; 5] = ["checksums.npy", "codes.npy", "empty.npy", "nodes.npy", "vectors.npy"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_flipped_bit_in_an_array(file in select(&NPY_FILES[..]), at in any::<Index>(), bit in 0..8) {
        let (_place, path) = altered(file, |bytes| {
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
        });
        assert_corrupt(&path, ".npy");
    }

    #[test]
    fn a_truncated_or_longer_file(file in select(&NPY_FILES[..]), at in any::<Index>(), more in 0usize..100) {
        let (_place, path) = altered(file, |bytes| {
            let full = bytes.len();
            bytes.resize(if more > 0 { full + more } else { at.index(full) }, 0);
        });
        assert_corrupt(&path, file);
    }

    #[test]
    fn a_replaced_piece(
        file in select(&NPY_FILES[..]),
        at in any::<Index>(),
        piece in prop::collection::vec(any::<u8>(), 1..300),
    ) {
        let before = fs::read(pristine().join(file)).unwrap();
        let (_place, path) = altered(file, |bytes| {
            let at = at.index(bytes.len());
            let len = piece.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&piece[..len]);
        });
        if fs::read(path.join(file)).unwrap() != before {
            assert_corrupt(&path, ".npy");
        }
    }

    #[test]
    fn garbage_for_a_manifest(garbage in prop::collection::vec(any::<u8>(), 0..400)) {
        let (_place, path) = altered("manifest.json", |bytes| *bytes = garbage);
        prop_assert!(Contents::read(&path).is_err());
    }

    #[test]
    fn text_for_a_manifest(
        garbage in r#"(\{|\}|\[|\]|,|:|"format"|"captree"|"version"|"body"|"checksum"|[0-9]|null| ){0,40}"#,
    ) {
        let (_place, path) = altered("manifest.json", |bytes| *bytes = garbage.into_bytes());
        prop_assert!(Contents::read(&path).is_err());
    }

    /// An error exactly where the range meets the damage, whichever words of the bitmap it spans.
    #[test]
    fn only_damaged_chunks_fail(
        bad in 0usize..140,
        ranges in prop::collection::vec((0usize..9_000_000, 0usize..9_000_000), 1..8),
    ) {
        static BIG: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
        const LEN: usize = 9_175_040 - 128;
        let (_, big) = BIG.get_or_init(|| {
            let (place, path) = workplace();
            let mut folder = FolderWriter::create(&path, &path).unwrap();
            write_one(&mut folder, "a", &[LEN], &vec![9u8; LEN]).unwrap();
            folder.finish(&()).unwrap();
            (place, path)
        });
        // Exclusive use of the one file: proptest runs its cases one after the other.
        let flip = || flip_in_place(&big.join("a.npy"), bad * CHUNK_BYTES + 4_321);
        flip();
        let (folder, ()) = Folder::open(big).unwrap();
        let array = folder.array::<u8>("a", &[LEN]).unwrap();
        let mut outcomes = Vec::new();
        for (a, b) in ranges {
            let range = a.min(b)..a.max(b);
            let touched = (128 + range.start) / CHUNK_BYTES..(128 + range.end).div_ceil(CHUNK_BYTES);
            let expected = !range.is_empty() && touched.contains(&bad);
            outcomes.push((expected, array.slice(range).is_err()));
        }
        let verified = array.verify(&Control::default());
        drop((array, folder));
        flip();
        prop_assert!(verified.is_err());
        for (expected, found) in outcomes {
            prop_assert_eq!(expected, found);
        }
    }
}

#[test]
fn each_flipped_bit_of_the_manifest() {
    let expected = Contents::sample();
    let length = fs::read(pristine().join("manifest.json")).unwrap().len();
    let (_place, path) = altered("manifest.json", |_| ());
    let manifest = path.join("manifest.json");
    let text = fs::read(&manifest).unwrap();
    let mut harmless = 0;
    for bit in 0..8 * length {
        let mut flipped = text.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&manifest, flipped).unwrap();
        if let Ok(contents) = Contents::read(&path) {
            assert_eq!(contents, expected);
            harmless += 1;
        }
    }
    // One kind of white space for another, outside the body.
    assert!(harmless < 40, "{harmless} flips went unnoticed");
}

#[test]
fn each_truncation_of_the_manifest() {
    let (_place, path) = altered("manifest.json", |_| ());
    let manifest = path.join("manifest.json");
    let text = fs::read(&manifest).unwrap();
    // The last byte is the final newline.
    for length in 0..text.len() - 1 {
        fs::write(&manifest, &text[..length]).unwrap();
        assert!(matches!(Contents::read(&path), Err(Error::Corrupt { .. })), "{length}");
    }
    fs::write(&manifest, [&text[..], b"x"].concat()).unwrap();
    assert!(matches!(Contents::read(&path), Err(Error::Corrupt { .. })));
}

#[cfg(unix)] // Elsewhere a mapped file cannot be written to.
#[test]
fn damage_is_found_again_and_by_the_next_touch() {
    let (_place, path) = sample();
    let (folder, _) = Folder::open::<Body>(&path).unwrap();
    let vectors = folder.array::<f16>("vectors", &[ROWS, DIM]).unwrap();
    vectors.slice(0..vectors.len()).unwrap();
    // Same inode, after the first check: what a failing disk would do.
    flip_in_place(&path.join("vectors.npy"), 70_000);
    let error = vectors.verify(&Control::default()).unwrap_err().to_string();
    assert!(error.contains("vectors.npy: bytes 65536..131072: expected checksum"), "{error}");
    assert!(vectors.get((70_000 - 128) / 2).is_err());
    assert!(vectors.get(0).is_ok());
}

#[test]
fn missing_things() {
    let (place, path) = altered("manifest.json", |_| ());
    let not_found = |path: &Path, reason: &str| match Contents::read(path).unwrap_err() {
        Error::NotFound { reason: found, .. } => assert!(found.contains(reason), "{found}"),
        other => panic!("{other:?}"),
    };
    not_found(&place.path().join("nowhere"), "no such folder");
    not_found(&path.join("vectors.npy"), "not a folder");
    for file in NPY_FILES {
        let (_place, path) = altered(file, |_| ());
        fs::remove_file(path.join(file)).unwrap();
        assert_corrupt(&path, &format!("{file}: expected"));
        fs::create_dir(path.join(file)).unwrap();
        assert_corrupt(&path, &format!("{file}: expected"));
    }
    fs::remove_file(path.join("manifest.json")).unwrap();
    not_found(&path, "no manifest.json");
    fs::create_dir(path.join("manifest.json")).unwrap();
    not_found(&path, "not a file");
}

#[test]
fn foreign_manifests() {
    for text in [r#"{"name": "an app", "version": "1.2"}"#, "[]", "17", r#"{"format": "other", "version": 1}"#] {
        let (_place, path) = altered("manifest.json", |bytes| *bytes = text.into());
        assert!(matches!(Contents::read(&path), Err(Error::NotFound { .. })), "{text}");
    }
}

#[test]
fn newer_and_impossible_versions() {
    let with = |text: &str| altered("manifest.json", |bytes| *bytes = text.as_bytes().to_vec());
    // Nothing but format and version is known of a newer manifest.
    assert!(is_newer(&with(r#"{"version": 2, "format": "captree", "root": [{}]}"#).1, 2));
    assert!(is_newer(&with(r#"{"format":"captree","version":18446744073709551615}"#).1, u64::MAX));
    let (_place, path) = altered("manifest.json", |bytes| {
        *bytes = String::from_utf8_lossy(bytes).replace("\"version\": 1", "\"version\": 2").into_bytes();
    });
    assert!(is_newer(&path, 2));
    for version in ["0", "-1", "1.0", "1e9", "99999999999999999999", "\"1\"", "null", "{}"] {
        let (_place, path) = with(&format!(r#"{{"format":"captree","version":{version},"checksum":"","body":{{}}}}"#));
        assert_corrupt(&path, "version");
    }
    let (_place, path) = with(r#"{"format":"captree"}"#);
    assert_corrupt(&path, "version");
}

#[test]
fn deep_and_huge_manifests() {
    for nested in ["[".repeat(3_000_000), r#"{"body":"#.repeat(1_000_000)] {
        let text = format!(r#"{{"format":"captree","version":1,"checksum":"","body":{nested}"#);
        let (_place, path) = altered("manifest.json", |bytes| *bytes = text.into_bytes());
        assert_corrupt(&path, "manifest.json");
    }
    let (_place, path) = forged(|body| {
        let mut deep = json!(1);
        (0..100).for_each(|_| deep = json!([deep]));
        body["tree"] = deep;
    });
    assert_corrupt(&path, "manifest.json");
    let (_place, path) = altered("manifest.json", |_| ());
    // Sparse: a terabyte that would take minutes to read.
    fs::File::options().write(true).open(path.join("manifest.json")).unwrap().set_len(1 << 40).unwrap();
    assert_corrupt(&path, "manifest.json: expected at most");
}

#[test]
fn bodies_that_lie() {
    type Lie = (&'static str, fn(&mut Value));
    let lies: [Lie; 19] = [
        ("manifest.json", |body| body["chunk_bytes"] = json!(0)),
        ("manifest.json", |body| body["chunk_bytes"] = json!(1 << 20)),
        ("manifest.json", |body| body["arrays"][0]["name"] = json!("../vectors")),
        ("manifest.json", |body| body["arrays"][0]["name"] = json!("")),
        ("manifest.json", |body| body["arrays"][1]["name"] = json!("vectors")),
        ("manifest.json", |body| body["arrays"][0]["name"] = json!("checksums")),
        ("manifest.json", |body| body["arrays"][0]["bytes"] = json!(-1)),
        ("manifest.json", |body| body["checksums"]["chunks"] = json!([])),
        ("manifest.json", |body| body["checksums"]["chunks"] = json!(["+123456789abcdef"])),
        ("manifest.json", |body| body["checksums"]["bytes"] = json!(u64::MAX)),
        ("manifest.json", |body| body["tree"] = json!("else")),
        ("manifest.json", |body| body["more"] = json!(1)),
        ("vectors.npy: expected 18446744073709551615 bytes", |body| body["arrays"][0]["bytes"] = json!(u64::MAX)),
        ("vectors.npy: expected shape", |body| body["arrays"][0]["shape"] = json!([u64::MAX, 2])),
        ("vectors.npy: expected shape", |body| body["arrays"][0]["shape"] = json!([DIM, ROWS])),
        ("vectors.npy: expected dtype", |body| body["arrays"][0]["dtype"] = json!("<i2")),
        ("checksums.npy", |body| body["checksums"]["bytes"] = json!(64)),
        // One array less: the table is then too long. And arrays in another order: the checksums are not theirs.
        ("checksums.npy", |body| drop(body["arrays"].as_array_mut().unwrap().pop())),
        ("checksum", |body| body["arrays"].as_array_mut().unwrap().reverse()),
    ];
    for (names, lie) in lies {
        let (_place, path) = forged(lie);
        assert_corrupt(&path, names);
    }
    // And what the reader asks for may be what the manifest does not have.
    let (folder, _) = Folder::open::<Body>(pristine()).unwrap();
    for error in [
        folder.array::<f16>("vectorz", &[ROWS, DIM]).unwrap_err(),
        folder.array::<i16>("vectors", &[ROWS, DIM]).unwrap_err(),
        folder.array::<f16>("vectors", &[ROWS * DIM]).unwrap_err(),
        folder.array::<f16>("vectors", &[usize::MAX, 2]).unwrap_err(),
        folder.shape("../vectors").unwrap_err(),
    ] {
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    }
}

/// Shapes whose sizes overflow, agreed upon by the manifest and the caller.
#[test]
fn sizes_that_overflow() {
    for shape in [vec![u64::MAX, 2], vec![1 << 62, 1 << 62], vec![u64::MAX / 2 - 64], vec![u64::MAX, u64::MAX, 0]] {
        let (_place, path) = forged(|body| body["arrays"][0]["shape"] = json!(shape));
        let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        let (folder, _) = Folder::open::<Body>(&path).unwrap();
        assert!(matches!(folder.array::<f16>("vectors", &shape), Err(Error::Corrupt { .. })));
    }
}
