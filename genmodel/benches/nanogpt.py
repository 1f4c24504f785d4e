"""Training speed against nanoGPT's model at the same parameter count, sequence length, batch and precision.

    python benches/nanogpt.py [--preset tiny] [--rounds 20] [--threads 1]

Two processes take turns, one step each; a pair of steps gives one ratio, and the record has the medians, by wall time
and by CPU time (which other work on the machine disturbs less). Ours is the training step as `genmodel train` makes
it: a batch of caps and tokens, forward, backward, clipping, Muon + AdamW, moving average. Variants:

- ``model``: both with AdamW alone, no average, and the same way of keeping memory: the models' own speed.
- ``step``: our whole default step against nanoGPT's, memory kept by both.
- ``as run``: the same, but nanoGPT's process leaves glibc's way of giving memory back as it finds it.
- ``shape``: as ``model``, with ours as wide and deep in every matrix (so with more parameters).

In all but ``shape`` our feed-forward is narrowed until the parameters are as many as nanoGPT's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any

import torch
from common import quartiles, write_record
from plain_gpt import PlainGPT
from torch import nn

from genmodel.condition import Condition
from genmodel.log import keep_memory
from genmodel.losses import token_losses
from genmodel.model import Generator, ModelConfig
from genmodel.optim import MovingAverage, build_optimizers

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"codes": 1000, "grid": 8, "depth": 6, "width": 192, "heads": 6, "batch": 128},
    "small": {"codes": 1024, "grid": 16, "depth": 12, "width": 384, "heads": 6, "batch": 8},
    "source": {"codes": 8192, "grid": 32, "depth": 36, "width": 1280, "heads": 20, "batch": 8},
}
DIM = 512


def ours_config(preset: dict[str, int], hidden: int | None, activation: str) -> ModelConfig:
    shape = {name: preset[name] for name in ("grid", "depth", "width", "heads")}
    codes = preset["codes"]
    return ModelConfig(codebook_size=codes, condition_dim=DIM, feed_forward=hidden, activation=activation, **shape)


def count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return Generator(config).parameter_count()


def plain_model(preset: dict[str, int]) -> PlainGPT:
    return PlainGPT(preset["codes"], preset["grid"] ** 2, preset["depth"], preset["width"], preset["heads"])


def hidden_for(preset: dict[str, int], parameters: int, activation: str) -> int:
    """The feed-forward size, a multiple of 16, whose parameter count is nearest from above."""
    hidden = 16
    while count(ours_config(preset, hidden, activation)) < parameters:
        hidden += 16
    return hidden


class Ours:
    def __init__(self, config: ModelConfig, batch: int, whole: bool, compile: bool) -> None:
        torch.manual_seed(0)
        self.model = Generator(config)
        self.call = torch.compile(self.model) if compile else self.model
        self.optimizers = build_optimizers(self.model, muon_lr=0.02 if whole else 0.0)
        self.average = MovingAverage(self.model, 0.999) if whole else None
        self.tokens = torch.randint(0, config.codebook_size, (batch, config.length))
        self.condition = Condition.cap(nn.functional.normalize(torch.randn(batch, config.condition_dim), dim=1), 0.5)

    def step(self) -> None:
        token_losses(self.call(self.tokens, self.condition, None), self.tokens).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(1000)


class Plain:
    def __init__(self, preset: dict[str, int], compile: bool) -> None:
        torch.manual_seed(0)
        self.model = plain_model(preset)
        self.call = torch.compile(self.model) if compile else self.model
        self.optimizer = self.model.optimizer()
        self.tokens = torch.randint(0, preset["codes"], (preset["batch"], preset["grid"] ** 2))

    def step(self) -> None:
        self.call(self.tokens, self.tokens).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def worker(pipe: Any, kind: str, arguments: tuple[Any, ...], keep: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    made = Ours(*arguments) if kind == "ours" else Plain(*arguments)
    while pipe.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        made.step()
        pipe.send((time.perf_counter() - wall, time.process_time() - cpu))


def compare(
    ours: tuple[Any, ...], plain: tuple[Any, ...], keep_plain: bool, rounds: int, threads: int
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for kind, arguments, keep in (("ours", ours, True), ("plain", plain, keep_plain)):
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, kind, arguments, keep, threads), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    times: list[list[tuple[float, float]]] = [[], []]
    for number in range(rounds + 2):
        # Who goes first changes, so that a drift of the machine's speed favours neither.
        for side in (0, 1) if number % 2 else (1, 0):
            pipes[side].send(True)
            taken = pipes[side].recv()
            if number >= 2:
                times[side].append(taken)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    results: dict[str, Any] = {}
    for i, clock in enumerate(("wall", "cpu")):
        results[f"ratio_{clock}"] = quartiles([theirs[i] / mine[i] for mine, theirs in zip(*times, strict=True)])
        # The fastest step of each is the one that other work on the machine disturbed least.
        results[f"ratio_best_{clock}"] = round(min(t[i] for t in times[1]) / min(t[i] for t in times[0]), 4)
    for side, taken in zip(("ours", "nanogpt"), times, strict=True):
        results[f"{side}_cpu_seconds"] = round(statistics.median(cpu for _, cpu in taken), 4)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--activation", default="gelu", help="of ours; gelu is nanoGPT's, and that of the size 'source'"
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--variants", nargs="*", default=["model", "step", "as run", "shape"])
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    plain_count = sum(p.numel() for p in plain_model(preset).parameters())
    equal = ours_config(preset, hidden_for(preset, plain_count, given.activation), given.activation)
    same = ours_config(preset, None, given.activation)
    results: dict[str, Any] = {
        "preset": preset,
        "dtype": "float32",
        "nanogpt_parameters": plain_count,
        "activation": given.activation,
    }
    name = "-".join(["nanogpt", given.preset, given.activation, *(["compiled"] if given.compile else [])])
    for variant in given.variants:
        config = same if variant == "shape" else equal
        ours = (config, preset["batch"], variant in ("step", "as run"), given.compile)
        made = compare(ours, (preset, given.compile), variant != "as run", given.rounds, given.threads)
        results[variant] = {"our_parameters": count(config), "hidden": config.hidden, **made}
        # After each variant: what was measured is not lost when a long run is ended.
        write_record(name, results)


if __name__ == "__main__":
    main()
