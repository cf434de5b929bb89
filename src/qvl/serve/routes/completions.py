"""`POST /v1/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from qvl.serve.errors import RequestError
from qvl.serve.jobs import TokenLogprob
from qvl.serve.plans import AnswerPlan
from qvl.serve.protocol.completions import CompletionRequest, PromptInput
from qvl.serve.routes.answering import (
    DONE,
    HEARTBEAT,
    Answers,
    Choice,
    Event,
    collect,
    event,
    event_stream,
    finish_reason,
    finite,
    token_text,
    usage_body,
    usages_of,
)
from qvl.serve.routes.api import STREAMED, Api, api_of
from qvl.serve.routes.chat import check_logprobs

router = APIRouter(tags=["answers"])


@router.post("/v1/completions", summary="Continue a text", responses=STREAMED)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Texts or token ids in, taken as they are; their continuations out."""
    api = api_of(request)
    api.check_model(body.model)
    check_logprobs(body.logprobs, api, "logprobs")
    prompts = prompts_of(body.prompt)
    answers_wanted = len(prompts) * (body.n or 1)
    if answers_wanted > (most := api.settings.limits.choices):
        raise RequestError(
            f"{len(prompts)} prompts with n={body.n or 1} make {answers_wanted} answers, and at most {most} "
            "are given in one request.",
            "prompt",
            "too_large",
        )
    plan = AnswerPlan(format=body.response_format)
    groups = []
    for text in prompts:
        prompt = await api.conversations.text_prompt(text)
        groups.append(await api.jobs(body, prompt, grammar=plan, logprobs=body.logprobs))
    answers = Answers(api.backend.service, groups)
    written = CompletionAnswer(api, body, prompts)
    if body.stream:
        return await event_stream(answers, written.chunks)
    return JSONResponse(written.whole(await collect(answers, answers_wanted)))


def prompts_of(given: PromptInput) -> list[str | list[int]]:
    """One or several prompts, each a text or token ids."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise RequestError("prompt is an empty list: give at least one text.", "prompt")
    if isinstance(given[0], int):
        return [list(given)]
    return list(given)


class CompletionAnswer:
    """Writes the objects of one response."""

    def __init__(self, api: Api, body: CompletionRequest, prompts: Sequence[str | list[int]]) -> None:
        self._api = api
        self._body = body
        self._each = body.n or 1
        self._prompts = prompts
        self._head = {
            "id": f"cmpl-{secrets.token_hex(16)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": api.settings.name,
            "system_fingerprint": api.fingerprint,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A ``text_completion``."""
        return {
            **self._head,
            "choices": [
                {
                    "index": number,
                    "text": self._echo(number) + choice.text,
                    "logprobs": self._logprobs(choice.logprobs, 0),
                    "finish_reason": finish_reason(choice.end),
                }
                for number, choice in enumerate(choices)
            ],
            "usage": usage_body(usages_of(choices, self._each)),
        }

    async def chunks(self, pieces: AsyncIterator[Event | None]) -> AsyncIterator[str]:
        """The events of a stream."""
        choices = [Choice() for _ in range(len(self._prompts) * self._each)]
        begun: set[int] = set()
        async for found in pieces:
            if found is None:
                yield HEARTBEAT
                continue
            number, piece = found
            choice = choices[number]
            offset = len(choice.text)
            choice.text, choice.usage = choice.text + piece.text, piece.usage
            text = piece.text if number in begun else self._echo(number) + piece.text
            begun.add(number)
            if text or piece.logprobs or piece.end is not None:
                logprobs = self._logprobs(piece.logprobs, offset) if piece.logprobs else None
                end = finish_reason(piece.end)
                yield self._chunk({"index": number, "text": text, "logprobs": logprobs, "finish_reason": end})
        if self._body.usage_in_stream:
            yield event({**self._head, "choices": [], "usage": usage_body(usages_of(choices, self._each))})
        yield DONE

    def _chunk(self, choice: dict[str, Any]) -> str:
        chunk = {**self._head, "choices": [choice]}
        return event({**chunk, "usage": None} if self._body.usage_in_stream else chunk)

    def _echo(self, number: int) -> str:
        if not self._body.echo:
            return ""
        prompt = self._prompts[number // self._each]
        return (
            prompt if isinstance(prompt, str) else str(self._api.backend.processor.tokenizer.decode(prompt))
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        """The legacy form; ``offset``: characters of the answer before these tokens."""
        if self._body.logprobs is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token_text(token.data))
        return {
            "tokens": [token_text(token.data) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {token_text(data): finite(logprob) for _, data, logprob in reversed(token.top)}
                for token in tokens
            ],
            "text_offset": offsets,
        }
