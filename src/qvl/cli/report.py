"""What ``qvl ask --json`` says of an answer: what it cost, what became of the media, where its boxes lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qvl.cli.common import Answer
from qvl.cli.media import MediaFile, described
from qvl.processing.grounding import Box, Point, ground
from qvl.types import Grid


def report(
    media: Sequence[MediaFile], inputs: Any, processor: Any, answer: Answer, times: Mapping[str, float]
) -> dict[str, Any]:
    """Plain values; ``times`` are seconds by name. docs/cli.md describes every entry."""
    rows = _media_rows(media, inputs, processor)
    tokens = {"prompt": answer.prompt_tokens, "media": sum(row["tokens"] for row in rows)}
    text = processor.decode(answer.token_ids, skip_special_tokens=False)  # box tokens are special ones
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "media": rows,
        "tokens": {**tokens, "generated": len(answer.token_ids)},
        "seconds": {name: round(seconds, 3) for name, seconds in times.items()},
        "boxes": boxes(text, rows, processor.image_processor.patch_size),
    }


def _media_rows(media: Sequence[MediaFile], inputs: Any, processor: Any) -> list[dict[str, Any]]:
    """Every medium with the grid that the processor really made of it."""
    grids = {
        "image": iter(inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else ()),
        "video": iter(inputs["video_grid_thw"].tolist() if "video_grid_thw" in inputs else ()),
    }
    return [described(medium, Grid(*next(grids[medium.kind])), processor) for medium in media]


def boxes(text: str, rows: Sequence[Mapping[str, Any]], patch_size: int) -> list[dict[str, Any]] | None:
    """Boxes and points of the answer in original pixels; None where media differ in size.

    An answer does not say which of several pictures a box lies in.
    """
    sizes = {(row["width"], row["height"], *row["grid"][1:]) for row in rows}
    if len(sizes) != 1:
        return None if sizes else []
    ((width, height, *sides),) = sizes
    return [_plain(shape) for shape in ground(text, Grid(1, *sides), width, height, patch_size)]


def _plain(shape: Box | Point) -> dict[str, Any]:
    if isinstance(shape, Point):
        return {"label": shape.label, "point": [round(shape.x, 1), round(shape.y, 1)]}
    return {"label": shape.label, "box": [round(value, 1) for value in shape.xyxy]}
