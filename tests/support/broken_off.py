"""Requests that end before their time: clients that leave, wait, or say nothing that is a request."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from support.hostile import CHAT, text_body

SECONDS = 60.0  # that any of them may take, on a busy machine
Ask = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def head(length: int | str, path: str = CHAT) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def whole(**more: object) -> bytes:
    """A request for a long answer."""
    body = json.dumps(text_body("Count", ignore_eos=True, max_tokens=400) | more).encode()
    return head(len(body)) + body


async def leaves_mid_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(whole(stream=True))
    await reader.readuntil(b"data: ")
    writer.transport.abort()


async def resets_mid_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(whole(stream=True, n=3))
    await reader.readuntil(b"data: ")
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def leaves_before_the_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(whole())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()


async def leaves_within_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(head(1000) + b'{"messages": [')
    await writer.drain()
    writer.transport.abort()


async def never_ends_its_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One byte now and then: the server has to lose its patience, with a word."""
    writer.write(head(10_000))
    status = asyncio.ensure_future(reader.readline())
    while not status.done():
        with suppress(ConnectionError):
            writer.write(b" ")
            await writer.drain()
        await asyncio.sleep(0.1)
    assert b" 408 " in await status, await status


async def reads_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(whole(stream=True))
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.transport.abort()


async def never_ends_its_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
    for number in range(5):
        writer.write(f"X-{number}: y\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def floods_with_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: z\r\n" * 20_000 + b"\r\n")
    line = await reader.readline()
    assert line.startswith(b"HTTP/1.1 4"), line


async def speaks_no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    line = await reader.readline()
    assert line.startswith(b"HTTP/1.1 4"), line


async def lies_about_its_length(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(head("9" * 15))
    line = await reader.readline()
    assert b" 413 " in line, line


ALL: tuple[Ask, ...] = (
    leaves_mid_stream,
    resets_mid_stream,
    leaves_before_the_answer,
    leaves_within_the_body,
    never_ends_its_body,
    reads_nothing,
    never_ends_its_headers,
    floods_with_headers,
    speaks_no_http,
    lies_about_its_length,
)


async def ask(port: int, what: Ask) -> None:
    """Runs one of them on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.wait_for(what(reader, writer), SECONDS)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
