"""Turns whatever names a medium into a binary stream: path, URL, data URI, base64, bytes, open file.

Knows files, the network and their limits; does not know what a picture or a video is. Nothing else in qvl
opens a medium's file or fetches a medium's URL.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from qvl.errors import (
    InputTypeError,
    MediaDecodeError,
    MediaFetchError,
    MediaNotFoundError,
    MediaTooLargeError,
)

if TYPE_CHECKING:
    import httpx

SPOOL_BYTES = 32 * 2**20  # a download up to this size stays in memory
CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class MediaLimits:
    """What a medium may cost before it is refused with MediaTooLargeError.

    ``image_pixels``: width x height of a picture or a PDF page, read from the header before any decoding
    (the default is the size at which Pillow itself refuses; raising it needs ``PIL.Image.MAX_IMAGE_PIXELS``
    too). ``video_pixels``: width x height of a frame. ``video_frames``: frames that a file holds.
    ``sampled_frames``: frames decoded from one file in one call. ``bytes``: size of a download, data URI or
    base64 text. ``timeout``: seconds to connect and to wait for each read; ``deadline``: seconds for a whole
    download. ``redirects``: how many are followed. ``check_url``: called with every address before it is
    fetched, redirects included; raises to refuse it.
    """

    image_pixels: int = 178_956_970
    video_pixels: int = 8192 * 8192
    video_frames: int = 5_000_000
    sampled_frames: int = 8192
    bytes: int = 2**30
    timeout: float = 20.0
    deadline: float = 600.0
    redirects: int = 5
    check_url: Callable[[str], None] | None = None


DEFAULT_LIMITS = MediaLimits()


def is_url(source: Any) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def describe(source: Any) -> str:
    """How an error message names ``source``."""
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if isinstance(source, str):
        if source.startswith("data:"):
            return f"the data URI {source[:32]!r}..."
        return source if len(source) <= 200 else f"the text {source[:32]!r}..."
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the {len(source)} bytes"
    return str(getattr(source, "name", f"the {type(source).__name__}"))


@contextmanager
def opened(source: Any, limits: MediaLimits = DEFAULT_LIMITS) -> Iterator[IO[bytes]]:
    """A seekable binary stream of ``source``, closed at the end unless the caller opened it.

    ``source``: a path (``~`` is expanded), a ``file:``, ``http(s):`` or ``data:`` URL, base64 text, bytes or
    a binary file object. Raises MediaNotFoundError, MediaFetchError, MediaDecodeError (bad base64),
    MediaTooLargeError or InputTypeError.
    """
    if hasattr(source, "read"):
        yield _seekable(source, limits)
        return
    with _open(source, limits) as stream:
        yield stream


def _open(source: Any, limits: MediaLimits) -> IO[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, os.PathLike):
        return _open_path(Path(source))
    if not isinstance(source, str):
        raise InputTypeError(
            f"A medium must be a path, URL, data URI, base64 text, bytes or a binary file object, "
            f"not {type(source).__name__}"
        )
    if is_url(source):
        return fetch(source, limits)
    if source.startswith("data:"):
        return io.BytesIO(_decode_data_uri(source, limits))
    if source.lower().startswith("file:"):
        return _open_path(Path(url2pathname(urlsplit(source).path)))
    return _open_text(source, limits)


def _open_text(text: str, limits: MediaLimits) -> IO[bytes]:
    """A path, or failing that base64 as transformers accepts it."""
    path = Path(text)
    if _exists(path.expanduser()):
        return _open_path(path)
    _check_base64(text, limits)
    try:
        data = _decode_base64(text)
    except ValueError:
        data = b""
    if len(data) < 16:  # no header of any format is shorter: the text was meant as a path
        raise MediaNotFoundError(f"There is no file {describe(text)}")
    return io.BytesIO(data)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a path may be, or with a NUL
        return False


def _open_path(path: Path) -> IO[bytes]:
    path = path.expanduser()
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise MediaNotFoundError(f"There is no file {path}") from None
    except IsADirectoryError:
        raise MediaNotFoundError(f"{path} is a folder: give the path of a file in it") from None
    except (OSError, ValueError) as error:
        raise MediaNotFoundError(f"The file {path} cannot be opened: {error}") from error


def _decode_data_uri(uri: str, limits: MediaLimits) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise MediaDecodeError(f"{describe(uri)} has no comma between its header and its data")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    _check_base64(uri, limits)
    try:
        return _decode_base64(unquote_to_bytes(body).decode("ascii"))
    except ValueError as error:  # binascii.Error is one
        raise MediaDecodeError(f"{describe(uri)} is not valid base64: {error}") from error


def _check_base64(text: str, limits: MediaLimits) -> None:
    if len(text) // 4 * 3 > limits.bytes:
        raise _too_many_bytes(describe(text), limits)


def _decode_base64(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _seekable(stream: Any, limits: MediaLimits) -> IO[bytes]:
    """``stream`` itself where it can seek, else a copy of what it still holds."""
    seekable = getattr(stream, "seekable", None)
    if seekable is not None and seekable():
        if isinstance(stream, io.TextIOBase):
            raise InputTypeError("A medium's file object must be opened in binary mode ('rb'), not as text")
        return stream
    data = stream.read(limits.bytes + 1)
    if not isinstance(data, bytes):
        raise InputTypeError("A medium's file object must be opened in binary mode ('rb'), not as text")
    if len(data) > limits.bytes:
        raise _too_many_bytes(describe(stream), limits)
    return io.BytesIO(data)


def fetch(url: str, limits: MediaLimits = DEFAULT_LIMITS) -> IO[bytes]:
    """The body of ``url`` as a stream at its beginning. Raises MediaFetchError or MediaTooLargeError."""
    import httpx  # here, since most media are files: nobody waits for what is not used

    def check(request: httpx.Request) -> None:
        if limits.check_url is not None:
            limits.check_url(str(request.url))

    client = httpx.Client(
        timeout=limits.timeout,
        follow_redirects=True,
        max_redirects=limits.redirects,
        event_hooks={"request": [check]},
    )
    try:
        with client, client.stream("GET", url) as response:
            response.raise_for_status()
            return _download(response, url, limits)
    except httpx.HTTPStatusError as error:
        raise MediaFetchError(f"{url} answered {error.response.status_code}") from error
    except httpx.TooManyRedirects as error:
        raise MediaFetchError(f"{url} redirects more than {limits.redirects} times") from error
    except httpx.TimeoutException as error:
        raise MediaFetchError(f"{url} did not answer within {limits.timeout:g} seconds") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MediaFetchError(f"{url} could not be read: {error}") from error


def _download(response: httpx.Response, url: str, limits: MediaLimits) -> IO[bytes]:
    end = time.monotonic() + limits.deadline
    stream: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
    try:
        for chunk in response.iter_bytes(CHUNK_BYTES):
            stream.write(chunk)
            if stream.tell() > limits.bytes:
                raise _too_many_bytes(url, limits)
            if time.monotonic() > end:
                raise MediaFetchError(f"{url} took more than {limits.deadline:g} seconds to download")
    except BaseException:
        stream.close()
        raise
    stream.seek(0)
    return stream


def _too_many_bytes(name: str, limits: MediaLimits) -> MediaTooLargeError:
    return MediaTooLargeError(
        f"{name} holds more than {limits.bytes:,} bytes, the limit set by MediaLimits.bytes"
    )
