"""The arms that both studies compare: what each trains on, and what it is given at a prompt.

=============================  =========================================================================================
own embedding                  the baseline: trained on each image's own embedding; at a prompt, the text's embedding
uniform caps                   center uniform by area in a cap of the drawn radius around the image: no tree needed
slerp caps                     center between two random images, image drawn by captree inside the cap
slerp + noise                  the same with noise added to the center
gap shift                      the same, then shifted by mean text minus mean image
slerp + noise, prompt shifted  the model of slerp + noise; the shift is taken off the text's embedding instead
retrieval prior                a training embedding drawn by captree in the text's cap, then the own-embedding model
two stages                     an embedding drawn by a learned flow (cap -> embedding), then the own-embedding model
=============================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmodel.prompts import Prompt, bounds, shifted
from genmodel.sampler import Sampler, SampleResult
from genmodel.second_stage import SecondStageConfig, train_second_stage
from genmodel.train import TrainConfig, train

# Names in a study's folder.
SHARDS = "shards"
TREE = "images.captree"
SHIFT = "shift.npy"
SECOND_STAGE = "second-stage.safetensors"


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: of the line.
        training: a key of :data:`TRAININGS`: the model it uses.
        way: what stands between prompt and generator: "cap", "own", "retrieve" or "two-stage".
        shift: "train" where centers were shifted in training, "prompt" where the text is shifted back instead.
    """

    name: str
    training: str
    way: str = "cap"
    shift: str = ""

    @property
    def key(self) -> str:
        """The name as part of a file's name."""
        return self.name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")


@dataclass
class RunConfig:
    """Training of the generators and of the second stage."""

    steps: int = 700
    """Of each generator."""
    batch_size: int = 64
    depth: int = 4
    width: int = 128
    heads: int = 4
    lr: float = 3e-3
    muon_lr: float = 0.02
    token_dropout: float = 0.1
    radii: str = "mass:0.0005:1"
    """Prior of bounds where the tree gives them: log-uniform shares of the images."""
    second_stage_steps: int = 600
    second_stage_width: int = 256


TRAININGS: dict[str, dict[str, Any]] = {
    "own": {"prior": "own", "condition": "embedding"},
    # Its center needs the bound first, so its bounds cannot come from a mass around the center, and from one around
    # the image they would tell which image it is.
    "uniform": {"prior": "uniform", "radii": "mixture"},
    "slerp": {"prior": "slerp"},
    "slerp-noise": {"prior": "slerp-noise"},
    "gap-shift": {"prior": "gap-shift"},
}

ARMS = (
    Arm("own embedding", "own", "own"),
    Arm("uniform caps", "uniform"),
    Arm("slerp caps", "slerp"),
    Arm("slerp + noise", "slerp-noise"),
    Arm("gap shift", "gap-shift", shift="train"),
    Arm("slerp + noise, prompt shifted", "slerp-noise", shift="prompt"),
    Arm("retrieval prior", "own", "retrieve"),
    Arm("two stages", "own", "two-stage"),
)


def train_line(training: str, seed: int, run: RunConfig, out: Path, threads: int) -> dict[str, Any]:
    """Trains one of :data:`TRAININGS` into ``OUT/train-NAME-SEED``, or goes on with it; returns its figures."""
    settings: dict[str, Any] = {"radii": run.radii, **TRAININGS[training]}
    if settings["prior"] == "gap-shift":
        settings["shift"] = str(out / SHIFT)
    report = train(
        TrainConfig(
            data=str(out / SHARDS),
            out=str(out / f"train-{training}-{seed}"),
            tree=str(out / TREE),
            depth=run.depth,
            width=run.width,
            heads=run.heads,
            lr=run.lr,
            muon_lr=run.muon_lr,
            token_dropout=run.token_dropout,
            steps=run.steps,
            batch_size=run.batch_size,
            save_every=200,
            log_every=50,
            heldout_every=200,
            device="cpu",
            seed=seed,
            threads=threads,
            **settings,
        )
    )
    if report.stopped != "done":
        # Interrupted: the stage is not done, and goes on from this checkpoint in the next run.
        raise SystemExit(f"stopped at step {report.step} of {run.steps}: {report.stopped}")
    return {key: value for key, value in vars(report).items() if isinstance(value, int | float | str)}


def train_flow_of(run: RunConfig, out: Path, threads: int) -> dict[str, Any]:
    """Trains the second stage, cap -> embedding, of a study's folder."""
    return train_second_stage(
        SecondStageConfig(
            tree=out / TREE,
            out=out / SECOND_STAGE,
            steps=run.second_stage_steps,
            batch_size=256,
            width=run.second_stage_width,
            depth=3,
            radii=run.radii,
            seed=0,
            threads=threads,
        )
    )


