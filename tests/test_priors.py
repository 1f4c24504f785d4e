"""Priors of centers and bounds as objects: their laws, their rows, how they compose."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from helpers import all_rows, random_units, unit
from scipy import special, stats

import captree
from captree import (
    ByMass,
    Caps,
    FixedRadius,
    GivenCenters,
    LogUniformRadius,
    RadiusMixture,
    Shifted,
    Slerp,
    SlerpNoise,
    UniformInCap,
    training_caps,
    write_pairs,
)
from captree._centers import _angles
from captree._priors import cap_block
from captree.errors import InvalidCapsError, InvalidParameterError, InvalidTypeError, InvalidVectorsError
from captree.testing import oracle

ALARM = 1e-7
"""Below this a p-value is a fault: a few hundred tests on fixed seeds."""

CENTERS = {
    "slerp": Slerp(),
    "noise": SlerpNoise(0.5),
    "uniform": UniformInCap(),
    "given": GivenCenters(random_units(7, 48)),
    "shifted": Shifted(SlerpNoise(0.2), random_units(1, 48)[0], 0.5),
    "shifted uniform": Shifted(UniformInCap(), np.full(48, 0.01)),
}
RADII = {
    "mixture": RadiusMixture(((0.5, 0.2, 1.0), (0.5, 1.0, 2.0))),
    "fixed": FixedRadius(0.7),
    "number": 0.7,
    "log-uniform": LogUniformRadius(0.05, 2.0),
    "by mass": ByMass(0.01, 0.5),
}


def is_circular(centers, radii):
    return "uniform" in centers and radii == "by mass"


def inside(tree, rows, caps):
    """Whether each row lies in its cap, as the oracle says."""
    kept = all_rows(tree)
    return np.array([oracle(kept[row][None], caps[i]).rows.size == 1 for i, row in enumerate(rows)])


@pytest.mark.parametrize("radii", RADII)
@pytest.mark.parametrize("centers", CENTERS)
def test_training_caps_and_pairs_take_every_prior(tree, tmp_path, centers, radii):
    pq = pytest.importorskip("pyarrow.parquet")
    priors = {"centers": CENTERS[centers], "radii": RADII[radii]}
    if is_circular(centers, radii):
        with pytest.raises(InvalidParameterError, match="these centers need bounds"):
            training_caps(tree, 10, **priors)
        return
    caps = training_caps(tree, 300, seed=3, **priors)
    assert caps == training_caps(tree, 300, seed=3, threads=1, **priors)
    assert caps != training_caps(tree, 300, seed=4, **priors)
    np.testing.assert_allclose(np.linalg.norm(caps.centers.astype(np.float64), axis=1), 1, atol=1e-6)
    again = pickle.loads(pickle.dumps(priors))
    assert caps == training_caps(tree, 300, seed=3, **again)
    write_pairs(tree, tmp_path, 150, seed=3, **priors)
    table = pq.read_table(tmp_path)
    assert inside(tree, table["row"].to_numpy(), Caps.from_arrow(table)).all()


def test_slerp_is_the_default(tree):
    assert training_caps(tree, 50, seed=1) == training_caps(tree, 50, seed=1, centers=Slerp())
    centers, sources = Slerp()(np.random.default_rng(0), tree, 30)
    fewer, _ = Slerp()(np.random.default_rng(0), tree, 20)
    np.testing.assert_array_equal(centers[:20], fewer)
    assert sources.shape == (30, 2)


def test_objects_compare_and_cannot_be_changed():
    assert FixedRadius(0.5) == FixedRadius(0.5) != FixedRadius(0.6)
    assert SlerpNoise(0.5) == SlerpNoise(0.5)
    assert repr(ByMass(0.01, 0.1)) == "ByMass(low=0.01, high=0.1)"
    with pytest.raises(AttributeError):
        SlerpNoise(0.5).noise = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        Shifted(Slerp(), np.ones(3)).vector[0] = 2


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: FixedRadius(2.5), InvalidParameterError),
        (lambda: FixedRadius("a"), InvalidTypeError),
        (lambda: LogUniformRadius(0.0, 1.0), InvalidParameterError),
        (lambda: LogUniformRadius(0.5, 0.1), InvalidParameterError),
        (lambda: LogUniformRadius(0.5, 3.0), InvalidParameterError),
        (lambda: ByMass(0.0, 0.5), InvalidParameterError),
        (lambda: ByMass(0.1, 1.5), InvalidParameterError),
        (lambda: SlerpNoise(-0.1), InvalidParameterError),
        (lambda: SlerpNoise(math.nan), InvalidParameterError),
        (lambda: GivenCenters(np.ones((2, 3))), InvalidVectorsError),
        (lambda: GivenCenters(np.empty((0, 3))), InvalidCapsError),
        (lambda: Shifted(0.5, np.ones(3)), InvalidTypeError),
        (lambda: Shifted(Slerp(), np.ones((2, 3))), InvalidParameterError),
        (lambda: Shifted(Slerp(), [math.inf, 0.0]), InvalidParameterError),
        (lambda: UniformInCap(weights=[-1.0, 2.0]), InvalidParameterError),
        (lambda: UniformInCap(weights=[0.0, 0.0]), InvalidParameterError),
        (lambda: UniformInCap(weights=["a"]), InvalidTypeError),
    ],
)
def test_bad_priors(make, error):
    with pytest.raises(error, match="expected"):
        make()


def test_priors_that_do_not_fit_the_tree(tree):
    for centers in (Shifted(Slerp(), np.ones(3)), UniformInCap(weights=np.ones(5)), GivenCenters(random_units(2, 3))):
        with pytest.raises((InvalidParameterError, InvalidCapsError), match="expected"):
            training_caps(tree, 5, centers=centers)
    with pytest.raises(InvalidCapsError, match="got one that a center does"):
        training_caps(tree, 5, centers=Shifted(GivenCenters(np.eye(48)[:1]), -np.eye(48)[0]))


# --- laws ----------------------------------------------------------------------------------------------------------


def test_log_uniform_radii():
    bounds = LogUniformRadius(0.01, 1.0)(np.random.default_rng(0), 50_000)
    assert 0.01 <= bounds.min() < bounds.max() <= 1.0
    assert stats.kstest(np.log(bounds) / np.log(0.01), "uniform").pvalue > ALARM
    assert set(LogUniformRadius(0.3, 0.3)(np.random.default_rng(0), 9)) == {0.3}


def test_bounds_by_mass(tree):
    caps = training_caps(tree, 2000, seed=2, radii=ByMass(0.01, 0.5))
    share = tree.count(caps) / len(tree)
    assert share.min() >= 0.01
    assert share.max() <= 0.51
    # The share is a whole number of rows, up to 3% above the one drawn.
    assert stats.kstest(np.log(share / 0.01) / np.log(50), "uniform").statistic < 0.05


def test_pairs_keep_the_mass_in_float32(tree):
    block = cap_block(tree, 500, (1, 2, 3, 4), ByMass(1 / 3000, 1 / 3000), Slerp(), single=True)
    np.testing.assert_array_equal(block.bounds, block.bounds.astype(np.float32))
    assert (tree.count(Caps(block.centers, block.bounds)) >= 1).all()


def test_noise_moves_by_its_length(tree):
    clean, noisy = (
        training_caps(tree, 4000, seed=1, centers=prior).centers.astype(np.float64)
        for prior in (SlerpNoise(0.0), SlerpNoise(0.5))
    )
    cosine = (clean * noisy).sum(axis=1)
    assert abs(cosine.mean() - 1 / math.sqrt(1.25)) < 0.01
    np.testing.assert_array_equal(training_caps(tree, 9, centers=SlerpNoise(0.0)).centers.shape, (9, 48))


def test_given_centers_are_drawn_alike(tree):
    given = random_units(7, 48)
    caps = training_caps(tree, 20_000, centers=GivenCenters(given))
    place = (caps.centers @ given.T).argmax(axis=1)
    np.testing.assert_array_equal(caps.centers, given[place])
    assert stats.chisquare(np.bincount(place, minlength=7)).pvalue > ALARM
    assert (caps.sources == -1).all()


def test_shifted_centers(tree):
    vector = np.linspace(-1, 1, 48)
    plain = training_caps(tree, 200, seed=4, centers=SlerpNoise(0.3))
    moved = training_caps(tree, 200, seed=4, centers=Shifted(SlerpNoise(0.3), vector, 0.25))
    np.testing.assert_allclose(moved.centers, unit(plain.centers + 0.25 * vector), atol=1e-6)
    np.testing.assert_array_equal(moved.sources, plain.sources)
    nested = training_caps(tree, 200, seed=4, centers=Shifted(Shifted(SlerpNoise(0.3), vector, 0.25), -vector, 0.0))
    np.testing.assert_allclose(nested.centers, moved.centers, atol=1e-6)


def law_of_angle(angle, largest, dim):
    """P(angle of a uniform point of the cap <= angle), by the regularized incomplete beta function."""

    def area(x):
        half = special.betainc((dim - 1) / 2, 0.5, np.sin(x) ** 2) / 2
        return np.where(x <= np.pi / 2, half, 1 - half)

    return area(angle) / area(largest)


@pytest.mark.parametrize("dim", [2, 3, 4, 17, 768, 65_536])
@pytest.mark.parametrize("bound", [1e-6, 0.01, 0.5, 0.95, 1.0, 1.002, 1.4, 2.0])
def test_angles_follow_the_area(dim, bound):
    n = 4000
    cosine, sine = _angles(np.random.default_rng(1), np.full(n, bound), dim)
    np.testing.assert_allclose(cosine**2 + sine**2, 1, atol=1e-12)
    assert (cosine >= 1 - bound - 1e-12).all()
    angle, largest = np.arctan2(sine, cosine), 2 * math.asin(math.sqrt(bound / 2))
    assert angle.max() <= largest * (1 + 1e-9) + 1e-12
    area = float(special.betainc((dim - 1) / 2, 0.5, math.sin(largest) ** 2))
    if bound >= 1 or area > 1e-300:
        assert stats.kstest(law_of_angle(angle, largest, dim), "uniform").pvalue > ALARM
    if bound < 1:
        # The same law where the area underflows: with u = (sine / largest sine)**(d - 1) the density is 1 / cosine.
        grid = np.linspace(0, 1, 200_001)
        most = math.sqrt(bound * (2 - bound))
        density = 1 / np.sqrt(1 - (most * grid ** (1 / (dim - 1))) ** 2)
        total = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
        u = np.exp((dim - 1) * np.log(sine / most))
        assert stats.kstest(np.interp(u, grid, total / total[-1]), "uniform").pvalue > ALARM


@pytest.mark.parametrize("bound", [0.0, 0.5, 1.999, 2.0])
def test_angles_in_one_dimension(bound):
    cosine, sine = _angles(np.random.default_rng(0), np.full(2000, bound), 1)
    assert (sine == 0).all()
    assert stats.binomtest(int((cosine == -1).sum()), 2000, 0.5 if bound == 2 else 1e-12).pvalue > ALARM


@pytest.mark.parametrize("bound", [0.3, 1.0, 1.6, 2.0])
def test_centers_are_uniform_by_area_in_three_dimensions(bound):
    """Archimedes: the height is uniform, and so is the direction around the row."""
    row = unit([[0.6, 0.0, 0.8]])
    tree = captree.build(row, storage="float32")
    centers = training_caps(tree, 8000, radii=bound, centers=UniformInCap()).centers.astype(np.float64)
    axis = unit(row, np.float64)[0]
    height = centers @ axis
    assert stats.kstest((1 - height) / bound, "uniform").pvalue > ALARM
    first, second = np.array([0.0, 1.0, 0.0]), np.cross(axis, [0.0, 1.0, 0.0])
    around = np.arctan2(centers @ first, centers @ second)
    assert stats.kstest(around / (2 * np.pi) + 0.5, "uniform").pvalue > ALARM
    table = np.histogram2d(height, around, bins=(4, 6))[0]
    assert stats.chi2_contingency(table).pvalue > ALARM


@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("dim", [1, 2, 3, 48, 500])
def test_the_known_row_lies_in_its_cap_as_stored(dim, storage):
    tree = captree.build(random_units(200, dim, seed=dim), storage=storage)
    rng = np.random.default_rng(0)
    bounds = np.concatenate([10.0 ** rng.uniform(-9, -1, 300), rng.uniform(0, 2, 300), [0.0, 2.0, 1.0]])
    block = cap_block(tree, 603, (0, 1, 2, 3), lambda rng, n: bounds[:n], UniformInCap(), single=True)
    np.testing.assert_array_equal(block.bounds, bounds.astype(np.float32))
    known = block.rows >= 0
    caps = Caps(block.centers, block.bounds)
    assert inside(tree, block.rows[known], caps[known]).all()
    np.testing.assert_array_equal(block.rows[known], block.sources[known, 0])
    assert (block.sources[:, 1] == -1).all()
    # Rows are shorter than 1 by a rounding of their coordinates at most, so larger bounds always have one.
    assert known[block.bounds > 3e-3].all()


def test_the_known_row_is_a_fair_draw_if_the_bound_knows_nothing_of_it():
    """Why bounds by the mass around the row are refused: they favor the rows that lie apart."""
    rng = np.random.default_rng(0)
    spread = np.repeat([0.05, 0.6], [900, 100])[:, None]
    vectors = unit([1.0, 0.0, 0.0] + spread * rng.standard_normal((1000, 3)))
    tree = captree.build(vectors, storage="float32")
    kept = all_rows(tree).astype(np.float64)

    def too_many_lonely(rows, centers, bounds):
        """Standard deviations by which the rows after 900 come more often than their share of each cap."""
        inside = centers.astype(np.float64) @ kept.T >= 1 - bounds[:, None] - 1e-12
        share = inside[:, 900:].sum(axis=1) / inside.sum(axis=1)
        return ((rows >= 900) - share).sum() / np.sqrt((share * (1 - share)).sum())

    by_mass = tree.radius_for_mass(unit(kept), 0.05)
    with captree.PairStream(tree, 4000, centers=UniformInCap(), radii=lambda rng, n: rng.choice(by_mass, n)) as stream:
        batch = next(stream)
    assert abs(too_many_lonely(*batch)) < 5.3
    # The same row whatever the bounds, so that they can be made to fit it.
    _, _, rows = UniformInCap()(np.random.default_rng(1), tree, np.ones(4000))
    centers, _, again = UniformInCap()(np.random.default_rng(1), tree, by_mass[rows])
    np.testing.assert_array_equal(rows, again)
    assert too_many_lonely(rows, centers, by_mass[rows]) > 10


def test_known_rows_are_drawn_alike_or_by_weight(tree):
    rows = training_caps(tree, 30_000, seed=5, radii=0.5, centers=UniformInCap()).sources[:, 0]
    assert stats.chisquare(np.bincount(rows, minlength=3000)).pvalue > ALARM
    weights = np.random.default_rng(0).random(3000) * (np.arange(3000) % 3 > 0)
    rows = training_caps(tree, 30_000, seed=5, radii=0.5, centers=UniformInCap(weights)).sources[:, 0]
    seen, some = np.bincount(rows, minlength=3000), weights > 0.1
    assert (seen[weights == 0] == 0).all()
    expected = weights[some] / weights[some].sum() * seen[some].sum()
    assert stats.chisquare(seen[some], expected).pvalue > ALARM


def test_pairs_of_known_rows(tree, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    report = write_pairs(tree, tmp_path / "once", 2900, replace=False, centers=UniformInCap(), batch_size=700)
    table = pq.read_table(tmp_path / "once")
    rows = table["row"].to_numpy()
    assert len(np.unique(rows)) == 2900
    assert inside(tree, rows[:300], Caps.from_arrow(table)[:300]).all()
    assert report.caps_drawn == 2900 + report.empty_caps + report.exhausted_caps
    with pytest.raises(InvalidParameterError, match="centers that know no rows"):
        write_pairs(tree, tmp_path / "no", 10, centers=UniformInCap(), exclude_sources=True)


# --- the protocol --------------------------------------------------------------------------------------------------


class AroundRows:
    """Centers at rows, which they know for every other cap."""

    needs_bounds = True

    def __call__(self, rng, tree, bounds):
        rows = rng.integers(0, len(tree), len(bounds))
        centers = unit(tree.take(rows))
        return centers, np.stack([rows, rows], axis=1), np.where(np.arange(rows.size) % 2 == 0, rows, -1)


class HalfTheNearest:
    """A bound half as far as the second nearest row."""

    needs_centers = True

    def __call__(self, rng, tree, centers, threads=None):
        return tree.nearest(centers, 2, threads=threads).distances[:, 1] / 2


def test_priors_of_ones_own(tree):
    caps = training_caps(tree, 40, centers=AroundRows(), radii=0.5)
    np.testing.assert_array_equal(caps.centers, unit(all_rows(tree)[caps.sources[:, 0]]))
    block = cap_block(tree, 40, (0, 0, 0, 0), 0.5, AroundRows())
    assert (block.rows[1::2] == -1).all()
    assert (block.rows[::2] >= 0).all()
    caps = training_caps(tree, 40, radii=HalfTheNearest(), threads=1)
    assert (tree.count(caps) <= 1).all()


@pytest.mark.parametrize(
    "rows", [np.zeros(3, int), np.zeros(5), np.full(5, 3000), np.full(5, -2)], ids=["size", "floats", "large", "small"]
)
def test_rows_that_cannot_be(tree, rows):
    def centers(rng, given, bounds):
        return random_units(5, 48), None, rows

    centers.needs_bounds = True
    with pytest.raises(InvalidCapsError, match="rows: expected"):
        training_caps(tree, 5, centers=centers)


def test_rows_need_bounds(tree):
    with pytest.raises(InvalidCapsError, match="needs_bounds"):
        training_caps(tree, 5, centers=lambda rng, t, n: (random_units(n, 48), None, np.zeros(n, int)))
