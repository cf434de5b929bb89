"""Frames to rows of patches: the one arithmetic that pictures and videos share.

A row is one patch: (channel, temporal, patch, patch) flattened, and rows come in merge order (t, h / m, w / m, m, m),
so that the m x m patches that the model merges into one token stand together. It does not know where frames come
from or how they got their size.

Legend of shape suffixes: T frames, H height, W width, C channels or, at the end of PC, values of one patch, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from qvl.errors import InputError, MediaError
from qvl.types import Grid


@dataclass(frozen=True)
class PatchShape:
    """Side of a patch in pixels, frames per patch, and patches per side that merge into one token."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    @property
    def factor(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.patch_size * self.merge_size

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The grid of ``frames`` frames of ``height`` x ``width`` pixels; a last incomplete step counts."""
        return Grid(-(-frames // self.temporal_patch_size), height // self.patch_size, width // self.patch_size)


# From patches with axes (P, C, temporal, pixels) of the frames' dtype to what the model gets.
Normalise = Callable[[torch.Tensor], torch.Tensor]


def to_patches(frames_TCHW: torch.Tensor, shape: PatchShape, normalise: Normalise) -> tuple[torch.Tensor, Grid]:
    """Patches (P, C) and grid of the frames of one picture (T = 1) or video.

    The last frame is repeated until T divides by the temporal patch size. A single frame is cut and normalised
    once and repeated only at the end. Raises MediaError where H or W are no multiples of ``shape.factor``.
    """
    total, _, height, width = frames_TCHW.shape
    if height % shape.factor or width % shape.factor:
        raise MediaError(
            f"A picture of {height} x {width} pixels cannot be cut into patches: without resizing (do_resize=False) "
            f"height and width must be multiples of {shape.factor}"
        )
    single = total == 1
    if not single and (missing := -total % shape.temporal_patch_size):
        frames_TCHW = torch.cat([frames_TCHW, frames_TCHW[-1:].expand(missing, -1, -1, -1)])
    patches = rearrange(
        frames_TCHW,
        "(t a) c (h m p) (w n q) -> (t h w m n) c a (p q)",
        a=1 if single else shape.temporal_patch_size,
        m=shape.merge_size,
        n=shape.merge_size,
        p=shape.patch_size,
        q=shape.patch_size,
    )
    patches = normalise(patches)
    if single:
        patches = patches.expand(-1, -1, shape.temporal_patch_size, -1)
    return patches.reshape(len(patches), -1), shape.grid(total, height, width)


@dataclass(frozen=True)
class TwoStepNormalise:
    """Rescaling and normalising as two roundings to float32: what transformers' Pillow-based processor does.

    values * ``rescale_factor`` in float64, rounded to float32; then (values - mean) / std. None skips a step.
    """

    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        if self.rescale_factor is None and self.mean is None:
            return patches
        if self.rescale_factor is None:
            values = patches if patches.is_floating_point() else patches.float()
            return self._normalised(values.clone(), 0, patches.shape[1])
        # Channel by channel: the float64 stay in the processor's cache and cost no memory
        values = torch.empty(patches.shape, dtype=torch.float32)
        for channel in range(patches.shape[1]):
            values[:, channel] = patches[:, channel].double().mul_(self.rescale_factor)
            self._normalised(values[:, channel : channel + 1], channel, patches.shape[1])
        return values

    def _normalised(self, values: torch.Tensor, first: int, channels: int) -> torch.Tensor:
        """In place, for the channels from ``first`` on."""
        if self.mean is None or self.std is None:
            return values
        here = slice(first, first + values.shape[1])
        mean, std = (per_channel(x, channels, values.dtype)[here] for x in (self.mean, self.std))
        return values.sub_(mean).div_(std)


@dataclass(frozen=True)
class FusedNormalise:
    """Rescaling folded into mean and standard deviation: what transformers' torchvision-based processors do."""

    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        if self.mean is None or self.std is None:
            return patches if self.rescale_factor is None else patches * self.rescale_factor
        mean, std = (per_channel(x, patches.shape[1], torch.float32, patches.device) for x in (self.mean, self.std))
        if self.rescale_factor is not None:
            mean, std = mean * (1.0 / self.rescale_factor), std * (1.0 / self.rescale_factor)
        values = patches.to(torch.float32, copy=True)
        return values.sub_(mean).div_(std)


def per_channel(
    values: Sequence[float], channels: int, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """One value per channel (or one for all) with the axes (C, 1, 1)."""
    if len(values) not in (1, channels):
        raise InputError(f"image_mean and image_std must have {channels} values, one per channel, got {len(values)}")
    return torch.tensor(values, dtype=dtype, device=device).expand(channels)[:, None, None]


def as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    """A mean or standard deviation, which may be one number for all channels."""
    return (float(values),) if isinstance(values, int | float) else tuple(float(value) for value in values)
