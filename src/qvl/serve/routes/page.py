"""The page at `/` and its files, with headers that let it load nothing else and be framed by nobody.

Serves exactly the files of `web/`, read once; knows nothing of what they do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
# What the page may do. blob: and data: are the pictures and videos that somebody gave it. No script can make
# markup of a text: there is no Trusted Types policy that would allow it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304 by its hash
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """``tag``: changes with the content and nothing else."""

    content: bytes
    media_type: str
    tag: str


@lru_cache(maxsize=1)
def page_files() -> Mapping[str, PageFile]:
    """Every file of the page by name."""
    found = {}
    for path in files("qvl.serve").joinpath("web").iterdir():
        media_type = TYPES.get("." + path.name.rpartition(".")[2])
        if media_type is not None:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = PageFile(content, media_type, tag)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    return _answer(request, INDEX)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def page_file(request: Request, name: str) -> Response:
    if name == INDEX or name not in page_files():
        raise HTTPException(404, "The page has no such file.")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    """The file, or 304 for a browser that has it already."""
    file = page_files()[name]
    headers = {**HEADERS, "ETag": file.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
