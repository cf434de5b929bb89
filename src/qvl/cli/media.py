"""Media as people name them on a command line: what each one is, and how it goes into a message.

Its content decides what a file is. Opening everything here, before a model is loaded, makes a wrong path or a
broken file an error at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from qvl.errors import InputError, MediaDecodeError, MediaError
from qvl.processing.image import smart_resize
from qvl.processing.media.opening import load_image, load_pdf_pages, open_video
from qvl.processing.media.sources import describe, is_url, opened
from qvl.types import Grid

STDIN = "-"
PDF_MARK, PDF_MARK_WITHIN = b"%PDF-", 1024  # a reader may find it anywhere in the first kilobyte


@dataclass(frozen=True, eq=False)
class MediaFile:
    """One medium. ``source``: as it was named. ``content``: a PIL image, or the path or bytes of a video.

    ``width`` and ``height`` are pixels as shown, after any rotation that the file asks for; ``seconds`` and
    ``fps`` are a video's.
    """

    source: str
    kind: str
    content: Any
    width: int
    height: int
    seconds: float = 0.0
    fps: float = 0.0

    @property
    def entry(self) -> dict[str, Any]:
        """What stands for it in a message's content."""
        return {"type": self.kind, self.kind: self.content}


def open_media(sources: Sequence[str]) -> list[MediaFile]:
    """Everything named, opened and looked at, in order; each page of a PDF is a picture of its own.

    Raises MediaError for what is missing, broken or nothing of the kind.
    """
    if sources.count(STDIN) > 1:
        raise InputError(f"{STDIN} stands for stdin, which can be read only once; it was named twice")
    return [medium for source in sources for medium in _open(source)]


def _open(source: str) -> list[MediaFile]:
    if source == STDIN:
        return _recognized("stdin", _all_of_stdin())
    if is_url(source):
        with opened(source) as stream:  # once, as the server may say something else the second time
            return _recognized(source, stream.read())
    return _recognized(source, source)


def _all_of_stdin() -> bytes:
    if sys.stdin.isatty():
        raise InputError(f"{STDIN} reads a medium from stdin, which is the terminal; pipe or redirect a file")
    content = sys.stdin.buffer.read()
    if not content:
        raise InputError(f"{STDIN} reads a medium from stdin, which is empty")
    return content


def _recognized(name: str, content: str | bytes) -> list[MediaFile]:
    try:
        return _looked_at(name, content)
    except MediaError as error:
        if isinstance(content, str):
            raise
        raise type(error)(f"{name}: {error}") from error  # bytes have no name of their own


def _looked_at(name: str, content: str | bytes) -> list[MediaFile]:
    with opened(content) as stream:
        if PDF_MARK in stream.read(PDF_MARK_WITHIN):
            pages = load_pdf_pages(content)
            return [_picture(f"{name} page {number}", page) for number, page in enumerate(pages, start=1)]
        stream.seek(0)
        if _is_picture(stream):
            return [_picture(name, load_image(content))]
    return [_video(name, content)]


def _is_picture(stream: Any) -> bool:
    """Whether Pillow knows the format; an animated GIF counts as a video."""
    try:
        with Image.open(stream) as image:
            return not (image.format == "GIF" and getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        return False
    except Exception:  # a known format, but broken: load_image says what is wrong with it
        return True


def _picture(name: str, image: Image.Image) -> MediaFile:
    return MediaFile(name, "image", image, image.width, image.height)


def _video(name: str, content: str | bytes) -> MediaFile:
    import av

    try:
        with open_video(content) as video:
            return MediaFile(name, "video", content, video.width, video.height, video.duration, video.fps)
    except MediaDecodeError as error:
        if not isinstance(error.__cause__, av.InvalidDataError):
            raise
        kinds = "neither a picture, a video nor a PDF that can be read"
        raise MediaDecodeError(f"{describe(content)} is {kinds}") from error


def described(medium: MediaFile, grid: Grid, processor: Any) -> dict[str, Any]:
    """``medium`` and what became of it, as plain values: sizes in pixels, grid in patches, tokens."""
    side, merge = processor.image_processor.patch_size, processor.image_processor.merge_size
    told = {"source": medium.source, "kind": medium.kind, "width": medium.width, "height": medium.height}
    if medium.kind == "video":
        told |= {"seconds": medium.seconds, "fps": medium.fps}
    resized = {"resized_width": grid.w * side, "resized_height": grid.h * side}
    return {**told, **resized, "grid": [grid.t, grid.h, grid.w], "tokens": grid.tokens(merge)}


def cost(medium: MediaFile, processor: Any, fps: float | None) -> dict[str, Any]:
    """What ``medium`` will become, found without decoding a video; of videos also the frames taken."""
    if medium.kind == "video":
        plan = processor.video_processor.plan(medium.content, **({} if fps is None else {"fps": fps}))
        taken = {"frames": len(plan.indices), "sampled_fps": plan.sampled_fps}
        return described(medium, plan.grid, processor) | taken
    settings = processor.image_processor
    height, width = smart_resize(
        medium.height,
        medium.width,
        settings.patch_size * settings.merge_size,
        settings.min_pixels,
        settings.max_pixels,
    )
    grid = Grid(1, height // settings.patch_size, width // settings.patch_size)
    return described(medium, grid, processor)
