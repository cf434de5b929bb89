"""How many tokens media take in a prompt, found from sizes alone: no video is decoded and no model needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qvl.processing.image import Qwen2VLImageProcessor
from qvl.processing.media.opening import load_image
from qvl.processing.video.processor import Qwen2_5_VLVideoProcessor


@dataclass(frozen=True)
class MediaTokens:
    """How many tokens each picture and each video takes in a prompt."""

    images: tuple[int, ...] = ()
    videos: tuple[int, ...] = ()


def image_tokens(processor: Qwen2VLImageProcessor, image: Any, options: Mapping[str, Any]) -> int:
    """Tokens of a picture given as (height, width) in pixels, or as anything that can be opened."""
    if not _is_size(image, 2):
        picture = load_image(image)
        image = (picture.height, picture.width)
    height, width = image
    patches = processor.get_number_of_image_patches(height, width, options)
    return patches // merge_size(processor, options) ** 2


def video_tokens(processor: Qwen2_5_VLVideoProcessor, video: Any, options: Mapping[str, Any]) -> int:
    """Tokens of a video given as (frames, height, width), or as anything that can be opened."""
    if _is_size(video, 3):
        frames, height, width = video
        patches = processor.get_number_of_video_patches(frames, height, width, options)
    else:
        patches = processor.plan(video, **options).grid.patches
    return patches // merge_size(processor, options) ** 2


def merge_size(processor: Any, options: Mapping[str, Any]) -> int:
    """So many patches each way become one token."""
    return options.get("merge_size") or processor.merge_size


def _is_size(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length and all(isinstance(n, int) for n in value)
