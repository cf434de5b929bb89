"""What a caller may hand over as a video, made alike: a timeline, a size and frames on demand.

A file stays a file until frames are asked for; frames that are there already (pictures, arrays, tensors)
become one tensor. It does not choose frames and does not resize them.

Legend of shape suffixes: T frames, N a block of frames, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from qvl.errors import InputError, InputTypeError, MediaError
from qvl.processing.media.opening import DEFAULT_LIMITS, MediaLimits, load_image, open_video
from qvl.processing.media.rgb import channel_layout, without_alpha
from qvl.processing.media.videofile import VideoFile
from qvl.processing.video.frames import Timeline

# A list of strings that all end so is the frames of one video. GIF is left out: it may be a video itself.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
FRAMES_AT_ONCE = 4  # that are there already and are resized by one thread


@dataclass(frozen=True)
class VideoMetadata:
    """What is known of a video and of the frames taken from it; field names as in transformers.

    ``total_num_frames``, ``fps``, ``duration`` (seconds), ``width``, ``height``: of the video as it was
    handed over, None where unknown. ``frames_indices``, ``timestamps`` (seconds) and ``sampled_fps``: of the
    frames taken.
    """

    total_num_frames: int
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    video_backend: str | None = None
    frames_indices: tuple[int, ...] | None = None
    timestamps: tuple[float, ...] | None = None
    sampled_fps: float | None = None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Clip(Protocol):
    """A video of either kind."""

    timeline: Timeline
    height: int
    width: int
    backend: str | None

    def blocks(self, numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        """The chosen frames in order, as blocks (N, C, H, W)."""
        ...


class FileClip:
    """Frames that still lie in a file: one block per frame, so that no two full-size frames need be held."""

    backend: str | None = "pyav"

    def __init__(self, video: VideoFile):
        self._video = video
        times = None if video.constant_rate else video.timestamps_T
        self.timeline = Timeline(video.total_frames, video.fps, times)
        self.height, self.width = video.height, video.width

    def blocks(self, numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        for picture_HWC in self._video.frames(numbers):
            yield torch.from_numpy(picture_HWC).permute(2, 0, 1)[None]


class FramesClip:
    """Frames that are there already."""

    backend: str | None = None

    def __init__(self, frames_TCHW: torch.Tensor, timeline: Timeline):
        self._frames_TCHW = frames_TCHW
        self.timeline = timeline
        self.height, self.width = frames_TCHW.shape[-2:]

    def blocks(self, numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        for start in range(0, len(numbers), FRAMES_AT_ONCE):
            yield self._frames_TCHW[list(numbers[start : start + FRAMES_AT_ONCE])]


def is_file(video: Any) -> bool:
    """Whether frames have to be decoded, rather than being there already."""
    return isinstance(video, str | os.PathLike | bytes | bytearray | memoryview | VideoFile) or hasattr(
        video, "read"
    )


@contextmanager
def open_clip(
    video: Any,
    *,
    layout: str | None = None,
    convert_rgb: bool = True,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Iterator[Clip]:
    """``video`` as a clip; ``layout`` of arrays is "channels_first", "channels_last" or None to infer it.

    Raises what ``open_video`` and ``load_image`` raise, MediaError for frames of different sizes or none at
    all.
    """
    if isinstance(video, VideoFile):
        yield FileClip(video)
    elif is_file(video):
        with open_video(video, limits=limits) as opened:
            yield FileClip(opened)
    else:
        frames_TCHW = _stacked(video, layout, limits)
        if convert_rgb:
            frames_TCHW = _three_channels(frames_TCHW)
        yield FramesClip(frames_TCHW, Timeline(len(frames_TCHW), None))


def _stacked(video: Any, layout: str | None, limits: MediaLimits) -> torch.Tensor:
    if isinstance(video, Image.Image):
        video = [video]
    if isinstance(video, list | tuple):
        frames = [_frame(frame, layout, limits) for frame in video]
        if len({frame.shape for frame in frames}) > 1:
            sizes = sorted({f"{frame.shape[-2]} x {frame.shape[-1]}" for frame in frames})
            raise MediaError(f"All frames of a video must have one size and mode, got {', '.join(sizes)}")
        frames_TCHW = torch.stack(frames) if frames else torch.empty(0, 3, 0, 0)
    else:
        frames_TCHW = _channels_first(video, layout)
        frames_TCHW = frames_TCHW[None] if frames_TCHW.ndim == 3 else frames_TCHW
    if frames_TCHW.ndim != 4 or frames_TCHW.numel() == 0:
        raise MediaError(
            f"A video must hold at least one frame, (T, H, W, C) or (T, C, H, W), got {_shape(video)}"
        )
    _check_values(frames_TCHW)
    return frames_TCHW


def _check_values(frames: torch.Tensor) -> None:
    """Frames are 8-bit pictures, whatever type holds their numbers."""
    if frames.dtype == torch.uint8:
        return
    if frames.dtype == torch.bool or frames.is_complex():
        raise InputTypeError(f"The frames of a video must hold numbers from 0 to 255, not {frames.dtype}")
    low, high = (float(value) for value in frames.to(torch.float64).aminmax())
    if not 0 <= low <= high <= 255:  # NaN is nowhere between
        raise InputError(
            f"The frames of a video must lie in 0..255, got {low:g} to {high:g} ({frames.dtype})"
        )


def _shape(video: Any) -> str:
    return f"shape {tuple(video.shape)}" if hasattr(video, "shape") else f"{len(video)} frames"


def _frame(frame: Any, layout: str | None, limits: MediaLimits) -> torch.Tensor:
    """One frame of a list as (C, H, W)."""
    if isinstance(frame, Image.Image) or not isinstance(frame, np.ndarray | torch.Tensor):
        picture = without_alpha(load_image(frame, limits=limits))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return _channels_first(frame, layout)


def _channels_first(array: Any, layout: str | None) -> torch.Tensor:
    if not isinstance(array, np.ndarray | torch.Tensor):
        raise InputTypeError(
            "A video must be a path, URL, bytes, a list of frames or an array of 4 axes, "
            f"not {type(array).__name__}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
    if tensor.ndim < 3 or tensor.numel() == 0:
        return tensor
    if (layout or channel_layout(tuple(tensor.shape))) == "channels_last":
        tensor = tensor.movedim(-1, -3)
    return tensor.contiguous()


def _three_channels(frames_TCHW: torch.Tensor) -> torch.Tensor:
    """Grey repeated to RGB, RGBA composited on white."""
    channels = frames_TCHW.shape[1]
    if channels == 1:
        return frames_TCHW.expand(-1, 3, -1, -1)
    if channels != 4:
        return frames_TCHW
    alpha_T1HW = frames_TCHW[:, 3:].float() / 255
    mixed = frames_TCHW[:, :3].float() * alpha_T1HW + 255 * (1 - alpha_T1HW)
    return mixed if frames_TCHW.is_floating_point() else mixed.round().to(frames_TCHW.dtype)


def flat_videos(videos: Any) -> list[Any]:
    """One video, a batch or nested lists of videos as a flat list of videos.

    A list is one video where all its items are frames: PIL images, arrays of 3 axes, or names of picture
    files.
    """
    if videos is None:
        return []
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, list | tuple):
        return [videos]
    if videos and all(_is_frame(item) for item in videos):
        return [videos]
    return [video for item in videos for video in flat_videos(item)]


def _is_frame(item: Any) -> bool:
    if isinstance(item, Image.Image):
        return True
    if isinstance(item, np.ndarray | torch.Tensor):
        return item.ndim == 3
    if not isinstance(item, str | os.PathLike):
        return False
    name = os.fspath(item)
    suffix = PurePosixPath(urlsplit(name).path if "://" in name else name).suffix
    return name.startswith("data:image/") or suffix.lower() in PICTURE_SUFFIXES


def flat_metadata(metadata: Any, count: int) -> list[VideoMetadata | None]:
    """One entry per video of what callers say about frames that are there already: dicts or objects, also
    nested.
    """
    if metadata is None:
        return [None] * count
    entries = [_as_metadata(entry) for entry in _flat(metadata)]
    if len(entries) != count:
        raise InputError(f"video_metadata must have one entry per video: got {len(entries)} for {count}")
    return entries


def _flat(metadata: Any) -> list[Any]:
    if isinstance(metadata, list | tuple):
        return [entry for item in metadata for entry in _flat(item)]
    return [metadata]


def _as_metadata(entry: Any) -> VideoMetadata | None:
    if entry is None or isinstance(entry, VideoMetadata):
        return entry
    names = VideoMetadata.__dataclass_fields__
    values = {name: _entry(entry, name) for name in names}
    if values["total_num_frames"] is None:
        raise InputError("video_metadata must say total_num_frames")
    return VideoMetadata(**values)


def _entry(entry: Any, name: str) -> Any:
    value = entry.get(name) if isinstance(entry, Mapping) else getattr(entry, name, None)
    if name in ("frames_indices", "timestamps") and value is not None:
        return tuple(np.asarray(value).tolist())
    return value


def known_rate(metadata: VideoMetadata | None, frames: int) -> float | None:
    """Frames per second of ``frames`` frames that are there already, as far as ``metadata`` tells."""
    if metadata is None or metadata.sampled_fps is not None:
        return None if metadata is None else metadata.sampled_fps
    if metadata.fps is None or metadata.total_num_frames == frames or metadata.frames_indices is None:
        return metadata.fps
    return frames * metadata.fps / metadata.total_num_frames
