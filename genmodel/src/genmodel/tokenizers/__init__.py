"""Image tokenizers: ours (FSQ, the DALL-E dVAE) and Latent Diffusion's VQ autoencoder behind one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmodel.errors import DataError
from genmodel.tokenizers.base import OwnTokenizer, Tokenizer
from genmodel.tokenizers.dvae import DVAETokenizer
from genmodel.tokenizers.fsq import FSQTokenizer

__all__ = ["DVAETokenizer", "FSQTokenizer", "Tokenizer", "load_tokenizer"]

KINDS: dict[str, type[OwnTokenizer]] = {kind.kind: kind for kind in (FSQTokenizer, DVAETokenizer)}


def load_tokenizer(spec: str | Path, device: Any = "cpu") -> Tokenizer:
    """A tokenizer ready for use (evaluation mode, no gradients on its weights) on `device`.

    Parameters
    ----------
    spec : str or Path
        A folder that :func:`genmodel.tokenizers.train.train_tokenizer` wrote; or ``ldm:PATH`` for Latent Diffusion's
        VQ-f4 weights (its own checkpoint file, a diffusers folder, or the name of a hub repository), optionally with
        the image size: ``ldm:PATH@128``.

    Raises DataError when nothing usable is there.
    """
    text = str(spec)
    tokenizer: Tokenizer
    if text.startswith("ldm:"):
        from genmodel.tokenizers.ldm import load_ldm

        tokenizer = load_ldm(text.removeprefix("ldm:"))
    else:
        folder = Path(text)
        config = OwnTokenizer.read_config(folder)
        if config["kind"] not in KINDS:
            raise DataError(f"{folder}: expected a tokenizer of kind {sorted(KINDS)}, got {config['kind']!r}")
        try:
            own = KINDS[config["kind"]](**config["settings"])
        except TypeError as error:
            raise DataError(f"{folder}: its settings do not fit: {error}") from error
        own.read_weights(folder)
        tokenizer = own
    tokenizer.name = text
    return tokenizer.to(device).eval().requires_grad_(False)
