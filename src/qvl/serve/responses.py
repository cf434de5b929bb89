"""Errors as responses: whatever reaches the edge of the application, with the headers that go with it."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from qvl.serve.errors import DrainingError, NoWorkerError, QueueFullError
from qvl.serve.protocol.failures import failure

# Seconds after which it makes sense to come again.
RETRY_AFTER: dict[type[Exception], int] = {QueueFullError: 5, DrainingError: 10, NoWorkerError: 5}
# OpenAI's names, for programs, of what goes wrong before a request is read.
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    429: "queue_full",
}
_log = logging.getLogger("qvl.serve")


def error_response(error: Exception) -> JSONResponse:
    """In OpenAI's shape. What nobody expected is logged, and told without a word of its text."""
    status, body = failure(error)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
        body["error"]["code"] = CODES.get(status)
    elif status >= 500 and not isinstance(error, DrainingError):
        _log.error("a request failed", exc_info=error)
    if type(error) in RETRY_AFTER:
        headers["Retry-After"] = str(RETRY_AFTER[type(error)])
    return JSONResponse(body, status, headers=headers)
