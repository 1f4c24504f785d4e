"""Training: shards in, checkpoints out.

One process, or many under ``torchrun`` (each holds the model, or a shard of it); stops at its last step, after a time,
or when interrupted, always with a checkpoint; and goes on from the newest checkpoint as if it had never stopped: all
randomness of a step is a function of the seed and the step's number.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from captree._paths import absolute

from genmodel.checkpoint import find_checkpoint, read_tensors, save_checkpoint, step_folders
from genmodel.data import PRIORS
from genmodel.distributed import World, joined, spread
from genmodel.errors import CheckpointError, ConfigError
from genmodel.log import RunLog, keep_memory
from genmodel.material import Material, prepare
from genmodel.model import SIZES, Generator, ModelConfig
from genmodel.optim import (
    SCHEDULES,
    MovingAverage,
    build_optimizers,
    like,
    load_optimizer_tensors,
    optimizer_tensors,
    whole,
)
from genmodel.stopping import Stop, watched
from genmodel.trainer import Trainer

if TYPE_CHECKING:
    from genmodel.shards import Shards

_FREE = frozenset(
    (
        "data",
        "out",
        "tree",
        "pairs",
        "steps",
        "max_seconds",
        "resume",
        "device",
        "threads",
        "compile",
        "parallel",
        "keep",
        "log_every",
        "heldout_every",
        "sample_every",
        "sample_count",
        "sample_guidance",
        "save_every",
        "tensorboard",
        "progress",
        "peak_flops",
        "micro_batch_size",
        "tokenizer",
        "encoder",
    )
)
"""Settings that a resumed run may have different."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
        data: the shards' folder, from ``genmodel encode``.
        out: folder for checkpoints, log and sample grids.
        tree: the captree file of the shards' embeddings; None builds one in memory.
        pairs: folder of pairs written by ``captree.write_pairs``, to train on in place of fresh ones.
        size: shape by name; depth, width, heads, feed_forward and activation replace parts of it.
        condition: "cap", "embedding", "distance" or "range".
        dropout: of the blocks' outputs.
        token_dropout: probability that an input token is hidden.
        condition_dropout: probability that a cap becomes the null cap; guidance needs it.
        prior: where centers come from, one of :data:`genmodel.data.PRIORS`.
        noise: of the priors with noise, as a share of the center's length.
        shift: .npy of the vector for the prior "gap-shift", times shift_scale.
        centers: .npy of the centers for the prior "given".
        radii: prior of bounds, see :func:`genmodel.data.parse_radii`.
        balance_exponent: weighs rows by (rows within balance_max_cos_distance) ** -exponent; 0 is off.
        clip_gen_weight: weight of CLIP-GEN's embedding-reconstruction loss; 0 is off, and needs condition "embedding".
        early_token_weight: extra weight of the first token over the last, falling in a line; 0 is off.
        random_order: random orders of the cells (RAR, arXiv:2411.00776): always until random_order_from of the run,
            then ever rarer, raster only from random_order_to on.
        steps: updates in all.
        batch_size: images of an update, over all processes.
        micro_batch_size: images that go through the model at a time; None is all of a process's share.
        lr: of AdamW. muon_lr: of Muon, 0 is AdamW for all. Both are peaks of the schedule.
        warmup: steps until the peak, at most a tenth of all.
        schedule: "wsd" (decays over the last `decay` of the steps), "cosine" or "constant".
        clip: largest norm of the gradient; 0 is off.
        ema: decay of the weights' moving average; 0 is off.
        seed: of everything.
        device: "auto", "cpu", "cuda".
        dtype: of the matrix products, "auto" (bfloat16 on GPUs), "float32" or "bfloat16"; weights are float32.
        compile: "auto" (on GPUs), "yes" where it works, "no".
        parallel: "ddp" or "fsdp", under torchrun.
        threads: of torch and captree on the CPU; None leaves theirs.
        max_seconds: stop, with a checkpoint, after this time.
        resume: go on from the newest checkpoint in `out`.
        heldout: rows never trained on, at most a tenth of all, on which the loss is measured.
        save_every: steps between checkpoints, of which the newest `keep` stay.
        tensorboard: write TensorBoard files beside ``log.jsonl``.
        progress: show progress on standard error.
        peak_flops: of one device, for MFU; None measures a matrix product.
        tokenizer: loads another than the shards name. encoder: the same.
    """

    data: str
    out: str
    tree: str | None = None
    pairs: str | None = None

    size: str = "tiny"
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    feed_forward: int | None = None
    activation: str | None = None
    condition: str = "cap"
    dropout: float = 0.0
    token_dropout: float = 0.1
    condition_dropout: float = 0.1

    prior: str = "slerp-noise"
    noise: float = 0.5
    shift: str | None = None
    shift_scale: float = 1.0
    centers: str | None = None
    radii: str = "mass:0.001:1"
    balance_exponent: float = 0.0
    balance_max_cos_distance: float = 0.2

    clip_gen_weight: float = 0.0
    early_token_weight: float = 0.0
    random_order: bool = False
    random_order_from: float = 0.5
    random_order_to: float = 0.75

    steps: int = 2000
    batch_size: int = 128
    micro_batch_size: int | None = None
    lr: float = 3e-3
    muon_lr: float = 0.02
    weight_decay: float = 0.01
    warmup: int = 100
    schedule: str = "wsd"
    decay: float = 0.4
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0

    device: str = "auto"
    dtype: str = "auto"
    compile: str = "auto"
    parallel: str = "ddp"
    threads: int | None = None
    max_seconds: float | None = None
    resume: bool = True

    heldout: int = 256
    heldout_every: int = 200
    log_every: int = 20
    sample_every: int = 0
    sample_count: int = 16
    sample_guidance: float = 3.0
    save_every: int = 500
    keep: int = 1
    tensorboard: bool = False
    progress: bool = True
    peak_flops: float | None = None
    tokenizer: str | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "heldout_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, choices in (
            ("size", tuple(SIZES)),
            ("prior", PRIORS),
            ("schedule", SCHEDULES),
            ("dtype", ("auto", "float32", "bfloat16")),
            ("compile", ("auto", "yes", "no")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        for name in ("condition_dropout", "ema", "decay", "random_order_from", "random_order_to"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        for name in ("lr", "muon_lr", "weight_decay", "clip", "warmup", "clip_gen_weight", "early_token_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        if self.clip_gen_weight and self.condition != "embedding":
            raise ConfigError(f"clip_gen_weight needs condition 'embedding', got {self.condition!r}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size: expected at least 1, got {self.micro_batch_size}")

    def model_config(self, codebook_size: int, grid: int, condition_dim: int) -> ModelConfig:
        """Shape of the model for data of this kind."""
        shape = {name: getattr(self, name) for name in ("depth", "width", "heads", "feed_forward", "activation")}
        return ModelConfig.sized(
            self.size,
            codebook_size=codebook_size,
            grid=grid,
            condition_dim=condition_dim,
            condition=self.condition,
            random_order=self.random_order,
            token_dropout=self.token_dropout,
            dropout=self.dropout,
            reconstruct_embedding=self.clip_gen_weight > 0,
            **{name: value for name, value in shape.items() if value is not None},
        )


@dataclass
class TrainReport:
    """What a call of :func:`train` did.

    Attributes:
        step: updates done in all, this call's and earlier ones.
        stopped: "done", "time" or "interrupted".
        checkpoint: the newest checkpoint's folder.
        seconds: wall time of this call.
        loss: mean training loss of the last logged steps, nats a token; NaN where this call made none.
        heldout_loss: on the rows held out, with their caps; NaN where there are none.
        heldout_null_loss: the same with the null cap. The difference is what the condition is worth.
        tokens_per_second: over the training steps of this call, all processes together.
        mfu: model FLOPs utilization of these steps.
        data_share: share of the steps' time spent waiting for the next pairs.
        parameters: of the model.
    """

    step: int
    stopped: str
    checkpoint: str
    seconds: float
    loss: float
    heldout_loss: float
    heldout_null_loss: float
    tokens_per_second: float
    mfu: float
    data_share: float
    parameters: int


def train(config: TrainConfig, shards: Shards | None = None) -> TrainReport:
    """Trains a generator as `config` says; writes checkpoints, ``log.jsonl`` and sample grids to ``config.out``.

    The caller's random states are left alone.

    Args:
        config: the settings.
        shards: opened shards, in place of those at ``config.data``.

    Raises:
        ConfigError: settings that contradict each other, the data, or the checkpoint to go on from.
        DataError: shards, tree or pairs that cannot be read.
        CheckpointError: a checkpoint that cannot be read or written.
        DivergedError: a loss that is not finite; the checkpoints before it stay.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with joined(config.device) as world, watched(config.max_seconds, began) as stop:
            devices = [world.device] if world.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                return _train(config, shards, world, stop, began)
    finally:
        torch.set_num_threads(threads)


