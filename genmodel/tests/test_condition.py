import pytest
import torch
from training_support import DIM, caps, centers

from genmodel import errors
from genmodel.condition import CONDITION_KINDS, Condition, ConditionEmbedder


def test_null_cap_is_canonical() -> None:
    null = Condition.null(3, DIM)
    assert null.is_null.all()
    assert not null.center.any()
    assert caps(3, 2.0).is_null.all()
    assert not caps(3, 1.999).is_null.any()
    assert not Condition.distance(centers(3), 2.0).is_null.any()


@pytest.mark.parametrize("kind", CONDITION_KINDS)
def test_every_null_cap_has_one_vector(kind: str) -> None:
    embedder = ConditionEmbedder(DIM, 32, kind)
    expected = embedder(Condition.null(4, DIM))
    wild = caps(4, 2.0)
    wild.center[1] = float("nan")
    wild.center[2] = 1e30
    assert torch.equal(embedder(wild), expected)
    assert torch.equal(embedder(caps(4).where_null(torch.ones(4, dtype=torch.bool))), expected)
    expected.sum().backward()
    assert embedder.center.weight.grad is not None
    assert not embedder.center.weight.grad.any()


def test_center_and_radius_both_matter() -> None:
    embedder = ConditionEmbedder(DIM, 32)
    base = embedder(caps(2, 0.5))
    assert not torch.allclose(base[0], base[1])
    assert not torch.allclose(embedder(caps(2, 0.51)), base)


def test_ends_of_a_range_matter_only_to_its_kind() -> None:
    low, high = Condition.range(centers(2), 0.1, 0.5), Condition.range(centers(2), 0.3, 0.5)
    cap, ranged = ConditionEmbedder(DIM, 32, "cap"), ConditionEmbedder(DIM, 32, "range")
    assert torch.equal(cap(low), cap(high))
    assert not torch.allclose(ranged(low), ranged(high))


def test_rows() -> None:
    given = caps(5, torch.linspace(0, 1, 5))
    assert len(given[2]) == 1
    assert given[-1].high.item() == 1
    assert given[1:3].high.tolist() == [0.25, 0.5]
    assert given[torch.tensor([True, False, False, True, False])].high.tolist() == [0.0, 0.75]
    assert given.repeat(2).high.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    joined = Condition.cat([given, Condition.null(2, DIM)])
    assert joined.is_null.tolist() == [False] * 5 + [True] * 2
    mixed = given.where_null(torch.tensor([False, True, False, False, False]))
    assert mixed.is_null.tolist() == [False, True, False, False, False]
    assert torch.equal(mixed.center[2], given.center[2])


def test_bad_input() -> None:
    with pytest.raises(errors.InputError, match="unit centers, got a length of 2"):
        Condition.cap(centers(2) * 2, 0.5)
    with pytest.raises(errors.InputError, match="unit centers"):
        Condition.cap(torch.full((2, DIM), float("nan")), 0.5)
    with pytest.raises(errors.InputError, match=r"\[0, 2\]"):
        Condition.cap(centers(2), 2.5)
    with pytest.raises(errors.InputError, match=r"\[0, 2\]"):
        Condition.cap(centers(2), float("nan"))
    with pytest.raises(errors.InputError, match=r"shape \(2,\)"):
        Condition.cap(centers(2), [0.1, 0.2, 0.3])
    with pytest.raises(errors.InputError, match="low <= high"):
        Condition.range(centers(2), 0.5, 0.4)
    with pytest.raises(errors.InputError, match="at least one"):
        Condition.cat([])
    with pytest.raises(errors.InputError, match="dimension 16, got 8"):
        ConditionEmbedder(DIM, 32)(Condition.null(1, 8))
    with pytest.raises(errors.ConfigError, match="'text'"):
        ConditionEmbedder(DIM, 32, "text")
