//! The states of a tree: how one follows another, what stays and what goes, and the lock of the one who writes.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::*;

const STATE: &str = "manifest-000001.json";

fn state(note: &str, segments: &[u64], deleted: Option<u64>) -> State {
    State { note: note.into(), segments: segments.to_vec(), deleted }
}

/// Writes a set of deleted rows, of which nothing here looks into the bytes.
fn write_set(path: &Path, number: u64) {
    let name = format!("{DELETED}/{}", numbered("", number, SET));
    write_file(path, path, &name, &number.to_le_bytes()).unwrap();
}

/// All files below a folder, by their paths within it.
fn files(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for name in entries(folder) {
        match folder.join(&name) {
            path if path.is_dir() => all.extend(files(&path).iter().map(|inside| format!("{name}/{inside}"))),
            _ => all.push(name),
        }
    }
    all
}

/// What has no segment's files in it.
fn small_files(folder: &Path) -> Vec<String> {
    files(folder).into_iter().filter(|name| !name.starts_with(SEGMENTS)).collect()
}

fn rewrite(file: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(file).unwrap();
    fs::write(file, change(text)).unwrap();
}

/// A manifest around a body, and a `CURRENT` that names it, as a forger would write them.
fn forge(path: &Path, name: &str, text: &str) {
    fs::write(path.join(name), text).unwrap();
    fs::write(path.join("CURRENT"), format!("{name} {}\n", checksum_of(text.as_bytes()))).unwrap();
}

fn corrupt(path: &Path, says: &str) {
    let error = read_tree(path).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains(says), "{error:?} for {says}");
}

#[test]
fn a_change_counts_once_it_is_committed() {
    let (_place, path) = small_tree();
    write_segment(&path, 2, &[4, 5]).unwrap();
    write_set(&path, 2);
    assert_small(&path);
    commit(&path, &path, 2, &state("larger", &[1, 2], Some(2))).unwrap();
    assert_eq!(read_tree(&path).unwrap(), ("larger".into(), vec![1, 2, 3, 4, 5]));
    let version = read::<State>(&path).unwrap();
    assert_eq!((version.number, version.body), (2, state("larger", &[1, 2], Some(2))));
    assert_eq!(version.bytes, fs::metadata(path.join("manifest-000002.json")).unwrap().len());
    let set = read_file(&path, "deleted/000002.roaring", xxhash_rust::xxh3::xxh3_64(&2u64.to_le_bytes()), 8);
    assert_eq!(set.unwrap(), 2u64.to_le_bytes());
    // Numbers go on where six digits end.
    commit(&path, &path, 1_000_000, &state("later", &[1], None)).unwrap();
    assert_eq!(read::<State>(&path).unwrap().number, 1_000_000);
    assert!(path.join("manifest-1000000.json").exists());
}

#[test]
fn what_a_reader_holds_stays_until_it_is_dropped() {
    let (_place, path) = small_tree();
    write_set(&path, 1);
    commit(&path, &path, 2, &state("with a set", &[1], Some(1))).unwrap();
    let held = read::<State>(&path).unwrap();
    // Nobody holds the first state; its segment is the second one's too.
    let first = fs::metadata(path.join(STATE)).unwrap().len();
    assert_eq!(clean::<State>(&path).unwrap(), first);
    write_segment(&path, 2, &[7]).unwrap();
    commit(&path, &path, 3, &state("new", &[2], None)).unwrap();
    clean::<State>(&path).unwrap();
    assert_eq!(
        small_files(&path),
        ["CURRENT", "deleted/000001.roaring", "manifest-000002.json", "manifest-000003.json"]
    );
    assert_eq!(entries(&path.join(SEGMENTS)), ["000001", "000002"]);
    assert_eq!(read_state(&path, &held.body).unwrap(), ("with a set".into(), vec![1, 2, 3]));
    let again = read_version::<State>(&path, 2).unwrap();
    assert_eq!((again.number, &again.body), (2, &held.body));
    drop(held);
    // The second reader still has it.
    assert_eq!(clean::<State>(&path).unwrap(), 0);
    drop(again);

    let before: u64 = files(&path).iter().map(|name| fs::metadata(path.join(name)).unwrap().len()).sum();
    let freed = clean::<State>(&path).unwrap();
    let after: u64 = files(&path).iter().map(|name| fs::metadata(path.join(name)).unwrap().len()).sum();
    assert_eq!(freed, before - after);
    assert_eq!(small_files(&path), ["CURRENT", "manifest-000003.json"]);
    assert_eq!(entries(&path.join(SEGMENTS)), ["000002"]);
    let gone = read_version::<State>(&path, 2).unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }) && gone.to_string().contains("state 2 is gone"), "{gone}");
    assert_eq!(read_version::<State>(&path, 3).unwrap().body.note, "new");
}

