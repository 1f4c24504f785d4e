"""What a run says about itself: JSONL, TensorBoard where asked for, and how fast the machine could be."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genmodel.errors import DataError, MissingDependencyError


class RunLog:
    """Events of a run in ``log.jsonl``, one JSON object a line, each with ``event`` and ``step``.

    Events: ``start`` (config, machine), ``train``, ``heldout``, ``samples``, ``checkpoint``, ``end``.

    Args:
        folder: the run's folder.
        step: the step the run goes on from; later entries of an earlier try are dropped, for they will come again.
        tensorboard: also write TensorBoard files to ``folder/tensorboard``.
        enabled: False for all but the first process.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False, enabled: bool = True) -> None:
        self._enabled, self._board = enabled, None
        if not enabled:
            return
        path = folder / "log.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                kept = [entry for entry in read_log(folder) if entry["step"] <= step] if step else []
                temporary = path.with_suffix(".tmp")
                temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
                temporary.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write {path}: {error}") from error
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError("TensorBoard logs need `pip install genmodel[logs]`") from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def write(self, event: str, step: int, **values: Any) -> None:
        """Adds an entry; numbers go to TensorBoard too, under ``event/name``."""
        if not self._enabled:
            return
        entry = {
            "event": event,
            "step": step,
            "time": round(time.time(), 3),
            **{k: plain(v) for k, v in values.items()},
        }
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in entry.items():
                if name not in ("event", "step", "time") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """Adds an image, uint8 (h, w, 3), to TensorBoard."""
        if self._enabled and self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files."""
        if self._enabled:
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_log(folder: str | os.PathLike[str], event: str | None = None) -> list[dict[str, Any]]:
    """The entries of a run's log, all or those of one `event`; a last line cut short by a kill is left out."""
    entries = []
    for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [entry for entry in entries if event is None or entry["event"] == event]


def plain(value: Any) -> Any:
    """A value JSON can hold: tensors as numbers or lists, floats with six significant digits."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating-point operations a second of a matrix product on this device, measured for about `seconds`."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def keep_memory() -> bool:
    """Makes this process keep the memory it frees, and reuse it; True where that worked (glibc).

    A training step frees and asks for the same large tensors over and over. By default glibc gives each back to the
    system, and every page is mapped and zeroed again: a third of a step's time on CPUs.
    """
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        trim, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim, 2**31 - 1))
    except (OSError, AttributeError):
        return False
