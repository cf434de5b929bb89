"""Which frames of a video a model gets to see: pure arithmetic on counts, rates and times.

The rules are those of transformers' Qwen2-VL video processor (``sample_frames``), or, on request, those of
the qwen-vl-utils package (linspace, rounded). Where transformers steps in float32 these are exact integers:
its steps now and then end on a frame that is not there (2997 of 2997) or, in videos of more than some 20,000
frames, on the next frame. Where it fails (one frame, or num_frames that round to none or to more than there
are) the nearest count that works is taken. It opens no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from qvl.errors import InputError, InputTypeError, UnknownNameError

DEFAULT_FPS = 2.0  # the released training pipeline's rate
FRAME_SAMPLING = ("uniform", "linspace")


@dataclass(frozen=True)
class SamplingRule:
    """How many frames to take and how to spread them.

    Either ``fps`` (frames per second of video) or ``num_frames``; with neither every frame is taken.
    ``min_frames`` and ``max_frames`` bound what ``fps`` leads to (``max_frames`` wins). Counts are multiples
    of ``temporal_patch_size`` where the video has that many. ``method``: "uniform" takes frame floor(i * T /
    n), "linspace" rounds n points from the first frame to the last, as qwen-vl-utils does.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    temporal_patch_size: int = 2
    method: str = "uniform"

    def __post_init__(self) -> None:
        if self.fps is not None and self.num_frames is not None:
            raise InputError("fps and num_frames exclude each other: give one of them")
        for name in ("fps", "num_frames", "min_frames", "max_frames"):
            if not isinstance(value := getattr(self, name), Real | None):
                raise InputTypeError(f"{name} must be a number, not {value!r}")
            if name != "fps" and value is not None and float(value) % 1:
                raise InputError(f"{name} counts frames, got {value}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise InputError(f"fps must be a positive number of frames per second, got {self.fps}")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.min_frames < 0:
            raise InputError(f"min_frames must be 0 or more, got {self.min_frames}")
        if self.max_frames < self.temporal_patch_size:
            raise InputError(
                f"max_frames must be at least {self.temporal_patch_size}, the frames of one patch, "
                f"got {self.max_frames}"
            )
        if self.method not in FRAME_SAMPLING:
            raise UnknownNameError(f"frame_sampling must be one of {FRAME_SAMPLING}, not {self.method!r}")

    def count(self, total: int, file_fps: float | None) -> int:
        """Frames to take of ``total`` that run at ``file_fps``; at least one."""
        if self.num_frames is not None:
            return self._count_given(total)
        if self.fps is None:
            return total
        if file_fps is None:
            raise InputError(
                "Sampling by fps needs to know the video's own rate: give video_metadata with fps"
            )
        most = min(self.max_frames, total) // self.temporal_patch_size * self.temporal_patch_size
        wanted = min(max(total / file_fps * self.fps, self.min_frames), most)
        return self._at_least_one_step(math.floor(wanted / self.temporal_patch_size), total)

    def _count_given(self, total: int) -> int:
        wanted = self.num_frames or 0
        if wanted > total:
            raise InputError(f"num_frames={wanted} is more than the {total} frames that the video has there")
        # Round half to even, as transformers; never above what the video has
        steps = min(round(wanted / self.temporal_patch_size), total // self.temporal_patch_size)
        return self._at_least_one_step(steps, total)

    def _at_least_one_step(self, steps: int, total: int) -> int:
        return min(max(steps, 1) * self.temporal_patch_size, total)


@dataclass(frozen=True, eq=False)
class Timeline:
    """The frames that can be chosen from: ``total`` of them at ``fps`` (None: unknown).

    ``timestamps``: seconds of each frame from the first, ascending; None means frame k stands at k / fps.
    """

    total: int
    fps: float | None
    timestamps: np.ndarray | None = None

    def seconds(self, numbers: Sequence[int]) -> tuple[float, ...]:
        if self.timestamps is not None:
            return tuple(float(self.timestamps[number]) for number in numbers)
        return tuple(number / (self.fps or DEFAULT_FPS) for number in numbers)

    def segment(self, start: float | None, end: float | None) -> range:
        """Numbers of the frames from ``start`` to ``end`` seconds, both ends included."""
        if start is None and end is None:
            return range(self.total)
        low, high = start or 0.0, math.inf if end is None else end
        for name, value in (("video_start", low), ("video_end", high)):
            if not isinstance(value, Real):
                raise InputTypeError(f"{name} must be a number of seconds, not {value!r}")
        if not 0 <= low < high:
            raise InputError(f"video_start must be at least 0 and less than video_end, got {start} and {end}")
        times = self._times()
        tolerance = 1e-6  # seconds: 0.1 * 30 is a hair above 3
        first = int(np.searchsorted(times, low - tolerance, side="left"))
        after = int(np.searchsorted(times, high + tolerance, side="right"))
        if first >= after:
            raise InputError(
                f"No frame lies between video_start={start} and video_end={end}: "
                f"the video has {self.total} frames, the last at {float(times[-1]):g} seconds"
            )
        return range(first, after)

    def rate(self, segment: range) -> float | None:
        """Mean frames per second of the frames ``segment``; None where unknown."""
        if self.timestamps is None or self.fps is None or len(segment) == self.total:
            return self.fps
        return len(segment) / (self.end(segment) - float(self.timestamps[segment.start]))

    def end(self, segment: range) -> float:
        """Seconds at which the last frame of ``segment`` gives way to the next, or the video ends."""
        times = self._times()
        if segment.stop < self.total:
            return float(times[segment.stop])
        return max(self.total / (self.fps or DEFAULT_FPS), float(times[-1]))

    def _times(self) -> np.ndarray:
        if self.timestamps is not None:
            return self.timestamps
        if self.fps is None:
            raise InputError(
                "video_start and video_end need to know the video's own rate: give fps or video_metadata"
            )
        return np.arange(self.total) / self.fps


@dataclass(frozen=True)
class FrameChoice:
    """``indices``: numbers of the chosen frames, never descending; ``timestamps``: their seconds from the
    video's first frame; ``sampled_fps``: frames per second at which they were really taken, None if the rate
    is unknown.
    """

    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    sampled_fps: float | None


def choose_frames(
    timeline: Timeline, rule: SamplingRule, start: float | None = None, end: float | None = None
) -> FrameChoice:
    """Applies ``rule`` to the part of ``timeline`` from ``start`` to ``end`` seconds."""
    segment = timeline.segment(start, end)
    rate = timeline.rate(segment)
    n = rule.count(len(segment), rate)
    if rule.method == "linspace":
        indices = _linspace(segment, n)
    elif timeline.timestamps is None or n == len(segment):
        indices = tuple(segment[i * len(segment) // n] for i in range(n))
    else:
        indices = _even_in_time(segment, n, timeline)
    fps = None if rate is None else n * rate / len(segment)
    return FrameChoice(indices, timeline.seconds(indices), fps)


def _linspace(segment: range, n: int) -> tuple[int, ...]:
    # torch's float32 linspace, because qwen-vl-utils rounds exactly that
    return tuple(torch.linspace(segment[0], segment[-1], n).round().long().tolist())


def _even_in_time(segment: range, n: int, timeline: Timeline) -> tuple[int, ...]:
    """For each of n equal parts of the segment's time the frame that is on screen when it begins.

    At a constant rate that is frame floor(i * T / n); at a varying rate a frame may be on screen twice.
    """
    if timeline.timestamps is None or timeline.fps is None:
        raise InputError("A video of varying rate needs its timestamps and mean rate")
    times = timeline.timestamps[segment.start : segment.stop]
    moments = times[0] + np.arange(n) * (timeline.end(segment) - times[0]) / n
    places = np.searchsorted(times, moments + 1e-6, side="right") - 1
    return tuple(segment[int(place)] for place in places)
