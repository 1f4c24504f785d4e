//! What a new tree leaves behind, and what it refuses; and what a segment's folder takes.

use super::*;

fn refused(path: &Path) -> String {
    let error = NewTree::create(path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_dropped_tree_leaves_nothing() {
    let (place, path) = workplace();
    let new = NewTree::create(&path).unwrap();
    fill_tree(&new, "new", &[1, 2, 3]).unwrap();
    let mut folder = FolderWriter::create(&new.folder().join(SEGMENTS).join("000002"), &path).unwrap();
    let mut array = folder.array::<f32>("vectors", &[100]).unwrap();
    array.write(&[0.5; 50]).unwrap();
    assert_eq!(entries(place.path()).len(), 1);
    assert!(!path.exists());
    drop((folder, new));
    assert!(entries(place.path()).is_empty());
}

#[test]
fn an_old_tree_is_replaced_at_the_end() {
    let (place, path) = small_tree();
    let (old, ()) = Folder::open(&path.join(SEGMENTS).join("000001")).unwrap();
    let codes = old.array::<i8>("codes", &[3]).unwrap();

    drop(NewTree::create(&path).unwrap());
    assert_small(&path);

    let new = NewTree::create(&path).unwrap();
    fill_tree(&new, "new", &[7]).unwrap();
    assert_small(&path);
    new.finish().unwrap();

    assert_eq!(read_tree(&path).unwrap(), ("new".into(), vec![7]));
    assert_eq!(entries(&path), ["CURRENT", "deleted", "manifest-000001.json", "segments"]);
    assert_eq!(entries(place.path()), ["photos.captree"]);
    // Who had the old one open goes on reading it.
    assert_eq!(codes.slice(0..3).unwrap(), [1, 2, 3]);
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
    fs::write(path.join("CURRENT"), "a note").unwrap();
    refused(&path);
    assert_eq!(entries(&path), ["CURRENT", "holiday.jpg"]);

    // A segment is not a tree.
    fs::remove_dir_all(&path).unwrap();
    FolderWriter::create(&path, &path).unwrap().finish(&()).unwrap();
    assert!(refused(&path).contains("opens with its tree alone"));
    assert_eq!(entries(&path), ["checksums.npy", "manifest.json"]);

    fs::remove_dir_all(&path).unwrap();
    write_tree(&path, "small", &[1, 2, 3]).unwrap();
    for stranger in ["notes.txt", "deleted/notes.txt", "segments/notes.txt", "segments/000001/notes.txt"] {
        fs::write(path.join(stranger), "mine").unwrap();
        assert!(refused(&path).contains(stranger));
        fs::remove_file(path.join(stranger)).unwrap();
    }
    fs::create_dir(path.join("segments/album")).unwrap();
    assert!(refused(&path).contains("segments/album"));
    fs::remove_dir(path.join("segments/album")).unwrap();
    assert_small(&path);
    fs::write(path.join("manifest-000001.json"), r#"{"format": "captree", "version": 2}"#).unwrap();
    assert!(refused(&path).contains("version 2"));
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

#[test]
fn an_empty_folder_becomes_the_tree() {
    let (place, path) = workplace();
    fs::create_dir(&path).unwrap();
    drop(NewTree::create(&path).unwrap());
    assert!(path.is_dir());
    write_tree(&path, "small", &[1, 2, 3]).unwrap();
    assert_small(&path);
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

#[test]
fn leftovers_of_killed_writers_go_and_those_of_living_ones_stay() {
    let (place, path) = workplace();
    let left = |name: &str, file: &str| {
        let file = place.path().join(name).join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "half").unwrap();
    };
    left(".photos.captree.new-abc123", "segments/000001/vectors.npy");
    left(".photos.captree.new-abc123", "CURRENT.tmp");
    left(".photos.captree.old-abc123", "tree/CURRENT");
    left(".photos.captree.new-mine", "holiday.jpg");
    left(".photos.captree.new-mine2", "segments/holiday.jpg");
    left(".other.captree.new-abc123", "segments/000001/vectors.npy");
    fs::create_dir(&path).unwrap();
    let living = NewTree::create(&path).unwrap();
    let mine = NewTree::create(&path).unwrap();
    assert_eq!(entries(place.path()).len(), 6);
    fill_tree(&mine, "small", &[1, 2, 3]).unwrap();
    mine.finish().unwrap();
    drop(living);
    assert_eq!(
        entries(place.path()),
        [".other.captree.new-abc123", ".photos.captree.new-mine", ".photos.captree.new-mine2", "photos.captree"]
    );
}

/// A kill between the two renames that replace a tree.
#[test]
fn a_tree_that_was_moved_aside_comes_back() {
    let (place, path) = small_tree();
    let aside = place.path().join(".photos.captree.old-abc123");
    fs::create_dir(&aside).unwrap();
    fs::rename(&path, aside.join("tree")).unwrap();
    drop(NewTree::create(&path).unwrap());
    assert_small(&path);
    assert_eq!(entries(place.path()), ["photos.captree"]);
}

/// The path is looked at again before it is replaced: builds take hours.
#[test]
fn what_appears_meanwhile_is_kept() {
    let (place, path) = workplace();
    let new = NewTree::create(&path).unwrap();
    fill_tree(&new, "new", &[7]).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("holiday.jpg"), "a photo").unwrap();
    assert!(matches!(new.finish(), Err(Error::Io { .. })));
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
    write_tree(&real, "old", &[7]).unwrap();
    write_tree(&path, "small", &[1, 2, 3]).unwrap();
    assert!(path.symlink_metadata().unwrap().is_symlink());
    assert_eq!(entries(place.path()), ["photos.captree", "real"]);
    assert_small(&real);
    // A link in the place of a part is none of the tree's.
    let segment = real.join("segments/000001");
    fs::rename(&segment, place.path().join("elsewhere")).unwrap();
    symlink(place.path().join("elsewhere"), &segment).unwrap();
    assert!(refused(&real).contains("segments/000001"));
    assert_small(&real);

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
    let (_place, path) = workplace();
    let mut folder = FolderWriter::create(&path, &path).unwrap();
    let mut array = folder.array::<f32>("vectors", &[2, 3]).unwrap();
    array.write(&[0.0; 4]).unwrap();
    invalid(array.write(&[0.0; 3]), "got more");
    invalid(array.finish(), "got 4");
    // And then the folder cannot go on.
    invalid(folder.array::<f32>("more", &[0]).map(|_| ()), "every array finished");
    invalid(folder.finish(&()), "every array finished");
    // What was written until then is nothing.
    assert!(matches!(Folder::open::<()>(&path), Err(Error::NotFound { .. })));
    assert!(matches!(FolderWriter::create(&path, &path), Err(Error::Io { .. })));
}

#[test]
fn names_and_shapes_that_cannot_be() {
    let (_place, path) = workplace();
    let mut folder = FolderWriter::create(&path, &path).unwrap();
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