#[test]
fn leftovers_of_killed_writers_are_cleaned() {
    let (_place, path) = small_tree();
    let pristine = files(&path);
    write_segment(&path, 5, &[7]).unwrap();
    fs::create_dir(path.join("segments/000006")).unwrap();
    fs::write(path.join("segments/000006/vectors.npy"), "half").unwrap();
    write_set(&path, 9);
    for name in ["CURRENT.tmp", "manifest-000002.json.tmp", "deleted/000002.roaring.tmp", "manifest-000002.json"] {
        fs::write(path.join(name), "half").unwrap();
    }
    // What is no tree's is nobody's to remove, whatever it is called.
    let mine = ["notes.tmp", "manifest-2.json", "manifest-+00002.json", "segments/notes.txt", "deleted/1.roaring"];
    mine.iter().for_each(|name| fs::write(path.join(name), "mine").unwrap());
    for folder in ["manifest-000003.json", "CURRENT.tmp2", "segments/7"] {
        fs::create_dir(path.join(folder)).unwrap();
        fs::write(path.join(folder).join("mine"), "mine").unwrap();
    }
    assert!(clean::<State>(&path).unwrap() > 20);
    let left: Vec<String> = files(&path).into_iter().filter(|name| !pristine.contains(name)).collect();
    let (mut kept, mut left) = (mine.map(String::from).to_vec(), left);
    kept.extend(["manifest-000003.json/mine", "CURRENT.tmp2/mine", "segments/7/mine"].map(String::from));
    kept.sort();
    left.sort();
    assert_eq!(left, kept);
    assert_small(&path);
}

/// A held state that cannot be read may name anything.
#[test]
fn nothing_is_cleaned_that_an_unreadable_state_may_need() {
    let (_place, path) = small_tree();
    let held = read::<State>(&path).unwrap();
    write_segment(&path, 2, &[7]).unwrap();
    commit(&path, &path, 2, &state("new", &[2], None)).unwrap();
    rewrite(&path.join(STATE), |text| text.replace("small", "large"));
    assert!(matches!(clean::<State>(&path), Err(Error::Corrupt { .. })));
    assert_eq!(entries(&path.join(SEGMENTS)), ["000001", "000002"]);
    drop(held);
    clean::<State>(&path).unwrap();
    assert_eq!(entries(&path.join(SEGMENTS)), ["000002"]);
}

#[test]
fn each_flipped_bit_and_each_truncation_of_small_files() {
    let (_place, path) = small_tree();
    for name in ["CURRENT", STATE] {
        let file = path.join(name);
        let text = fs::read(&file).unwrap();
        for bit in 0..8 * text.len() {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, flipped).unwrap();
            match read_tree(&path) {
                Ok(found) => panic!("bit {bit} of {name} went unnoticed: {found:?}"),
                Err(Error::Corrupt { .. } | Error::NotFound { .. } | Error::NewerVersion { .. }) => {}
                Err(other) => panic!("bit {bit} of {name}: {other:?}"),
            }
        }
        for length in 0..text.len() {
            fs::write(&file, &text[..length]).unwrap();
            let error = read_tree(&path).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{length} bytes of {name}: {error:?}");
        }
        fs::write(&file, [&text[..], b"\n"].concat()).unwrap();
        corrupt(&path, name);
        fs::write(&file, text).unwrap();
        assert_small(&path);
    }
}

