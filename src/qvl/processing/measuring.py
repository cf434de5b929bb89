"""How large the media of a conversation are, and become, from headers alone: no picture is decoded.

What the processor will do to a medium follows from its own size, the processor's settings and what the
message says of it; this module puts the three together. Of a video the index is read and one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.processing.call_options import sort_options
from qvl.processing.image import IMAGE_OVERRIDES, Qwen2VLImageProcessor
from qvl.processing.media.opening import image_size
from qvl.processing.options import patch_shape
from qvl.processing.processor import Qwen2_5_VLProcessor
from qvl.processing.sizes import smart_resize
from qvl.processing.text.messages import MediaItem
from qvl.processing.video.processor import VIDEO_OVERRIDES, Qwen2_5_VLVideoProcessor
from qvl.processing.video.requests import video_requests
from qvl.types import Grid, Modality


@dataclass(frozen=True)
class Measured:
    """One medium. ``width``, ``height``: as every viewer shows it, in pixels; ``grid``: what becomes of it,
    in patches of ``patch_size``; ``tokens``: in a prompt; ``frames``: that are taken (1 of a picture)."""

    kind: Modality
    width: int
    height: int
    grid: Grid
    patch_size: int
    tokens: int
    frames: int = 1

    @property
    def resized(self) -> tuple[int, int]:
        """(width, height) that the model sees."""
        return self.grid.w * self.patch_size, self.grid.h * self.patch_size


class Measure:
    """Measures media for one processor and the options of its calls (``max_pixels``, ``fps`` ...).

    Sizes of pictures are remembered by path: many rows may ask about one.
    """

    def __init__(self, processor: Qwen2_5_VLProcessor, options: Mapping[str, Any]) -> None:
        names = processor.option_names
        known = {name: value for name, value in options.items() if name in names}
        self._options = sort_options(known, processor._known_options())
        self._images: Qwen2VLImageProcessor = processor.image_processor
        self._videos: Qwen2_5_VLVideoProcessor = processor.video_processor
        self._sizes: dict[str, tuple[int, int]] = {}

    def __call__(self, item: MediaItem) -> Measured:
        """Raises MediaError and its kinds for a medium that cannot be used."""
        return self._picture(item) if item.kind == "image" else self._video(item)

    def at_most(self, item: MediaItem, measured: Measured, pixels: int) -> Measured:
        """``measured`` if the item said ``max_pixels=pixels``; nothing is opened."""
        item = MediaItem(item.kind, item.source, {**item.settings, "max_pixels": pixels})
        if item.kind == "image":
            return self._sized_picture(item, measured.height, measured.width)
        settings = self._videos._settings(item.source, self._request(item))
        height, width = settings.size(measured.frames, measured.height, measured.width)
        grid = settings.shape.grid(measured.frames, height, width)
        return self._measured(
            item.kind, (measured.height, measured.width), grid, settings.shape, measured.frames
        )

    def least_pixels(self, kind: Modality) -> int:
        """The fewest pixels of a picture or frame that the processor makes."""
        part, options = (
            (self._images, self._options.images) if kind == "image" else (self._videos, self._options.videos)
        )
        return part._limits(options.get("size"), options.get("min_pixels"), options.get("max_pixels"))[0]

    def _picture(self, item: MediaItem) -> Measured:
        if not isinstance(item.source, str):
            return self._sized_picture(item, *image_size(item.source, limits=self._images._media_limits))
        size = self._sizes.get(item.source)
        if size is None:
            size = image_size(item.source, limits=self._images._media_limits)
            if len(item.source) <= 4096:  # a path or an address, not the picture itself
                self._sizes[item.source] = size
        return self._sized_picture(item, *size)

    def _sized_picture(self, item: MediaItem, height: int, width: int) -> Measured:
        options, own = self._options.images, item.overrides(IMAGE_OVERRIDES)
        least, most = self._images._limits(
            options.get("size"), options.get("min_pixels"), options.get("max_pixels")
        )
        shape = patch_shape(
            self._images, *(options.get(n) for n in ("patch_size", "temporal_patch_size", "merge_size"))
        )
        wanted = own.get("resized_height", height), own.get("resized_width", width)
        limits = own.get("min_pixels", least), own.get("max_pixels", most)
        resizes = options.get("do_resize")
        resizes = self._images.do_resize if resizes is None else resizes
        size = smart_resize(*wanted, shape.factor, *limits) if resizes else (height, width)
        return self._measured("image", (height, width), shape.grid(1, *size), shape, 1)

    def _video(self, item: MediaItem) -> Measured:
        request = self._request(item)
        plan = self._videos.plan(item.source, **request)
        settings = self._videos._settings(item.source, request)
        about = plan.metadata
        size = (about.height or plan.height, about.width or plan.width)
        return self._measured("video", size, plan.grid, settings.shape, len(plan.indices))

    def _request(self, item: MediaItem) -> dict[str, Any]:
        options = dict(self._options.videos)
        (request,) = video_requests(options, options.pop("fps", None), [item.overrides(VIDEO_OVERRIDES)], 1)
        return request

    def _measured(self, kind: Modality, size: Sequence[int], grid: Grid, shape: Any, frames: int) -> Measured:
        height, width = size
        return Measured(kind, width, height, grid, shape.patch_size, grid.tokens(shape.merge_size), frames)
