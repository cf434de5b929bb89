"""What operators ask: whether the server lives, whether it takes requests, and its metrics."""

from __future__ import annotations

from time import monotonic
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from qvl.serve.jobs import Backend
from qvl.serve.protocol.failures import ErrorBody

MEDIA_GRACE = 30.0  # seconds without a media worker: one that died is replaced in a few
REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"description": "Not for you", "model": ErrorBody}}
DOWN: dict[int | str, dict[str, Any]] = {**REFUSED, 503: {"description": "Not now"}}
router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Whether the server lives", responses=DOWN)
async def health(request: Request) -> JSONResponse:
    """200, or 503 where it should be started again: engine or media workers cannot answer any more."""
    if bad := _failed(request.app.state):
        return JSONResponse({"status": "failed", "failed": bad}, 503)
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Whether the server takes requests", responses=DOWN)
async def ready(request: Request) -> JSONResponse:
    """200, or 503 while it stops or where it does not live."""
    backend: Backend = request.app.state.backend
    if backend.service.draining:
        return JSONResponse({"status": "draining"}, 503)
    if _failed(request.app.state):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ready", "model": backend.settings.name})


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse, responses=REFUSED)
def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    text, content_type = request.app.state.backend.metrics.text()
    return Response(text, media_type=content_type)


def _failed(state: Any) -> list[str]:
    """The parts of the server that do not work, and will not without a new start."""
    backend: Backend = state.backend
    if backend.media is None or backend.media.alive:
        state.media_down_since = None
    elif getattr(state, "media_down_since", None) is None:
        state.media_down_since = monotonic()
    down = getattr(state, "media_down_since", None)
    engine = [] if backend.service.alive else ["engine"]
    media = ["media"] if down is not None and monotonic() - down > MEDIA_GRACE else []
    return engine + media
