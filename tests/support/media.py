"""Media as strangers send them, and a `MediaService` whose event loop runs beside a test."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from qvl.serve.media.service import MediaService
from qvl.serve.settings import Access, Limits, ServeSettings


def photo(height: int = 60, width: int = 90, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture in which no two places look alike."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 255, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze())


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def data_uri(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(side: int) -> bytes:
    """A PNG of ``side`` x ``side`` white pixels: a thousandth of what it decodes to."""
    rows = zlib.compress((b"\0" + b"\xff" * (side // 8)) * side)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif_of(frames: int) -> bytes:
    """A GIF of so many frames of one pixel."""
    header = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04\0\x0a\0\0\0"  # a tenth of a second
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return header + (control + frame) * frames + b"\x3b"


def pdf_of(sizes: list[tuple[int, int]]) -> bytes:
    """A PDF with a page of each size (width, height), in points."""
    import pypdfium2

    document = pypdfium2.PdfDocument.new()
    for width, height in sizes:
        document.new_page(width, height)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


class RunningMedia:
    """A `MediaService` on a thread of its own; calling it runs a coroutine there."""

    def __init__(self, service: MediaService) -> None:
        self.service = service
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def begin(self, work: Any) -> Any:
        """A future of ``work``, which can be cancelled."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def __call__(self, work: Any, timeout: float = 60) -> Any:
        return self.begin(work).result(timeout)

    def prepare(self, *requests: Any, most_tokens: int = 100_000) -> Any:
        return self(self.service.prepare(requests, most_tokens=most_tokens))

    def measure(self, *requests: Any) -> Any:
        return self(self.service.measure(requests))

    @property
    def workers(self) -> list[int]:
        return self.service._pool.pids

    def stop(self) -> None:
        self(self.service.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@contextmanager
def running_media(*, resolve: Any = None, access: Access | None = None, workers: int = 1, **limits: Any):
    settings = ServeSettings(
        media_workers=workers, access=access or Access(), limits=replace(Limits(), **limits)
    )
    media = RunningMedia(MediaService(settings, "qvl/tiny", resolve=resolve))
    try:
        media(media.service.start())
        yield media
    finally:
        media.stop()


@contextmanager
def http_server(answers: dict[str, Any], address: str = "127.0.0.1", port: int = 0):
    """A web server: ``answers`` by path, functions of the handler; yields (port, what it was asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host']}{self.path}")
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has heard enough
                answers[self.path](self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


def sends(data: bytes, status: int = 200, **headers: str) -> Any:
    """An answer of ``data``; underscores in the names of ``headers`` stand for hyphens."""

    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirects(location: str, status: int = 302) -> Any:
    return sends(b"", status, Location=location)
