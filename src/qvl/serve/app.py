"""The application: routes, what stands before them, and what starts and ends with the server.

Knows a `Backend` and nothing of how it was loaded, nor of sockets and signals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qvl.errors import QvlError, missing_dependency
from qvl.serve.jobs import Backend

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import JSONResponse
except ImportError:
    raise missing_dependency("fastapi", "serve", "qvl serve") from None

import qvl
from qvl.serve.middleware import Guarded, Recorded, Watched
from qvl.serve.responses import error_response


def create_app(backend: Backend) -> FastAPI:
    """An ASGI application around ``backend``, which it starts and ends with its lifespan.

    Its description is at ``/openapi.json``; there are no pages of documentation that load scripts from
    elsewhere.
    """
    app = FastAPI(
        title="qvl",
        version=qvl.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.backend = backend
    _add_middleware(app, backend)
    for kind in (QvlError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)
    _add_routes(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    backend: Backend = app.state.backend
    try:
        if backend.media is not None:
            await backend.media.start()
    except Exception as error:
        app.state.failure = error  # for whoever started the server: uvicorn itself only logs it
        raise
    backend.service.start()
    try:
        yield
    finally:
        await backend.service.close()
        if backend.media is not None:
            await backend.media.close()


def _add_middleware(app: FastAPI, backend: Backend) -> None:
    app.add_middleware(Watched, backend=backend)  # the last one added is the outermost
    app.add_middleware(Guarded, backend=backend)
    if origins := backend.settings.access.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Recorded, backend=backend)


def _add_routes(app: FastAPI) -> None:
    from qvl.serve import routes
    from qvl.serve.routes import operations

    for router in (operations.router, *routes.routers):
        app.include_router(router)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return error_response(error)
