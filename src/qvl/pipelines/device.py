"""Where a model runs when someone names an accelerator by number, or nothing at all."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def pick_device(device: int | str | torch.device | None) -> torch.device:
    """The device meant: a number is an accelerator's (-1: the CPU), None the first accelerator there is.

    Without an accelerator a number means the CPU, and a log line says so.
    """
    if isinstance(device, torch.device):
        return device
    if isinstance(device, str):
        return torch.device(device)
    if device is not None and device < 0:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", device or 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if device is not None:
        logger.warning("device=%d asked for, but there is no accelerator here: running on the CPU", device)
    return torch.device("cpu")
