"""The media service with its work counted: what an operator sees of pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qvl.errors import InputError
from qvl.serve.errors import DrainingError, QueueFullError
from qvl.serve.metrics import Metrics


class CountedMedia:
    """A `MediaService` that tells ``metrics`` what became of the media of each request. All else is the
    service's own.
    """

    def __init__(self, media: Any, metrics: Metrics) -> None:
        self._media = media
        self._metrics = metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self._media, name)

    async def prepare(self, requests: Sequence[Any], *, most_tokens: int) -> list[Any]:
        """As `MediaService.prepare`. One medium that is refused refuses all that came with it."""
        try:
            prepared: list[Any] = await self._media.prepare(requests, most_tokens=most_tokens)
        except Exception as error:
            turned_away = isinstance(error, InputError | QueueFullError | DrainingError)
            self._count(requests, "refused" if turned_away else "failed")
            raise
        self._count(requests, "ok")
        return prepared

    def _count(self, requests: Sequence[Any], outcome: str) -> None:
        for request in requests:
            self._metrics.medium(request.kind, outcome)
