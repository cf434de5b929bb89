"""What a request says of one medium, what it would cost and what became of it: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qvl.types import Grid, Medium, Modality

RequestKind = Literal["image", "video", "file"]


@dataclass(frozen=True)
class MediaRequest:
    """One medium as a request names it.

    ``where``: its place in the request, for messages ("messages[0].content[1]"). ``kind``: "image",
    "video" or "file" (a PDF, each page of which becomes a picture). ``url``: ``http(s):``, ``data:`` or
    ``file:``. ``options``: of pictures and pages ``min_pixels``, ``max_pixels``, ``resized_height``,
    ``resized_width``; of videos these and ``fps``, ``num_frames`` or ``nframes``, ``min_frames``,
    ``max_frames``, ``video_start``, ``video_end``, ``total_pixels``, ``frame_sampling``; of PDFs ``pages``,
    a list of page numbers from 1. None counts as not given. ``most_tokens``: the size is chosen so that a
    picture, a page or a whole video takes no more tokens than that; ``max_pixels`` in ``options`` wins.
    """

    where: str
    kind: RequestKind
    url: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    most_tokens: int | None = None


@dataclass(frozen=True)
class MediumCost:
    """One picture, page or video, and what it becomes.

    ``width``, ``height``: pixels as shown, turned by EXIF or the video's rotation; ``resized_*``: as the
    model sees it; ``grid``: in patches. Of videos also ``seconds`` (length of the whole file), ``frames``
    (that are taken) and ``sampled_fps`` (frames per second at which they are taken).
    """

    kind: Modality
    width: int
    height: int
    resized_width: int
    resized_height: int
    grid: Grid
    tokens: int
    seconds: float = 0.0
    frames: int = 0
    sampled_fps: float = 0.0


@dataclass(frozen=True, eq=False)
class PreparedMedia:
    """What became of one `MediaRequest`: one medium and its cost, or one for each page of a PDF."""

    request: MediaRequest
    media: tuple[Medium, ...]
    costs: tuple[MediumCost, ...]
