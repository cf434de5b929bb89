"""From the bytes of one medium to its cost and its patches, as `generate()` makes them: what a worker does.

Everything that a header tells is checked before pixels are decoded. It knows no processes and no network.
Errors carry qvl's own words only: what a decoder says of a stranger's file stays here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import torch
from PIL import Image, WebPImagePlugin  # noqa: F401  (Pillow loads it late, and with it all others)
from torch import Tensor

from qvl.errors import (
    InputError,
    InputTypeError,
    MediaDecodeError,
    MediaError,
    MediaTooLargeError,
)
from qvl.processing.image import IMAGE_OVERRIDES, Qwen2VLImageProcessor
from qvl.processing.media.opening import MediaLimits, load_pdf_pages
from qvl.processing.media.orientation import upright_size
from qvl.processing.media.rgb import to_rgb, upright
from qvl.processing.patches import PatchShape
from qvl.processing.sizes import target_size
from qvl.processing.video.processor import VIDEO_OVERRIDES, Qwen2_5_VLVideoProcessor, VideoMetadata, VideoPlan
from qvl.serve.media.options import checked_options
from qvl.serve.media.plainly import plain_errors
from qvl.serve.media.requests import MediumCost, RequestKind
from qvl.serve.settings import Limits
from qvl.types import Grid

PAGES_DPI = 150.0  # at which `load_pdf_pages` renders
POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Task:
    """``kind``: of the request. ``format``: of the file, by its content. ``options``: as in `MediaRequest`.
    ``most_tokens``: for which the size is chosen, or None."""

    kind: RequestKind
    format: str
    options: Mapping[str, Any]
    most_tokens: int | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """One picture, page or video. ``patches_PC``: float32."""

    cost: MediumCost
    patches_PC: Tensor
    seconds_per_grid: float = 0.0


@dataclass(frozen=True)
class Sizing:
    """What `target_size` reads."""

    shape: PatchShape
    min_pixels: int
    max_pixels: int
    resized_height: int | None = None
    resized_width: int | None = None


class Decoder:
    """Measures and decodes media with the processor of one checkpoint, under a server's limits."""

    def __init__(self, folder: str, limits: Limits) -> None:
        Image.preinit()
        Image.MAX_IMAGE_PIXELS = None  # qvl's own limit stands in its place
        opening = MediaLimits(
            image_pixels=limits.image_pixels,
            video_pixels=limits.video_pixels,
            video_frames=limits.video_frames,
            sampled_frames=limits.sampled_frames,
        )
        self._limits = limits
        self._opening = opening
        self._images = _with_limits(Qwen2VLImageProcessor, folder, opening)
        self._videos = _with_limits(Qwen2_5_VLVideoProcessor, folder, opening)

    def measure(self, task: Task, stream: IO[bytes]) -> list[MediumCost]:
        """What the medium in ``stream`` becomes, from headers: one cost, or one for each page.

        Raises MediaDecodeError, MediaTooLargeError (more pixels, frames or pages than the limits allow),
        other InputErrors for options that do not fit.
        """
        if task.kind == "video":
            return [self._video_cost(*self._plan(task, stream))]
        if task.kind == "file":
            return [self._picture_cost(size, task) for _, size in self._pages(task, stream)]
        return [self._picture_cost(self._picture_size(task, stream), task)]

    def decode(self, task: Task, stream: IO[bytes], most_tokens: int) -> Iterator[Decoded]:
        """The medium in ``stream``, measured first. MediaTooLargeError for more than ``most_tokens``."""
        costs = self.measure(task, stream)
        tokens = sum(cost.tokens for cost in costs)
        if tokens > most_tokens:
            raise MediaTooLargeError(
                f"it takes {tokens:,} tokens, more than the {most_tokens:,} that are left"
            )
        stream.seek(0)
        if task.kind == "video":
            yield self._video(task, stream, costs[0])
        elif task.kind == "file":
            data = stream.read()
            for (number, _), cost in zip(self._pages(task, stream), costs, strict=True):
                with plain_errors("file", self._limits):
                    (page,) = load_pdf_pages(data, [number - 1], PAGES_DPI, limits=self._opening)
                yield self._picture(task, page, cost)
        else:
            yield self._picture(task, self._upright_picture(task, stream), costs[0])

    # Pictures

    @contextmanager
    def _opened(self, task: Task, stream: IO[bytes]) -> Iterator[Image.Image]:
        """The picture with its header read, of the one format that it was recognised as."""
        with plain_errors("picture", self._limits), Image.open(stream, formats=(task.format,)) as image:
            self._check_pixels("the picture", image.width, image.height, self._limits.image_pixels)
            yield image

    def _picture_size(self, task: Task, stream: IO[bytes]) -> tuple[int, int]:
        """(height, width) as shown."""
        with self._opened(task, stream) as image:
            return upright_size(image, stream)

    def _upright_picture(self, task: Task, stream: IO[bytes]) -> Image.Image:
        """The picture as `load_image` opens it."""
        with self._opened(task, stream) as image:
            image.load()
            return to_rgb(upright(image))

    def _picture_cost(self, size: tuple[int, int], task: Task) -> MediumCost:
        processor, (height, width) = self._images, size
        own = self._picture_options(task)
        least, most = own.get("min_pixels"), own.get("max_pixels")
        shape = PatchShape(processor.patch_size, processor.temporal_patch_size, processor.merge_size)
        sizing = Sizing(
            shape,
            processor.min_pixels if least is None else least,
            processor.max_pixels if most is None else most,
            own.get("resized_height"),
            own.get("resized_width"),
        )
        resized = target_size(sizing, height, width) if processor.do_resize else (height, width)
        grid = shape.grid(1, *resized)
        return MediumCost("image", width, height, resized[1], resized[0], grid, grid.tokens(shape.merge_size))

    def _picture(self, task: Task, picture: Image.Image, cost: MediumCost) -> Decoded:
        with plain_errors("picture", self._limits):
            made = self._images([picture], overrides=[self._picture_options(task)], return_tensors="pt")
        self._check_grid(made["image_grid_thw"], cost)
        return Decoded(cost, made["pixel_values"])

    def _picture_options(self, task: Task) -> dict[str, Any]:
        own = checked_options(
            task.options, (*IMAGE_OVERRIDES, "pages") if task.kind == "file" else IMAGE_OVERRIDES
        )
        own.pop("pages", None)
        if task.most_tokens is not None and "max_pixels" not in own:
            most = task.most_tokens * (self._images.patch_size * self._images.merge_size) ** 2
            own["max_pixels"] = min(most, self._images.max_pixels)
            own.setdefault("min_pixels", min(most, self._images.min_pixels))
        return own

    # Pages

    def _pages(self, task: Task, stream: IO[bytes]) -> list[tuple[int, tuple[int, int]]]:
        """Number, from 1, and (height, width) of every page that is wanted."""
        pypdfium2 = _pdfium()
        stream.seek(0)
        with plain_errors("file", self._limits), pypdfium2.PdfDocument(stream.read()) as document:
            numbers = self._page_numbers(task.options.get("pages"), len(document))
            return [(number, self._page_size(document[number - 1], number)) for number in numbers]

    def _page_numbers(self, wanted: Any, count: int) -> list[int]:
        most = self._limits.pdf_pages
        if wanted is None:
            wanted = range(1, min(count, most + 1) + 1)
        if not isinstance(wanted, list | range) or not all(type(number) is int for number in wanted):
            raise InputTypeError(
                f"pages must be a list of page numbers from 1, such as [1, 2], not {wanted!r:.80}"
            )
        if len(wanted) > most:
            raise MediaTooLargeError(
                f"the file has {count:,} pages, and {most} of a file can be read: name so many in pages"
            )
        for number in wanted:
            if not 1 <= number <= count:
                raise InputError(f"the file has pages 1 to {count}, there is no page {number}")
        if not wanted:
            raise InputError("the file has no pages, or none were asked for")
        return list(wanted)

    def _page_size(self, page: Any, number: int) -> tuple[int, int]:
        width, height = (math.ceil(points * PAGES_DPI / POINTS_PER_INCH) for points in page.get_size())
        self._check_pixels(f"page {number}", width, height, self._limits.image_pixels)
        return height, width

    # Videos

    def _plan(self, task: Task, stream: IO[bytes]) -> tuple[VideoPlan, VideoMetadata]:
        with plain_errors("video", self._limits):
            plan = self._videos.plan(stream, **self._video_options(task))
        about, limits = plan.metadata, self._limits
        self._check_pixels("a frame of the video", about.width or 0, about.height or 0, limits.video_pixels)
        if len(plan.indices) > limits.sampled_frames:
            raise MediaTooLargeError(
                f"{len(plan.indices):,} frames of the video are wanted, more than the "
                f"{limits.sampled_frames:,} allowed: lower fps or num_frames"
            )
        return plan, about

    def _video_cost(self, plan: VideoPlan, about: VideoMetadata) -> MediumCost:
        return MediumCost(
            "video",
            about.width or 0,
            about.height or 0,
            plan.width,
            plan.height,
            plan.grid,
            plan.grid.tokens(self._videos.merge_size),
            about.duration or 0.0,
            len(plan.indices),
            plan.sampled_fps,
        )

    def _video(self, task: Task, stream: IO[bytes], cost: MediumCost) -> Decoded:
        with plain_errors("video", self._limits):
            made = self._videos([stream], overrides=[self._video_options(task)], return_tensors="pt")
        self._check_grid(made["video_grid_thw"], cost)
        return Decoded(cost, made["pixel_values_videos"], float(made["second_per_grid_ts"][0]))

    def _video_options(self, task: Task) -> dict[str, Any]:
        own = checked_options(task.options, VIDEO_OVERRIDES)
        if own.pop("do_sample_frames", True) is not True:
            raise InputError(
                "do_sample_frames=False takes every frame of a video: give fps or num_frames instead"
            )
        if task.most_tokens is not None and not {"max_pixels", "total_pixels"} & own.keys():
            area = (self._videos.patch_size * self._videos.merge_size) ** 2
            own["total_pixels"] = task.most_tokens * area
            own.setdefault("min_pixels", min(self._videos.min_pixels, area))
        return own

    # Both

    def _check_pixels(self, name: str, width: int, height: int, most: int) -> None:
        if width * height > most:
            raise MediaTooLargeError(
                f"{name} is {width:,} x {height:,} = {width * height:,} pixels, more than the {most:,} "
                "allowed"
            )

    def _check_grid(self, grid_thw: Tensor, cost: MediumCost) -> None:
        grid = Grid(*map(int, grid_thw[0]))
        if grid != cost.grid:  # its header said something else than its content
            raise MediaDecodeError("its content has another size than its header says")


def _with_limits(kind: Any, folder: str, limits: MediaLimits) -> Any:
    """A checkpoint's processor with limits, which `from_pretrained` does not take."""
    return kind.from_dict({**kind.from_pretrained(folder).to_dict(), "limits": limits})


def _pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError:
        raise MediaError(
            'this server cannot read PDFs: whoever runs it can change that with: pip install "qvl[pdf]"'
        ) from None
    return pypdfium2


def patches_of(decoded: Decoded) -> memoryview:
    """The patches' bytes, float32, row by row."""
    patches_PC = decoded.patches_PC.to(torch.float32).contiguous()
    return patches_PC.numpy().data.cast("B")
