"""Image sources give the same images in the same order, whatever holds them; damaged ones are named, not lost."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genmodel.errors import ConfigError, DataError
from genmodel.images import decode_image, load_squares, open_images, read_images, square


def png(color=(10, 200, 30), size=(9, 7), mode="RGB", **settings):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG", **settings)
    return buffer.getvalue()


def encoded(count=5):
    return {f"{i:03d}.png": png((40 * i, 255 - 40 * i, 7), (9 + i, 12)) for i in range(count)}


def as_folder(root, images):
    root.mkdir()
    for name, data in images.items():
        (root / name).write_bytes(data)
    return root


def as_tar(path, images):
    with tarfile.open(path, "w") as tar:
        for name, data in images.items():
            for member, content in ((name, data), (name.replace(".png", ".txt"), b"a caption")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def as_parquet(path, images, row_group_size=2):
    table = pa.table({"path": list(images), "image": pa.array(list(images.values()), pa.binary())})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_all_kinds_hold_the_same_images(tmp_path):
    images = encoded()
    sources = [
        as_folder(tmp_path / "folder", images),
        as_tar(tmp_path / "a.tar", images),
        as_parquet(tmp_path / "a.parquet", images),
    ]
    for source in sources:
        opened = open_images(source)
        assert list(opened.paths) == list(images)
        assert [opened.read(i) for i in range(len(opened))] == list(images.values())
        assert opened.fingerprint() == open_images(sources[0]).fingerprint()


def test_folders_of_shards_keep_their_order(tmp_path):
    images = encoded(6)
    for name, writer in (("tars", as_tar), ("tables", as_parquet)):
        (tmp_path / name).mkdir()
        for part in range(2):
            names = list(images)[3 * part : 3 * part + 3]
            ending = "tar" if writer is as_tar else "parquet"
            writer(tmp_path / name / f"{part}.{ending}", {key: images[key] for key in names})
        opened = open_images(tmp_path / name)
        assert [opened.read(i) for i in (5, 0, 3, 2, 4, 1)] == [list(images.values())[i] for i in (5, 0, 3, 2, 4, 1)]


def test_struct_columns_and_null_rows(tmp_path):
    rows = [{"bytes": png(), "path": "x.png"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [1, 2]}), tmp_path / "a.parquet")
    opened = open_images(tmp_path / "a.parquet")
    assert opened.read(0) == png()
    with pytest.raises(DataError, match="no bytes"):
        opened.read(1)


def test_two_byte_columns_must_be_told_apart(tmp_path):
    table = pa.table({"a": pa.array([png()]), "b": pa.array([png((1, 2, 3))])})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"one column of bytes, got \['a', 'b'\]"):
        open_images(tmp_path / "a.parquet")
    assert open_images(tmp_path / "a.parquet", "b").read(0) == png((1, 2, 3))


def test_what_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(DataError, match="no such"):
        open_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        open_images(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="expected a folder"):
        open_images(tmp_path / "notes.txt")
    (tmp_path / "bad.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match="uncompressed tar"):
        open_images(tmp_path / "bad.tar")


def test_decoding_flattens_transparency_and_turns_upright():
    clear = decode_image(png((255, 0, 0, 0), mode="RGBA"))
    assert clear.mode == "RGB"
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 8, 7] * 256)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    assert decode_image(buffer.getvalue()).getpixel((1, 1)) == (255, 255, 255)
    turned = Image.new("RGB", (8, 4))
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue()).size == (4, 8)


@pytest.mark.parametrize("data", [b"", b"GIF89a", png()[:40], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_damaged_images_are_an_error(data):
    with pytest.raises(DataError):
        decode_image(data)


@pytest.mark.parametrize("size", [(64, 64), (50, 80), (80, 50), (7, 200), (16, 17)])
def test_square_is_torchvisions_resize_and_crop(size):
    transforms = pytest.importorskip("torchvision.transforms")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    resize = transforms.Resize(16, interpolation=transforms.InterpolationMode.BICUBIC)
    expected = transforms.CenterCrop(16)(resize(image))
    np.testing.assert_array_equal(np.asarray(square(image, 16)), np.asarray(expected))


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_keeps_the_order_and_names_what_is_broken(tmp_path, workers):
    images = encoded(9)
    images["004.png"] = b"nonsense"
    source = open_images(as_folder(tmp_path / "folder", images))
    read = list(read_images(source, range(9), [lambda image: np.asarray(square(image, 4))], workers))
    assert [decoded.position for decoded in read] == list(range(9))
    assert [decoded.position for decoded in read if decoded.pictures is None] == [4]
    assert read[4].reason == "no image format that Pillow knows (8 bytes)"
    assert read[2].pictures[0].shape == (4, 4, 3)


def test_errors_of_worker_threads_reach_the_caller(tmp_path):
    source = open_images(as_folder(tmp_path / "folder", encoded(9)))

    def fail(image):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake"):
        list(read_images(source, range(9), [fail], workers=2))


def test_squares_in_memory(tmp_path):
    images = encoded(8)
    images["000.png"] = b""
    folder = as_folder(tmp_path / "folder", images)
    squares, positions = load_squares(folder, 6)
    assert squares.shape == (7, 3, 6, 6)
    assert squares.dtype == np.uint8
    assert positions.tolist() == list(range(1, 8))
    assert load_squares(folder, 6, limit=4)[1].tolist() == [2, 4, 6]  # of 0, 2, 4, 6 the first is broken
    np.save(tmp_path / "a.npy", squares.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(load_squares(tmp_path / "a.npy", 6)[0], squares)


# --- folders as img2dataset and others write them ---------------------------------------------------------------------


def notes(path, keys):
    """The Parquet file that img2dataset puts beside each shard: no images in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = [f"caption of {key}" for key in keys]
    pq.write_table(pa.table({"url": [f"https://x/{k}" for k in keys], "caption": captions, "key": keys}), path)
    (path.parent / f"{path.stem}_stats.json").write_text("{}")


