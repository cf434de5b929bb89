"""One video's way to the frames that the model sees, planned, decoded and resized.

A plan (which frames, what size) is made before any frame is decoded; each frame is then resized as it comes,
so that memory holds the video at the model's size only. Which settings apply is the processor's business.

Legend of shape suffixes: T frames, N a block of frames, C channels, H height, W width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from qvl.errors import UnsupportedError
from qvl.processing.media.opening import MediaLimits
from qvl.processing.patches import FusedNormalise, PatchShape
from qvl.processing.sizes import target_size
from qvl.processing.threads import as_they_come
from qvl.processing.video.clips import Clip, VideoMetadata, is_file, known_rate, open_clip
from qvl.processing.video.frames import DEFAULT_FPS, SamplingRule, choose_frames
from qvl.types import Grid

INTERPOLATION = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
SMALLEST_SHARE = 1.05  # of min_pixels, that a total_pixels budget leaves a frame; as in qwen-vl-utils


@dataclass(frozen=True)
class VideoSettings:
    """All that one video's processing depends on.

    ``frame_rate``: what the caller says of frames that are there already. ``resized_*`` stand in for the
    video's own size.
    """

    rule: SamplingRule
    do_resize: bool
    resample: int
    min_pixels: int
    max_pixels: float
    normalise: FusedNormalise
    shape: PatchShape
    do_convert_rgb: bool = True
    input_data_format: str | None = None
    device: Any = None
    frame_rate: float | None = None
    video_start: float | None = None
    video_end: float | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) of ``frames`` frames after resizing."""
        if not self.do_resize:
            return height, width
        if self.total_pixels is None:
            return target_size(self, height, width)
        share = self.total_pixels / frames * self.shape.temporal_patch_size
        most = max(min(self.max_pixels, share), int(self.min_pixels * SMALLEST_SHARE))
        return target_size(replace(self, max_pixels=most), height, width)


@dataclass(frozen=True)
class VideoPlan:
    """What a video will become, known before its frames are decoded.

    ``grid``: in patches; ``height``, ``width``: of a frame after resizing; ``indices``: numbers of the
    frames taken; ``timestamps``: their seconds from the video's first frame; ``sampled_fps``: frames per
    second at which they are really taken; ``seconds_per_grid``: seconds that one temporal step of the grid
    covers; ``metadata``: all that is known of the video.
    """

    grid: Grid
    height: int
    width: int
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    sampled_fps: float
    seconds_per_grid: float
    metadata: VideoMetadata


@dataclass(frozen=True, eq=False)
class SampledVideo:
    """``frames_TCHW``: the frames taken, resized as planned, RGB, of the dtype they came in."""

    frames_TCHW: torch.Tensor
    plan: VideoPlan

    @property
    def indices(self) -> tuple[int, ...]:
        return self.plan.indices

    @property
    def timestamps(self) -> tuple[float, ...]:
        return self.plan.timestamps

    @property
    def sampled_fps(self) -> float:
        return self.plan.sampled_fps


@contextmanager
def opened_clip(
    video: Any, settings: VideoSettings, known: VideoMetadata | None, limits: MediaLimits
) -> Iterator[Clip]:
    """``video`` as a clip whose timeline has the rate that the caller or the file tells."""
    rate = settings.frame_rate
    with open_clip(
        video,
        layout=settings.input_data_format,
        convert_rgb=settings.do_convert_rgb,
        limits=limits,
    ) as clip:
        if not is_file(video):
            total = clip.timeline.total
            clip.timeline = replace(clip.timeline, fps=known_rate(known, total) if rate is None else rate)
        yield clip


def plan_clip(clip: Clip, settings: VideoSettings) -> VideoPlan:
    """Frames and sizes for ``clip``. Raises InputError where the settings do not fit it."""
    timeline = clip.timeline
    choice = choose_frames(timeline, settings.rule, settings.video_start, settings.video_end)
    height, width = settings.size(len(choice.indices), clip.height, clip.width)
    sampled_fps = choice.sampled_fps
    if sampled_fps is None:
        warnings.warn(
            f"The rate of the frames handed over is unknown and taken to be {DEFAULT_FPS:g} per second: "
            "give fps= or video_metadata",
            stacklevel=5,
        )
        sampled_fps = DEFAULT_FPS
    metadata = VideoMetadata(
        total_num_frames=timeline.total,
        fps=timeline.fps,
        width=clip.width,
        height=clip.height,
        duration=None if timeline.fps is None else timeline.total / timeline.fps,
        video_backend=clip.backend,
        frames_indices=choice.indices,
        timestamps=choice.timestamps,
        sampled_fps=sampled_fps,
    )
    grid = settings.shape.grid(len(choice.indices), height, width)
    seconds = settings.shape.temporal_patch_size / sampled_fps
    return VideoPlan(grid, height, width, choice.indices, choice.timestamps, sampled_fps, seconds, metadata)


def sample_clip(clip: Clip, settings: VideoSettings) -> SampledVideo:
    """Decodes the frames of ``clip`` that ``settings`` choose, and resizes each while the next is decoded."""
    plan = plan_clip(clip, settings)

    def work(frames_NCHW: torch.Tensor) -> torch.Tensor:
        frames_NCHW = frames_NCHW if settings.device is None else frames_NCHW.to(settings.device)
        return resize_frames(frames_NCHW, (plan.height, plan.width), settings.resample)

    whole, start = None, 0
    for block_NCHW in as_they_come(work, clip.blocks(plan.indices)):
        if len(block_NCHW) == len(plan.indices):
            return SampledVideo(block_NCHW, plan)
        if whole is None:
            whole = block_NCHW.new_empty(len(plan.indices), *block_NCHW.shape[1:])
        whole[start : start + len(block_NCHW)] = block_NCHW
        start += len(block_NCHW)
    assert whole is not None  # a plan has at least one frame
    return SampledVideo(whole, plan)


def resize_frames(frames_NCHW: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Frames at ``size`` (height, width), antialiased, of the dtype they had, as torchvision's resize gives
    them.

    On a CPU 8-bit frames are resampled in fixed-point arithmetic; elsewhere as float32, clamped and rounded.
    """
    if tuple(frames_NCHW.shape[-2:]) == size:
        return frames_NCHW
    mode = INTERPOLATION.get(Image.Resampling(resample))
    if mode is None:
        raise UnsupportedError(
            f"Frames can be resized with resample 0 (nearest), 2 (bilinear) or 3 (bicubic), not {resample}"
        )
    dtype = frames_NCHW.dtype
    direct = dtype in (torch.float32, torch.float64) or (
        dtype == torch.uint8 and (mode == "nearest-exact" or frames_NCHW.device.type == "cpu")
    )
    if mode == "nearest-exact":
        return F.interpolate(frames_NCHW if direct else frames_NCHW.float(), size, mode=mode).to(dtype)
    values = F.interpolate(frames_NCHW if direct else frames_NCHW.float(), size, mode=mode, antialias=True)
    if direct:
        return values
    if dtype == torch.uint8:
        values = values.clamp_(0, 255)
    return (values if dtype.is_floating_point else values.round_()).to(dtype)
