"""From an exception to the status and the body of an answer, in OpenAI's shape.

Only what was raised on purpose is told in its own words. Anything else becomes a plain 500.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from qvl.errors import (
    CacheError,
    GenerationError,
    InputError,
    InputTypeError,
    MediaDecodeError,
    MediaError,
    MediaFetchError,
    MediaNotFoundError,
    MediaTooLargeError,
    MissingDependencyError,
    PromptTooLongError,
    UnknownNameError,
    UnsupportedError,
)
from qvl.serve.errors import (
    DrainingError,
    NoWorkerError,
    OutOfTimeError,
    QueueFullError,
    RefusedError,
    UnknownModelError,
)

INVALID = "invalid_request_error"
LONGEST_MESSAGE = 1000  # characters: a message may quote the request
# The first class that an error is an instance of decides.
KINDS: Sequence[tuple[type[Exception], int, str, str | None]] = (
    (UnknownModelError, 404, INVALID, "model_not_found"),
    (RefusedError, 403, "permission_error", "not_allowed"),
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (NoWorkerError, 503, "server_error", "no_media_worker"),
    (DrainingError, 503, "server_error", "shutting_down"),
    (OutOfTimeError, 408, "timeout_error", "timeout"),
    (PromptTooLongError, 400, INVALID, "context_length_exceeded"),
    (MediaTooLargeError, 400, INVALID, "media_too_large"),
    (MediaFetchError, 400, INVALID, "media_unreachable"),
    (MediaNotFoundError, 400, INVALID, "media_not_found"),
    (MediaDecodeError, 400, INVALID, "invalid_media"),
    (MediaError, 400, INVALID, "invalid_media"),
    (UnsupportedError, 400, INVALID, "unsupported"),
    (MissingDependencyError, 400, INVALID, "unsupported"),
    (CacheError, 500, "server_error", None),  # nobody hands over a cache here
    (GenerationError, 400, INVALID, "invalid_value"),
    (InputError, 400, INVALID, "invalid_value"),
    (InputTypeError, 400, INVALID, "invalid_value"),
    (UnknownNameError, 400, INVALID, "invalid_value"),
)
_PLACE = re.compile(r"((?:messages|input)(?:\[\d+\]|\.\w+)+):")
UNEXPECTED = "The server failed to answer this request; its log says why."


class ErrorDetail(BaseModel):
    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is none, for the description of the API."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status, and ``{"error": {"message", "type", "param", "code"}}``."""
    if (found := _validation_errors(error)) is not None:
        return 400, _from_validation(found, getattr(error, "body", None))
    if (status := _http_status(error)) is not None:
        return status, body(str(getattr(error, "detail", "") or ""), _type_of(status), code=None)
    for kind, status, type_, code in KINDS:
        if status == 500 and isinstance(error, kind):
            break
        if isinstance(error, kind):
            param = getattr(error, "param", None) or _param_of(str(error))
            return status, body(str(error), type_, param=param, code=getattr(error, "code", None) or code)
    return 500, body(UNEXPECTED, "server_error")


def body(message: str, type_: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    if len(message) > LONGEST_MESSAGE:
        message = message[: LONGEST_MESSAGE - 1] + "…"
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def _validation_errors(error: Exception) -> Sequence[Mapping[str, Any]] | None:
    """pydantic's own, or FastAPI's, which is no subclass of it."""
    if isinstance(error, ValidationError):
        return error.errors(include_url=False)
    if type(error).__name__ == "RequestValidationError":
        return list(error.errors())  # type: ignore[attr-defined]
    return None


def _http_status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and hasattr(error, "detail") else None


def _type_of(status: int) -> str:
    return {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else INVALID
    )


def _from_validation(errors: Sequence[Mapping[str, Any]], sent: Any) -> dict[str, Any]:
    """One sentence about the error that says most: of alternatives, the one that got farthest."""
    error = max(errors, key=lambda e: (e["type"] == "request", len(e["loc"])))
    place = [part for part in error["loc"] if part not in ("body", "query", "path")]
    if error["type"] == "json_invalid":
        return body("The body of the request is not valid JSON.", INVALID, code="invalid_json")
    if error["type"] == "request":
        context = error["ctx"]
        return body(context["message"], INVALID, param=context["param"] or None, code=context["code"])
    param = path(place, sent, missing=error["type"] == "missing")
    if error["type"] == "missing" and not param:
        return body("The request has no body; send a JSON object.", INVALID, code="missing_body")
    if error["type"] == "missing":
        return body(f"{param} is missing.", INVALID, param=param, code="missing_required_parameter")
    return body(
        f"{param or 'The body'}: {_sentence(error)}.",
        INVALID,
        param=param or None,
        code="invalid_type" if str(error["type"]).endswith("_type") else "invalid_value",
    )


def _param_of(message: str) -> str | None:
    """Errors of media begin with their place in the request."""
    found = _PLACE.match(message)
    return None if found is None else found[1]


def _sentence(error: Mapping[str, Any]) -> str:
    context = error.get("ctx") or {}
    field = str(context.get("discriminator", "")).strip("'")
    if error["type"] == "union_tag_invalid":
        return f"its {field} is {str(context['tag'])[:80]!r}, not one of {context['expected_tags']}"
    if error["type"] == "union_tag_not_found":
        return f"it needs a {field}"
    text = str(error["msg"])
    return text[:1].lower() + text[1:]


def path(place: Sequence[Any], sent: Any, *, missing: bool = False) -> str:
    """``messages[0].content[1].text`` from a location of pydantic's, which also names the alternatives that
    it tried: those are no keys of what was ``sent``. ``missing``: the last part is a key that was not."""
    names, value = "", sent
    for number, part in enumerate(place):
        if isinstance(part, int):
            names += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
            continue
        there = isinstance(value, Mapping) and part in value
        if there or sent is None or (missing and number == len(place) - 1):
            names += f".{part}" if names else str(part)
            value = value[part] if there and isinstance(value, Mapping) else None
    return names
