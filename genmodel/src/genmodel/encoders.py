"""The given embedding space: an open_clip model as a frozen encoder of images and texts.

open_clip (and torchvision with it) is imported when an encoder is loaded, not before.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from genmodel.errors import ConfigError, DataError, GenmodelError, InputError, MissingDependencyError
from genmodel.images import square

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


class Encoder(Protocol):
    """What genmodel asks of an embedding space: unit vectors of images and of texts.

    Attributes: `name` (what :func:`load_encoder` takes), `dim` of the space, `image_size` in pixels per side.
    """

    name: str
    dim: int
    image_size: int

    def images(self, images: Tensor) -> Tensor:
        """Embeddings float32 (n, dim), unit rows, of uint8 images (n, 3, h, w) of any size; no gradients."""
        ...

    def images_float(self, images: Tensor) -> Tensor:
        """The same of float images (n, 3, h, w) in [0, 1], differentiable."""
        ...

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings float32 (n, dim), unit rows, of texts; no gradients."""
        ...


class OpenClipEncoder:
    """An open_clip model with its own preprocessing; see :class:`Encoder`.

    Parameters
    ----------
    model : torch.nn.Module
        A CLIP, CustomTextCLIP or CoCa model of open_clip.
    tokenize : callable
        Its text tokenizer.
    preprocess : dict
        ``size``, ``mean``, ``std``, ``interpolation``, ``resize_mode`` and ``fill_color`` as open_clip names them.
    name, dim :
        See :class:`Encoder`.
    batch_size : int
        Images per forward pass of :meth:`images`; the result does not depend on it beyond rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        preprocess: dict[str, Any],
        name: str,
        dim: int,
        batch_size: int = 64,
    ) -> None:
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
        if height != width:
            raise ConfigError(f"{name}: expected a model of square images, got {height} x {width}")
        self.model, self.tokenize = model.eval().requires_grad_(False), tokenize
        self.name, self.dim, self.image_size, self.batch_size = name, dim, int(height), batch_size
        self.resize_mode = str(preprocess.get("resize_mode") or "shortest")
        # As in open_clip: "random" means bicubic outside of training.
        self.interpolation = "bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic"
        self.fill = int(preprocess.get("fill_color") or 0)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._mean = torch.tensor(preprocess["mean"], device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess["std"], device=self.device).view(1, 3, 1, 1)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings float32 (n, dim), unit rows, of uint8 images (n, 3, h, w) of any size; no gradients."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"expected uint8 images (n, 3, h, w), got {images.dtype} {tuple(images.shape)}")
        parts = [torch.zeros(0, self.dim, device=self.device)]
        for batch in torch.split(images, self.batch_size) if len(images) else ():
            pixels = self._fit(batch.to(self.device).float() / 255)
            # The model was trained on resized images of whole levels, as Pillow makes them.
            parts.append(self._embed((pixels * 255).round() / 255))
        return torch.cat(parts)

    def images_float(self, images: Tensor) -> Tensor:
        """Embeddings float32 (n, dim), unit rows, of float images (n, 3, h, w) in [0, 1]; differentiable."""
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"expected float images (n, 3, h, w), got {images.dtype} {tuple(images.shape)}")
        return self._embed(self._fit(images.to(self.device)))

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings float32 (n, dim), unit rows, of texts; no gradients."""
        if isinstance(prompts, str):
            raise InputError("expected a sequence of texts, got one string")
        parts = [torch.zeros(0, self.dim, device=self.device)]
        for start in range(0, len(prompts), 4 * self.batch_size):
            tokens = self.tokenize(list(prompts[start : start + 4 * self.batch_size]))
            parts.append(F.normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=-1))  # type: ignore[operator]
        return torch.cat(parts)

    def prepare(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """The uint8 (image_size, image_size, 3) picture that the model sees: exactly open_clip's resize and crop."""
        size, resample = self.image_size, Image.Resampling[self.interpolation.upper()]
        if self.resize_mode == "shortest":
            return np.asarray(square(image, size, resample))
        if self.resize_mode == "squash":
            return np.asarray(image if image.size == (size, size) else image.resize((size, size), resample))
        scale = max(image.size) / size
        width, height = round(image.width / scale), round(image.height / scale)
        canvas = Image.new("RGB", (size, size), (self.fill,) * 3)
        canvas.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
        return np.asarray(canvas)

    def _fit(self, pixels: Tensor) -> Tensor:
        """The same as :meth:`prepare` for a batch of float pixels in [0, 1]."""
        size = self.image_size
        height, width = pixels.shape[-2:]
        if (height, width) == (size, size):
            return pixels
        if self.resize_mode == "squash":
            return self._resize(pixels, size, size)
        if self.resize_mode == "shortest":
            short = min(height, width)
            height, width = int(size * height / short), int(size * width / short)
            pixels = self._resize(pixels, height, width)
            top, left = round((height - size) / 2), round((width - size) / 2)
            return pixels[..., top : top + size, left : left + size]
        scale = max(height, width) / size
        height, width = round(height / scale), round(width / scale)
        pixels = self._resize(pixels, height, width)
        top, left = (size - height) // 2, (size - width) // 2
        return F.pad(pixels, (left, size - width - left, top, size - height - top), value=self.fill / 255)

    def _resize(self, pixels: Tensor, height: int, width: int) -> Tensor:
        if tuple(pixels.shape[-2:]) == (height, width):
            return pixels
        resized = F.interpolate(pixels, (height, width), mode=self.interpolation, antialias=True)
        return resized.clamp(0, 1)  # bicubic overshoots at edges

    def _embed(self, pixels: Tensor) -> Tensor:
        normalized = ((pixels - self._mean) / self._std).to(self.dtype)
        return F.normalize(self.model.encode_image(normalized).float(), dim=-1)  # type: ignore[operator]


def load_encoder(spec: str | Path, device: Any = "cpu", precision: str = "fp32") -> OpenClipEncoder:
    """Load a frozen encoder.

    Parameters
    ----------
    spec : str or Path
        ``open_clip:MODEL/TAG`` (weights from open_clip's hub, which needs a network), ``open_clip:MODEL/FILE`` (a local
        checkpoint in any layout that open_clip reads), ``hf-hub:OWNER/NAME``, or a folder with
        ``open_clip_config.json`` and its weights. In such a folder the text tower's ``hf_model_name`` and
        ``hf_tokenizer_name`` may be paths relative to the folder, or ``package:NAME/PATH`` inside an installed Python
        package.
    device :
        A torch device.
    precision : str
        ``"fp32"``, ``"fp16"`` or ``"bf16"``: the model's weights and arithmetic; results are float32 all the same.

    Raises ConfigError for a spec of another form, DataError when the weights cannot be had, MissingDependencyError
    without open_clip.
    """
    text = str(spec)
    try:
        import open_clip
    except ImportError as error:
        raise MissingDependencyError(
            f"encoders need open_clip: pip install 'genmodel[clip]' (its import said: {error})"
        ) from error
    overrides: dict[str, Any] = {}
    pretrained = None
    if text.startswith("open_clip:"):
        model_name, _, pretrained = text.removeprefix("open_clip:").partition("/")
        if not pretrained:
            raise ConfigError(f"expected open_clip:MODEL/TAG or open_clip:MODEL/FILE, got {text!r}")
        if model_name not in open_clip.list_models():
            raise ConfigError(f"open_clip knows no model {model_name!r}; open_clip.list_models() names all of them")
        config = open_clip.get_model_config(model_name)
    elif text.startswith("hf-hub:"):
        model_name, config = text, None
    else:
        folder = Path(text.removeprefix("local-dir:"))
        model_name = f"local-dir:{folder}"
        config = _read_config(folder)
        if "hf_model_name" in config.get("text_cfg", {}):
            overrides["text_cfg"] = config["text_cfg"] = resolve_text(folder, config["text_cfg"])
    try:
        model = open_clip.create_model(
            model_name, pretrained, precision=precision, device=device, require_pretrained=True, **overrides
        )
        tokenize = _tokenizer(open_clip, model_name, overrides.get("text_cfg"))
    except GenmodelError:
        raise
    except Exception as error:  # open_clip, torch and the hub raise their own kinds
        hint = "" if overrides or config is None or Path(pretrained or "").is_file() else _hint(open_clip, model_name)
        raise DataError(f"could not load the encoder {text!r}: {error}{hint}") from error
    dim = int(config["embed_dim"]) if config else int(model.text_projection.shape[-1])
    return OpenClipEncoder(model, tokenize, open_clip.get_model_preprocess_cfg(model), text, dim)


def save_encoder(
    folder: str | os.PathLike[str], model: nn.Module, config: dict[str, Any], preprocess: dict[str, Any] | None = None
) -> Path:
    """Write an open_clip model as a folder that :func:`load_encoder` reads, and return it.

    `config` is open_clip's model configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``), `preprocess` overrides
    its preprocessing (``mean``, ``std``, ``interpolation``, ``resize_mode``).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}}, indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n")
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"expected open_clip:MODEL/TAG, open_clip:MODEL/FILE, hf-hub:OWNER/NAME or a folder with {CONFIG_FILE}, "
            f"got {str(folder)!r}"
        )
    try:
        config = json.loads(path.read_text())["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected JSON with the key 'model_cfg': {error!r}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected 'model_cfg' to be an object, got {type(config).__name__}")
    return config


def resolve_text(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The text tower's settings with paths in place of names relative to the folder or a package."""
    resolved = {**config, "hf_model_pretrained": False}
    resolved["hf_model_name"] = _resolve(folder, config["hf_model_name"])
    resolved["hf_tokenizer_name"] = _resolve(folder, config.get("hf_tokenizer_name") or config["hf_model_name"])
    return resolved


def _resolve(folder: Path, name: str) -> str:
    if name.startswith("package:"):
        package, _, inside = name.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise MissingDependencyError(f"{folder}: its text tower needs the package {package!r} (pip install it)")
        return str(Path(found.submodule_search_locations[0]) / inside)
    return str(folder / name) if (folder / name).exists() else name


def _tokenizer(open_clip: Any, model_name: str, text: dict[str, Any] | None) -> Callable[[list[str]], Tensor]:
    if text is None:
        return open_clip.get_tokenizer(model_name)  # type: ignore[no-any-return]
    # open_clip would look for the tokenizer in the folder itself, whatever its name says.
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(  # type: ignore[no-any-return]
        text["hf_tokenizer_name"],
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )


def _hint(open_clip: Any, model_name: str) -> str:
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)[:6])
    return f"\n(known tags: {tags}; without a network give a file: open_clip:{model_name}/FILE)" if tags else ""
