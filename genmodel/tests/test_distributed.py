import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import captree
import pytest
import torch
from training_support import DIM, final_weights, tiny_shards, train_config

from genmodel import errors
from genmodel.checkpoint import read_tensors
from genmodel.data import unit
from genmodel.distributed import World, spread
from genmodel.log import read_log
from genmodel.material import prepare
from genmodel.train import TrainConfig, train

SCRIPT = """
import json, os, sys
from genmodel.train import TrainConfig, train
report = train(TrainConfig(**json.loads(sys.argv[1])))
with open(f"{sys.argv[0]}.{os.environ['RANK']}", "w") as file:
    json.dump({"step": report.step, "loss": report.loss, "stopped": report.stopped}, file)
"""


def _together(config: TrainConfig, script: Path, torchrun: bool) -> dict[str, Any]:
    """Runs `config` in two processes, started by torchrun or as it starts them; the report of one of them."""
    script.write_text(SCRIPT)
    paths = os.pathsep.join(p for p in sys.path if p)
    base = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ours = [str(script), json.dumps(vars(config))]
    if torchrun:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        started = [subprocess.Popen([*launcher, *ours], stderr=subprocess.PIPE, text=True, env=base)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {**base, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        places = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        started = [
            subprocess.Popen([sys.executable, *ours], stderr=subprocess.PIPE, text=True, env=place) for place in places
        ]
    for process in started:
        _, complaints = process.communicate(timeout=300)
        assert process.returncode == 0, complaints[-3000:]
    reports = [json.loads(script.with_name(f"{script.name}.{rank}").read_text()) for rank in range(2)]
    assert reports[0] == reports[1]
    return reports[0]


@pytest.fixture
def paired(tmp_path: Path) -> TrainConfig:
    """Settings whose batches do not depend on how many processes share them: written pairs, no dropout of tokens."""
    shards = tiny_shards(tmp_path / "data")
    captree.write_pairs(captree.build(unit(shards.embeddings)), tmp_path / "pairs", 200)
    settings = {"pairs": str(tmp_path / "pairs"), "token_dropout": 0.0, "muon_lr": 0.02, "steps": 5, "heldout": 0}
    return train_config(tmp_path / "data", tmp_path / "one", condition_dropout=0.3, random_order=True, **settings)


def _apart(one: Path, two: Path) -> float:
    """The largest difference of weights; the states to go on from must have the same parts."""
    first, second = final_weights(one), final_weights(two)
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    states = [read_tensors(folder / "training.safetensors")[0] for folder in (one, two)]
    assert states[0].keys() == states[1].keys()
    return max(float((weight - second[name]).abs().max()) for name, weight in first.items())


def test_ddp_equals_one_process_with_the_joined_batch(paired: TrainConfig, tmp_path: Path) -> None:
    alone = train(paired)
    both = replace(paired, out=str(tmp_path / "both"), micro_batch_size=2)
    report = _together(both, tmp_path / "run.py", torchrun=True)
    assert (report["step"], report["stopped"]) == (5, "done")
    logs = [[e["loss"] for e in read_log(tmp_path / name, "train")] for name in ("one", "both")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert _apart(Path(alone.checkpoint), tmp_path / "both" / "step-00000005") < 1e-4
    assert read_log(tmp_path / "both", "start")[0]["processes"] == 2
    with pytest.raises(errors.ConfigError, match=r"2 processes \(now 1\)"):
        train(replace(both, steps=6))


def test_sharded_equals_one_process_and_resumes(paired: TrainConfig, tmp_path: Path) -> None:
    alone = train(paired)
    both = replace(paired, out=str(tmp_path / "both"), parallel="fsdp")
    report = _together(replace(both, max_seconds=0.0), tmp_path / "run.py", torchrun=False)
    assert (report["step"], report["stopped"]) == (1, "time")
    report = _together(both, tmp_path / "run.py", torchrun=False)
    assert (report["step"], report["stopped"]) == (5, "done")
    # torch's own Muon, which takes the sharded matrices, rounds to bfloat16: about a per cent of a step.
    assert _apart(Path(alone.checkpoint), tmp_path / "both" / "step-00000005") < 6e-3


def test_ranks_draw_other_pairs(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "data")
    config = train_config(tmp_path / "data", tmp_path / "out")
    drawn = []
    for rank in range(2):
        material = prepare(config, shards, World(rank, 2, torch.device("cpu")))
        drawn.append(torch.cat([next(material.batches).condition.center for _ in range(4)]))
        material.close()
    assert drawn[0].shape == drawn[1].shape == (16, DIM)
    assert not (drawn[0][:, None] == drawn[1][None]).all(dim=-1).any()


def test_bad_settings() -> None:
    with pytest.raises(errors.ConfigError, match="parallel: expected one of"):
        spread(torch.nn.Linear(1, 1), World(0, 2, torch.device("cpu")), "tp", False)  # type: ignore[arg-type]
