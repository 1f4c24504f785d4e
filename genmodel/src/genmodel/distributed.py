"""One process or many: who this process is, how the model is spread, and how all agree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmodel.errors import ConfigError
from genmodel.model import Generator

PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class World:
    """A process among those that train together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of `tensor` over all processes."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
            tensor = tensor / self.size
        return tensor

    def any(self, flag: int) -> int:
        """The largest `flag` of all processes."""
        if self.size > 1:
            shared = torch.tensor(flag, device=self.device)
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            flag = int(shared)
        return flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The world this process was started in: torchrun's, or one process.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, torch.device(device))
        return
    if device.startswith("cuda"):
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    else:
        place = torch.device(device)
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), place)
    finally:
        if mine:
            dist.destroy_process_group()


def spread(model: Generator, world: World, parallel: str, reduced: bool) -> nn.Module:
    """The module to call in training: `model` itself, DDP around it, or `model` with its parameters sharded.

    Args:
        model: on its device; ``fsdp`` changes its parameters to sharded ones.
        world: this process.
        parallel: one of :data:`PARALLEL`; of no effect on one process.
        reduced: gather parameters in bfloat16 (sharded only).
    """
    if parallel not in PARALLEL:
        raise ConfigError(f"parallel: expected one of {PARALLEL}, got {parallel!r}")
    if world.size == 1:
        return model
    if parallel == "ddp":
        ids = [world.device.index] if world.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if reduced else None
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
    return model


@contextmanager
def last_of(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are exchanged in the `last` backward pass of a batch only."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    exchange = getattr(model, "set_requires_gradient_sync", None)
    if exchange is not None:
        exchange(last)
    yield
