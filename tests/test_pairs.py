"""write_pairs: every stored pair is true, uniform, distinct where asked, and repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import all_rows, random_units
from scipy import stats

import captree
from captree import Caps, write_pairs
from captree.errors import InvalidParameterError, InvalidTypeError, StorageError
from captree.testing import oracle

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(folder):
    table = pq.read_table(folder)
    return table["row"].to_numpy(), Caps.from_arrow(table)


def assert_true(tree, rows, caps):
    """Every row lies in its cap, as the oracle says."""
    kept = all_rows(tree)
    for i, row in enumerate(rows):
        assert oracle(kept[row][None], caps[i]).rows.size == 1, f"pair {i}"


@pytest.fixture(scope="module")
def small():
    return captree.build(random_units(40, 3, seed=4), fanout=4, leaf_size=5)


def test_files_and_columns(tree, tmp_path):
    report = write_pairs(tree, tmp_path / "pairs", 1000, seed=1, batch_size=128, rows_per_file=300)
    assert report.pairs == 1000
    assert [path.split("part-")[-1] for path in report.files] == [f"0000{i}.parquet" for i in range(4)]
    names = [".pairs.json", *(f"part-0000{i}.parquet" for i in range(4))]
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == names
    assert [pq.read_metadata(path).num_rows for path in report.files] == [300, 300, 300, 100]
    schema = pq.read_schema(report.files[0])
    assert schema.names == ["row", "center", "max_cos_distance"]
    assert schema.field("row").type == pa.int64()
    assert schema.field("center").type == pa.list_(schema.field("center").type.value_field, 48)
    assert schema.field("center").type.value_type == pa.float32()
    assert schema.field("max_cos_distance").type == pa.float32()
    assert report.caps_drawn == report.pairs + report.empty_caps + report.exhausted_caps
    assert report.seconds > 0


def test_every_stored_pair_is_true(tree, tmp_path):
    write_pairs(tree, tmp_path, 600, seed=2)
    rows, caps = read(tmp_path)
    assert_true(tree, rows, caps)
    assert len(np.unique(rows)) > 100


def test_bounds_near_a_rows_distance_stay_true_in_float32(tmp_path):
    """Bounds that are one row's distance: rounding them after the draw would make half of the pairs false."""
    tree = captree.build(random_units(30, 4, seed=8), storage="float32")
    kept = all_rows(tree)

    def centers(rng, given, n):
        return np.roll(kept, 1, axis=0)[np.arange(n) % 30]

    at = np.array([oracle(kept[i][None], Caps(np.roll(kept, 1, axis=0)[i], 2.0)).distances[0] for i in range(30)])
    report = write_pairs(
        tree, tmp_path, 200, centers=centers, radii=lambda rng, n: np.minimum(at[np.arange(n) % 30], 2)
    )
    rows, caps = read(tmp_path)
    assert_true(tree, rows, caps)
    assert report.pairs == 200


def test_same_seed_same_pairs(tree, tmp_path):
    write_pairs(tree, tmp_path / "a", 500, seed=5, batch_size=100, threads=1)
    write_pairs(tree, tmp_path / "b", 500, seed=5, batch_size=100, rows_per_file=77)
    write_pairs(tree, tmp_path / "c", 500, seed=6, batch_size=100)
    (rows_a, caps_a), (rows_b, caps_b), (rows_c, _) = (read(tmp_path / name) for name in "abc")
    np.testing.assert_array_equal(rows_a, rows_b)
    assert caps_a == caps_b
    assert not np.array_equal(rows_a, rows_c)


def test_empty_caps_are_dropped_and_counted(tree, tmp_path):
    report = write_pairs(tree, tmp_path, 300, centers=lambda rng, t, n: random_units(n, 48, int(rng.integers(2**31))))
    assert report.empty_caps > 0
    assert report.exhausted_caps == 0
    rows, caps = read(tmp_path)
    assert (rows >= 0).all()
    assert (tree.count(caps) > 0).all()


