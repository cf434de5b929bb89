"""What every request passes before a route sees it, and every answer on its way out.

From the outside in: `Recorded` names, counts and logs requests and turns those away that come while the
server stops; `Guarded` checks who asks; `Watched` bounds the body and ends the work of clients that left.
CORS stands between the first two. Written for ASGI itself: nothing here gathers a body or a stream.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from contextlib import suppress
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qvl.serve import logs
from qvl.serve.access import OPEN_PATHS, Gate
from qvl.serve.errors import DrainingError, OutOfTimeError, QueueFullError
from qvl.serve.jobs import Backend
from qvl.serve.responses import error_response
from qvl.serve.settings import Limits

GRACE_SECONDS = 2.0  # for what ends a late request in a better way: the engine keeps what it has generated
CLIENT_GONE = 499  # nginx's status for a client that did not wait; it is only logged
EXTRA_REQUESTS = (
    64  # beyond those in the batch and its queue: whose media are read, or that ask nothing of it
)
WHILE_DRAINING = (*OPEN_PATHS, "/metrics")
WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # A page brings its own; nothing else is to be shown by a browser.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_log = logging.getLogger("qvl.serve")


class Recorded:
    """Gives a request its id and deadline, counts it, logs it, and answers where all else failed.

    Sets ``request.state.record``, ``.request_id`` and ``.deadline`` (on `time.monotonic`'s clock).
    """

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self.app = app
        self._backend = backend
        self._under_way = backend.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits = self._backend.settings.limits
        record = logs.RequestRecord(id=_request_id(scope), method=scope["method"])
        record.deadline = record.begun + limits.request_seconds
        scope.setdefault("state", {}).update(
            record=record, request_id=record.id, deadline=record.deadline, client=""
        )
        token = logs.current.set(record)
        self._under_way.add(record)
        try:
            await self._answer(scope, receive, _Sender(send, record), record)
        finally:
            self._under_way.discard(record)
            logs.current.reset(token)
            record.route = _route(scope)
            self._backend.metrics.request(record.route, record.status, monotonic() - record.begun)
            if self._backend.settings.log_requests:
                logs.write(record)

    async def _answer(
        self, scope: Scope, receive: Receive, send: _Sender, record: logs.RequestRecord
    ) -> None:
        try:
            self._check_room(scope["path"])
            await self.app(scope, receive, send)
        except Exception as error:
            if record.status:  # too late to say anything: the connection ends without its last chunk
                if not isinstance(error, OutOfTimeError):
                    _log.error("an answer broke off", exc_info=error)
                return
            await error_response(error)(scope, receive, send)
        finally:
            record.status = record.status or CLIENT_GONE

    def _check_room(self, path: str) -> None:
        settings = self._backend.settings
        if self._backend.service.draining and path not in WHILE_DRAINING:
            raise DrainingError("This server is about to stop; try again, here or elsewhere, in a while.")
        most = settings.max_sequences + settings.limits.waiting + EXTRA_REQUESTS
        if len(self._under_way) > most and path not in OPEN_PATHS:
            raise QueueFullError(f"The server holds {most} requests already; try again in a few seconds.")


class _Sender:
    """``send`` with the headers of every answer, noting the status."""

    def __init__(self, send: Send, record: logs.RequestRecord) -> None:
        self._send = send
        self._record = record

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._record.id
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


class Guarded:
    """Lets through who may ask; ``request.state.client`` is whose share of the engine it takes."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self.app = app
        self._gate = Gate(backend.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = (scope.get("client") or ("local",))[0]
            headers = Headers(scope=scope)
            try:
                client = self._gate.check(scope["path"], scope["method"], headers, peer)
                _check_json(scope["method"], headers)
            except HTTPException as error:
                await error_response(error)(scope, receive, send)
                return
            scope["state"]["client"] = scope["state"]["record"].client = client
        await self.app(scope, receive, send)


class Watched:
    """Bounds the body in bytes and the whole in time, and cancels the work of a client that has gone."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self.app = app
        self._limits = backend.settings.limits
        self._held = [0]  # bytes of the bodies of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self._limits, self._held)
        work = asyncio.ensure_future(self.app(scope, body.receive, body.sender(send)))
        watch = asyncio.ensure_future(body.client_gone())
        record: logs.RequestRecord = scope["state"]["record"]
        left = record.begun + self._limits.request_seconds + GRACE_SECONDS - monotonic()
        try:
            await asyncio.wait({work, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or (watch.done() and body.answered):
                await work
                return
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            if not watch.done():
                record.ends.append("timeout")
                raise OutOfTimeError("The request took longer than this server allows; ask for less of it.")
            record.ends.append("gone")
        finally:
            body.release()
            watch.cancel()
            work.cancel()


class _Body:
    """The body of a request on its way in."""

    def __init__(self, receive: Receive, headers: Headers, limits: Limits, held: list[int]) -> None:
        self._receive = receive
        self._limits = limits
        self._held = held
        self._size = 0
        self._begun = monotonic()
        self._complete = asyncio.Event()
        self._gone = asyncio.Event()
        self.answered = False  # to the last byte
        self._declared = _content_length(headers)

    async def receive(self) -> Message:
        if self._complete.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        if self._declared > self._limits.body:
            raise self._too_large()
        message = await self._next()
        if message["type"] == "http.disconnect":
            self._gone.set()
        else:
            self._hold(len(message.get("body", b"")))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._complete.set()
        return message

    async def client_gone(self) -> None:
        """Returns once the body was read and then nobody waits for the answer any more."""
        await self._complete.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()

    def sender(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            self.answered |= message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        return sending

    def release(self) -> None:
        self._held[0] -= self._size
        self._size = 0

    async def _next(self) -> Message:
        left = self._begun + self._limits.body_seconds - monotonic()
        try:
            return await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise HTTPException(
                408, f"The request's body did not arrive within {self._limits.body_seconds:g} seconds."
            ) from None

    def _hold(self, size: int) -> None:
        self._size += size
        self._held[0] += size
        if self._size > self._limits.body:
            raise self._too_large()
        if self._held[0] > self._limits.waiting_memory and self._held[0] > self._size:
            raise HTTPException(
                429,
                "The bodies of other requests fill the server's memory; try again in a few seconds.",
                headers={"Retry-After": "5"},
            )

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The request's body is larger than {self._limits.body} bytes.")


def _check_json(method: str, headers: Headers) -> None:
    """A browser asks this server before it sends JSON on behalf of another site, but not before a form."""
    if method not in WITH_BODY or not (_content_length(headers) or "transfer-encoding" in headers):
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "Send the request as JSON, with the header Content-Type: application/json.")


def _content_length(headers: Headers) -> int:
    value = headers.get("content-length", "0")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else 0


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The route's pattern, so that nobody can make metrics of their own by asking for many paths."""
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "other"
