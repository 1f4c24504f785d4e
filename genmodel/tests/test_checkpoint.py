import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from training_support import CODES, caps, some_tokens, tiny_model

from genmodel import checkpoint, errors
from genmodel.checkpoint import load_checkpoint, save_checkpoint, step_folders


def _saved(path: Path, seed: int = 0, **other: object) -> Path:
    return save_checkpoint(path, tiny_model(seed), encoder="an-encoder", tokenizer="a-tokenizer", **other)


def test_round_trip(tmp_path: Path) -> None:
    model = tiny_model(condition="range", activation="gelu", random_order=True)
    save_checkpoint(tmp_path / "a", model, encoder="an-encoder", tokenizer="a-tokenizer", extra={"step": 3})
    state = torch.get_rng_state()
    loaded = load_checkpoint(tmp_path / "a")
    assert torch.equal(state, torch.get_rng_state())
    assert (loaded.encoder, loaded.tokenizer, loaded.extra) == ("an-encoder", "a-tokenizer", {"step": 3})
    assert loaded.config == model.config
    assert not loaded.model.training
    assert torch.equal(loaded.model(some_tokens(2), caps(2)), model(some_tokens(2), caps(2)))
    loaded.model(some_tokens(2), caps(2)).sum().backward()


def test_weights_are_plain_safetensors_with_their_config(tmp_path: Path) -> None:
    _saved(tmp_path / "a")
    with safe_open(tmp_path / "a" / "model.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert file.get_tensor("head.weight").shape == (CODES, 32)
    assert json.loads(metadata["config"])["codebook_size"] == CODES
    assert metadata["encoder"] == "an-encoder"


def test_average_is_taken_unless_asked_otherwise(tmp_path: Path) -> None:
    live, average = tiny_model(0), tiny_model(1)
    save_checkpoint(tmp_path / "a", live, ema=average, encoder="e", tokenizer="t")
    assert torch.equal(load_checkpoint(tmp_path / "a").model.head.weight, average.head.weight)
    assert torch.equal(load_checkpoint(tmp_path / "a", ema=False).model.head.weight, live.head.weight)


def test_newest_step_of_a_run(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        _saved(tmp_path / f"step-{step:08d}", seed=step)
    (tmp_path / "step-00000999").mkdir()
    (tmp_path / ".step-00000999.1.tmp").mkdir()
    assert [p.name for p in step_folders(tmp_path)] == ["step-00000009", "step-00000020", "step-00000100"]
    assert load_checkpoint(tmp_path).path.name == "step-00000100"


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(tmp_path / "a", seed=1)
    before = load_checkpoint(tmp_path / "a").model.head.weight

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(errors.CheckpointError, match="No space left"):
        _saved(tmp_path / "a", seed=2)
    assert torch.equal(load_checkpoint(tmp_path / "a").model.head.weight, before)
    monkeypatch.undo()
    _saved(tmp_path / "a", seed=2)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "garbage", "foreign", "other shape"])
def test_damaged(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = _saved(tmp_path / "a") / "model.safetensors"
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(b"\xff" * 1000)
        case "foreign":
            save_file({"x": torch.zeros(1)}, path)
        case "other shape":
            path.write_bytes(content.replace(rb"\"width\": 32", rb"\"width\": 64"))
    with pytest.raises(errors.CheckpointError):
        load_checkpoint(tmp_path / "a")


def test_errors_are_builtin_ones_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no checkpoint at"):
        load_checkpoint(tmp_path)
