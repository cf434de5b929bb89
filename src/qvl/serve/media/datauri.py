"""Data URIs (RFC 2397), base64 only: checked for size before they are decoded, decoded piece by piece."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from qvl.errors import MediaDecodeError
from qvl.serve.media.held import HeldFile

HEADER_LETTERS = 256  # before the comma; longer ones are no media types
PIECE_LETTERS = 2**20  # decoded at a time, since other threads stand still meanwhile


def read_data_uri(uri: str, into: HeldFile) -> None:
    """The bytes of ``uri``. What it says of their type is not believed, so not read.

    Raises MediaDecodeError where it is not base64 by the letter (standard alphabet, padded, no white space),
    MediaTooLargeError before anything is decoded.
    """
    comma = uri.find(",", 0, HEADER_LETTERS)
    if comma < 0 or not uri[:comma].lower().endswith(";base64"):
        raise MediaDecodeError("a data URI must look like data:image/png;base64,iVBORw0...")
    letters = len(uri) - comma - 1
    if letters == 0 or letters % 4:
        raise MediaDecodeError(
            "the base64 in the data URI is empty or cut off: its length must be a multiple of 4"
        )
    into.expect(letters // 4 * 3 - (2 if uri.endswith("==") else uri.endswith("=")))
    for piece in _pieces(uri, comma + 1):
        into.write(piece)


def _pieces(uri: str, start: int) -> Iterator[bytes]:
    for place in range(start, len(uri), PIECE_LETTERS):
        piece = uri[place : place + PIECE_LETTERS]
        try:
            data = base64.b64decode(piece, validate=True)
        except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
            data = None
        padding = len(piece) - len(piece.rstrip("="))
        last = place + PIECE_LETTERS >= len(uri)
        if data is None or len(data) != len(piece) // 4 * 3 - padding or (padding and not last):
            raise MediaDecodeError(
                "the data URI is not valid base64: expected letters of the standard alphabet, padded with = "
                "and without white space"
            )
        yield data
