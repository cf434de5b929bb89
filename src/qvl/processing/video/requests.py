"""What a call and its messages ask of each video, put together: names, precedence, no meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qvl.errors import InputError, InputTypeError
from qvl.processing.options import chosen

# What a message may say about one video
VIDEO_OVERRIDES = (
    "fps",
    "nframes",
    "num_frames",
    "min_frames",
    "max_frames",
    "video_start",
    "video_end",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
    "frame_sampling",
    "do_sample_frames",
)
RATE_NAMES = frozenset({"fps", "num_frames", "nframes"})
# What a call may say about all its videos, beside the arguments that `preprocess` names
PIXEL_OPTIONS = (
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
)


def video_requests(
    options: Mapping[str, Any], fps: Any, overrides: Sequence[Mapping[str, Any] | None] | None, count: int
) -> list[dict[str, Any]]:
    """What is asked of each video: the call's options, the video's own over them."""
    rates = list(fps) if isinstance(fps, list | tuple) else [fps] * count
    own = [None] * count if overrides is None else list(overrides)
    for name, values in (("fps", rates), ("overrides", own)):
        if len(values) != count:
            raise InputError(f"{name} must have one entry per video: got {len(values)} for {count}")
    return [
        _merged({**options, "fps": rate}, chosen(mine, VIDEO_OVERRIDES))
        for rate, mine in zip(rates, own, strict=True)
    ]


def _merged(call: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A video's own way of counting frames takes the place of the call's, whichever of the two it is."""
    if RATE_NAMES & own.keys():
        call = {name: value for name, value in call.items() if name not in RATE_NAMES}
    return {**call, **own}


def check_names(request: Mapping[str, Any]) -> None:
    """InputTypeError for an option that no video has."""
    for name in request:
        if name not in VIDEO_OVERRIDES + PIXEL_OPTIONS:
            known = ", ".join(VIDEO_OVERRIDES + PIXEL_OPTIONS)
            raise InputTypeError(f"A video has no option {name!r}: expected some of {known}")
