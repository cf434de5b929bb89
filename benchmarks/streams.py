"""Clients of a chat server: questions asked over HTTP, and when each piece of an answer arrived.

One process and one event loop for all of them; what happens to a piece is little, so that the server has the
processor. Times are seconds on `time.perf_counter`'s clock.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from PIL import Image, ImageChops

from benchmarks.tasks import photo

T = TypeVar("T")
SILENCE = 240.0  # seconds without a byte, after which a server has failed
TEXT = "Tell me something about the numbers and the houses that people draw. "


@dataclass
class Answer:
    """``tokens``: how many were asked for; ``asked``: when the request was sent; ``times``: when each piece
    of text arrived; ``usage``: the server's own count, where it sends one.
    """

    tokens: int
    asked: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0

    @property
    def first(self) -> float:
        """Seconds from the request to the first piece."""
        return self.times[0] - self.asked

    def between(self, begin: float, end: float) -> float:
        """Tokens that arrived after ``begin`` and not after ``end``: pieces, each for its share of tokens."""
        return sum(begin < time <= end for time in self.times) * self.tokens / len(self.times)

    @property
    def cached(self) -> int:
        """Prompt tokens that were not computed again."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


@dataclass(frozen=True)
class Chat:
    """A server to ask. ``own``: whether it is qvl's; the others take their settings in a field of theirs.
    ``pieces``: the share of its tokens in which an answer must arrive at least; some servers hold text
    back until a word is whole.

    Every answer is greedy and has as many tokens as it was asked for: ends of sequence are not heeded.
    """

    url: str
    model: str
    own: bool
    pieces: float = 0.9

    def body(self, messages: Sequence[dict[str, Any]], tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), "stream": True}
        if self.own:
            length = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
            return {**body, **length, "stream_options": {"include_usage": True}}
        settings = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return {**body, "generation_config": json.dumps(settings)}

    async def ask(
        self,
        client: httpx.AsyncClient,
        messages: Sequence[dict[str, Any]],
        tokens: int,
        enough: Callable[[Answer], bool] = lambda answer: False,
    ) -> Answer:
        """The answer; one that is ``enough`` is left there, and the server hears of it by the connection's
        end. Raises RuntimeError where the server fails or falls silent."""
        content = json.dumps(self.body(messages, tokens))
        headers = {"content-type": "application/json"}
        answer = Answer(tokens, time.perf_counter())
        url = f"{self.url}/v1/chat/completions"
        try:
            async with client.stream("POST", url, content=content, headers=headers) as response:
                if response.status_code != 200:
                    raise RuntimeError(f"{url} answered {response.status_code}: {await response.aread()!r}")
                async for line in response.aiter_lines():
                    self._read(line, answer)
                    if enough(answer):
                        return answer
        except httpx.HTTPError as error:
            raise RuntimeError(f"{url}: {type(error).__name__} {error}") from None
        answer.ended = time.perf_counter()
        self._check(answer)
        return answer

    @staticmethod
    def _read(line: str, answer: Answer) -> None:
        if not line.startswith("data:") or line == "data: [DONE]":
            return
        now = time.perf_counter()
        piece = json.loads(line[5:])
        if "error" in piece:
            raise RuntimeError(f"the server broke an answer off: {piece['error']}")
        answer.usage = piece.get("usage") or answer.usage
        for choice in piece.get("choices", ()):
            if text := choice["delta"].get("content"):
                answer.times.append(now)
                answer.text += text
            answer.finish = choice.get("finish_reason") or answer.finish

    def _check(self, answer: Answer) -> None:
        """Raise RuntimeError for an answer that is not what was asked for."""
        asked, pieces = answer.tokens, len(answer.times)
        counted = answer.usage.get("completion_tokens", asked)
        if counted != asked or answer.finish is None or (self.own and answer.finish != "length"):
            raise RuntimeError(f"asked for {asked} tokens, got {counted}, ended by {answer.finish}")
        if pieces < max(1, int(self.pieces * asked)):
            raise RuntimeError(f"{asked} tokens arrived in {pieces} pieces: too few to time them")

    async def ask_all(
        self, client: httpx.AsyncClient, questions: Iterable[Sequence[dict[str, Any]]], tokens: int
    ) -> list[Answer]:
        """All questions at once."""
        return await asyncio.gather(*(self.ask(client, question, tokens) for question in questions))


def together(work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` in an event loop of its own, with a client."""

    async def run() -> T:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=SILENCE, limits=limits, trust_env=False) as client:
            return await work(client)

    return asyncio.run(run())


def question(label: str, picture: str | None = None, text: str = TEXT) -> list[dict[str, Any]]:
    """A conversation of one question that no other ``label`` shares its beginning with.

    ``picture``: a data URI. It comes first, and then the beginning is its pixels.
    """
    if picture is None:
        return [{"role": "user", "content": f"{label}: {text}"}]
    shown = {"type": "image_url", "image_url": {"url": picture, "detail": "high"}}
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def picture_uri(side: int, seed: int) -> str:
    """A square photo whose every pixel depends on the seed, as a JPEG in a data URI."""
    whole = photo()
    moved = ImageChops.offset(whole, 37 * seed % whole.width, 53 * seed % whole.height)
    file = io.BytesIO()
    moved.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def seconds_of_steps(answers: Sequence[Answer]) -> float:
    """Seconds in which every stream gets one token, while all of them run: prompts are not counted.

    The time between the last one's first token and the first one's last; where that holds fewer than two
    tokens of each, because a server answers one after the other, the time between the very first and the very
    last token.
    """
    begin, end = max(a.times[0] for a in answers), min(a.times[-1] for a in answers)
    if sum(a.between(begin, end) for a in answers) < 2 * len(answers):
        begin, end = min(a.times[0] for a in answers), max(a.times[-1] for a in answers)
    return len(answers) * (end - begin) / sum(a.between(begin, end) for a in answers)


def seconds_with_prompts(answers: Sequence[Answer]) -> float:
    """The same with everything counted, from the first request to the last answer's end."""
    taken = max(a.ended for a in answers) - min(a.asked for a in answers)
    return len(answers) * taken / sum(a.tokens for a in answers)


def first_token(answers: Sequence[Answer]) -> float:
    return statistics.median(a.first for a in answers)


def gaps(answer: Answer, begin: float, end: float) -> list[float]:
    """Seconds between neighbouring tokens, of those gaps that reach into the time from begin to end."""
    pairs = zip(answer.times, answer.times[1:], strict=False)
    return [after - before for before, after in pairs if after > begin and before < end]
