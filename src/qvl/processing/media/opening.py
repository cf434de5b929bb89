"""Opens pictures, videos and PDF pages safely: the one place where files and URLs become media.

What it hands on is upright and RGB: transparency is composited on white and EXIF turned here, because the
image processor, like that of transformers, does neither to a PIL image handed to it. It knows nothing of
patches or models. Streams come from ``sources``, colour rules from ``rgb``, the inside of video files from
``videofile``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from qvl.errors import InputError, InputTypeError, MediaDecodeError, MediaTooLargeError, missing_dependency
from qvl.processing.media.orientation import upright_size
from qvl.processing.media.rgb import array_to_pil, to_rgb, upright
from qvl.processing.media.sources import DEFAULT_LIMITS, MediaLimits, describe, opened
from qvl.processing.media.videofile import VideoFile

__all__ = ["DEFAULT_LIMITS", "MediaLimits", "image_size", "load_image", "load_pdf_pages", "open_video"]

POINTS_PER_INCH = 72  # PDF sizes are in points


def load_image(source: Any, *, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """A picture as PIL image, ready for the image processor.

    ``source``: a path (str or Path), a ``file:``, ``http(s):`` or ``data:`` URL, base64 text, bytes, a
    binary file object, an array or tensor ((H, W), (H, W, C) or (C, H, W); uint8, uint16, bool or float), or
    a PIL image. Files of any kind come back as RGB, turned by their EXIF orientation, transparency
    composited on white, 16-bit values scaled to 8; of an animation the first frame. A PIL image comes back
    as it is, its pixels read.

    Raises MediaNotFoundError, MediaFetchError, MediaDecodeError, MediaTooLargeError, InputTypeError.
    """
    if isinstance(source, Image.Image):
        with _decoding(getattr(source, "filename", "") or "the picture"):
            source.load()  # Pillow reads a file's pixels only when they are needed
        return source
    if isinstance(source, np.ndarray | torch.Tensor):
        return array_to_pil(source)
    with opened(source, limits) as stream:
        return _read_image(stream, describe(source), limits)


def image_size(source: Any, *, limits: MediaLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(height, width) in pixels that `load_image` would give, from the header alone.

    ``source`` and errors as there; a picture whose pixels are broken is not found out.
    """
    if isinstance(source, Image.Image):
        return source.height, source.width
    if isinstance(source, np.ndarray | torch.Tensor):
        picture = array_to_pil(source)
        return picture.height, picture.width
    name = describe(source)
    with opened(source, limits) as stream, _decoding(name), _open_image(stream) as image:
        check_pixels(image.width, image.height, limits.image_pixels, name)
        return upright_size(image, stream)


def _read_image(stream: IO[bytes], name: str, limits: MediaLimits) -> Image.Image:
    if not stream.read(1):
        raise MediaDecodeError(f"{name} is empty: expected a picture")
    stream.seek(-1, 1)
    with _decoding(name), _open_image(stream) as image:
        check_pixels(image.width, image.height, limits.image_pixels, name)
        image.load()
        return to_rgb(upright(image))


def _open_image(stream: IO[bytes]) -> Image.Image:
    """The picture in ``stream``, its header read. The common formats first: Pillow takes 25 ms to import its
    many others."""
    Image.preinit()
    try:
        return Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        Image.init()
        return Image.open(stream, formats=_formats())


def _formats() -> list[str]:
    """What Pillow reads by itself: for EPS it would hand the file, which is a program, to Ghostscript."""
    return [name for name in Image.ID if name != "EPS"]


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Pillow's many exceptions as one MediaDecodeError that names the picture."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaTooLargeError(f"{name} declares too many pixels: {error}") from error
    except UnidentifiedImageError:
        raise MediaDecodeError(f"{name} is not a picture in a format that Pillow reads") from None
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # decoders of broken files raise OSError, SyntaxError, ValueError, struct.error...
        raise MediaDecodeError(f"{name} is broken or truncated and cannot be decoded: {error}") from error


def check_pixels(width: int, height: int, most: int, name: str) -> None:
    """MediaTooLargeError if ``width`` x ``height`` exceeds ``most``."""
    if width * height > most:
        raise MediaTooLargeError(
            f"{name} is {width} x {height} = {width * height:,} pixels, more than the {most:,} allowed; "
            "make it smaller or raise the limit in MediaLimits"
        )


def open_video(source: Any, *, limits: MediaLimits = DEFAULT_LIMITS) -> VideoFile:
    """A video from a path, URL, data URI, bytes or binary file object; close it or use it in ``with``.

    See :class:`qvl.processing.media.videofile.VideoFile` for what it offers. Raises MediaNotFoundError,
    MediaFetchError, MediaDecodeError (no video in it, zero frames, corrupt), MediaTooLargeError.
    """
    return VideoFile(source, limits=limits)


def load_pdf_pages(
    source: Any,
    pages: Sequence[int] | None = None,
    dpi: float = 150.0,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Image.Image]:
    """Pages of a PDF as RGB pictures, on white.

    ``source``: as for :func:`load_image`. ``pages``: page numbers from 0, in the order wanted; None takes
    all. ``dpi``: dots per inch; an A4 page is 1240 x 1754 pixels at 150. Raises MediaDecodeError (no PDF,
    encrypted), MediaTooLargeError, InputError (no such page), MissingDependencyError without pypdfium2.
    PDFium is not made for threads: call it from one at a time.
    """
    try:
        import pypdfium2
    except ImportError:
        raise missing_dependency("pypdfium2", "pdf", "Reading PDF pages") from None
    if not dpi > 0:
        raise InputError(f"dpi must be positive, got {dpi}")
    if isinstance(source, Image.Image | np.ndarray | torch.Tensor):
        raise InputTypeError(f"A PDF must be a file, URL or bytes, not {type(source).__name__}")
    name = describe(source)
    with opened(source, limits) as stream:
        data = stream.read()
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise MediaDecodeError(f"{name} is not a PDF that can be read: {error}") from error
    with document:
        return [
            _render_page(document, page, dpi, name, limits) for page in _page_numbers(pages, document, name)
        ]


def _page_numbers(pages: Sequence[int] | None, document: Any, name: str) -> Sequence[int]:
    count = len(document)
    for page in pages or ():
        if not 0 <= page < count:
            raise InputError(f"{name} has pages 0 to {count - 1}, there is no page {page}")
    return range(count) if pages is None else pages


def _render_page(document: Any, number: int, dpi: float, name: str, limits: MediaLimits) -> Image.Image:
    page = document[number]
    scale = dpi / POINTS_PER_INCH
    width, height = (math.ceil(points * scale) for points in page.get_size())
    check_pixels(width, height, limits.image_pixels, f"page {number} of {name}")
    return page.render(scale=scale, fill_color=(255, 255, 255, 255)).to_pil().convert("RGB")
