"""The second stage learns the data inside a cap, from caps alone."""

import numpy as np
import pytest
import torch
from support import unit_rows

from genmodel.errors import CheckpointError, ConfigError, InputError
from genmodel.second_stage import Flow, FlowSize, load_second_stage, save_second_stage, train_flow

CENTERS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
SHARES = np.array([0.6, 0.3, 0.1])


def toy_pairs(batch_size=256, seed=0):
    """Three spots on the sphere with unequal shares; the caps hold one spot, or two of them, or all."""
    rng = np.random.default_rng(seed)
    while True:
        spot = rng.choice(3, batch_size, p=SHARES)
        rows = CENTERS[spot] + 0.05 * rng.standard_normal((batch_size, 3))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        # Uniform by area around the row: then p(row | cap) is the data restricted to the cap.
        limits = rng.uniform(0.2, 1.6, batch_size)
        height = 1 - rng.uniform(0, 1, batch_size) * limits
        across = rng.standard_normal((batch_size, 3))
        across -= np.sum(across * rows, axis=1, keepdims=True) * rows
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        centers = height[:, None] * rows + np.sqrt(1 - height**2)[:, None] * across
        yield rows.astype(np.float32), centers.astype(np.float32), limits.astype(np.float32)


@pytest.fixture(scope="module")
def flow():
    return train_flow(toy_pairs(), FlowSize(3, 64, 2), steps=900, learning_rate=3e-3, ema=0.99)


def shares(draws):
    return np.bincount(np.argmax(draws @ CENTERS.T, axis=1), minlength=3) / len(draws)


def test_unconditional_draws_have_the_shares_of_the_data(flow):
    draws = flow.draw(CENTERS[:1], 2.0, 1000, steps=12)[0]
    assert draws.shape == (1000, 3)
    assert np.allclose(np.linalg.norm(draws, axis=1), 1, atol=1e-5)
    assert np.abs(shares(draws) - SHARES).max() < 0.08
    assert np.median(1 - np.max(draws @ CENTERS.T, axis=1)) < 0.02  # on the spots, not between them


def test_draws_lie_in_their_caps_and_have_the_shares_there(flow):
    one = flow.draw(CENTERS, 0.3, 200, tries=1, steps=12)
    for spot in range(3):
        assert np.mean(1 - one[spot] @ CENTERS[spot] <= 0.3) > 0.9
    # Between the first two spots: both are inside, the third is not, and they keep their shares 2 : 1.
    middle = np.array([[1, 1, 0]], np.float32) / np.sqrt(2)
    two = shares(flow.draw(middle, 0.6, 1000, tries=1, steps=12)[0])
    assert two[2] < 0.05
    assert abs(two[0] / (two[0] + two[1]) - 2 / 3) < 0.1


def test_tries_never_lower_the_in_cap_rate(flow):
    center = np.array([[1, 1, 1]], np.float32) / np.sqrt(3)
    draws = [flow.draw(center, 0.41, 200, tries=tries, steps=6)[0] for tries in (1, 4, 16)]
    rates = [np.mean(1 - rows @ center[0] <= 0.41) for rows in draws]
    assert rates[0] <= rates[1] <= rates[2]


def test_the_null_cap_ignores_its_center(flow):
    a, b = unit_rows(2, 3)
    assert np.array_equal(flow.draw(a[None], 2.0, 5), flow.draw(b[None], 2.0, 5))
    x, t = torch.randn(4, 3), torch.rand(4)
    given = flow(x, t, torch.from_numpy(unit_rows(4, 3)), torch.full((4,), 2.0))
    assert torch.equal(given, flow(x, t, torch.zeros(4, 3), torch.full((4,), 2.5)))


def test_draws_follow_the_seed_and_not_the_batches(flow):
    caps = CENTERS, np.array([0.2, 0.5, 2.0])
    first = flow.draw(*caps, 6, seed=3)
    assert np.array_equal(first, flow.draw(*caps, 6, seed=3))
    assert not np.array_equal(first, flow.draw(*caps, 6, seed=4))
    assert np.allclose(first, flow.draw(*caps, 6, seed=3, batch_size=5), atol=1e-4)


def test_guidance_of_one_is_none_and_more_goes_further(flow):
    middle = np.array([[1, 1, 0]], np.float32) / np.sqrt(2)
    plain, far = (flow.draw(middle, 0.6, 300, tries=1, steps=12, guidance=g)[0] @ middle[0] for g in (1.0, 3.0))
    assert far.mean() >= plain.mean() - 0.02


def test_training_repeats_and_leaves_the_global_state(tmp_path):
    state = torch.random.get_rng_state()
    a, b = (train_flow(toy_pairs(64), FlowSize(3, 16, 1), steps=5, seed=2) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    path = save_second_stage(tmp_path / "stage.safetensors", a, {"prior": "slerp"})
    c = load_second_stage(path)
    assert c.size == a.size
    assert np.array_equal(a.draw(CENTERS, 0.5), c.draw(CENTERS, 0.5))


def test_bad_files_and_settings(tmp_path, flow):
    with pytest.raises(CheckpointError, match="no such file"):
        load_second_stage(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_second_stage(tmp_path / "bad.safetensors")
    with pytest.raises(ConfigError, match="safetensors"):
        save_second_stage(tmp_path / "stage.pt", flow)
    with pytest.raises(InputError, match=r"centers \(p, 3\), got \(2, 4\)"):
        flow.draw(unit_rows(2, 4), 0.5)
    with pytest.raises(ConfigError, match="at least 1"):
        flow.draw(CENTERS, 0.5, 0)
    with pytest.raises(InputError, match="expected 5 batches of pairs, got 1"):
        train_flow([next(toy_pairs(8))], FlowSize(3, 8, 1), steps=5)
    with pytest.raises(ConfigError, match="at least 1"):
        Flow(FlowSize(0))
