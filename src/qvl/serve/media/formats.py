"""What a file is, by its first bytes alone: decided before any decoder sees it.

Names and announced types count for nothing. What is not on these lists is refused, however well Pillow or
FFmpeg could read it: formats that nobody sends are where decoders are weakest.
"""

from __future__ import annotations

from collections.abc import Callable

from qvl.errors import MediaDecodeError
from qvl.serve.media.requests import RequestKind

PDF_MARK = b"%PDF-"  # a reader may find it anywhere in the first kilobyte
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # by Pillow's names
ACCEPTED: dict[RequestKind, str] = {
    "image": "JPEG, PNG, WebP, GIF or BMP",
    "video": "MP4, MOV, WebM, MKV, AVI, MPEG, FLV, Ogg, WMV or GIF",
    "file": "PDF",
}
NOUNS: dict[RequestKind, str] = {"image": "a picture", "video": "a video", "file": "a file"}
# Boxes that an ISO media file (MP4, MOV, 3GP) or an old QuickTime file may begin with
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"jxl ", b"crx ")
VIDEO_MARKS = (
    (b"\x1a\x45\xdf\xa3", "Matroska"),  # WebM too
    (b"FLV\x01", "FLV"),
    (b"OggS", "Ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMV"),
    (b"\x00\x00\x01\xba", "MPEG"),  # program stream
    (b"\x00\x00\x01\xb3", "MPEG"),  # elementary stream
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
TRANSPORT_PACKET = 188  # bytes from one sync byte of an MPEG transport stream to the next
SYNC = 0x47


def recognised(kind: RequestKind, head: bytes) -> str:
    """The format of a file that begins with ``head`` (1,024 bytes, or all there is).

    Raises MediaDecodeError, which names what is accepted, for anything that a ``kind`` cannot be.
    """
    found = TESTS[kind](head)
    if found is not None:
        return found
    what = "this is empty" if not head else "this is none of them"
    for other, test in TESTS.items():
        if (name := test(head)) is not None:
            what = f"this is {name}, which goes into a part for {NOUNS[other]}"
    raise MediaDecodeError(f"{NOUNS[kind]} must be {ACCEPTED[kind]} by its content; {what}")


def picture_format(head: bytes) -> str | None:
    """One of PICTURE_FORMATS."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if head.startswith(b"BM") else None


def video_format(head: bytes) -> str | None:
    """A name for messages: FFmpeg itself decides again, by the same bytes."""
    if head[4:8] in ISO_BOXES:
        still = head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS
        return None if still else "MP4"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "AVI"
    if _is_transport_stream(head, 0) or _is_transport_stream(head, 4):  # 4: M2TS, a time before every packet
        return "MPEG"
    return next((name for mark, name in VIDEO_MARKS if head.startswith(mark)), None)


def document_format(head: bytes) -> str | None:
    return "PDF" if PDF_MARK in head else None


def _is_transport_stream(head: bytes, lead: int) -> bool:
    places = [lead + number * (TRANSPORT_PACKET + lead) for number in range(3)]
    return len(head) > places[-1] and all(head[place] == SYNC for place in places)


TESTS: dict[RequestKind, Callable[[bytes], str | None]] = {
    "image": picture_format,
    "video": video_format,
    "file": document_format,
}
