"""Frames to rows of patches: the one arithmetic that pictures and videos share.

A row is one patch: (channel, temporal, patch, patch) flattened, and rows come in merge order (t, h / m, w /
m, m, m), so that the m x m patches that the model merges into one token stand together. It does not know
where frames come from or how they got their size.

Legend of shape suffixes: T frames, H height, W width, C channels or, at the end of PC, values of one patch,
P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from qvl.errors import InputError, MediaError
from qvl.types import Grid

BLOCK = 128  # patches normalised at once: 0.6 MB of float64


@dataclass(frozen=True)
class PatchShape:
    """Side of a patch in pixels, frames per patch, and patches per side that merge into one token."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of 1 or more, got {value!r}")

    @property
    def factor(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.patch_size * self.merge_size

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The grid of ``frames`` frames of ``height`` x ``width`` pixels; a last incomplete step counts."""
        return Grid(
            -(-frames // self.temporal_patch_size), height // self.patch_size, width // self.patch_size
        )


# From patches with axes (P, C, temporal, pixels) of the frames' dtype to what the model gets.
Normalise = Callable[[torch.Tensor], torch.Tensor]


def to_patches(
    frames_TCHW: torch.Tensor, shape: PatchShape, normalise: Normalise
) -> tuple[torch.Tensor, Grid]:
    """Patches (P, C) and grid of the frames of one picture (T = 1) or video.

    The last frame is repeated until T divides by the temporal patch size. A single frame is cut and
    normalised once and repeated only at the end. Raises MediaError where H or W are no multiples of
    ``shape.factor``.
    """
    total, _, height, width = frames_TCHW.shape
    if height % shape.factor or width % shape.factor:
        raise MediaError(
            f"{height} x {width} pixels cannot be cut into patches: without resizing (do_resize=False) "
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
    return _normalised(patches, shape, normalise), shape.grid(total, height, width)


def _normalised(patches: torch.Tensor, shape: PatchShape, normalise: Normalise) -> torch.Tensor:
    """Rows (P, C) of patches with axes (P, C, 1 or temporal, pixels); a single frame is repeated here.

    Block by block, so that what lies between the bytes and the floats stays in the processor's cache.
    """
    count, channels, _, pixels = patches.shape
    dtype = normalise(patches[:1]).dtype
    rows = torch.empty(count, channels, shape.temporal_patch_size, pixels, dtype=dtype, device=patches.device)
    for start in range(0, count, BLOCK):
        rows[start : start + BLOCK] = normalise(patches[start : start + BLOCK])
    return rows.reshape(count, -1)


@dataclass(frozen=True)
class TwoStepNormalise:
    """Rescaling and normalising as two roundings to float32: what transformers' Pillow-based processor does.

    values * ``rescale_factor`` in float64, rounded to float32; then (values - mean) / std. None skips a step.
    """

    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        values = patches
        if self.rescale_factor is not None:
            values = values.double().mul_(self.rescale_factor).float()
        if self.mean is None or self.std is None:
            return values
        values = values if values.is_floating_point() else values.float()
        mean, std = (per_channel(x, patches.shape[1], values.dtype) for x in (self.mean, self.std))
        return (values - mean).div_(std)


@dataclass(frozen=True)
class FusedNormalise:
    """Rescaling folded into mean and deviation: what transformers' torchvision-based processors do."""

    rescale_factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        if self.mean is None or self.std is None:
            return patches if self.rescale_factor is None else patches * self.rescale_factor
        mean, std = (
            per_channel(x, patches.shape[1], torch.float32, patches.device) for x in (self.mean, self.std)
        )
        if self.rescale_factor is not None:
            mean, std = mean * (1.0 / self.rescale_factor), std * (1.0 / self.rescale_factor)
        return (patches.float() - mean).div_(std)


def per_channel(
    values: Sequence[float], channels: int, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """One value per channel (or one for all) with the axes (C, 1, 1)."""
    if len(values) not in (1, channels):
        raise InputError(
            f"image_mean and image_std must have {channels} values, one per channel, got {len(values)}"
        )
    return torch.tensor(values, dtype=dtype, device=device).expand(channels)[:, None, None]


def as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    """A mean or standard deviation, which may be one number for all channels."""
    return (float(values),) if isinstance(values, int | float) else tuple(float(value) for value in values)