def test_rows_are_uniform_in_their_caps(small, tmp_path):
    """Equal caps, in one batch and across batches, draw independently."""
    center = all_rows(small)[0].astype(np.float32)
    write_pairs(small, tmp_path, 20_000, batch_size=512, radii=0.5, centers=lambda rng, t, n: np.tile(center, (n, 1)))
    rows, _ = read(tmp_path)
    inside = oracle(all_rows(small), Caps(center, 0.5)).rows
    seen = np.bincount(rows, minlength=40)
    assert seen.sum() == seen[inside].sum()
    assert stats.chisquare(seen[inside]).pvalue > 1e-7
    table = np.zeros((inside.size, inside.size))
    place = np.searchsorted(inside, rows)
    np.add.at(table, (place[:-1], place[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-7


def test_exclude_sources(small, tmp_path):
    """The row is uniform over the cap without its two sources."""
    kept = all_rows(small).astype(np.float32)
    inside = oracle(all_rows(small), Caps(kept[0], 0.5)).rows
    sources = inside[:2]

    def centers(rng, t, n):
        return np.tile(kept[0], (n, 1)), np.tile(sources, (n, 1))

    report = write_pairs(small, tmp_path, 15_000, radii=0.5, centers=centers, exclude_sources=True, batch_size=2000)
    rows, _ = read(tmp_path)
    others = inside[2:]
    seen = np.bincount(rows, minlength=40)
    assert seen.sum() == seen[others].sum()
    assert stats.chisquare(seen[others]).pvalue > 1e-7
    assert report.exhausted_caps == 0


def test_exclude_sources_drops_caps_with_nothing_else(small, tmp_path):
    kept = all_rows(small)

    def centers(rng, t, n):
        row = rng.integers(0, 40, n)
        return kept[row], np.stack([row, row], axis=1)

    with pytest.raises(InvalidParameterError, match=r"100\d\d\d caps one after the other.*after 0 of 10 pairs"):
        write_pairs(small, tmp_path, 10, radii=1e-3, centers=centers, exclude_sources=True)
    assert list(tmp_path.iterdir()) == []


def test_training_caps_with_excluded_sources(tree, tmp_path):
    report = write_pairs(tree, tmp_path, 2000, exclude_sources=True, seed=9)
    assert report.exhausted_caps > 0
    rows, caps = read(tmp_path)
    assert_true(tree, rows[:200], caps[:200])


def test_without_replacement(tree, tmp_path):
    report = write_pairs(tree, tmp_path, 2500, replace=False, seed=3, batch_size=400)
    rows, caps = read(tmp_path)
    assert len(np.unique(rows)) == 2500
    assert_true(tree, rows[::5], caps[::5])
    assert report.caps_drawn == 2500 + report.empty_caps + report.exhausted_caps


def test_without_replacement_can_use_every_row(small, tmp_path):
    report = write_pairs(small, tmp_path / "all", 40, replace=False, radii=2.0)
    assert sorted(read(tmp_path / "all")[0].tolist()) == list(range(40))
    assert report.exhausted_caps == 0
    with pytest.raises(InvalidParameterError, match="at most 40 pairs"):
        write_pairs(small, tmp_path / "more", 41, replace=False)
    write_pairs(small, tmp_path / "prior", 40, replace=False, seed=2)
    rows, caps = read(tmp_path / "prior")
    assert sorted(rows.tolist()) == list(range(40))
    assert_true(small, rows, caps)


def test_without_replacement_of_more_rows_than_a_few(tmp_path):
    """The last rows of a large cap are found by searching it."""
    tree = captree.build(random_units(700, 4, seed=2))
    write_pairs(tree, tmp_path, 700, replace=False, radii=2.0, batch_size=64)
    assert sorted(read(tmp_path)[0].tolist()) == list(range(700))


def test_without_replacement_first_and_last_rows_are_uniform(small, tmp_path):
    """With one cap, the order in which its rows come is a uniform permutation."""
    center = all_rows(small)[0].astype(np.float32)
    inside = oracle(all_rows(small), Caps(center, 0.4)).rows
    m = inside.size
    assert 4 <= m <= 20
    table = np.zeros((2, m))
    for seed in range(600):
        out = tmp_path / str(seed)
        write_pairs(small, out, m, seed, replace=False, radii=0.4, centers=lambda rng, t, n: np.tile(center, (n, 1)))
        rows = read(out)[0]
        assert sorted(rows.tolist()) == inside.tolist()
        table[0, np.searchsorted(inside, rows[0])] += 1
        table[1, np.searchsorted(inside, rows[-1])] += 1
    assert stats.chisquare(table[0]).pvalue > 1e-7
    assert stats.chisquare(table[1]).pvalue > 1e-7


def test_without_replacement_and_without_sources(small, tmp_path):
    write_pairs(small, tmp_path, 35, replace=False, exclude_sources=True, seed=4)
    rows, caps = read(tmp_path)
    assert len(set(rows.tolist())) == 35
    assert_true(small, rows, caps)


def test_used_up_caps_end_with_an_error(small, tmp_path):
    center = all_rows(small)[0].astype(np.float32)
    with pytest.raises(InvalidParameterError, match=r"caps one after the other.*after \d+ of 40 pairs"):
        write_pairs(small, tmp_path, 40, replace=False, radii=0.2, centers=lambda rng, t, n: np.tile(center, (n, 1)))


def test_a_folder_that_is_not_empty(tree, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidParameterError, match="expected an empty folder"):
        write_pairs(tree, tmp_path, 10)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(StorageError, match="cannot write pairs"):
        write_pairs(tree, tmp_path / "notes.txt", 10)


def test_nothing_temporary_stays_after_an_error(tree, tmp_path):
    def stop(phase, done, total):
        if done >= 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(tree, tmp_path, 1000, batch_size=100, rows_per_file=256, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pairs.json", "part-00000.parquet"]
    assert pq.read_table(tmp_path).num_rows == 256


def test_shards_are_nearly_equal(tree, tmp_path):
    report = write_pairs(tree, tmp_path / "seven", 1000, seed=5, batch_size=128, shards=7)
    assert [pq.read_metadata(path).num_rows for path in report.files] == [143] * 6 + [142]
    write_pairs(tree, tmp_path / "default", 1000, seed=5, batch_size=128)
    (rows, caps), (same, equal) = read(tmp_path / "seven"), read(tmp_path / "default")
    np.testing.assert_array_equal(rows, same)
    assert caps == equal
    report = write_pairs(tree, tmp_path / "one each", 3, shards=3)
    assert [pq.read_metadata(path).num_rows for path in report.files] == [1, 1, 1]


@pytest.mark.parametrize("centers", [None, captree.UniformInCap()], ids=["drawn rows", "known rows"])
def test_rows_are_used_at_most_caps_per_row_times(small, tmp_path, centers):
    report = write_pairs(small, tmp_path, 110, replace=False, caps_per_row=3, centers=centers, batch_size=32)
    rows, caps = read(tmp_path)
    seen = np.bincount(rows, minlength=40)
    assert seen.max() == 3
    assert seen.sum() == 110
    assert_true(small, rows, caps)
    assert len(np.unique(caps.centers, axis=0)) == 110
    assert report.caps_drawn == 110 + report.empty_caps + report.exhausted_caps


def test_every_row_caps_per_row_times(small, tmp_path):
    for uses in (2, 300):  # a row's count takes one byte, or two
        write_pairs(small, tmp_path / str(uses), 40 * uses, replace=False, caps_per_row=uses, radii=2.0)
        assert np.bincount(read(tmp_path / str(uses))[0]).tolist() == [uses] * 40


def test_rows_of_several_uses_are_uniform_over_those_left(small, tmp_path):
    """With one cap and two uses, the last row to come is each with the same probability; so is the first one."""
    center = all_rows(small)[0].astype(np.float32)
    inside = oracle(all_rows(small), Caps(center, 0.4)).rows
    table = np.zeros((2, inside.size))
    for seed in range(200):
        out = tmp_path / str(seed)
        size = 2 * inside.size
        options = {"radii": 0.4, "centers": lambda rng, t, n: np.tile(center, (n, 1))}
        write_pairs(small, out, size, seed, replace=False, caps_per_row=2, **options)
        rows = read(out)[0]
        np.testing.assert_array_equal(np.sort(rows), np.repeat(inside, 2))
        table[0, np.searchsorted(inside, rows[0])] += 1
        table[1, np.searchsorted(inside, rows[-1])] += 1
    assert stats.chisquare(table[0]).pvalue > 1e-7
    assert stats.chisquare(table[1]).pvalue > 1e-7


@pytest.mark.parametrize("options", [{}, {"empty": "keep"}, {"replace": False}], ids=repr)
def test_counts(tree, tmp_path, options):
    write_pairs(tree, tmp_path, 500, seed=1, batch_size=100, rows_per_file=130, counts=True, **options)
    table = pq.read_table(tmp_path)
    assert table.schema.names == ["row", "center", "max_cos_distance", "count", "selectivity"]
    assert (table.schema.field("count").type, table.schema.field("selectivity").type) == (pa.int64(), pa.float64())
    expected = oracle(all_rows(tree), Caps.from_arrow(table)).counts
    np.testing.assert_array_equal(table["count"].to_numpy(), expected)
    np.testing.assert_array_equal(table["selectivity"].to_numpy(), expected / 3000)
    assert (expected == 0).any() == ("empty" in options)


def test_selectivity_is_a_share_of_the_rows_that_are_there(tmp_path):
    rows = random_units(20, 4)
    rows[[3, 4]] = 0
    write_pairs(captree.build(rows, invalid="skip"), tmp_path, 50, radii=2.0, counts=True)
    table = pq.read_table(tmp_path)
    assert set(table["count"].to_pylist()) == {18}
    assert set(table["selectivity"].to_pylist()) == {1.0}


def test_empty_caps_are_kept_by_choice(tree, tmp_path):
    """The pairs with a row are those of a run that redraws, and the others are its empty caps."""
    redrawn = write_pairs(tree, tmp_path / "redraw", 1000, seed=3, batch_size=100)
    kept = write_pairs(tree, tmp_path / "keep", 1000, seed=3, batch_size=100, empty="keep")
    rows, caps = read(tmp_path / "keep")
    assert (kept.pairs, kept.caps_drawn, kept.exhausted_caps) == (1000, 1000, 0)
    assert kept.empty_caps == (rows == -1).sum() > 0
    assert (tree.count(caps[rows == -1]) == 0).all()
    others, theirs = read(tmp_path / "redraw")
    np.testing.assert_array_equal(rows[rows >= 0], others[: (rows >= 0).sum()])
    assert caps[rows >= 0] == theirs[: (rows >= 0).sum()]
    assert redrawn.caps_drawn > 1000


def test_kept_empty_caps_without_replacement(small, tmp_path):
    """Empty caps use no row, and the number of lines is right even where the last ones are empty."""
    for n in range(30, 40):
        options = {"seed": 2, "replace": False, "radii": lambda rng, size: rng.choice([0.0, 0.3], size)}
        report = write_pairs(small, tmp_path / str(n), n, empty="keep", batch_size=64, **options)
        rows, caps = read(tmp_path / str(n))
        assert len(rows) == n
        assert np.bincount(rows[rows >= 0]).max() == 1
        assert report.empty_caps == (rows == -1).sum() > 3
        assert report.caps_drawn == n + report.exhausted_caps
        assert (small.count(caps[rows == -1]) == 0).all()


def test_bands_of_bounds(tree, tmp_path):
    report = write_pairs(tree, tmp_path / "redraw", 3000, replace=False, seed=1, batch_size=500)
    assert [(band.low, band.high) for band in report.bands] == [(i / 5, (i + 1) / 5) for i in range(10)]
    _, caps = read(tmp_path / "redraw")
    edges = np.linspace(0, 2, 11).astype(np.float32)
    assert [band.pairs for band in report.bands] == np.histogram(caps.max_cos_distance, edges)[0].tolist()
    for name in ("caps_drawn", "empty_caps", "exhausted_caps", "pairs"):
        assert sum(getattr(band, name) for band in report.bands) == getattr(report, name)
    for band in report.bands:
        assert band.caps_drawn == band.pairs + band.empty_caps + band.exhausted_caps
    assert report.bands[0].empty_caps > 0.1 * report.bands[0].caps_drawn
    assert report.bands[4].empty_caps == 0


def test_bounds_on_the_edge_of_a_band(small, tmp_path):
    """A bound of 0.6, as float32, opens its band; 2 belongs to the last one."""
    for i, bound in enumerate((0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)):
        report = write_pairs(small, tmp_path / str(i), 20, radii=bound, empty="keep")
        assert [band.pairs for band in report.bands] == [20 * (band == min(i, 9)) for band in range(10)]


def shares(tree, rows, caps, uses, sources=None):
    """The share of each cap's rows that were used up before its row was drawn, by brute force."""
    kept, left, made = all_rows(tree), np.full(len(tree), uses), []
    for i, row in enumerate(rows):
        inside = oracle(kept, caps[i]).rows
        inside = inside[~np.isin(inside, [] if sources is None else sources)]
        made.append((left[inside] == 0).mean())
        left[row] -= 1
    return np.array(made)


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("centers", [None, captree.UniformInCap()], ids=["drawn rows", "known rows"])
def test_the_used_share_of_caps_is_measured(small, tmp_path, uses, centers):
    n = 35 * uses
    report = write_pairs(
        small, tmp_path, n, seed=7, replace=False, caps_per_row=uses, centers=centers, batch_size=16, rows_per_file=10
    )
    rows, caps = read(tmp_path)
    expected = shares(small, rows, caps, uses)
    tenth = np.arange(n) * 10 // n
    assert report.skew.measured_caps == report.skew.pairs == n
    assert report.skew.mean == pytest.approx(expected.mean(), rel=1e-12)
    assert report.skew.largest == expected.max() > 0
    assert report.skew.exhausted_caps == report.exhausted_caps > 0
    with_them = (expected.sum() + report.exhausted_caps) / (n + report.exhausted_caps)
    assert report.skew.mean_with_exhausted == pytest.approx(with_them, rel=1e-12)
    for i, part in enumerate(report.skew_by_tenth):
        assert part.pairs == part.measured_caps == (tenth == i).sum()
        assert part.mean == pytest.approx(expected[tenth == i].mean(), rel=1e-12)
        assert part.largest == expected[tenth == i].max()
    assert sum(part.exhausted_caps for part in report.skew_by_tenth) == report.exhausted_caps
    assert report.skew_by_tenth[0].exhausted_caps < report.skew_by_tenth[9].exhausted_caps


def test_sources_are_no_rows_of_a_measured_cap(small, tmp_path):
    kept = all_rows(small).astype(np.float32)

    def centers(rng, t, n):
        return kept[rng.integers(0, 40, n)], np.tile([0, 1], (n, 1))

    report = write_pairs(small, tmp_path, 30, replace=False, exclude_sources=True, radii=1.2, centers=centers)
    expected = shares(small, *read(tmp_path), 1, sources=[0, 1])
    assert report.skew.measured_caps == 30
    assert report.skew.mean == pytest.approx(expected.mean(), rel=1e-12)


def test_the_used_share_of_a_sample(tree, tmp_path):
    """Of the caps that hold all rows, pair i finds i used ones; a hundred of each tenth are looked at."""
    report = write_pairs(tree, tmp_path, 3000, replace=False, radii=2.0, batch_size=700)
    assert report.skew.measured_caps == 1000
    assert [part.measured_caps for part in report.skew_by_tenth] == [100] * 10
    for i, part in enumerate(report.skew_by_tenth):
        assert abs(part.mean - (i + 0.5) / 10) < 0.015
        assert i / 10 < part.largest < (i + 1) / 10
    assert abs(report.skew.mean - 0.5) < 0.005
    again = write_pairs(tree, tmp_path / "again", 3000, replace=False, radii=2.0, batch_size=700)
    assert again.skew == report.skew


def test_no_skew_with_replacement(tree, tmp_path):
    report = write_pairs(tree, tmp_path, 50)
    assert (report.skew, report.skew_by_tenth) == (None, ())
    few = write_pairs(tree, tmp_path / "few", 3, replace=False)
    assert [part.pairs for part in few.skew_by_tenth] == [1, 1, 1]


def test_progress(tree, tmp_path):
    calls = []
    write_pairs(tree, tmp_path, 500, batch_size=200, progress=lambda *call: calls.append(call))
    assert {phase for phase, _, _ in calls} == {"pairs"}
    assert calls[0] == ("pairs", 0, 500)
    assert calls[-1] == ("pairs", 500, 500)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n": 0}, InvalidParameterError),
        ({"n": 1.0}, InvalidTypeError),
        ({"seed": -1}, InvalidParameterError),
        ({"batch_size": 0}, InvalidParameterError),
        ({"rows_per_file": 0}, InvalidParameterError),
        ({"threads": 0}, InvalidParameterError),
        ({"out": 3}, InvalidTypeError),
        ({"radii": -1.0}, InvalidParameterError),
        ({"radii": "wide"}, InvalidTypeError),
        ({"centers": 3}, InvalidTypeError),
        ({"shards": 0}, InvalidParameterError),
        ({"shards": 6}, InvalidParameterError),
        ({"shards": 2.0}, InvalidTypeError),
        ({"shards": 2, "rows_per_file": 3}, InvalidParameterError),
        ({"caps_per_row": 1}, InvalidParameterError),
        ({"caps_per_row": 0, "replace": False}, InvalidParameterError),
        ({"caps_per_row": 1.5, "replace": False}, InvalidTypeError),
        ({"caps_per_row": 2**32, "replace": False}, InvalidParameterError),
        ({"caps_per_row": 2, "replace": False, "n": 6001}, InvalidParameterError),
        ({"empty": "drop"}, InvalidParameterError),
        ({"empty": None}, InvalidParameterError),
        ({"empty": "keep", "centers": captree.UniformInCap()}, InvalidParameterError),
    ],
)
def test_bad_arguments(tree, tmp_path, options, error):
    with pytest.raises(error, match="expected"):
        write_pairs(tree, **{"out": tmp_path, "n": 5, **options})
    assert list(tmp_path.iterdir()) == []
