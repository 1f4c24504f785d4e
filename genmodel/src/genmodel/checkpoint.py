"""Checkpoints: folders of safetensors files, written whole or not at all.

    OUT/step-00001000/model.safetensors      weights; metadata: config, encoder, tokenizer, whatever `extra` holds
                      ema.safetensors        their moving average, same metadata
                      training.safetensors   the optimizers' tensors, and training.json: the rest of the state

A folder is written under a temporary name, flushed to disk and renamed, so one that has its name is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genmodel.errors import CheckpointError, GenmodelError
from genmodel.model import Generator, ModelConfig

_STEP = re.compile(r"step-(\d{8,})")
_FORMAT = "1"


@dataclass
class Loaded:
    """A generator and what its checkpoint says about it.

    Attributes:
        model: in evaluation mode, on the device asked for.
        config: its shape.
        encoder: name of the embedding space's encoder, for :func:`genmodel.encoders.load_encoder`.
        tokenizer: name of the tokenizer, for :func:`genmodel.tokenizers.load_tokenizer`.
        extra: what else was saved, plain values.
        path: the folder it was read from.
    """

    model: Generator
    config: ModelConfig
    encoder: str
    tokenizer: str
    extra: dict[str, Any]
    path: Path


def save_checkpoint(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    *,
    ema: torch.nn.Module | Mapping[str, Tensor] | None = None,
    encoder: str,
    tokenizer: str,
    extra: Mapping[str, Any] | None = None,
    training: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
    config: ModelConfig | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a checkpoint to the folder `path`, which appears complete or not at all; an older one there is replaced.

    Args:
        path: the folder of this checkpoint.
        model: a :class:`Generator`.
        ema: the moving average of its weights, as a module or by name.
        encoder: name of the encoder of the condition's space.
        tokenizer: name of the image tokenizer.
        extra: plain values (JSON) to keep with it.
        training: tensors by name and plain values from which training goes on.
        config: of the model, where `model` is wrapped and has none.
        weights: of the model, where they had to be collected from several processes.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    config = config or getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise CheckpointError(f"expected a Generator, got {type(model).__name__}")
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(config.to_dict()),
        "encoder": encoder,
        "tokenizer": tokenizer,
        "extra": json.dumps(dict(extra or {})),
    }
    # The process id keeps two runs that write to one place out of each other's files.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary / "model.safetensors", save(_plain(weights or model.state_dict()), metadata))
        if ema is not None:
            average = ema.state_dict() if isinstance(ema, torch.nn.Module) else ema
            _write(temporary / "ema.safetensors", save(_plain(average), metadata))
        if training is not None:
            _write(temporary / "training.safetensors", save(_plain(training[0]), {"format": _FORMAT}))
            _write(temporary / "training.json", json.dumps(dict(training[1])).encode())
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        _flush(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {error}") from error
    return path


def load_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu", ema: bool = True) -> Loaded:
    """Reads a generator from a checkpoint's folder, or from the newest checkpoint in a training folder.

    Args:
        path: a folder with ``model.safetensors``, or one with ``step-*`` folders.
        device: where its weights go.
        ema: take the moving average where there is one.

    Raises:
        CheckpointError: there is none, or it is damaged or not one of ours.
    """
    folder = find_checkpoint(path)
    averaged = folder / "ema.safetensors"
    file = averaged if ema and averaged.exists() else folder / "model.safetensors"
    weights, metadata = read_tensors(file, device)
    try:
        config = ModelConfig(**json.loads(metadata["config"]))
        encoder, tokenizer, extra = metadata["encoder"], metadata["tokenizer"], json.loads(metadata["extra"])
        with torch.device("meta"):
            model = Generator(config)
        fill(model, weights)
    except (KeyError, TypeError, ValueError, RuntimeError, GenmodelError) as error:
        raise CheckpointError(f"{file} is no checkpoint of a generator: {error}") from error
    return Loaded(model.eval(), config, encoder, tokenizer, extra, folder)


def fill(model: Generator, weights: Mapping[str, Tensor]) -> None:
    """Gives a model built on the meta device its `weights`, and its tables beside them."""
    model.load_state_dict(dict(weights), assign=True)
    model.reset_buffers(next(iter(weights.values())).device)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint's folder that `path` means: itself, or its newest ``step-*``."""
    path = Path(path)
    if (path / "model.safetensors").exists():
        return path
    steps = step_folders(path)
    if not steps:
        raise CheckpointError(f"no checkpoint at {path}: expected model.safetensors or step-* folders in it")
    return steps[-1]


def step_folders(path: str | os.PathLike[str]) -> list[Path]:
    """The complete checkpoints of a training folder, oldest first."""
    path = Path(path)
    found = [p for p in path.glob("step-*") if _STEP.fullmatch(p.name) and (p / "model.safetensors").exists()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path}") from error
    except (SafetensorError, OSError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
