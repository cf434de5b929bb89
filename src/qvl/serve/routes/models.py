"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from qvl.serve.routes.api import FAILURES, Api, api_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="The model that is served", responses=FAILURES)
async def models(request: Request) -> dict[str, Any]:
    """A list of one."""
    return {"object": "list", "data": [_model(api_of(request))]}


@router.get("/v1/models/{model:path}", summary="One model", responses=FAILURES)
async def one_model(model: str, request: Request) -> dict[str, Any]:
    """404 for any other name."""
    api = api_of(request)
    api.check_model(model)
    return _model(api)


def _model(api: Api) -> dict[str, Any]:
    return {
        "id": api.settings.name,
        "object": "model",
        "created": api.started,
        "owned_by": "qvl",
        "max_model_len": api.conversations.context,
    }