#[test]
fn current_must_name_a_manifest_that_is_there() {
    let (place, path) = small_tree();
    let text = fs::read_to_string(path.join("CURRENT")).unwrap();
    for (wrong, says) in [
        (text.replace("000001", "000002"), "manifest-000002.json, which is missing"),
        (text.replace("000001", "1"), "CURRENT"),
        (text.replace("000001", "+00001"), "CURRENT"),
        (text.replace("000001", "18446744073709551615"), "CURRENT"),
        (text.replace("000001", "18446744073709551616"), "CURRENT"),
        (text.replace("000001", "../../000001"), "CURRENT"),
        (text.replace(' ', "\t"), "CURRENT"),
        (text.replace('\n', "\r\n"), "CURRENT"),
        (text.replace(' ', "  "), "CURRENT"),
        ("\u{fffd}".into(), "CURRENT"),
    ] {
        fs::write(path.join("CURRENT"), wrong).unwrap();
        corrupt(&path, says);
        let old = read_version::<State>(&path, 1);
        assert!(old.is_ok() == says.contains("missing"), "{says}: {old:?}");
    }
    fs::write(path.join("CURRENT"), &text).unwrap();
    fs::remove_file(path.join(STATE)).unwrap();
    corrupt(&path, "which is missing");
    fs::create_dir(path.join(STATE)).unwrap();
    corrupt(&path, "not a file");

    let not_found = |path: &Path, says: &str| match read_tree(path).unwrap_err() {
        Error::NotFound { reason, .. } => assert!(reason.contains(says), "{reason}"),
        other => panic!("{other:?}"),
    };
    fs::remove_file(path.join("CURRENT")).unwrap();
    not_found(&path, "no CURRENT");
    fs::create_dir(path.join("CURRENT")).unwrap();
    not_found(&path, "not a file");
    not_found(&path.join("segments/000001"), "opens with its tree alone");
    not_found(&path.join("segments/000001/codes.npy"), "not a folder");
    not_found(&place.path().join("nowhere"), "no such folder");
}

