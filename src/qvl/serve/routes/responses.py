"""`POST /v1/responses`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from qvl.serve.conversation import Conversation
from qvl.serve.jobs import JobEnd, TokenLogprob, Usage
from qvl.serve.plans import AnswerPlan, check_plan
from qvl.serve.protocol.responses import ResponsesRequest, conversation_messages
from qvl.serve.routes.answering import (
    HEARTBEAT,
    Answers,
    Choice,
    Event,
    chat_logprobs,
    collect,
    event,
    event_stream,
    usage_body,
)
from qvl.serve.routes.api import STREAMED, Api, api_of
from qvl.serve.routes.chat import check_logprobs
from qvl.serve.toolcalls import CallDelta, Part, ToolCallReader
from qvl.serve.tools import described

router = APIRouter(tags=["answers"])


@router.post("/v1/responses", summary="Answer, in the form of OpenAI's newer API", responses=STREAMED)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Text, pictures and PDF pages in; text, JSON or calls of tools out. Nothing is stored."""
    api = api_of(request)
    api.check_model(body.model)
    plan = AnswerPlan(
        tuple(body.function_tools()),
        body.choice(),
        body.parallel_tool_calls is not False,
        body.answer_format(),
    )
    check_plan(plan, api.settings.limits)
    check_logprobs(body.top_logprobs, api)
    messages, places = conversation_messages(body)
    tools = described(() if plan.choice == "none" else plan.tools)
    prompt = await api.conversations.prompt(
        Conversation(messages, tools, body.mm_processor_kwargs, places=tuple(places))
    )
    jobs = await api.jobs(body, prompt, grammar=plan, logprobs=body.alternatives, stops=plan.stops())
    answers = Answers(api.backend.service, [jobs])
    written = ResponseAnswer(api, body, plan)
    if body.stream:
        return await event_stream(answers, written.events, written.failed)
    (choice,) = await collect(answers, 1)
    return JSONResponse(written.whole(choice))


class ResponseAnswer:
    """Writes one response, whole or as events: items are opened, grow, and are closed one after the other."""

    def __init__(self, api: Api, body: ResponsesRequest, plan: AnswerPlan) -> None:
        self._body = body
        self._names = [tool.function.name for tool in plan.callable]
        self._output: list[dict[str, Any]] = []  # the last one may be open
        self._open = False
        self._number = 0  # of the next event
        self._response = _response(api, body)

    def whole(self, choice: Choice) -> dict[str, Any]:
        """A ``response``."""
        for part in _read(self._reader(live=False), choice.text, last=True):
            for _ in self._grow(part, ()):
                pass
        if choice.logprobs and self._output and self._output[0]["type"] == "message":
            self._output[0]["content"][0]["logprobs"] = chat_logprobs(choice.logprobs)
        for _ in self._complete(choice.end):
            pass
        return self._finished(choice.end, choice.usage)

    async def events(self, pieces: AsyncIterator[Event | None]) -> AsyncIterator[str]:
        """The events of a stream, in the order of OpenAI's API."""
        reader = self._reader(live=True)
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._response)
        async for found in pieces:
            if found is None:
                yield HEARTBEAT
                continue
            _, piece = found
            logprobs: Sequence[TokenLogprob] = piece.logprobs
            for part in _read(reader, piece.text, last=piece.end is not None):
                for text in self._grow(part, logprobs):
                    yield text
                logprobs = ()
            if piece.end is not None:
                for text in self._complete(piece.end):
                    yield text
                response = self._finished(piece.end, piece.usage)
                yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: dict[str, Any]) -> str:
        """The last event of a response that broke off."""
        about = error["error"]
        self._response |= {
            "status": "failed",
            "error": {"code": about["code"] or "server_error", "message": about["message"]},
            "output": self._output,
        }
        return self._event("response.failed", response=self._response)

    def _grow(self, part: Part, logprobs: Sequence[TokenLogprob]) -> Iterator[str]:
        if isinstance(part, str):
            if not self._open or self._output[-1]["type"] != "message":
                yield from self._close()
                yield from self._open_message()
            content = self._output[-1]["content"][0]
            entries = chat_logprobs(logprobs)
            content["text"] += part
            content["logprobs"] += entries
            yield self._event("response.output_text.delta", **self._place(0), delta=part, logprobs=entries)
            return
        if part.id is not None:
            yield from self._close()
            yield from self._open_call(part)
        self._output[-1]["arguments"] += part.arguments
        if part.arguments:
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=part.arguments)

    def _open_message(self) -> Iterator[str]:
        item: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(16)}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        yield self._add(item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._event("response.content_part.added", **self._place(0), part=part)
        item["content"].append(part)

    def _open_call(self, call: CallDelta) -> Iterator[str]:
        yield self._add(
            {
                "id": f"fc_{secrets.token_hex(16)}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": call.id,
                "name": call.name,
                "arguments": "",
            }
        )

    def _add(self, item: dict[str, Any]) -> str:
        self._output.append(item)
        self._open = True
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self, end: JobEnd | None = "stop") -> Iterator[str]:
        """The events that end the open item. ``end``: of the answer."""
        if not self._open:
            return
        item = self._output[-1]
        item["status"] = "completed" if end == "stop" else "incomplete"
        if item["type"] == "message":
            part = item["content"][0]
            yield self._event(
                "response.output_text.done", **self._place(0), text=part["text"], logprobs=part["logprobs"]
            )
            yield self._event("response.content_part.done", **self._place(0), part=part)
        else:
            yield self._event(
                "response.function_call_arguments.done",
                **self._place(),
                name=item["name"],
                arguments=item["arguments"],
            )
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)
        self._open = False

    def _complete(self, end: JobEnd | None) -> Iterator[str]:
        """The events that end the output: an answer of no words is a message without text."""
        if not self._output:
            yield from self._open_message()
        yield from self._close(end)

    def _place(self, content: int | None = None) -> dict[str, Any]:
        place = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return place if content is None else {**place, "content_index": content}

    def _event(self, kind: str, /, **data: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **data}, kind)

    def _finished(self, end: JobEnd | None, usage: Usage) -> dict[str, Any]:
        counts = usage_body([usage])
        reasons = {"length": "max_output_tokens"}
        return self._response | {
            "status": "completed" if end == "stop" else "incomplete",
            "incomplete_details": None if end == "stop" else {"reason": reasons.get(end or "", end)},
            "output": self._output,
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
        }

    def _reader(self, *, live: bool) -> ToolCallReader | None:
        return ToolCallReader(self._names, live=live) if self._names else None


def _read(reader: ToolCallReader | None, text: str, *, last: bool) -> list[Part]:
    if reader is None:
        return [text] if text else []
    return [*reader.feed(text), *(reader.end() if last else ())]


def _response(api: Api, body: ResponsesRequest) -> dict[str, Any]:
    """A response before its first token: what was asked for."""
    wanted = body.text.format if body.text is not None else None
    chosen = body.tool_choice if body.tool_choice is not None else "auto"
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": {},
        "model": api.settings.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True)},
        "tool_choice": chosen if isinstance(chosen, str) else chosen.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }
