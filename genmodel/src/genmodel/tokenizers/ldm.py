"""Latent Diffusion's VQ autoencoder as a tokenizer: VQ-f4 makes 32x32 tokens of 8,192 codes from 128x128 pixels.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022. The network is diffusers'
``VQModel`` (imported when it is loaded); weights may be in the authors' layout or in diffusers'.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from genmodel.errors import ConfigError, DataError, InputError, MissingDependencyError
from genmodel.tokenizers.base import Tokenizer

DEFAULT_IMAGE_SIZE = 128
VQ_F4 = {"block_out_channels": (128, 256, 512), "layers_per_block": 2, "latent_channels": 3, "num_vq_embeddings": 8192}
"""Shape of the VQ-f4 autoencoder: 55.3 million parameters, images to a quarter per side."""
CHUNK = 4096
"""Vectors that are compared with the codebook at once: 128 MiB of distances for 8,192 codes."""


class LDMTokenizer(Tokenizer):
    """A diffusers ``VQModel`` as a tokenizer.

    Parameters
    ----------
    vq : diffusers.VQModel
    image_size : int
        Pixels per side; the autoencoder is convolutional and takes any multiple of its downsampling.
    """

    def __init__(self, vq: Any, image_size: int = DEFAULT_IMAGE_SIZE) -> None:
        super().__init__()
        factor = 2 ** (len(vq.config.block_out_channels) - 1)
        if image_size < factor or image_size % factor:
            raise ConfigError(f"expected an image size that is a multiple of {factor}, got {image_size}")
        self.vq = vq
        self.name, self.image_size, self.grid = "ldm", image_size, image_size // factor
        self.codebook_size = int(vq.config.num_vq_embeddings)

    def codebook(self) -> Tensor:
        """The code vectors, float32 (codebook_size, channels)."""
        weight: Tensor = self.vq.quantize.embedding.weight
        return weight

    def tokenize(self, pixels: Tensor) -> Tensor:
        """Tokens int64 (n, grid, grid) of float pixels (n, 3, s, s) in [0, 1]: the nearest codes."""
        latents = self.vq.encode(2 * pixels - 1).latents.movedim(1, -1)
        rows = latents.flatten(0, -2)
        nearest = [torch.cdist(part, self.codebook()).argmin(1) for part in torch.split(rows, CHUNK)]
        return torch.cat(nearest).view(latents.shape[:-1])

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Pixels of code vectors (n, channels, grid, grid)."""
        channels = self.codebook().shape[1]
        if vectors.ndim != 4 or vectors.shape[1] != channels:
            raise InputError(f"expected vectors of shape (n, {channels}, grid, grid), got {tuple(vectors.shape)}")
        pixels: Tensor = self.vq.decode(vectors, force_not_quantize=True).sample
        return (pixels + 1) / 2


def load_ldm(source: str) -> LDMTokenizer:
    """Load ``PATH`` or ``PATH@SIZE`` (pixels per side, 128 unless given).

    PATH is a checkpoint file in the authors' layout (.ckpt, .pt, .safetensors; an autoencoder's own, or a whole latent
    diffusion model that holds one), a folder in diffusers' layout, or the name of a hub repository whose ``vqvae`` part
    is the autoencoder. Raises DataError when it cannot be read, MissingDependencyError without diffusers.
    """
    path, size = source, DEFAULT_IMAGE_SIZE
    before, separator, after = source.rpartition("@")
    if separator and after.isdigit():
        path, size = before, int(after)
    vq_model = _vq_model()
    if Path(path).is_file():
        return LDMTokenizer(from_ldm_state(read_checkpoint(Path(path))), size)
    folder = Path(path)
    try:
        if (folder / "config.json").is_file():
            vq = vq_model.from_pretrained(path)
        else:
            vq = vq_model.from_pretrained(path, subfolder="vqvae")
    except Exception as error:  # diffusers and the hub raise their own kinds
        raise DataError(
            f"{path!r} is no file, folder or hub name of a VQ autoencoder: {error} (without a network give a file)"
        ) from error
    return LDMTokenizer(vq, size)


def from_ldm_state(state: dict[str, Tensor]) -> Any:
    """A ``VQModel`` with the weights of an LDM state dict; every key has to match. Raises DataError otherwise.

    The shape is read off the weights, so smaller relatives of VQ-f4 load too, as long as they have attention only in
    the middle.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    prefix = "first_stage_model."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # A training checkpoint also holds the losses' networks.
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    state = {key: value.float() for key, value in state.items() if key.startswith(parts)}
    try:
        shape = _shape(state)
        vq = _vq_model()(
            **shape,
            down_block_types=("DownEncoderBlock2D",) * len(shape["block_out_channels"]),
            up_block_types=("UpDecoderBlock2D",) * len(shape["block_out_channels"]),
        )
        # The converter knows only autoencoders with a Gaussian latent and drops the codebook.
        codebook = state["quantize.embedding.weight"]
        converted = {**convert_ldm_vae_checkpoint(dict(state), vq.config), "quantize.embedding.weight": codebook}
        vq.load_state_dict(converted)
    except (KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"the weights are not those of an LDM VQ autoencoder: {error}") from error
    return vq


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; nothing in it is executed, whatever it says."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Lightning's checkpoints name classes beside the weights; they become inert objects instead of imports.
        loaded = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)
    except Exception as error:  # torch, pickle and safetensors raise their own kinds
        raise DataError(f"could not read the checkpoint {path}: {error}") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, dict) or not loaded:
        raise DataError(f"{path}: expected a state dict, got {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


class _Inert:
    """Stands for any object of a checkpoint that is no tensor."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


class _InertPickle:
    """What torch.load needs of a pickle module, with an unpickler that rebuilds tensors and imports nothing else."""

    __name__ = "genmodel.inert_pickle"

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return super().find_class(module, name) if (module, name) in _ALLOWED else _Inert

    @staticmethod
    def load(file: Any, **settings: Any) -> Any:
        return _InertPickle.Unpickler(file, **settings).load()


def _shape(state: dict[str, Tensor]) -> dict[str, Any]:
    """``VQModel`` settings of a state dict in LDM's layout."""
    if any(".attn." in key and ".mid." not in key for key in state):
        raise ValueError("it has attention outside of the middle block")
    levels = {int(key.split(".")[2]) for key in state if key.startswith("encoder.down.")}
    blocks = {int(key.split(".")[4]) for key in state if key.startswith("encoder.down.0.block.")}
    codes, channels = state["quantize.embedding.weight"].shape
    outputs = [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(len(levels))]
    return {
        "block_out_channels": tuple(outputs),
        "layers_per_block": len(blocks),
        "latent_channels": state["quant_conv.weight"].shape[1],
        "vq_embed_dim": channels,
        "num_vq_embeddings": codes,
    }


def _vq_model() -> Any:
    try:
        from diffusers import VQModel
    except ImportError as error:
        raise MissingDependencyError(
            f"the LDM tokenizer needs diffusers: pip install 'genmodel[ldm]' (its import said: {error})"
        ) from error
    return VQModel
