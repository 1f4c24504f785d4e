"""The clip-art table: how it is split, and that prompts are in no caption."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from studies.clipart import data

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))


@pytest.fixture
def table(tmp_path):
    rows = []
    for i in range(1000):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (i % 256, 0, 0)).save(buffer, "PNG")
        rows.append({"png": buffer.getvalue(), "source": "x", "caption": f"thing {i}", "keywords": ["a_b"] * (i % 2)})
    schema = pa.schema(
        [("png", pa.binary()), ("source", pa.string()), ("caption", pa.string()), ("keywords", pa.list_(pa.string()))]
    )
    path = tmp_path / "clipart.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def test_parts_are_disjoint_and_all(table):
    read = data.load(table)
    parts = [set(part.tolist()) for part in (read.encoder, read.generator, read.test)]
    assert [len(part) for part in parts] == [245, 245, 510]
    assert set.union(*parts) == set(range(1000))
    assert read.captions[3] == ["thing 3", "thing 3: a b"]
    assert read.captions[2] == ["thing 2"]
    again = data.load(table)
    np.testing.assert_array_equal(again.generator, read.generator)


def test_the_encoder_may_have_seen_more_captions(table):
    half, all_of_them = data.load(table), data.load(table, encoder_share=1.0)
    np.testing.assert_array_equal(all_of_them.generator, half.generator)
    np.testing.assert_array_equal(all_of_them.test, half.test)
    assert set(all_of_them.encoder) == set(half.encoder) | set(half.generator)
    with pytest.raises(SystemExit, match="expected a number in"):
        data.load(table, encoder_share=0.0)


def test_pictures_are_decoded_in_order(table):
    read = data.load(table)
    images = data.pictures(read, np.array([7, 3]))
    assert images.shape == (2, 3, 64, 64)
    assert images[0, 0, 0, 0] == 7
    assert images[1, 0, 5, 5] == 3


def test_what_the_generator_gets_holds_no_text(table, tmp_path):
    read = data.load(table)
    data.write_pictures(read, read.generator, tmp_path / "pictures.parquet")
    assert pq.read_table(tmp_path / "pictures.parquet").column_names == ["png"]


def test_prompts_are_in_no_caption(table):
    read = data.load(table)
    data.assert_in_no_caption(data.PROMPTS, read)
    assert len(set(data.PROMPTS)) == len(data.PROMPTS) == 32
    with pytest.raises(AssertionError, match="1 that are, first 'Thing 3!'"):
        data.assert_in_no_caption(("Thing 3!", "nothing"), read)


def test_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(SystemExit, match="make_clipart"):
        data.load(tmp_path / "none.parquet")


def test_captions_of_pictures():
    make_clipart = pytest.importorskip("make_clipart")
    assert make_clipart._clean("Clipart by Nicu Buculei - arrow08_4") == "arrow08"
    assert make_clipart._clean("cartoon_tree_01") == "cartoon tree"
    assert make_clipart._clean("Chemistry Flask") == "Chemistry Flask"
    assert make_clipart._clean("untitled 1") == make_clipart._clean("") == ""
    assert make_clipart._clean("7") == "7"


def test_which_emoji_are_plain():
    emoji = pytest.importorskip("make_emoji")
    assert emoji.is_plain(emoji.Emoji("\U0001f34e", "red apple", ()))
    assert not emoji.is_plain(emoji.Emoji("\U0001f44d\U0001f3fd", "thumbs up: medium skin tone", ()))
    assert not emoji.is_plain(emoji.Emoji("\U0001f1e9\U0001f1ea", "flag: Germany", ()))


def test_pictures_are_put_on_white():
    emoji = pytest.importorskip("make_emoji")
    picture = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (10, 5, 30, 15))
    small = np.asarray(emoji.on_white(picture, 32))
    assert small.shape == (32, 32, 3)
    assert (small[0] == 255).all()
    np.testing.assert_array_equal(small[16, 16], [255, 0, 0])