def _train(config: TrainConfig, shards: Shards | None, world: World, stop: Stop, began: float) -> TrainReport:
    if world.device.type == "cpu":
        keep_memory()
    # Checkpoints name these: they must mean the same from another folder.
    places = {name: getattr(config, name) for name in ("data", "out", "tree", "pairs")}
    found = {name: absolute(name, place) for name, place in places.items() if place}
    config = dataclasses.replace(config, **found)
    if shards is None:
        from genmodel.shards import open_shards

        shards = open_shards(config.data)
    meta = shards.meta
    model_config = config.model_config(int(meta["codebook_size"]), int(meta["grid"]), int(meta["dim"]))
    if shards.tokens.shape[1] != model_config.length:
        raise ConfigError(f"expected {model_config.length} tokens an image, got {shards.tokens.shape[1]}")
    torch.manual_seed(config.seed)
    model = Generator(model_config).to(world.device)
    run = Run(config, model, world, meta)
    material = prepare(config, shards, world)
    log = RunLog(Path(config.out), run.find(), config.tensorboard, world.first)
    try:
        run.start(material)
        log.write(
            "start",
            run.step,
            config=dataclasses.asdict(config),
            model=model_config.to_dict(),
            processes=world.size,
            parameters=run.trainer.parameters,
            rows=len(shards.tokens),
            heldout=len(material.heldout_rows),
            device=str(world.device),
            dtype=str(run.trainer.dtype),
            torch=torch.__version__,
            machine=platform.platform(),
        )
        with run.trainer.progress:
            why = run.loop(log, stop)
        log.write("end", run.step, stopped=why, seconds=time.perf_counter() - began)
    finally:
        material.close()
        log.close()
    figures = run.trainer.figures
    return TrainReport(
        step=run.step,
        stopped=why,
        checkpoint=str(find_checkpoint(config.out)),
        seconds=time.perf_counter() - began,
        loss=figures.loss,
        heldout_loss=figures.heldout,
        heldout_null_loss=figures.heldout_null,
        tokens_per_second=figures.tokens_per_second,
        mfu=figures.mfu,
        data_share=figures.data_share,
        parameters=run.trainer.parameters,
    )


