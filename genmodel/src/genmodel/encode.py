"""Images -> embeddings and image tokens in Parquet shards: the first step, done once per data set.

The source is cut into shards by position. A shard's batches hold only images of that shard, so what is in it depends on
nothing else: a run that was killed and started again writes the same files as one that was not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genmodel.encoders import Encoder, load_encoder
from genmodel.errors import ConfigError, DataError
from genmodel.images import ImageSource, open_images, read_images, square
from genmodel.progress import Progress
from genmodel.shards import BROKEN_FILE, ShardWriter
from genmodel.tokenizers import Tokenizer, load_tokenizer

Array = np.ndarray[Any, Any]


@dataclass
class EncodeConfig:
    """Settings of :func:`encode`."""

    images: str
    """Folder of images, of Parquet files (bytes column) or of webdataset tars; or one such file."""
    out: str
    """Folder to write the shards into; an unfinished one goes on where it stopped."""
    encoder: str = "open_clip:ViT-B-32/laion2b_s34b_b79k"
    """open_clip:MODEL/TAG, open_clip:MODEL/FILE, hf-hub:OWNER/NAME, or a folder with open_clip_config.json."""
    # A super-resolution model for its first stage alone, which is VQ-f4: the authors' settings of that model say so
    # (latent-diffusion, models/ldm/bsr_sr/config.yaml), and the repository's vqvae/config.json has the shape of VQ_F4.
    tokenizer: str = "ldm:CompVis/ldm-super-resolution-4x-openimages"
    """A folder of `genmodel tokenizer train`, or ldm:PATH for the Latent Diffusion VQ-f4 autoencoder."""
    batch_size: int = 64
    """Images per forward pass."""
    rows_per_shard: int = 4096
    """Images per shard, which is also how much work a kill can cost."""
    column: str | None = None
    """Parquet: the column of encoded images."""
    limit: int | None = None
    """Only the first so many images."""
    device: str = "cpu"
    """torch device."""
    precision: str = "fp32"
    """Arithmetic of the encoder: fp32, fp16 or bf16."""
    workers: int | None = None
    """Threads that read and decode; None: one per core, at most 16."""
    threads: int | None = None
    """torch threads; None leaves them as they are."""
    progress: bool = True
    """Show progress on standard error."""


@dataclass
class EncodeReport:
    """What :func:`encode` did.

    `rows` and `broken` are those of the whole folder; `resumed` is the number of shards that were there before.
    """

    out: str
    rows: int
    broken: int
    shards: int
    resumed: int
    broken_file: str | None


def encode(config: EncodeConfig, encoder: Encoder | None = None, tokenizer: Tokenizer | None = None) -> EncodeReport:
    """Encode all images of a source; see :class:`EncodeConfig`.

    `encoder` and `tokenizer` may be given as objects, in place of those that the configuration names. Images that
    cannot be read are left out and listed in ``broken.jsonl`` with the reason. Raises DataError when no image at all
    can be read, or when the folder was begun with other settings or for a source that has changed since.
    """
    for name in ("batch_size", "rows_per_shard"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.threads:
        torch.set_num_threads(config.threads)
    source = open_images(config.images, config.column)
    total = len(source) if config.limit is None else min(config.limit, len(source))
    encoder = encoder or load_encoder(config.encoder, config.device, config.precision)
    tokenizer = tokenizer or load_tokenizer(config.tokenizer, config.device)
    writer = ShardWriter(config.out, _meta(config, source, total, encoder, tokenizer), config.rows_per_shard)
    shards = -(-total // config.rows_per_shard)
    resumed = len(writer.done)
    todo = [index for index in range(shards) if index not in writer.done]
    done = total - sum(min(config.rows_per_shard, total - index * config.rows_per_shard) for index in todo)
    try:
        with Progress("encode", total, config.progress) as shown:
            shown.update(done)
            for index in todo:
                positions = range(index * config.rows_per_shard, min((index + 1) * config.rows_per_shard, total))
                _encode_shard(config, source, positions, encoder, tokenizer, writer, index, shown, done)
                done += len(positions)
    finally:
        broken = writer.write_broken()
    written = writer.finish(shards)
    if len(written) == 0:
        raise DataError(f"{config.images}: none of {total} images could be read; see {writer.folder / BROKEN_FILE}")
    broken_file = str(writer.folder / BROKEN_FILE) if broken else None
    return EncodeReport(config.out, len(written), broken, shards, resumed, broken_file)


def _meta(
    config: EncodeConfig, source: ImageSource, total: int, encoder: Encoder, tokenizer: Tokenizer
) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "tokenizer": tokenizer.name,
        "grid": tokenizer.grid,
        "dim": encoder.dim,
        "codebook_size": tokenizer.codebook_size,
        "image_size": tokenizer.image_size,
        "source_images": total,
        "source_fingerprint": source.fingerprint(),
        "encoder_digest": _digest(getattr(encoder, "model", encoder)),
        "tokenizer_digest": _digest(tokenizer),
        "batch_size": config.batch_size,
        "precision": config.precision,
    }


def _digest(module: Any) -> str | None:
    """Tells weights apart, so that a run that goes on does not mix those of two: a hash over a part of every tensor."""
    if not isinstance(module, torch.nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        part = value.detach().flatten()[:4096].cpu().double().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode() + part.tobytes())
    return digest.hexdigest()[:16]


def _encode_shard(
    config: EncodeConfig,
    source: ImageSource,
    positions: range,
    encoder: Encoder,
    tokenizer: Tokenizer,
    writer: ShardWriter,
    index: int,
    shown: Progress,
    done: int,
) -> None:
    ids: list[int] = []
    broken: list[dict[str, Any]] = []
    embeddings, tokens = [np.zeros((0, encoder.dim), np.float32)], [np.zeros((0, tokenizer.tokens_per_image), np.int64)]
    for batch_ids, pictures in _batches(config, source, positions, encoder, tokenizer, broken):
        for_encoder, for_tokenizer = (
            torch.from_numpy(np.stack(column)).permute(0, 3, 1, 2) for column in zip(*pictures, strict=True)
        )
        embeddings.append(encoder.images(for_encoder).cpu().numpy())
        tokens.append(tokenizer.encode(for_tokenizer).cpu().numpy())
        ids += batch_ids
        shown.update(done + len(ids) + len(broken), f"{len(broken)} broken in this shard" if broken else "")
    names = [source.paths[position] for position in ids]
    writer.write(index, ids, names, np.concatenate(embeddings), np.concatenate(tokens), broken)


def _batches(
    config: EncodeConfig,
    source: ImageSource,
    positions: range,
    encoder: Encoder,
    tokenizer: Tokenizer,
    broken: list[dict[str, Any]],
) -> Iterator[tuple[list[int], list[tuple[Array, ...]]]]:
    """Whole batches of images that could be read; the others are appended to `broken`."""
    workers = config.workers if config.workers is not None else min(16, os.cpu_count() or 1)
    size = tokenizer.image_size
    # An encoder may bring its own resizing of Pillow images; the others get a square.
    for_encoder = getattr(encoder, "prepare", None) or (lambda image: np.asarray(square(image, encoder.image_size)))
    prepare = (for_encoder, lambda image: np.asarray(square(image, size)))
    ids: list[int] = []
    pictures: list[tuple[Array, ...]] = []
    for decoded in read_images(source, positions, prepare, workers):
        if decoded.pictures is None:
            path = source.paths[decoded.position]
            broken.append({"id": decoded.position, "path": path, "reason": decoded.reason})
            continue
        ids.append(decoded.position)
        pictures.append(decoded.pictures)
        if len(ids) == config.batch_size:
            yield ids, pictures
            ids, pictures = [], []
    if ids:
        yield ids, pictures
