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
from qvl.processing.byte_patches import Cut, byte_table, fill_rows
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
    """Patches (P, C) and grid of the frames of one picture (T = 1) or video: see :func:`all_patches`."""
    rows_PC, (grid,) = all_patches([frames_TCHW], shape, normalise)
    return rows_PC, grid


def all_patches(
    media: Sequence[torch.Tensor], shape: PatchShape, normalise: Normalise
) -> tuple[torch.Tensor, list[Grid]]:
    """Patches (P, C) of all pictures and videos, end to end, and the grid of each.

    ``media``: frames (T, C, H, W) of each. The last frame is repeated until T divides by the temporal patch
    size. A single frame is cut and normalised once and repeated only at the end. Bytes are normalised by
    looking them up, in threads, and what they become is held once. Raises MediaError where H or W are no
    multiples of ``shape.factor``.
    """
    grids = [_grid(frames_TCHW, shape) for frames_TCHW in media]
    whole = [part for frames_TCHW in media for part in _whole_steps(frames_TCHW, shape)]
    first = whole[0]
    if not all(part.dtype == torch.uint8 and part.device.type == "cpu" for part in whole) or any(
        part.shape[1] != first.shape[1] for part in whole
    ):
        rows = [_normalised(_cut(part, shape), shape, normalise) for part in whole]
        return rows[0] if len(rows) == 1 else torch.cat(rows), grids
    table_C256 = byte_table(normalise, first.shape[1])
    values = first.shape[1] * shape.temporal_patch_size * shape.patch_size**2
    rows_PC = torch.empty(sum(grid.patches for grid in grids), values, dtype=table_C256.dtype)
    cut = Cut(shape.patch_size, shape.temporal_patch_size, shape.merge_size)
    fill_rows(whole, cut, table_C256, rows_PC)
    return rows_PC, grids


def _grid(frames_TCHW: torch.Tensor, shape: PatchShape) -> Grid:
    total, _, height, width = frames_TCHW.shape
    if height % shape.factor or width % shape.factor:
        raise MediaError(
            f"{height} x {width} pixels cannot be cut into patches: without resizing (do_resize=False) "
            f"height and width must be multiples of {shape.factor}"
        )
    return shape.grid(total, height, width)


def _whole_steps(frames_TCHW: torch.Tensor, shape: PatchShape) -> list[torch.Tensor]:
    """The frames in parts that divide by the temporal patch size; one frame alone stays one."""
    total, rest = len(frames_TCHW), len(frames_TCHW) % shape.temporal_patch_size
    if total == 1 or not rest:
        return [frames_TCHW]
    repeated = frames_TCHW[-1:].expand(shape.temporal_patch_size - rest, -1, -1, -1)
    last = torch.cat([frames_TCHW[total - rest :], repeated])
    return [frames_TCHW[: total - rest], last] if total > rest else [last]


def _cut(frames_TCHW: torch.Tensor, shape: PatchShape) -> torch.Tensor:
    """Patches with axes (P, C, 1 or temporal, pixels) in merge order."""
    return rearrange(
        frames_TCHW,
        "(t a) c (h m p) (w n q) -> (t h w m n) c a (p q)",
        a=1 if len(frames_TCHW) == 1 else shape.temporal_patch_size,
        m=shape.merge_size,
        n=shape.merge_size,
        p=shape.patch_size,
        q=shape.patch_size,
    )


def _normalised(patches: torch.Tensor, shape: PatchShape, normalise: Normalise) -> torch.Tensor:
    """Rows (P, C) of patches with axes (P, C, 1 or temporal, pixels); a single frame is repeated here.

    Block by block, so that what lies between the pixels and the floats stays in the processor's cache.
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
