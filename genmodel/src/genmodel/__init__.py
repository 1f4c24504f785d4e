"""Images from caps: a generator trained on images alone and prompted with text through a given embedding space.

``genmodel.encode``, ``genmodel.train``, ``genmodel.sample`` and ``genmodel.evaluate`` are the four steps; each takes
its configuration object, or the same settings as keywords. They are imported on first use, so that ``import genmodel``
costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from genmodel.version import __version__

__all__ = ["__version__", "encode", "evaluate", "sample", "train"]


def encode(images: Any, out: Any = None, **settings: Any) -> Any:
    """Images -> embeddings and image tokens in Parquet shards; see :mod:`genmodel.encode`."""
    from genmodel.encode import EncodeConfig
    from genmodel.encode import encode as run

    return run(_config(EncodeConfig, images, ("images", "out"), (images, out), settings))


def train(data: Any, out: Any = None, **settings: Any) -> Any:
    """Shards -> a trained generator in the folder `out`; see :mod:`genmodel.train`."""
    from genmodel.train import TrainConfig
    from genmodel.train import train as run

    return run(_config(TrainConfig, data, ("data", "out"), (data, out), settings))


def sample(checkpoint: Any, **settings: Any) -> Any:
    """Images for prompts from a checkpoint; see :mod:`genmodel.sample`."""
    from genmodel.sample import SampleConfig
    from genmodel.sample import sample as run

    return run(_config(SampleConfig, checkpoint, ("checkpoint",), (checkpoint,), settings))


def evaluate(checkpoint: Any, **settings: Any) -> Any:
    """Figures of a checkpoint as a dictionary; see :mod:`genmodel.evaluate`."""
    from genmodel.evaluate import EvaluateConfig
    from genmodel.evaluate import evaluate as run

    return run(_config(EvaluateConfig, checkpoint, ("checkpoint",), (checkpoint,), settings))


class _Package(ModuleType):
    """Keeps the four names functions: importing the module ``genmodel.train`` would put itself in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _config(kind: Any, first: Any, names: tuple[str, ...], values: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    if isinstance(first, kind):
        return first
    given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    # A prompt or an image may be given alone; the configurations hold tuples.
    for name in ("prompt", "image"):
        if isinstance(settings.get(name), str):
            settings[name] = (settings[name],)
        elif isinstance(settings.get(name), list):
            settings[name] = tuple(settings[name])
    return kind(**given, **settings)
