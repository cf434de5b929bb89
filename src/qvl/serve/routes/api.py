"""What the routes of one application share: its parts, made once, and the jobs of a request."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request

import qvl
from qvl.serve.conversation import Conversations
from qvl.serve.errors import UnknownModelError
from qvl.serve.grammars import Grammars
from qvl.serve.jobs import Backend, Constraint, Job
from qvl.serve.plans import compile_answer
from qvl.serve.protocol.failures import ErrorBody
from qvl.serve.protocol.sampling import Sampling
from qvl.serve.sampling import check_limits, output_tokens, sampling_params
from qvl.types import Prompt

# What every route may answer, for the description of the API.
_STATUSES: Mapping[int | str, str] = {
    400: "The request is wrong; `error.message` says where and how",
    401: "No key of this server",
    403: "Something that this server does not allow, such as a private address",
    404: "No such model",
    408: "The request took longer than the server allows",
    413: "The body is too large",
    415: "The body is not JSON",
    421: "The Host header names another server",
    429: "Too many requests wait; try again later",
    503: "The server is about to stop",
    "4XX": "Anything else that is wrong with the request",  # and so not 422, which FastAPI would announce
}
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": ErrorBody} for status, text in _STATUSES.items()
}
EVENT = {
    "description": "One event; data is JSON, or [DONE] at the end",
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
# The same for a route that may also answer with server-sent events.
STREAMED: dict[int | str, dict[str, Any]] = {
    **FAILURES,
    200: {
        "description": "The answer; with `stream` its pieces, each an event",
        "content": {"text/event-stream": {"schema": EVENT}},
    },
}


class Api:
    """``started``: when it was made, in seconds of Unix time. ``fingerprint``: of model and version."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.settings = backend.settings
        self.conversations = Conversations(backend)
        self.vocab_size = int(backend.config.text_config.vocab_size)
        self.grammars = Grammars(
            backend.processor.tokenizer,
            backend.generation.eos_token_ids,
            backend.settings.limits,
        )
        self.started = int(time.time())
        what = f"{qvl.__version__} {backend.settings.model} {backend.settings.name}"
        self.fingerprint = f"fp_{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    def check_model(self, name: str | None) -> None:
        """UnknownModelError unless ``name`` is what is served here, or nothing."""
        if name is not None and name not in (self.settings.name, self.settings.model):
            raise UnknownModelError(
                f"The model {name!r:.200} is not served here; this server has {self.settings.name!r}.",
                "model",
                "model_not_found",
            )

    def data(self, token: int) -> str:
        """A token of a prompt as text, special tokens too."""
        return str(self.backend.processor.tokenizer.decode([token]))

    async def jobs(
        self,
        request: Sampling,
        prompt: Prompt,
        *,
        grammar: Any = None,
        logprobs: int | None = None,
        stops: tuple[str, ...] = (),
    ) -> list[Job]:
        """One job for each of the request's ``n`` answers. ``grammar``: a `qvl.serve.plans.AnswerPlan`'s, or
        None. Raises RequestError and PromptTooLongError."""
        check_limits(request, self.settings.limits)
        most = output_tokens(request, self.settings, len(prompt.token_ids), self.conversations.context)
        make = await self._constraints(request, grammar)
        return [
            Job(
                prompt,
                sampling_params(request, self.backend.generation, self.vocab_size, most, choice),
                stops=(*request.stops, *stops),
                logprobs=logprobs,
                constraint=make(),
                repetition_tokens=self.settings.repetition_tokens,
                special=request.skip_special_tokens is False,
            )
            for choice in range(request.n or 1)
        ]

    async def _constraints(self, request: Sampling, grammar: Any) -> Callable[[], Constraint | None]:
        if grammar is None:
            return lambda: None
        compiled = await asyncio.to_thread(compile_answer, self.grammars, grammar, request)
        return compiled.constraint if compiled is not None else lambda: None


def api_of(request: Request) -> Api:
    """The parts of the application that ``request`` came to."""
    state = request.app.state
    if not hasattr(state, "api"):
        state.api = Api(state.backend)
    api: Api = state.api
    return api
