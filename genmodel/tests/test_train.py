import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import captree
import numpy as np
import pytest
import torch
from PIL import Image
from training_support import DIM, LENGTH, centers, final_weights, tiny_shards, train_config

import genmodel
from genmodel import errors
from genmodel.checkpoint import load_checkpoint, read_tensors
from genmodel.data import unit
from genmodel.log import read_log
from genmodel.train import train


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _everything(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, their average, the optimizers' state."""
    found = {}
    for file in ("model", "ema", "training"):
        found |= {f"{file}.{k}": v for k, v in read_tensors(Path(checkpoint) / f"{file}.safetensors")[0].items()}
    return found


def test_a_run_learns_and_uses_its_condition(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data", n=400)
    settings = {"steps": 150, "batch_size": 32, "noise": 0.1, "radii": "uniform:0.02:0.3", "heldout_every": 50}
    report = train(train_config(tmp_path / "data", tmp_path / "out", **settings))
    assert (report.step, report.stopped) == (150, "done")
    assert report.loss < 1.6 < math.log(32)
    assert report.heldout_null_loss - report.heldout_loss > 0.1
    assert report.tokens_per_second > 0
    assert 0 <= report.data_share < 1
    loaded = load_checkpoint(report.checkpoint)
    assert (loaded.encoder, loaded.tokenizer) == ("test-encoder", "test-tokenizer")
    assert loaded.extra["train"]["steps"] == 150
    assert len(loaded.extra["rows_held_out"]) == 16


def test_one_batch_is_learned_by_heart(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data", n=8)
    settings = {
        "steps": 200,
        "condition": "embedding",
        "prior": "own",
        "token_dropout": 0.0,
        "condition_dropout": 0.0,
        "depth": 2,
    }
    report = train(train_config(tmp_path / "data", tmp_path / "out", **settings))
    assert report.loss < 0.02
    assert math.isnan(report.heldout_loss)


def test_log(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    report = train(train_config(tmp_path / "data", tmp_path / "out", heldout_every=3, peak_flops=None))
    log = read_log(tmp_path / "out")
    assert [(e["event"], e["step"]) for e in log] == [
        ("start", 0),
        *(("train", 2), ("heldout", 3), ("train", 4)),
        *(("train", 6), ("heldout", 6), ("checkpoint", 6), ("end", 6)),
    ]
    step = read_log(tmp_path / "out", "train")[-1]
    assert len(step["loss_by_position"]) == LENGTH
    assert step["loss"] == pytest.approx(np.mean(step["loss_by_position"]), rel=1e-4)
    assert step["tokens_per_second"] > 0
    assert 0 < step["mfu"] < 1
    held = read_log(tmp_path / "out", "heldout")[-1]
    assert held["gap"] == pytest.approx(held["null_loss"] - held["loss"], abs=1e-4)
    assert len(held["loss_by_position"]) == len(held["gap_by_position"]) == LENGTH
    assert held["loss"] == pytest.approx(report.heldout_loss, rel=1e-5)
    assert log[0]["config"]["batch_size"] == 8
    assert log[0]["parameters"] == report.parameters


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    handler = signal.getsignal(signal.SIGINT)
    genmodel.train(train_config(tmp_path / "data", tmp_path / "out", steps=2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGINT) is handler


def test_same_seed_same_weights(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    settings = {"dropout": 0.1, "token_dropout": 0.3, "condition_dropout": 0.5, "random_order": True}
    made = [
        final_weights(train(train_config(tmp_path / "data", tmp_path / name, seed=seed, **settings)).checkpoint)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert _equal(made[0], made[1])
    assert not _equal(made[0], made[2])


EXACT = {"steps": 12, "dropout": 0.1, "token_dropout": 0.3, "random_order": True, "save_every": 5}
"""Everything random at once; a portion of the stream's batch is 8 of 2048, so resuming lands inside of one."""


def test_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    whole = train(train_config(tmp_path / "data", tmp_path / "whole", **EXACT))
    config = train_config(tmp_path / "data", tmp_path / "parts", **EXACT)
    first = train(replace(config, max_seconds=0.0))
    assert (first.step, first.stopped) == (1, "time")
    assert Path(first.checkpoint).name == "step-00000001"
    second = train(config)
    assert (second.step, second.stopped) == (12, "done")
    assert _equal(_everything(whole.checkpoint), _everything(second.checkpoint))
    assert [p.name for p in sorted((tmp_path / "parts").glob("step-*"))] == ["step-00000012"]
    losses = [[e["loss"] for e in read_log(tmp_path / name, "train")][-3:] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    again = train(config)
    assert (again.step, again.checkpoint) == (12, second.checkpoint)


SCRIPT = """
import json, sys, time
import genmodel.trainer
from genmodel.train import TrainConfig, train
real = genmodel.trainer.Trainer.update
def slow(self, step):
    real(self, step)
    readers = [name for name in sys.modules if name.startswith(("genmodel.encoders", "genmodel.prompts", "open_clip"))]
    print("step", step, "readers of text:", readers, flush=True)
    time.sleep(0.2)
genmodel.trainer.Trainer.update = slow
train(TrainConfig(**json.loads(sys.argv[1])))
"""


def test_killed_run_goes_on_bitwise_and_loads_no_reader_of_text(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    whole = train(train_config(tmp_path / "data", tmp_path / "whole", **EXACT))
    config = train_config(tmp_path / "data", tmp_path / "killed", **EXACT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(vars(config))]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("step 7 "))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    # Nothing that could turn text into numbers was even loaded.
    assert line.strip() == "step 7 readers of text: []"
    assert [p.name for p in (tmp_path / "killed").glob("step-*")] == ["step-00000005"]
    report = train(config)
    assert report.step == 12
    assert _equal(_everything(whole.checkpoint), _everything(report.checkpoint))
    steps = [e["step"] for e in read_log(tmp_path / "killed", "train")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    from genmodel.trainer import Trainer

    tiny_shards(tmp_path / "data")
    real = Trainer.update

    def interrupted(self: Trainer, step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), number)
        real(self, step)

    monkeypatch.setattr(Trainer, "update", interrupted)
    report = train(train_config(tmp_path / "data", tmp_path / "out", steps=1000))
    assert (report.step, report.stopped) == (4, "interrupted")
    assert load_checkpoint(tmp_path / "out").extra["step"] == 4
    assert read_log(tmp_path / "out", "end")[0]["stopped"] == "interrupted"


def test_the_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmodel.trainer import Trainer

    tiny_shards(tmp_path / "data")
    handler = signal.getsignal(signal.SIGINT)

    def twice(self: Trainer, step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", twice)
    with pytest.raises(KeyboardInterrupt):
        train(train_config(tmp_path / "data", tmp_path / "out"))
    assert signal.getsignal(signal.SIGINT) is handler


def test_time_limit_ends_with_a_checkpoint(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    began = time.perf_counter()
    report = train(train_config(tmp_path / "data", tmp_path / "out", steps=100_000, max_seconds=2.0))
    assert report.stopped == "time"
    assert 0 < report.step < 100_000
    assert time.perf_counter() - began < 20
    assert load_checkpoint(tmp_path / "out").extra["step"] == report.step


def test_other_settings_are_refused(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    config = train_config(tmp_path / "data", tmp_path / "out", steps=2)
    train(config)
    with pytest.raises(errors.ConfigError, match=r"was trained with width 32 \(now 64\), seed 0 \(now 1\)"):
        train(replace(config, width=64, seed=1))
    assert train(replace(config, steps=3)).step == 3
    assert train(replace(config, seed=1, resume=False)).step == 2


def test_damaged_state_is_named(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    config = train_config(tmp_path / "data", tmp_path / "out", steps=2)
    state = Path(train(config).checkpoint) / "training.json"
    state.write_text("{}")
    with pytest.raises(errors.CheckpointError, match="no training state"):
        train(replace(config, steps=3))


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": "slerp"},
        {"prior": "uniform", "radii": "loguniform:0.1:1"},
        {"prior": "gap-shift", "shift": "shift.npy"},
        {"prior": "given", "centers": "centers.npy"},
        {"prior": "own", "radii": "uniform:0:1"},
        {"radii": "mass:0.05:1"},
        {"condition": "distance"},
        {"condition": "range"},
        {"condition": "embedding", "prior": "own", "balance_exponent": 0.5},
        {"balance_exponent": 1.0},
        {"pairs": "pairs"},
        {"tree": "tree.captree"},
        {"early_token_weight": 2.0, "schedule": "cosine", "muon_lr": 0.0, "ema": 0.0, "clip": 0.0},
        {"dtype": "bfloat16"},
        {"micro_batch_size": 3, "activation": "gelu", "feed_forward": 48},
    ],
    ids=lambda s: "-".join(map(str, s)),
)
def test_every_setting_trains_and_resumes_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    shards = tiny_shards(tmp_path / "data")
    np.save(tmp_path / "shift.npy", np.ones(DIM, np.float32))
    np.save(tmp_path / "centers.npy", centers(5).numpy())
    tree = captree.build(unit(shards.embeddings), out=tmp_path / "tree.captree")
    captree.write_pairs(tree, tmp_path / "pairs", 100)
    settings = {k: str(tmp_path / v) if k in ("shift", "centers", "pairs", "tree") else v for k, v in settings.items()}
    whole = train(train_config(tmp_path / "data", tmp_path / "whole", steps=3, **settings))
    config = train_config(tmp_path / "data", tmp_path / "parts", steps=3, **settings)
    train(replace(config, max_seconds=0.0))
    parts = train(config)
    assert math.isfinite(whole.loss)
    assert math.isfinite(whole.heldout_loss)
    assert _equal(final_weights(whole.checkpoint), final_weights(parts.checkpoint))


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    settings = {"token_dropout": 0.0, "muon_lr": 0.0, "early_token_weight": 1.0, "steps": 3}
    made = []
    for size in (None, 3):
        config = train_config(tmp_path / "data", tmp_path / str(size), micro_batch_size=size, **settings)
        made.append(final_weights(train(config).checkpoint))
    assert all(torch.allclose(made[0][name], made[1][name], atol=1e-5) for name in made[0])


def test_condition_dropout_gives_the_null_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmodel.trainer import Trainer

    tiny_shards(tmp_path / "data")
    nulls: list[torch.Tensor] = []
    real = Trainer._loss

    def spy(self: Trainer, batch: Any, order: Any) -> torch.Tensor:
        nulls.append(batch.condition.is_null)
        return real(self, batch, order)

    monkeypatch.setattr(Trainer, "_loss", spy)
    shares = []
    for dropped in (0.0, 0.3, 1.0):
        nulls.clear()
        config = train_config(tmp_path / "data", tmp_path / str(dropped), condition_dropout=dropped, batch_size=64)
        train(replace(config, radii="uniform:0:1"))
        shares.append(float(torch.cat(nulls).float().mean()))
    assert shares[0] == 0.0
    assert shares[1] == pytest.approx(0.3, abs=0.08)
    assert shares[2] == 1.0


def test_random_orders_anneal_to_raster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmodel.trainer import Trainer

    tiny_shards(tmp_path / "data")
    orders: list[Any] = []
    real = Trainer._order

    def spy(self: Trainer, step: int) -> Any:
        orders.append(real(self, step))
        return orders[-1]

    monkeypatch.setattr(Trainer, "_order", spy)
    report = train(train_config(tmp_path / "data", tmp_path / "out", steps=12, batch_size=32, random_order=True))
    raster = torch.arange(LENGTH)
    share = [0.0 if o is None else float((o != raster).any(dim=1).float().mean()) for o in orders]
    assert share[:6] == [1.0] * 6
    assert 0 < share[7] < 1
    assert share[9:] == [0.0] * 3
    assert all((o.sort(dim=1).values == raster).all() for o in orders if o is not None)
    assert load_checkpoint(report.checkpoint).config.random_order


def _tokenizer(folder: Path) -> str:
    from genmodel.tokenizers.fsq import FSQTokenizer

    tokenizer = FSQTokenizer(image_size=12, grid=3, width=8, depth=1, levels=(8, 2, 2))
    assert tokenizer.codebook_size == 32
    tokenizer.save(folder)
    return str(folder)


class BlindEncoder:
    """The image side of an encoder; asked for text, it fails."""

    name, dim, image_size = "test-encoder", DIM, 12

    def __init__(self) -> None:
        self.calls = 0

    def images_float(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        flat = torch.nn.functional.avg_pool2d(images, 3).flatten(1)[:, :DIM]
        return torch.nn.functional.normalize(flat - 0.5, dim=1)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"training asked the encoder for {name!r}")


def test_clip_gen_trains_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmodel import encoders

    encoder = BlindEncoder()
    monkeypatch.setattr(encoders, "load_encoder", lambda spec, device="cpu": encoder)
    tiny_shards(tmp_path / "data")
    settings = {"condition": "embedding", "prior": "own", "tokenizer": _tokenizer(tmp_path / "tokenizer"), "steps": 4}
    made = [
        train(train_config(tmp_path / "data", tmp_path / str(weight), clip_gen_weight=weight, **settings))
        for weight in (0.0, 0.5)
    ]
    assert encoder.calls == 4
    assert not _equal(*(final_weights(report.checkpoint) for report in made))
    assert load_checkpoint(made[1].checkpoint).config.reconstruct_embedding
    assert 0 < read_log(tmp_path / "0.5", "train")[-1]["embedding_loss"] < 2
    with pytest.raises(errors.ConfigError, match="needs condition 'embedding'"):
        train_config(tmp_path / "data", tmp_path / "x", clip_gen_weight=0.5)


def test_sample_grids(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    spec = _tokenizer(tmp_path / "tokenizer")
    train(train_config(tmp_path / "data", tmp_path / "out", tokenizer=spec, sample_every=3, sample_count=4, steps=3))
    entry = read_log(tmp_path / "out", "samples")[0]
    with Image.open(entry["path"]) as picture:
        assert picture.width > 4 * 12
    assert load_checkpoint(tmp_path / "out").tokenizer == spec


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tiny_shards(tmp_path / "data")
    train(train_config(tmp_path / "data", tmp_path / "out", steps=2, tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert {"train/loss", "train/mfu", "heldout/gap"} <= set(events.Tags()["scalars"])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    with pytest.raises(errors.DivergedError, match="finite loss"):
        train(train_config(tmp_path / "data", tmp_path / "out", lr=1e30, clip=0.0, muon_lr=0.0, steps=4))
    assert isinstance(errors.DivergedError(""), FloatingPointError)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_training_is_the_same(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    settings = {"token_dropout": 0.0, "muon_lr": 0.0, "steps": 2, "heldout": 0}
    made = [
        final_weights(train(train_config(tmp_path / "data", tmp_path / word, compile=word, **settings)).checkpoint)
        for word in ("no", "yes")
    ]
    assert all(torch.allclose(made[0][name], made[1][name], atol=1e-3) for name in made[0])


def test_a_machine_that_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    tiny_shards(tmp_path / "data")
    with pytest.warns(UserWarning, match="does not run here"):
        assert train(train_config(tmp_path / "data", tmp_path / "out", compile="yes", steps=2)).step == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"prior": "text"}, "prior: expected one of"),
        ({"dtype": "float16"}, "dtype: expected one of"),
        ({"condition_dropout": 1.5}, r"condition_dropout: expected a number in \[0, 1\]"),
        ({"lr": -1.0}, "lr: expected a number >= 0"),
        ({"size": "huge"}, "size: expected one of"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        train_config(Path("data"), Path("out"), **settings)


def test_a_checkpoint_names_its_data_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_shards(tmp_path / "data", n=40)
    monkeypatch.chdir(tmp_path)
    report = train(train_config(Path("data"), Path("out"), steps=2, batch_size=4))
    monkeypatch.chdir("/")
    extra = load_checkpoint(report.checkpoint).extra
    assert extra["train"]["data"] == str(tmp_path / "data")
    assert Path(report.checkpoint).is_relative_to(tmp_path / "out")
