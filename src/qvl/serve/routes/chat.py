"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from qvl.serve.conversation import Conversation
from qvl.serve.errors import RequestError
from qvl.serve.plans import AnswerPlan, check_plan
from qvl.serve.protocol.chat import ChatRequest
from qvl.serve.routes.answering import (
    DONE,
    HEARTBEAT,
    Answers,
    Choice,
    Event,
    chat_logprobs,
    collect,
    event,
    event_stream,
    finish_reason,
    usage_body,
    usages_of,
)
from qvl.serve.routes.api import STREAMED, Api, api_of
from qvl.serve.toolcalls import CallDelta, Part, ToolCallReader, read_calls
from qvl.serve.tools import described

router = APIRouter(tags=["answers"])


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=STREAMED)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Text, pictures, videos and PDF pages in; text, JSON or calls of tools out."""
    api = api_of(request)
    api.check_model(body.model)
    plan = plan_of(body)
    check_plan(plan, api.settings.limits)
    check_logprobs(body.top_logprobs, api)
    prompt = await api.conversations.prompt(conversation_of(body, plan))
    jobs = await api.jobs(body, prompt, grammar=plan, logprobs=body.alternatives, stops=plan.stops())
    answers = Answers(api.backend.service, [jobs])
    written = ChatAnswer(api, body, plan, len(jobs))
    if body.stream:
        return await event_stream(answers, written.chunks)
    return JSONResponse(written.whole(await collect(answers, len(jobs))))


def plan_of(body: ChatRequest) -> AnswerPlan:
    """What the answer must look like."""
    parallel = body.parallel_tool_calls is not False
    return AnswerPlan(tuple(body.tools or ()), body.tool_choice, parallel, body.response_format)


def conversation_of(body: ChatRequest, plan: AnswerPlan) -> Conversation:
    """What becomes the prompt. The model is told of all tools, unless it may call none."""
    return Conversation(
        body.messages,
        described(() if plan.choice == "none" else plan.tools),
        body.mm_processor_kwargs,
        body.add_generation_prompt is not False,
        bool(body.continue_final_message),
        body.chat_template_kwargs or {},
    )


def check_logprobs(asked: int | None, api: Api, param: str = "top_logprobs") -> None:
    """RequestError for more alternatives than the server reports."""
    most = api.settings.limits.top_logprobs
    if (asked or 0) > most:
        raise RequestError(f"At most {most} likeliest tokens are reported, not {asked}.", param, "too_large")


class ChatAnswer:
    """Writes the objects of one response."""

    def __init__(self, api: Api, body: ChatRequest, plan: AnswerPlan, count: int) -> None:
        self._names = [tool.function.name for tool in plan.callable]
        self._body = body
        self._count = count
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": api.settings.name,
            "system_fingerprint": api.fingerprint,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A ``chat.completion``."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(number, choice) for number, choice in enumerate(choices)],
            "usage": usage_body(usages_of(choices, self._count)),
        }

    async def chunks(self, pieces: AsyncIterator[Event | None]) -> AsyncIterator[str]:
        """The events of a stream: for each answer its role, its text and calls, its end; then the usage."""
        readers = [self._reader() for _ in range(self._count)]
        choices = [Choice() for _ in range(self._count)]
        begun: set[int] = set()
        async for found in pieces:
            if found is None:
                yield HEARTBEAT
                continue
            number, piece = found
            choices[number].usage = piece.usage
            if number not in begun:
                begun.add(number)
                yield self._chunk(number, {"role": "assistant", "content": ""})
            reader = readers[number]
            parts = _read(reader, piece.text, last=piece.end is not None)
            logprobs = self._logprobs(piece.logprobs)
            if not parts and logprobs:
                parts = [""]
            for part in parts:
                yield self._chunk(number, _delta(part), logprobs=logprobs)
                logprobs = None
            if piece.end is not None:
                calls = 0 if reader is None else reader.calls
                yield self._chunk(number, {}, finish_reason(piece.end, calls))
        if self._body.usage_in_stream:
            usage = usage_body(usages_of(choices, self._count))
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield DONE

    def _choice(self, number: int, choice: Choice) -> dict[str, Any]:
        content, calls = read_calls(choice.text, self._names) if self._names else (choice.text, [])
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
        message["refusal"] = None
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs) if self._body.logprobs else None,
            "finish_reason": finish_reason(choice.end, len(calls)),
        }

    def _chunk(
        self, number: int, delta: dict[str, Any], end: str | None = None, *, logprobs: Any = None
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": end}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return event({**chunk, "usage": None} if self._body.usage_in_stream else chunk)

    def _reader(self) -> ToolCallReader | None:
        return ToolCallReader(self._names, live=True) if self._names else None

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self._body.logprobs or (not tokens and self._body.stream):
            return None
        return {"content": chat_logprobs(tokens), "refusal": None}


def _read(reader: ToolCallReader | None, text: str, *, last: bool) -> list[Part]:
    if reader is None:
        return [text] if text else []
    return [*reader.feed(text), *(reader.end() if last else ())]


def _delta(part: Part) -> dict[str, Any]:
    return (
        {"content": part} if isinstance(part, str) else {"tool_calls": [{"index": part.index, **_call(part)}]}
    )


def _call(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"function": {"arguments": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
