//! What the writer leaves behind, and what it refuses.

use super::*;

fn refused(path: &Path) -> String {
    let error = FolderWriter::create(path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let (place, path) = workplace();
    let mut folder = FolderWriter::create(&path).unwrap();
    write_one(&mut folder, "codes", &[3], &[1i8, 2, 3]).unwrap();
    let mut array = folder.array::<f32>("vectors", &[100]).unwrap();
    array.write(&[0.5; 50]).unwrap();
    assert_eq!(entries(place.path()).len(), 1);
    assert!(!path.exists());
    drop(folder);
    assert!(entries(place.path()).is_empty());
}

#[test]
fn an_old_tree_is_replaced_at_the_end() {
    let (place, path) = sample();
    let (old, _) = Folder::open::<Body>(&path).unwrap();
    let codes = old.array::<i8>("codes", &[1_000]).unwrap();

    drop(FolderWriter::create(&path).unwrap());
    assert_eq!(Contents::read(&path).unwrap(), Contents::sample());

    let mut folder = FolderWriter::create(&path).unwrap();
    write_one(&mut folder, "other", &[2], &[1u8, 2]).unwrap();
    assert_eq!(Contents::read(&path).unwrap(), Contents::sample());
    folder.finish(&"new").unwrap();

    let (folder, body) = Folder::open::<String>(&path).unwrap();
    assert_eq!((body.as_str(), read_one::<u8>(&folder, "other", &[2]).unwrap()), ("new", vec![1, 2]));
    assert_eq!(entries(&path), ["checksums.npy", "manifest.json", "other.npy"]);
    assert_eq!(entries(place.path()), ["photos.captree"]);
    // Who had the old one open goes on reading it.
    assert_eq!(codes.slice(0..1_000).unwrap(), Contents::sample().codes);
}

#[test]
fn anything_else_is_refused_and_untouched() {
    let (place, path) = workplace();
    fs::write(&path, "a file").unwrap();
    assert!(refused(&path).contains("nothing there was touched"));
    assert_eq!(fs::read(&path).unwrap(), b"a file");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    fs::write(path.join("holiday.jpg"), "a photo").unwrap();
    fs::write(path.join("manifest.json"), r#"{"name": "an app", "version": 2}"#).unwrap();
    refused(&path);
    assert_eq!(entries(&path), ["holiday.jpg", "manifest.json"]);

    fs::remove_dir_all(&path).unwrap();
    Contents::sample().write(&path).unwrap();
    fs::write(path.join("notes.txt"), "mine").unwrap();
    assert!(refused(&path).contains("notes.txt"));
    fs::remove_file(path.join("notes.txt")).unwrap();
    fs::write(path.join("manifest.json"), r#"{"format": "captree", "version": 2}"#).unwrap();
    assert!(refused(&path).contains("version 2"));
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

#[test]
fn an_empty_folder_becomes_the_tree() {
    let (place, path) = workplace();
    fs::create_dir(&path).unwrap();
    drop(FolderWriter::create(&path).unwrap());
    assert!(path.is_dir());
    Contents::sample().write(&path).unwrap();
    assert_eq!(Contents::read(&path).unwrap(), Contents::sample());
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

#[test]
fn leftovers_of_killed_writers_go_and_those_of_living_ones_stay() {
    let (place, path) = workplace();
    let left = |name: &str, file: &str| {
        fs::create_dir(place.path().join(name)).unwrap();
        fs::write(place.path().join(name).join(file), "half").unwrap();
    };
    left(".photos.captree.new-abc123", "vectors.npy");
    left(".photos.captree.new-mine", "holiday.jpg");
    left(".other.captree.new-abc123", "vectors.npy");
    let living = FolderWriter::create(&path).unwrap();
    let mut mine = FolderWriter::create(&path).unwrap();
    assert_eq!(entries(place.path()).len(), 4);
    write_one(&mut mine, "other", &[2], &[1u8, 2]).unwrap();
    mine.finish(&"new").unwrap();
    drop(living);
    assert_eq!(entries(place.path()), [".other.captree.new-abc123", ".photos.captree.new-mine", "photos.captree"]);
}

/// A kill between the two renames that replace a tree.
#[test]
fn a_tree_that_was_moved_aside_comes_back() {
    let (place, path) = sample();
    let aside = place.path().join(".photos.captree.old-abc123");
    fs::create_dir(&aside).unwrap();
    fs::rename(&path, aside.join("tree")).unwrap();
    drop(FolderWriter::create(&path).unwrap());
    assert_eq!(Contents::read(&path).unwrap(), Contents::sample());
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

/// The path is looked at again before it is replaced: builds take hours.
#[test]
fn what_appears_meanwhile_is_kept() {
    let (place, path) = workplace();
    let folder = FolderWriter::create(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("holiday.jpg"), "a photo").unwrap();
    assert!(matches!(folder.finish(&()), Err(Error::Io { .. })));
    assert_eq!(entries(&path), ["holiday.jpg"]);
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

#[test]
fn places_that_cannot_be_written() {
    let (place, path) = workplace();
    let missing = place.path().join("nowhere").join("photos.captree");
    assert!(refused(&missing).contains("nowhere"));
    assert!(!place.path().join("nowhere").exists());
    fs::write(&path, "a file").unwrap();
    refused(&path.join("inside"));
    refused(Path::new(""));
    refused(Path::new("/"));
    assert!(ScratchWriter::<u8>::create(&missing).is_err());
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_new_folders_are_ordinary() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let (place, path) = workplace();
    let real = place.path().join("real");
    symlink(&real, &path).unwrap();
    // To nowhere: there is no telling what was meant.
    refused(&path);
    Contents::sample().write(&real).unwrap();
    Contents::sample().write(&path).unwrap();
    assert!(path.symlink_metadata().unwrap().is_symlink());
    assert_eq!(entries(place.path()), ["photos.captree", "real"]);
    assert_eq!(Contents::read(&real).unwrap(), Contents::sample());

    let ordinary = place.path().join("ordinary");
    fs::create_dir(&ordinary).unwrap();
    assert_eq!(fs::metadata(&real).unwrap().mode(), fs::metadata(&ordinary).unwrap().mode());
}

#[test]
fn elements_must_be_as_many_as_the_shape_says() {
    let invalid = |result: Result<()>, says: &str| match result {
        Err(e @ Error::InvalidParameter { .. }) => assert!(e.to_string().contains(says), "{e}"),
        other => panic!("{other:?}"),
    };
    let (place, path) = workplace();
    let mut folder = FolderWriter::create(&path).unwrap();
    let mut array = folder.array::<f32>("vectors", &[2, 3]).unwrap();
    array.write(&[0.0; 4]).unwrap();
    invalid(array.write(&[0.0; 3]), "got more");
    invalid(array.finish(), "got 4");
    // And then the folder cannot go on.
    invalid(folder.array::<f32>("more", &[0]).map(|_| ()), "every array finished");
    invalid(folder.finish(&()), "every array finished");
    assert!(entries(place.path()).is_empty());
}

#[test]
fn names_and_shapes_that_cannot_be() {
    let (_place, path) = workplace();
    let mut folder = FolderWriter::create(&path).unwrap();
    write_one(&mut folder, "vectors", &[0], &[0f32; 0]).unwrap();
    for name in ["vectors", "checksums", "", "a/b", "..", "Vectors", "a.npy", "é"] {
        assert!(matches!(folder.array::<f32>(name, &[0]), Err(Error::InvalidParameter { .. })), "{name}");
    }
    for shape in [vec![usize::MAX, 2], vec![usize::MAX / 4], vec![1; 40_000]] {
        assert!(matches!(folder.array::<f32>("wide", &shape), Err(Error::InvalidParameter { .. })));
    }
    folder.finish(&()).unwrap();
}

#[test]
fn scratch_files_have_no_name() {
    let (place, _) = workplace();
    let mut writer = ScratchWriter::create(place.path()).unwrap();
    assert!(writer.is_empty());
    (0..300i64).for_each(|i| writer.write(&vec![i; 1_000]).unwrap());
    assert_eq!(writer.len(), 300_000);
    let array = writer.finish().unwrap();
    assert!(array.is_mapped() && entries(place.path()).is_empty());
    assert_eq!(array.len(), 300_000);
    assert!((0..300_000).all(|i| array.get(i).unwrap() == i as i64 / 1_000));
    array.verify(&Control::default()).unwrap();
    assert!(matches!(array.get(300_000), Err(Error::RowOutOfRange { .. })));

    let empty = ScratchWriter::<f32>::create(place.path()).unwrap().finish().unwrap();
    assert!(empty.is_empty() && empty.slice(0..0).unwrap().is_empty());
}
