"""One line of JSON on stderr for every request: what it cost and how it ended, never what it said.

No prompts, answers, keys or pixels: a log travels further than a request.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import monotonic
from typing import Any, TextIO

from qvl.serve.jobs import JobEnd, Usage


@dataclass(eq=False)
class RequestRecord:
    """What is known of the request that is being answered. ``client``: a digest of its key, or its address.

    ``deadline``: on `time.monotonic`'s clock. ``media``: the pictures and videos of its prompts, by identity.
    """

    id: str = ""
    client: str = ""
    method: str = ""
    route: str = ""
    status: int = 0
    begun: float = field(default_factory=monotonic)
    deadline: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    media: set[int] = field(default_factory=set)
    first_token: float = 0.0
    ends: list[str] = field(default_factory=list)

    def count(self, end: JobEnd, usage: Usage, first_token: float) -> None:
        """Note one finished answer: several of them (``n``) share their prompt."""
        self.prompt_tokens = max(self.prompt_tokens, usage.prompt_tokens)
        self.cached_tokens = max(self.cached_tokens, usage.cached_tokens)
        self.completion_tokens += usage.completion_tokens
        if first_token and (not self.first_token or first_token < self.first_token):
            self.first_token = first_token
        self.ends.append(end)

    def line(self) -> dict[str, Any]:
        """The fields of its log line."""
        now = monotonic()
        return {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "media": len(self.media),
            "first_token_ms": round(1000 * (self.first_token - self.begun)) if self.first_token else None,
            "total_ms": round(1000 * (now - self.begun)),
            "end": ",".join(self.ends) or None,
        }


# The request in whose context the code runs; None outside of requests.
current: ContextVar[RequestRecord | None] = ContextVar("qvl_request", default=None)


def write(record: RequestRecord, stream: TextIO | None = None) -> None:
    """Write the record's line; a log that nobody reads any more does not fail a request."""
    with suppress(OSError, ValueError):
        print(json.dumps(record.line()), file=stream or sys.stderr, flush=True)