@pytest.mark.parametrize("inner", ["", "train"])
def test_tars_with_their_notes(tmp_path, inner):
    images = encoded(6)
    folder = tmp_path / "data" / inner
    folder.mkdir(parents=True)
    for part, name in enumerate(("00009", "00010")):
        names = list(images)[3 * part : 3 * part + 3]
        as_tar(folder / f"{name}.tar", {key: images[key] for key in names})
        notes(folder / f"{name}.parquet", names)
    opened = open_images(tmp_path / "data")
    assert [opened.read(i) for i in range(len(opened))] == list(images.values())
    where = f"{inner}/" if inner else ""
    assert opened.paths[0] == f"{where}00009.tar/000.png"


def test_loose_files_with_their_notes(tmp_path):
    images = encoded(6)
    for part, name in enumerate(("00009", "00010")):
        names = list(images)[3 * part : 3 * part + 3]
        as_folder(tmp_path / name, {key: images[key] for key in names})
        notes(tmp_path / f"{name}.parquet", names)
    opened = open_images(tmp_path)
    assert [opened.read(i) for i in range(len(opened))] == list(images.values())
    assert opened.paths[:4] == ["00009/000.png", "00009/001.png", "00009/002.png", "00010/003.png"]


def test_tables_in_subfolders_and_with_keys(tmp_path):
    images = encoded(6)
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# a card")
    for part, name in enumerate(("train-9", "train-10")):
        names = list(images)[3 * part : 3 * part + 3]
        rows = pa.array([images[key] for key in names], pa.binary())
        pq.write_table(pa.table({"jpg": rows, "key": names, "caption": names}), tmp_path / "data" / f"{name}.parquet")
    opened = open_images(tmp_path)
    assert [opened.read(i) for i in range(len(opened))] == list(images.values())
    assert list(opened.paths) == list(images)


def test_hidden_folders_and_dead_links(tmp_path):
    images = encoded(3)
    folder = as_folder(tmp_path / "images", images)
    for name in (".ipynb_checkpoints", "_old", "__MACOSX"):
        as_folder(folder / name, images)
    (folder / "._000.png").write_bytes(b"resource fork")
    assert list(open_images(folder).paths) == list(images)
    (folder / "more.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"more\.png: a link to nowhere\.png"):
        open_images(folder)


def test_two_kinds_in_one_folder_are_refused(tmp_path):
    as_folder(tmp_path / "all", encoded(2))
    as_tar(tmp_path / "all" / "a.tar", encoded(2))
    with pytest.raises(ConfigError, match="tar files and loose images"):
        open_images(tmp_path / "all")
    notes(tmp_path / "only" / "0.parquet", ["a", "b"])
    with pytest.raises(ConfigError, match="expected one column of bytes"):
        open_images(tmp_path / "only")


def test_a_source_stays_where_it_was(tmp_path, monkeypatch):
    as_folder(tmp_path / "images", encoded(2))
    monkeypatch.chdir(tmp_path)
    opened = open_images("images")
    monkeypatch.chdir("/")
    assert opened.read(1) == list(encoded(2).values())[1]


@pytest.mark.parametrize("ending", ["PNG", "TIFF"])
def test_grey_images_of_16_bits(ending):
    grey = np.array([[0, 128, 257], [30_000, 65_406, 65_535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, ending)
    shown = np.asarray(decode_image(buffer.getvalue()))
    assert shown.shape == (2, 3, 3)
    expected = np.round(grey / 257.0).astype(np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(shown[..., channel], expected)
