import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import captree
import pytest
import torch
from training_support import final_weights, tiny_shards, train_config

from genmodel import errors
from genmodel.checkpoint import read_tensors
from genmodel.data import unit
from genmodel.distributed import World, spread
from genmodel.log import read_log
from genmodel.train import TrainConfig, train

SCRIPT = """
import json, os, sys
from genmodel.train import TrainConfig, train
report = train(TrainConfig(**json.loads(sys.argv[1])))
with open(f"{sys.argv[0]}.{os.environ['RANK']}", "w") as file:
    json.dump({"step": report.step, "loss": report.loss, "stopped": report.stopped}, file)
"""


def _together(config: TrainConfig, script: Path, processes: int = 2) -> dict[str, Any]:
    """Runs `config` in processes that torchrun starts; the report of one of them."""
    script.write_text(SCRIPT)
    paths = os.pathsep.join(p for p in sys.path if p)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    arguments = [*launcher, str(script), json.dumps(vars(config))]
    ran = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    reports = [json.loads(script.with_name(f"{script.name}.{rank}").read_text()) for rank in range(processes)]
    assert all(report == reports[0] for report in reports)
    return reports[0]


@pytest.fixture
def paired(tmp_path: Path) -> TrainConfig:
    """Settings whose batches do not depend on how many processes share them: written pairs, no dropout of tokens."""
    shards = tiny_shards(tmp_path / "data")
    captree.write_pairs(captree.build(unit(shards.embeddings)), tmp_path / "pairs", 200)
    settings = {"pairs": str(tmp_path / "pairs"), "token_dropout": 0.0, "muon_lr": 0.02, "steps": 5, "heldout": 0}
    return train_config(tmp_path / "data", tmp_path / "one", condition_dropout=0.3, random_order=True, **settings)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_the_joined_batch(paired: TrainConfig, tmp_path: Path, parallel: str) -> None:
    alone = train(paired)
    both = replace(paired, out=str(tmp_path / "both"), parallel=parallel, micro_batch_size=2)
    report = _together(replace(both, max_seconds=0.0), tmp_path / "run.py")
    assert (report["step"], report["stopped"]) == (1, "time")
    report = _together(both, tmp_path / "run.py")
    assert (report["step"], report["stopped"]) == (5, "done")
    logs = [{e["step"]: e["loss"] for e in read_log(tmp_path / name, "train")} for name in ("one", "both")]
    assert logs[0][4] == pytest.approx(logs[1][4], rel=1e-4)
    one, two = final_weights(alone.checkpoint), final_weights(tmp_path / "both" / "step-00000005")
    assert one.keys() == two.keys()
    # Muon in bfloat16 (torch's own, for sharded matrices) differs from float32 by a per cent of its step.
    most = 1e-4 if parallel == "ddp" else 6e-3
    for name, weight in one.items():
        assert weight.shape == two[name].shape
        assert float((weight - two[name]).abs().max()) < most, name
    states = [
        read_tensors(Path(p) / "training.safetensors")[0]
        for p in (alone.checkpoint, tmp_path / "both" / "step-00000005")
    ]
    assert states[0].keys() == states[1].keys()


def test_streams_of_two_processes_learn(tmp_path: Path) -> None:
    tiny_shards(tmp_path / "data")
    config = train_config(tmp_path / "data", tmp_path / "out", steps=4)
    report = _together(config, tmp_path / "run.py")
    assert report["step"] == 4
    assert read_log(tmp_path / "out", "start")[0]["processes"] == 2
    with pytest.raises(errors.ConfigError, match=r"2 processes \(now 1\)"):
        train(replace(config, steps=6))


def test_bad_settings() -> None:
    with pytest.raises(errors.ConfigError, match="parallel: expected one of"):
        spread(torch.nn.Linear(1, 1), World(0, 2, torch.device("cpu")), "tp", False)  # type: ignore[arg-type]