@dataclass(frozen=True)
class Group:
    """Prompts that are judged together.

    Attributes:
        name: "full", "pair", "text" or "image".
        prompts: their centers are the plain embeddings, whatever an arm shifts.
        n: samples of each.
        wanted: what a judge needs to know, a row per prompt; or None.
    """

    name: str
    prompts: Sequence[Prompt]
    n: int
    wanted: NDArray[np.int64] | None = None


Judge = Callable[[Group, SampleResult, NDArray[np.float64]], dict[str, Any]]
"""``judge(group, result, limits)``: counts and sums of a group's samples; `limits` are the bounds of the caps."""


def run_arm(
    arm: Arm,
    sampler: Sampler,
    groups: Sequence[Group],
    judge: Judge,
    *,
    masses: Sequence[float],
    guidances: Sequence[float],
    seed: int,
    shift: NDArray[np.float32],
    second_stage: Any = None,
    best_of: int = 1,
    second: Callable[[Group, SampleResult, float], dict[str, Any]] | None = None,
    keep: Callable[[Group, float, float, SampleResult], None] | None = None,
) -> list[dict[str, Any]]:
    """One cell for each group, mass and guidance: ``{"group", "mass", "guidance", "n", **judge's}``.

    Every arm is judged by the same caps: around the plain embedding, with the bound that holds `mass` of the training
    images. An arm of kind "own" takes no bound, so its samples are drawn once and judged by every cap.

    Args:
        arm: what to run.
        sampler: opened on the arm's model, with encoder and tree.
        groups: prompts.
        judge: counts.
        masses: shares of the training images.
        guidances: values to try.
        seed: of the samples.
        shift: mean text minus mean image embedding, (d,).
        second_stage: the flow, for the arm of two stages.
        best_of: candidates per sample, of which the one nearest to the plain embedding is kept.
        second: ``second(group, result, mass)``: what another judge adds, whose caps are its own.
        keep: called with every group's samples, for grids.
    """
    cells = []
    for group in groups:
        plain = np.stack([prompt.center for prompt in group.prompts])
        given = _given(arm, group, plain, shift)
        for guidance in guidances:
            drawn: SampleResult | None = None
            for mass in masses:
                judged = bounds(plain, mass=(mass,), tree=sampler.tree)
                if drawn is None or arm.way != "own":
                    told = judged if given is plain else bounds(given, mass=(mass,), tree=sampler.tree)
                    prompts = [replace(p, center=c) for p, c in zip(group.prompts, given, strict=True)]
                    drawn = sampler.samples(
                        prompts,
                        0.0 if arm.way == "own" else told,
                        group.n,
                        guidance=guidance,
                        seed=seed,
                        retrieve=arm.way == "retrieve",
                        second_stage=second_stage if arm.way == "two-stage" else None,
                        best_of=best_of,
                    )
                    if keep is not None:
                        keep(group, mass, guidance, drawn)
                cells.append(
                    {
                        "group": group.name,
                        "mass": mass,
                        "guidance": guidance,
                        "max_cos_distance": round(float(judged.mean()), 4),
                        "n": len(drawn),
                        **judge(group, drawn, judged),
                        **(second(group, drawn, mass) if second is not None else {}),
                    }
                )
    return cells


def _given(arm: Arm, group: Group, plain: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
    """The centers that the arm is given: a model trained on shifted centers expects an image's shifted too."""
    if arm.shift == "train" and group.name == "image":
        return shifted(plain, shift, 1.0)
    if arm.shift == "prompt" and group.name != "image":
        return shifted(plain, shift, -1.0)
    return plain


def in_caps(result: SampleResult, plain: NDArray[np.float32], limits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which samples lie in the caps around the plain centers, bool (p, n)."""
    return 1.0 - cosines(result, plain) <= limits[:, None]


def cosines(result: SampleResult, plain: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each sample with the plain center of its prompt, float64 (p, n)."""
    if result.embeddings is None:
        raise ValueError("expected measured samples, got none")
    rows = result.embeddings.astype(np.float64).reshape(len(plain), -1, plain.shape[1])
    found: NDArray[np.float64] = np.einsum("pnd,pd->pn", rows, plain.astype(np.float64))
    return found


def add_up(cells: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, float]:
    """Sums of `keys` and of ``n`` over cells, for shares over several seeds."""
    return {key: sum(cell[key] for cell in cells) for key in (*keys, "n")}
