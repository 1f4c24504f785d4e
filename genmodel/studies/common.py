"""What both studies share: stages that resume, provenance, intervals, and the training of the given encoder."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

PACKAGES = ("genmodel", "captree", "torch", "open-clip-torch", "transformers", "numpy", "pyarrow", "pillow")


class Stages:
    """Runs named stages once: each leaves `OUT/stages/NAME.json`, and a stage whose file is there is not run again.

    The file holds what the stage returned, its CPU time (this process and its threads) and its wall time in seconds.
    `ran` names the stages that were run by this object.
    """

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.folder = out / "stages"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.say = say
        self.ran: list[str] = []

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of stage `name`: read from its file, or made by `work` and written."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            self.say(f"{name}: done before")
            result: dict[str, Any] = json.loads(path.read_text())["result"]
            return result
        self.say(f"{name}: starts")
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = work()
        record = {
            "result": result,
            "cpu_seconds": round(cpu_seconds() - cpu, 1),
            "wall_seconds": round(time.perf_counter() - wall, 1),
        }
        write_json(path, record)
        self.ran.append(name)
        self.say(f"{name}: {record['cpu_seconds']} CPU-s, {record['wall_seconds']} s")
        return result

    def records(self) -> dict[str, dict[str, Any]]:
        """Every finished stage's file by name."""
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))}


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, default=_plain) + "\n")
    part.replace(path)


def say(text: str) -> None:
    """One line of progress, with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def cpu_seconds() -> float:
    """CPU time of this process, its threads and the children it has waited for, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def set_threads(threads: int) -> None:
    """Holds torch to `threads` threads."""
    torch.set_num_threads(threads)


def provenance(threads: int) -> dict[str, Any]:
    """Commit, command, versions and machine of the stage that asks, for a report.

    A study may be made by several commands, of which this names one; what the others added, the stages themselves say.
    """
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(["python", "-m", _module(), *map(_portable, sys.argv[1:])]),
        "threads": threads,
        "python": platform.python_version(),
        "machine": _cpu_name(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval of a share, (low, high)."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def percent(successes: int, n: int) -> str:
    """A share with its Wilson interval, such as `25.0 [18-33]`, in percent."""
    if n == 0:
        return "-"
    low, high = wilson(successes, n)
    return f"{100 * successes / n:.1f} [{100 * low:.0f}-{100 * high:.0f}]"


def train_open_clip(
    config: dict[str, Any],
    images: NDArray[np.uint8],
    texts: Sequence[Sequence[str]],
    out: Path,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    learning_rate: float = 1e-3,
    max_scale: float = 100.0,
    text_features: Sequence[NDArray[np.float32]] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> dict[str, Any]:
    """Trains an open_clip model from a config and saves it as a folder that `local-dir:` opens.

    `config` is what `open_clip_config.json` holds: `model_cfg` and `preprocess_cfg`. `images`: uint8 (n, 3, s, s).
    `texts`: one or more captions per image; each step draws one of them. With `text_features` (per image, (captions,
    d), unit rows) the text tower is taken as frozen and only the image tower learns. The loss is CLIP's (Radford et al.
    2021), through `open_clip.loss.ClipLoss`; its learned scale stays below `max_scale`, CLIP's own bound unless a small
    set would only make it sharper. Returns the loss, the scale and the step count.
    """
    from open_clip.loss import ClipLoss

    from genmodel.encoders import save_encoder
    from genmodel.towers import new_open_clip

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    draws = torch.Generator().manual_seed(seed)
    model, tokenizer = new_open_clip(config)
    if text_features is not None:
        model.lock_text_tower()
    # Convolutions are nearly twice as fast this way on a CPU.
    model.visual.to(memory_format=torch.channels_last)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in learned if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    loss_of = ClipLoss()
    preprocess = config["preprocess_cfg"]
    mean, std = (torch.tensor(preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    model.train()
    average = math.nan
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        if len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(len(images))])
        rows, order = order[:batch_size], order[batch_size:]
        batch = torch.from_numpy(images[rows]).float() / 255.0
        if augment is not None:
            batch = augment(batch, draws)
        pixels = ((batch - mean) / std).contiguous(memory_format=torch.channels_last)
        image_rows = functional.normalize(model.encode_image(pixels), dim=-1)
        picks = [int(rng.integers(len(texts[row]))) for row in rows]
        if text_features is None:
            words = tokenizer([texts[row][pick] for row, pick in zip(rows, picks, strict=True)])
            text_rows = functional.normalize(model.encode_text(words), dim=-1)
        else:
            text_rows = torch.from_numpy(
                np.stack([text_features[row][pick] for row, pick in zip(rows, picks, strict=True)])
            )
        loss = loss_of(image_rows, text_rows, model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(max_scale))
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 99:
            say(f"encoder step {step + 1}/{steps}: loss {average:.3f}, scale {model.logit_scale.exp().item():.1f}")
    save_encoder(out, model, config["model_cfg"], config["preprocess_cfg"])
    scale = round(model.logit_scale.exp().item(), 2)
    return {"steps": steps, "batch_size": batch_size, "loss": round(average, 4), "scale": scale, "seed": seed}


def _portable(argument: str) -> str:
    """An absolute path without the folders, which mean nothing elsewhere."""
    return Path(argument).name if argument.startswith("/") else argument


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else "studies"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return _portable(str(value))
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
