"""Pictures for requests, and a media service without processes, which answers in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from PIL.Image import Image

from qvl.processing.media.opening import load_image
from qvl.serve.media.requests import MediaRequest, MediumCost, PreparedMedia
from qvl.types import Grid, Medium
from support.media import data_uri, encoded, photo
from support.serving import bundled_processor


def picture_uri(width: int = 120, height: int = 90, seed: int = 0) -> str:
    """A picture of noise as a data URI."""
    return data_uri(encoded(photo(height, width, seed)), "image/png")


class FakeMedia:
    """In a `MediaService`'s place: pictures by the bundled processor, files as ``pages`` grey pages.

    ``asked``: all requests. ``most_tokens``: that each call allowed.
    """

    alive = True

    def __init__(self, pages: int = 1) -> None:
        self.asked: list[MediaRequest] = []
        self.most_tokens: list[int] = []
        self.pages = pages

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def prepare(self, requests: Any, *, most_tokens: int) -> list[PreparedMedia]:
        self.asked += requests
        self.most_tokens.append(most_tokens)
        return [self._prepared(request) for request in requests]

    async def measure(self, requests: Any) -> list[list[MediumCost]]:
        return [list(self._prepared(request).costs) for request in requests]

    def _prepared(self, request: MediaRequest) -> PreparedMedia:
        if request.kind == "file":
            page = Medium("image", Grid(1, 4, 4), torch.zeros(16, 1176))
            return PreparedMedia(request, (page,) * self.pages, (_cost(page, 56, 56),) * self.pages)
        image: Image = load_image(request.url)
        options = [dict(request.options)]
        made = bundled_processor().image_processor([image], overrides=options, return_tensors="pt")
        medium = Medium("image", Grid(*made["image_grid_thw"][0].tolist()), made["pixel_values"])
        return PreparedMedia(request, (medium,), (_cost(medium, *image.size),))


def _cost(medium: Medium, width: int, height: int) -> MediumCost:
    grid = medium.grid
    return MediumCost(medium.kind, width, height, grid.w * 14, grid.h * 14, grid, grid.tokens(2))