#[test]
fn manifests_of_others_and_of_later_versions() {
    let (_place, path) = small_tree();
    for text in ["[]", "17", r#"{"name": "an app", "version": "1.2"}"#, r#"{"format": "other", "version": 1}"#] {
        forge(&path, STATE, text);
        assert!(matches!(read_tree(&path), Err(Error::NotFound { .. })), "{text}");
    }
    for version in [2, u64::MAX] {
        forge(&path, STATE, &json!({"version": version, "format": "captree", "root": [{}]}).to_string());
        let error = read_tree(&path);
        assert!(matches!(error, Err(Error::NewerVersion { found, .. }) if found == version), "{error:?}");
    }
    for version in ["0", "-1", "1.0", "99999999999999999999", "null"] {
        forge(&path, STATE, &format!(r#"{{"format":"captree","version":{version},"checksum":"","body":{{}}}}"#));
        corrupt(&path, "version");
    }
    // The checksum of CURRENT is right, that of the manifest is not.
    forge(&path, STATE, r#"{"format":"captree","version":1,"checksum":"0123456789abcdef","body":{}}"#);
    corrupt(&path, "checksum");
    // And a body of another kind.
    commit(&path, &path, 1, &Value::Null).unwrap();
    corrupt(&path, STATE);
    // Sparse: a terabyte that would take minutes to read.
    for name in [STATE, "CURRENT"] {
        let file = fs::File::options().write(true).open(path.join(name)).unwrap();
        file.set_len(1 << 40).unwrap();
        corrupt(&path, "at most");
    }
}

#[test]
fn small_files_are_those_that_the_manifest_means() {
    let (_place, path) = small_tree();
    let (name, sum) = ("deleted/000001.roaring", xxhash_rust::xxh3::xxh3_64(b"rows"));
    let wrong = |says: &str| match read_file(&path, name, sum, 4).unwrap_err() {
        Error::Corrupt { reason, .. } => assert!(reason.contains(name) && reason.contains(says), "{reason}"),
        other => panic!("{other:?}"),
    };
    wrong("no such file");
    write_file(&path, &path, name, b"rows").unwrap();
    assert_eq!(read_file(&path, name, sum, 4).unwrap(), b"rows");
    write_file(&path, &path, name, b"row!").unwrap();
    wrong("expected checksum");
    fs::File::options().write(true).open(path.join(name)).unwrap().set_len(1 << 40).unwrap();
    wrong("at most 4 bytes");
    fs::remove_file(path.join(name)).unwrap();
    fs::create_dir(path.join(name)).unwrap();
    wrong("not a file");
}

#[test]
fn readers_see_whole_states_while_others_go_by() {
    let (_place, path) = small_tree();
    commit(&path, &path, 2, &state("2", &[1], None)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut last, mut seen) = (0, 0);
                    while !done.load(Ordering::Relaxed) {
                        let version = read::<State>(&path).unwrap();
                        let (note, codes) = read_state(&path, &version.body).unwrap();
                        assert!(version.number >= last, "{} after {last}", version.number);
                        last = version.number;
                        assert_eq!(note, last.to_string());
                        assert_eq!(codes, if last == 2 { vec![1, 2, 3] } else { vec![(last % 100) as i8; 3] });
                        let again = read_version::<State>(&path, last).unwrap();
                        assert_eq!(again.body, version.body);
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        for number in 3..303 {
            let _lock = WriterLock::take(&path, "append").unwrap();
            write_segment(&path, number, &[(number % 100) as i8; 3]).unwrap();
            commit(&path, &path, number, &state(&number.to_string(), &[number], None)).unwrap();
            clean::<State>(&path).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap() > 0));
    });
    clean::<State>(&path).unwrap();
    assert_eq!(small_files(&path), ["CURRENT", "LOCK", "manifest-000302.json"]);
    assert_eq!(entries(&path.join(SEGMENTS)), ["000302"]);
}

#[test]
fn one_writer_at_a_time() {
    let (_place, path) = small_tree();
    let first = WriterLock::take(&path, "append").unwrap();
    let locked = |error: Error| match error {
        Error::Locked { path: found, holder } => {
            assert_eq!(found, path);
            let id = format!("process {}", std::process::id());
            assert!(holder.starts_with(&id) && holder.ends_with("(append)"), "{holder}");
        }
        other => panic!("{other:?}"),
    };
    locked(WriterLock::take(&path, "delete").unwrap_err());
    locked(WriterLock::take(&path, "vacuum").unwrap_err());

    // Replacing a tree takes its lock too, and gives up without it.
    let new = NewTree::create(&path).unwrap();
    fill_tree(&new, "new", &[7]).unwrap();
    let (folder, beside) = (new.folder().to_owned(), path.parent().unwrap());
    locked(new.finish().unwrap_err());
    assert_small(&path);
    assert!(!folder.exists());
    assert_eq!(entries(beside), ["photos.captree"]);

    drop(first);
    drop(WriterLock::take(&path, "delete").unwrap());
    write_tree(&path, "new", &[7]).unwrap();
    assert_eq!(read_tree(&path).unwrap(), ("new".into(), vec![7]));

    // The next message does not end in the rest of a longer one.
    let _first = WriterLock::take(&path, "a").unwrap();
    let error = WriterLock::take(&path, "b").unwrap_err().to_string();
    assert!(error.contains("(a)") && !error.contains("delete"), "{error}");
    assert!(matches!(WriterLock::take(&path.join("nowhere"), "append"), Err(Error::Io { .. })));
}

#[test]
fn new_segments_are_numbered_on() {
    let (_place, path) = small_tree();
    assert_eq!(next_segment(&path), 2);
    fs::create_dir(path.join("segments/000041")).unwrap();
    for other in ["99", "18446744073709551615", "album", "-00050"] {
        fs::create_dir(path.join(SEGMENTS).join(other)).unwrap();
    }
    assert_eq!(next_segment(&path), 42);
    fs::create_dir(path.join(SEGMENTS).join("1000000")).unwrap();
    assert_eq!(next_segment(&path), 1_000_001);
    assert_eq!(next_segment(&path.join("nowhere")), 1);
}

#[test]
fn names_that_a_tree_has() {
    let is = |name: &str| super::super::versions::is_of_tree(Path::new(name), false);
    let is_folder = |name: &str| super::super::versions::is_of_tree(Path::new(name), true);
    for file in [
        "CURRENT",
        "CURRENT.tmp",
        "LOCK",
        "manifest-000001.json",
        "manifest-1000000.json",
        "manifest-000001.json.tmp",
        "segments/000001/manifest.json",
        "segments/000001/vectors.npy",
        "segments/1000000/checksums.npy",
        "deleted/000002.roaring",
        "deleted/000002.roaring.tmp",
    ] {
        assert!(is(file) && !is_folder(file), "{file}");
    }
    for folder in ["segments", "deleted", "segments/000001", "segments/1000000"] {
        assert!(is_folder(folder) && !is(folder), "{folder}");
    }
    for other in [
        "",
        "current",
        "LOCK.tmp",
        "CURRENT.tmp.tmp",
        ".tmp",
        "manifest.json",
        "vectors.npy",
        "manifest-.json",
        "manifest-1.json",
        "manifest-0000001.json",
        "manifest-+00001.json",
        "manifest-99999999999999999999.json",
        "manifest-000001.json.bak",
        "manifest-000001.npy",
        "holiday.jpg",
        "segments/1",
        "segments/album",
        "segments/000001.tmp",
        "segments/notes.txt",
        "segments/000001/notes.txt",
        "segments/000001/more/vectors.npy",
        "deleted/000002",
        "deleted/2.roaring",
        "deleted/000002/000002.roaring",
        "other/000002.roaring",
        "../CURRENT",
        "./CURRENT/..",
    ] {
        assert!(!is(other) && !is_folder(other), "{other}");
    }
}
