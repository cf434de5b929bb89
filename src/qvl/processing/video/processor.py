"""Videos to the patches of the vision tower: which frames, what size, which pixel values.

Geometry, frame counts and pixel values equal those of transformers 4.57's video processor. Two things differ
on purpose: a video file is sampled (2 frames per second unless told otherwise) instead of decoded whole, and
the rate at which frames were really taken is known and returned.

Legend of shape suffixes: T frames, N a block of frames, C channels or, at the end of PC, values of one
patch, H height, W width, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from qvl.errors import InputError
from qvl.processing.features import BatchFeature
from qvl.processing.media.opening import DEFAULT_LIMITS, MediaLimits
from qvl.processing.options import CLIP_MEAN, CLIP_STD, layout_name, mean_and_std, patch_shape, pick
from qvl.processing.patches import FusedNormalise, to_patches
from qvl.processing.pretrained import SavedSettings
from qvl.processing.sizes import PixelLimits, checked_size, smart_resize
from qvl.processing.video.clips import VideoMetadata, flat_metadata, flat_videos, is_file
from qvl.processing.video.frames import DEFAULT_FPS, SamplingRule, Timeline, choose_frames
from qvl.processing.video.requests import VIDEO_OVERRIDES, check_names, video_requests
from qvl.processing.video.sampled import (
    SampledVideo,
    VideoPlan,
    VideoSettings,
    opened_clip,
    plan_clip,
    sample_clip,
)

__all__ = [
    "VIDEO_OVERRIDES",
    "Qwen2VLVideoProcessor",
    "Qwen2_5_VLVideoProcessor",
    "SampledVideo",
    "VideoMetadata",
    "VideoPlan",
]


class Qwen2_5_VLVideoProcessor(PixelLimits, SavedSettings):
    """Samples frames, resizes, normalises and cuts them into patches; arguments as in transformers 4.57.

    ``size``, ``min_pixels``, ``max_pixels``: fewest and most pixels of a frame, as for pictures. ``fps`` or
    ``num_frames``: how many frames to take; ``min_frames``, ``max_frames`` bound what ``fps`` leads to.
    ``do_sample_frames``: whether to sample frames that are there already too; files are always sampled
    unless a call says ``do_sample_frames=False``. ``frame_sampling``: "uniform" (frame floor(i * T / n)) or
    "linspace" (as qwen-vl-utils). ``total_pixels``: most pixels of a video, counted as qwen-vl-utils does:
    pixels of a frame times temporal steps; None sets no budget. ``limits``: what a file may cost (not
    saved). Further keywords are kept as attributes and saved.
    """

    files = ("video_preprocessor_config.json", "preprocessor_config.json")
    section = "video_processor"
    type_entry = ("video_processor_type", "Qwen2VLVideoProcessor")
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(
        self,
        *,
        do_resize: bool = True,
        size: Mapping[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_convert_rgb: bool = True,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        total_pixels: int | None = None,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        fps: float | None = None,
        num_frames: int | None = None,
        min_frames: int = 4,
        max_frames: int = 768,
        do_sample_frames: bool = False,
        frame_sampling: str = "uniform",
        limits: MediaLimits = DEFAULT_LIMITS,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.size = checked_size(size or {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28})
        self.min_pixels = pick(min_pixels, self.min_pixels)
        self.max_pixels = pick(max_pixels, self.max_pixels)
        self.total_pixels = total_pixels
        self.do_resize = do_resize
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = pick(image_mean, list(CLIP_MEAN))
        self.image_std = pick(image_std, list(CLIP_STD))
        self.do_convert_rgb = do_convert_rgb
        self.patch_size = patch_size
        self.temporal_patch_size = temporal_patch_size
        self.merge_size = merge_size
        self.fps = fps
        self.num_frames = num_frames
        self.min_frames = min_frames
        self.max_frames = max_frames
        self.do_sample_frames = do_sample_frames
        self.frame_sampling = frame_sampling
        self._media_limits = limits

    def __call__(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """See :meth:`preprocess`."""
        return self.preprocess(videos, **kwargs)

    def preprocess(
        self,
        videos: Any,
        *,
        fps: float | Sequence[float | None] | None = None,
        video_metadata: Any = None,
        overrides: Sequence[Mapping[str, Any] | None] | None = None,
        input_data_format: str | None = None,
        device: Any = None,
        return_metadata: bool = False,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """``pixel_values_videos`` (P, C) float32, ``video_grid_thw`` (videos, 3) int64, all videos end to
        end, and ``second_per_grid_ts``: for each video the seconds that one temporal step covers, from the
        rate at which frames were really taken.

        ``videos``: one or a list, also nested. A video is a path, URL, data URI, bytes or binary file
        object; a list of frames (PIL images, arrays, names of picture files); an array or tensor (T, H, W,
        C) or (T, C, H, W); a 5-axes array is a batch. ``fps``: for files, and for frames with
        ``do_sample_frames=True``, the rate to sample at; for other frames the rate that they have (2.0 with
        a warning where neither ``fps`` nor ``video_metadata`` says); one number or one per video.
        ``video_metadata``: of frames that are there already, a dict or VideoMetadata per video. ``options``:
        ``num_frames``, ``min_frames``, ``max_frames``, ``do_sample_frames``, ``frame_sampling``,
        ``video_start`` and ``video_end`` (seconds), ``min_pixels``, ``max_pixels``, ``total_pixels``,
        ``size``, ``do_resize`` and the other attributes. ``overrides``: per video None or a mapping with any
        of VIDEO_OVERRIDES, which win. ``device``: where to resize and normalise. ``return_metadata``: also
        ``video_metadata``, a VideoMetadata per video.

        Raises MediaError and its kinds for videos that cannot be used, InputError for arguments (``fps``
        with ``num_frames``, ``fps`` not positive).
        """
        items = flat_videos(videos)
        if not items:
            return BatchFeature({})
        known = flat_metadata(video_metadata, len(items))
        requests = video_requests(options, fps, overrides, len(items))
        rows, plans = [], []
        for video, request, about in zip(items, requests, known, strict=True):
            settings = self._settings(video, request, input_data_format, device)
            with opened_clip(video, settings, about, self._media_limits) as clip:
                sampled = sample_clip(clip, settings)
            rows.append(to_patches(sampled.frames_TCHW, settings.shape, settings.normalise)[0])
            plans.append(sampled.plan)
        data: dict[str, Any] = {
            "pixel_values_videos": rows[0] if len(rows) == 1 else torch.cat(rows),
            "video_grid_thw": torch.tensor([[plan.grid.t, plan.grid.h, plan.grid.w] for plan in plans]),
            "second_per_grid_ts": [plan.seconds_per_grid for plan in plans],
        }
        if return_metadata:
            data["video_metadata"] = [plan.metadata for plan in plans]
        return BatchFeature(data, tensor_type=return_tensors)

    def sample(self, video: Any, *, video_metadata: Any = None, **options: Any) -> SampledVideo:
        """The frames of one video that the model will see, resized, with their numbers, times and true rate.

        ``options`` as for :meth:`preprocess`; ``do_resize=False`` leaves frames at their own size.
        """
        settings = self._settings(video, options)
        with opened_clip(video, settings, flat_metadata(video_metadata, 1)[0], self._media_limits) as clip:
            return sample_clip(clip, settings)

    def plan(self, video: Any, *, video_metadata: Any = None, **options: Any) -> VideoPlan:
        """What :meth:`preprocess` would make of one video, without decoding a file beyond its first frame."""
        settings = self._settings(video, options)
        with opened_clip(video, settings, flat_metadata(video_metadata, 1)[0], self._media_limits) as clip:
            return plan_clip(clip, settings)

    def sample_frames(
        self,
        metadata: Any,
        temporal_patch_size: int | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
    ) -> tuple[int, ...]:
        """Numbers of the frames to take of a video with ``metadata`` (``total_num_frames`` and ``fps``)."""
        known = flat_metadata(metadata, 1)[0]
        if known is None:
            raise InputError("sample_frames needs metadata with total_num_frames and, to sample by fps, fps")
        request = {"fps": fps, "num_frames": num_frames, "min_frames": min_frames, "max_frames": max_frames}
        rule = self._rule(request, pick(temporal_patch_size, self.temporal_patch_size))
        return choose_frames(Timeline(known.total_num_frames, known.fps), rule).indices

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Patches of ``num_frames`` frames of ``height`` x ``width`` pixels; / ``merge_size ** 2`` that is
        tokens.
        """
        options = dict(videos_kwargs or {})
        least, most = self._limits(options.get("size"), options.get("min_pixels"), options.get("max_pixels"))
        shape = patch_shape(
            self, options.get("patch_size"), options.get("temporal_patch_size"), options.get("merge_size")
        )
        return shape.grid(num_frames, *smart_resize(height, width, shape.factor, least, most)).patches

    def get_number_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """The name under which transformers' processor looks for :meth:`get_num_of_video_patches`."""
        return self.get_num_of_video_patches(num_frames, height, width, videos_kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "min_pixels": self.min_pixels, "max_pixels": self.max_pixels}

    def _settings(
        self, video: Any, request: Mapping[str, Any], layout: str | None = None, device: Any = None
    ) -> VideoSettings:
        """The attributes with ``request`` over them, for a video that is a file or frames."""
        check_names(request)
        least, most = self._limits(request.get("size"), request.get("min_pixels"), request.get("max_pixels"))
        shape = patch_shape(
            self, *(request.get(n) for n in ("patch_size", "temporal_patch_size", "merge_size"))
        )
        rescale = pick(request.get("do_rescale"), self.do_rescale)
        normalise = (request.get(name) for name in ("do_normalize", "image_mean", "image_std"))
        sampling = self._samples(video, request)
        return VideoSettings(
            rule=self._rule(request, shape.temporal_patch_size) if sampling else SamplingRule(),
            frame_rate=None if sampling else SamplingRule(fps=request.get("fps")).fps,  # checks it too
            do_resize=pick(request.get("do_resize"), self.do_resize),
            resample=pick(request.get("resample"), self.resample),
            min_pixels=least,
            max_pixels=most,
            total_pixels=pick(request.get("total_pixels"), self.total_pixels),
            normalise=FusedNormalise(
                pick(request.get("rescale_factor"), self.rescale_factor) if rescale else None,
                *mean_and_std(self, *normalise),
            ),
            shape=shape,
            do_convert_rgb=pick(request.get("do_convert_rgb"), self.do_convert_rgb),
            input_data_format=layout_name(layout),
            device=device,
            **{n: request.get(n) for n in ("video_start", "video_end", "resized_height", "resized_width")},
        )

    def _samples(self, video: Any, request: Mapping[str, Any]) -> bool:
        """Whether frames are chosen, or all of them taken."""
        counted = request.get("num_frames") is not None or request.get("nframes") is not None
        asked = request.get("do_sample_frames")
        if asked is False and (counted or (is_file(video) and request.get("fps") is not None)):
            raise InputError(
                "do_sample_frames=False takes every frame: leave fps, num_frames and nframes out"
            )
        return pick(asked, counted or is_file(video) or self.do_sample_frames)

    def _rule(self, request: Mapping[str, Any], temporal_patch_size: int) -> SamplingRule:
        fps, num_frames = request.get("fps"), pick(request.get("num_frames"), request.get("nframes"))
        if fps is None and num_frames is None:
            fps, num_frames = self.fps, self.num_frames
        if fps is None and num_frames is None:
            fps = DEFAULT_FPS
        return SamplingRule(
            fps=fps,
            num_frames=num_frames,
            min_frames=pick(request.get("min_frames"), self.min_frames),
            max_frames=pick(request.get("max_frames"), self.max_frames),
            temporal_patch_size=temporal_patch_size,
            method=pick(request.get("frame_sampling"), self.frame_sampling),
        )


Qwen2VLVideoProcessor = Qwen2_5_VLVideoProcessor
