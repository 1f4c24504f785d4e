"""Optimizers and their schedule: Muon for the blocks' matrices, AdamW for tables, the head and everything small."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from genmodel.errors import CheckpointError, ConfigError

SCHEDULES = ("wsd", "cosine", "constant")


class BatchedMuon(torch.optim.Muon):
    """:class:`torch.optim.Muon` with the same rule and state, faster on many small matrices.

    Matrices of one shape are orthogonalized in one batch, and on CPUs in float32, where it beats bfloat16 (twice as
    fast on the machines measured). Sharded matrices take torch's own way.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters that have a gradient."""
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # type: ignore[no-untyped-call]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(group, shape, parameters)
        return loss

    def _update(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        keep = group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - keep)
        ahead = torch._foreach_lerp(gradients, buffers, keep) if group["nesterov"] else buffers
        dtype = torch.float32 if parameters[0].device.type == "cpu" else torch.bfloat16
        update = orthogonalize(torch.stack(list(ahead)).to(dtype), group["ns_coefficients"], group["ns_steps"])
        rows, columns = shape
        match group["adjust_lr_fn"]:
            case "match_rms_adamw":
                ratio = 0.2 * math.sqrt(max(rows, columns))
            case _:
                ratio = math.sqrt(max(1.0, rows / columns))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(update.to(parameters[0].dtype).unbind()), alpha=-group["lr"] * ratio)


def orthogonalize(stack: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly, of a stack float (k, m, n), by a quintic Newton-Schulz iteration.

    Singular values end between about 0.7 and 1.2, not at 1, with Muon's coefficients.
    """
    a, b, c = coefficients
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.dtype == torch.float32 and x.shape[-1] >= 2 * x.shape[-2]:
        # Every step multiplies by a polynomial of x @ x.mT. These commute, so for long rows the small square matrices
        # are iterated alone and x is multiplied once; bfloat16 would lose the small singular values.
        gram = x @ x.mT
        product = None
        for step in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else factor @ product
            if step < steps - 1:
                gram = factor @ gram @ factor
        x = x if product is None else product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def build_optimizers(
    model: nn.Module,
    *,
    lr: float = 3e-3,
    muon_lr: float = 0.02,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[torch.optim.Optimizer]:
    """The optimizers of a generator's parameters, each group with its ``base_lr``.

    Muon takes the matrices of the blocks; AdamW the rest, with decay on matrices that are multiplied and none on
    tables and vectors. ``muon_lr=0`` gives everything to AdamW.
    """
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if ".blocks." in f".{name}" and parameter.ndim == 2 and muon_lr > 0:
            matrices.append(parameter)
        elif parameter.ndim == 2 and not name.startswith(("tokens.", "cells.")):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    on_cuda = next(model.parameters()).device.type == "cuda"
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-10, fused=on_cuda)]
    if matrices:
        optimizers.append(BatchedMuon(matrices, lr=muon_lr, weight_decay=weight_decay, momentum=0.95))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def lr_scale(
    step: int, steps: int, warmup: int, schedule: str = "wsd", decay: float = 0.4, floor: float = 0.02
) -> float:
    """Factor on the learning rates in step `step` (from 0) of `steps`.

    It rises over `warmup` steps; then "wsd" (warmup, stable, decay) stays at 1 until the last `decay` of the steps and
    falls in a line to `floor`; "cosine" falls to `floor` along a half cosine; "constant" stays.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    match schedule:
        case "constant":
            return rise
        case "wsd":
            left = (steps - step) / max(1.0, decay * steps)
            return rise * (floor + (1 - floor) * min(1.0, max(0.0, left)))
        case "cosine":
            done = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
            return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
    raise ConfigError(f"schedule: expected one of {SCHEDULES}, got {schedule!r}")


def set_lr(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Sets every group's learning rate to `scale` times its base."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale


class MovingAverage:
    """Exponential moving average of parameters, float32, by name.

    The decay of step t is min(decay, (1 + t) / (10 + t)): the first steps are soon forgotten, in short runs too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = dict(model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the parameters in after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self._live.values()), 1 - decay)


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All state of the optimizers as whole tensors, by ``number.parameter.key``; every process has to call it."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    found = {}
    for number, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                found[f"{number}.{names[parameter]}.{key}"] = whole(torch.as_tensor(value))
    return found


def load_optimizer_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Puts what :func:`optimizer_tensors` gave back.

    Raises:
        CheckpointError: it is the state of other parameters.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        parameter_name, _, key = rest.rpartition(".")
        if parameter_name not in parameters or int(number) >= len(optimizers):
            raise CheckpointError(f"the training state has {name}, which this model does not")
        parameter = parameters[parameter_name]
        value = tensor.clone() if key == "step" else like(tensor, parameter)
        if key == "step" and parameter.device.type == "cuda":
            value = value.to(parameter.device)
        optimizers[int(number)].state[parameter][key] = value


def whole(tensor: Tensor) -> Tensor:
    """The tensor, collected from all processes if it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor placed, and sharded, as `parameter` is."""
    if isinstance(parameter, DTensor):
        device = parameter.device_mesh.device_type
        return distribute_tensor(tensor.to(device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device, copy=True)
