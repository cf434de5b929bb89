"""The optimizer: AdamW over groups of parameters, each with its own rate and decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from qvl.errors import InputError
from qvl.train.settings import TrainSettings


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]],
    settings: TrainSettings,
    rate_of: Callable[[str], float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over all that is trained. ``rate_of``: name -> learning rate.

    Vectors (biases, norms) do not decay, as everywhere. Each group keeps its full rate under "peak".
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            peak = settings.learning_rate if rate_of is None else rate_of(name)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            found.setdefault((peak, decay), []).append(parameter)
    if not found:
        raise InputError("Nothing is to be trained: every part of the model is frozen")
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in found.items()
    ]
    return torch.optim.AdamW(groups, betas=settings.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group at ``factor`` of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
