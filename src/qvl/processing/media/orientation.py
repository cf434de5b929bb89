"""The size at which a picture is shown, from its headers: EXIF may turn it on its side."""

from __future__ import annotations

import struct
from typing import IO

from PIL import Image

from qvl.processing.media.rgb import EXIF_ORIENTATION

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
PNG_SIGNATURE = 8  # bytes
# PNG chunks that may hold EXIF, and the first that holds pixels
PNG_EXIF, PNG_PIXELS, PNG_END = (b"eXIf", b"tEXt", b"zTXt", b"iTXt"), b"IDAT", b"IEND"


def upright_size(image: Image.Image, stream: IO[bytes]) -> tuple[int, int]:
    """(height, width) of ``image``, which was opened from ``stream``, once it is upright.

    No pixel is decoded, unless a PNG has its EXIF behind its pixels, where Pillow looks for it only then.
    """
    try:
        late = image.format == "PNG" and _exif_behind_pixels(stream)
        exif = image.getexif() if image.format != "PNG" or late else Image.Image.getexif(image)
        sideways = exif.get(EXIF_ORIENTATION, 1) in SIDEWAYS
    except MemoryError:
        raise
    except Exception:  # as in `upright`: broken EXIF counts as none
        sideways = False
    return (image.width, image.height) if sideways else (image.height, image.width)


def _exif_behind_pixels(stream: IO[bytes]) -> bool:
    """Whether a PNG has chunks behind its pixels in which EXIF may stand. Leaves ``stream`` where it was."""
    place = stream.tell()
    try:
        position, pixels = PNG_SIGNATURE, False
        while True:
            stream.seek(position)
            header = stream.read(8)
            if len(header) < 8:
                return False
            length, name = struct.unpack(">I4s", header)
            if name == PNG_END:
                return False
            if pixels and name in PNG_EXIF:
                return True
            pixels = pixels or name == PNG_PIXELS
            position += 12 + length
    finally:
        stream.seek(place)