class Run:
    """A run's state and its way to disk and back; the steps themselves are the :class:`Trainer`'s."""

    def __init__(self, config: TrainConfig, model: Generator, world: World, meta: dict[str, Any]) -> None:
        self.config, self.model, self.world, self.meta = config, model, world, meta
        self.model_config, self.step, self.saved = model.config, 0, -1
        self._folder: Path | None = None

    def find(self) -> int:
        """The step of the checkpoint to go on from; 0 where there is none."""
        folders = step_folders(self.config.out) if self.config.resume else []
        self._folder = folders[-1] if folders else None
        return int(folders[-1].name[5:]) if folders else 0

    def start(self, material: Material) -> None:
        """Builds what trains, in the state of the checkpoint that :meth:`find` found."""
        config, world = self.config, self.world
        self.material = material
        state, tensors, weights = self._read() if self._folder else (None, {}, None)
        if weights is not None:
            self.model.load_state_dict(weights)
        module = spread(self.model, world, config.parallel, config.dtype == "bfloat16")
        self.optimizers = build_optimizers(
            self.model, lr=config.lr, muon_lr=config.muon_lr, weight_decay=config.weight_decay
        )
        self.average = MovingAverage(self.model, config.ema) if config.ema else None
        if state is not None:
            self.step = self.saved = int(state["step"])
            self._restore(state, tensors)
        self.trainer = Trainer(config, self.model, module, self.optimizers, self.average, material, world)

    def loop(self, log: RunLog, stop: Stop) -> str:
        """Steps until the end or until asked to stop; says which: "done", "time" or "interrupted"."""
        config, trainer, why = self.config, self.trainer, "done"
        while self.step < config.steps:
            trainer.update(self.step)
            self.step += 1
            last = self.step == config.steps
            reason = stop.reason(self.world, trainer.figures.step_seconds)
            if self.step % config.log_every == 0 or last or reason:
                log.write("train", self.step, **trainer.summary())
            if self.step % config.heldout_every == 0 or last or reason:
                log.write("heldout", self.step, **trainer.measure())
            if config.sample_every and self.step % config.sample_every == 0:
                trainer.samples(log, self.step, self.average_weights())
            if self.step % config.save_every == 0 or last or reason:
                self.save()
                log.write("checkpoint", self.step, path=f"step-{self.step:08d}")
            if reason:
                why = reason if not last else "done"
                break
        if self.saved != self.step:
            self.save()
        return why

    def average_weights(self) -> dict[str, torch.Tensor]:
        """The weights to look at a model with: the moving average, or the live ones."""
        live = self.model.named_parameters()
        return {name: whole(p) for name, p in (self.average.average.items() if self.average else live)}

    def save(self) -> None:
        """Writes the checkpoint of this step; the older ones go once it is there."""
        config, out = self.config, Path(self.config.out)
        weights = {name: whole(p) for name, p in self.model.named_parameters()}
        average = {name: whole(p) for name, p in self.average.average.items()} if self.average else None
        tensors = optimizer_tensors(self.model, self.optimizers)
        state = {
            "step": self.step,
            "config": dataclasses.asdict(config),
            "processes": self.world.size,
            "batches": self.material.batches.state_dict(),
        }
        if self.world.first:
            figures = self.trainer.figures
            save_checkpoint(
                out / f"step-{self.step:08d}",
                self.model,
                ema=average,
                encoder=config.encoder or str(self.meta["encoder"]),
                tokenizer=config.tokenizer or str(self.meta["tokenizer"]),
                extra={
                    "step": self.step,
                    "train": dataclasses.asdict(config),
                    "rows_held_out": self.material.heldout_rows.tolist(),
                    "heldout_loss": figures.heldout,
                    "heldout_null_loss": figures.heldout_null,
                },
                training=(tensors, state),
                config=self.model_config,
                weights=weights,
            )
            for folder in step_folders(out)[: -config.keep]:
                shutil.rmtree(folder)
        self.saved = self.step
        self.world.wait()

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        folder = self._folder
        assert folder is not None
        try:
            state: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            then = state["config"]
            int(state["step"]), state["batches"]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder} holds no training state to go on from: {error}") from error
        now = dataclasses.asdict(self.config)
        other = [f"{k} {then.get(k)!r} (now {now[k]!r})" for k in now if k not in _FREE and then.get(k) != now[k]]
        if other or state["processes"] != self.world.size:
            other += [f"{state['processes']} processes (now {self.world.size})"] * (
                state["processes"] != self.world.size
            )
            raise ConfigError(f"{folder} was trained with {', '.join(other)}; set resume=False or another out")
        weights, _ = read_tensors(folder / "model.safetensors", self.world.device)
        tensors, _ = read_tensors(folder / "training.safetensors")
        return state, tensors, weights

    def _restore(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        load_optimizer_tensors(self.model, self.optimizers, tensors)
        self.material.batches.load_state_dict(state["batches"])
        if self.average is not None and self._folder is not None:
            averages, _ = read_tensors(self._folder / "ema.safetensors")
            parameters = dict(self.model.named_parameters())
            self.average.average = {name: like(averages[name], parameters[name]) for name in self.average.average}
