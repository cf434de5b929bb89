"""Runs the jobs of a request side by side, and turns their pieces into an answer or a stream of events.

Whoever leaves early leaves all of them: a client that goes takes its ``n`` answers with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qvl.serve.errors import DrainingError, OutOfTimeError
from qvl.serve.jobs import Job, JobEnd, Piece, Service, TokenLogprob, Usage
from qvl.serve.protocol.failures import failure

HEARTBEAT_SECONDS = 10.0  # between signs of life while a prompt is computed; proxies cut silent connections
PATIENCE_SECONDS = 1.0  # for a job's first word, so that an error can still have a status of its own
_log = logging.getLogger("qvl.serve")

Event = tuple[int, Piece]


@dataclass(eq=False)
class Choice:
    """One answer so far."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    end: JobEnd | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.usage = piece.usage
        self.end = piece.end


class Answers:
    """The pieces of several answers as they come, each with the number of its answer.

    ``groups``: jobs of one prompt each. The first of a group begins at once, the others once its prompt is
    computed, so that they find it kept. Raises QueueFullError or DrainingError at once.
    """

    def __init__(self, service: Service, groups: Sequence[Sequence[Job]]) -> None:
        self._service = service
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ahead: list[Event | Exception] = []
        self._running = sum(map(len, groups))
        number = 0
        begun: list[tuple[int, AsyncIterator[Piece], Sequence[Job]]] = []
        for jobs in groups:
            begun.append((number, service.submit(jobs[0]), jobs[1:]))
            number += len(jobs)
        for first, pieces, others in begun:
            self._start(self._pump(first, pieces, others))

    async def begin(self) -> None:
        """Wait a moment for the first piece; raises what keeps the answer from beginning."""
        with suppress(asyncio.TimeoutError):
            self._ahead.append(await asyncio.wait_for(self._queue.get(), PATIENCE_SECONDS))
        if self._ahead and isinstance(self._ahead[0], Exception):
            raise self._ahead[0]

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events()

    async def _events(self, heartbeat: float | None = None) -> AsyncIterator[Any]:
        while self._running:
            event = await self._next(heartbeat)
            if isinstance(event, Exception):
                raise event
            if event is not None:
                self._running -= event[1].end is not None
            yield event

    def with_heartbeats(self) -> AsyncIterator[Event | None]:
        """The same, and None whenever nothing has come for a while."""
        return self._events(HEARTBEAT_SECONDS)

    async def aclose(self) -> None:
        """Cancel what is still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _next(self, heartbeat: float | None) -> Event | Exception | None:
        if self._ahead:
            return self._ahead.pop()
        try:
            return await asyncio.wait_for(self._queue.get(), heartbeat)
        except asyncio.TimeoutError:
            return None

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self, number: int, pieces: Any, others: Sequence[Job] = ()) -> None:
        try:
            async for piece in pieces:
                self._queue.put_nowait((number, _checked(piece)))
                for place, job in enumerate(others, start=1):
                    self._start(self._pump(number + place, self._service.submit(job)))
                others = ()
        except Exception as error:
            self._queue.put_nowait(error)
        finally:
            await pieces.aclose()


def _checked(piece: Piece) -> Piece:
    """The piece, unless it says that the answer failed."""
    if piece.end == "error":
        raise piece.error or RuntimeError("an answer failed without a reason")
    if piece.end == "abort":
        raise DrainingError("This server is about to stop, and has ended the answer.")
    if piece.end == "timeout":
        raise OutOfTimeError("The request took longer than this server allows; ask for fewer tokens.")
    return piece


async def collect(answers: Answers, count: int) -> list[Choice]:
    """All answers, whole."""
    choices = [Choice() for _ in range(count)]
    try:
        async for number, piece in answers:
            choices[number].add(piece)
    finally:
        await answers.aclose()
    return choices


async def event_stream(
    answers: Answers,
    write: Callable[[AsyncIterator[Event | None]], AsyncIterator[str]],
    on_error: Callable[[dict[str, Any]], str] | None = None,
) -> StreamingResponse:
    """A response of server-sent events: what ``write`` makes of the pieces. An error in the middle is one
    more event, and the last. Raises what keeps the answer from beginning."""
    try:
        await answers.begin()
    except BaseException:
        await answers.aclose()
        raise
    return EventResponse(answers, _told(answers, write, on_error or event))


class EventResponse(StreamingResponse):
    """Server-sent events. However it ends, so do the answers."""

    def __init__(self, answers: Answers, stream: AsyncIterator[str]) -> None:
        headers = {"X-Accel-Buffering": "no"}  # nginx would gather the events
        super().__init__(stream, media_type="text/event-stream", headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answers.aclose()


async def _told(
    answers: Answers,
    write: Callable[[AsyncIterator[Event | None]], AsyncIterator[str]],
    on_error: Callable[[dict[str, Any]], str],
) -> AsyncIterator[str]:
    try:
        async for text in write(answers.with_heartbeats()):
            yield text
    except Exception as error:
        status, said = failure(error)
        if status >= 500 and not isinstance(error, DrainingError):
            _log.error("an answer broke off", exc_info=error)
        yield on_error(said)


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


HEARTBEAT = ": still here\n\n"
DONE = "data: [DONE]\n\n"


def finish_reason(end: JobEnd | None, calls: int = 0) -> str | None:
    """OpenAI's word for the end of an answer; "repetition" is this server's own."""
    return "tool_calls" if end == "stop" and calls else end


def usage_body(usages: Sequence[Usage]) -> dict[str, Any]:
    """``usage`` of a response, from those that `usages_of` gives."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    answer = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
    }


def usages_of(choices: Sequence[Choice], per_prompt: int) -> list[Usage]:
    """Usages in which the prompt that several answers share counts once."""
    return [
        choice.usage if not number % per_prompt else Usage(completion_tokens=choice.usage.completion_tokens)
        for number, choice in enumerate(choices)
    ]


def token_text(data: bytes) -> str:
    """A token as text; bytes that are no whole character as U+FFFD."""
    return data.decode("utf-8", "replace")


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """``logprobs.content`` of chat, and ``logprobs`` of a text of responses."""
    return [
        {
            **_entry(token.data, token.logprob),
            "top_logprobs": [_entry(data, logprob) for _, data, logprob in token.top],
        }
        for token in tokens
    ]


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(data), "logprob": finite(logprob), "bytes": list(data)}


def finite(logprob: float) -> float:
    """JSON knows no infinity; OpenAI's API says -9999 for a token that cannot be."""
    return max(logprob, -9999.0)
