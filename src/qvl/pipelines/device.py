"""Where a model runs when someone names an accelerator by number, or nothing at all."""

from __future__ import annotations

import logging

import torch

from qvl.weights.placement import Placement, best_device

logger = logging.getLogger(__name__)


def pick_device(device: int | str | torch.device | None) -> torch.device:
    """The device meant: a number is an accelerator's (-1: the CPU), None or "auto" the first accelerator.

    Without an accelerator a number means the CPU, and a log line says so. Raises InputError for a device that
    torch does not see here.
    """
    if device is None:
        return best_device()
    if not isinstance(device, int):
        return Placement.read(device).device_of("")
    if device < 0:
        return torch.device("cpu")
    best = best_device()
    if best.type == "cpu":
        logger.warning(
            "device=%d was asked for, but there is no accelerator here: running on the CPU", device
        )
        return best
    return torch.device(best.type, device)
