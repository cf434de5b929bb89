"""The routes of the API: from a checked request to jobs of the engine, and from their pieces to an answer."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import APIRouter

    routers: tuple[APIRouter, ...]


def __getattr__(name: str) -> Any:
    """``routers``: all but that of operations. Imported when asked for, since each needs the extra."""
    if name != "routers":
        raise AttributeError(name)
    from qvl.serve.routes import chat, completions, models, responses, tokenize

    found = [module.router for module in (chat, completions, responses, models, tokenize)]
    if find_spec("qvl.serve.routes.page") is not None:
        from qvl.serve.routes import page

        found.append(page.router)
    return tuple(found)
