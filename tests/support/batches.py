"""Padded batches of prompts with pictures and videos for tiny models, as arguments of a forward call."""

from __future__ import annotations

from typing import Any

import torch

from support.tiny import IMAGE, VIDEO, VISION_END, VISION_START, random_ids, random_patches

GridShape = tuple[int, int, int]


def prompt_row(*parts: int | tuple[str, GridShape], seed: int = 0) -> tuple[torch.Tensor, list, list]:
    """Ids of one row, its image grids and its video grids. An int is so many text tokens."""
    ids, images, videos = [], [], []
    for index, part in enumerate(parts):
        if isinstance(part, int):
            ids.append(random_ids(part, seed=seed + index))
            continue
        kind, grid = part
        (images if kind == "image" else videos).append(grid)
        count = grid[0] * grid[1] * grid[2] // 4
        token = IMAGE if kind == "image" else VIDEO
        ids.append(torch.tensor([VISION_START, *[token] * count, VISION_END]))
    return torch.cat(ids), images, videos


def batch(
    *rows: tuple[torch.Tensor, list, list],
    side: str = "left",
    seconds: float = 1.0,
    pad: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Forward arguments of several rows, padded on ``side``."""
    width = max(len(ids) for ids, _, _ in rows)
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(input_ids)
    for i, (ids, _, _) in enumerate(rows):
        cells = slice(0, len(ids)) if side == "right" else slice(width - len(ids), width)
        input_ids[i, cells], mask[i, cells] = ids, 1
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
    images = [grid for row in rows for grid in row[1]]
    videos = [grid for row in rows for grid in row[2]]
    if images:
        arguments |= {"pixel_values": random_patches(images, seed), "image_grid_thw": torch.tensor(images)}
    if videos:
        arguments |= {
            "pixel_values_videos": random_patches(videos, seed + 1),
            "video_grid_thw": torch.tensor(videos),
            "second_per_grid_ts": torch.full((len(videos),), seconds),
        }
    return arguments


def single(arguments: dict[str, Any], rows: tuple, index: int) -> dict[str, Any]:
    """Row ``index`` of a batch as a call of its own: no padding, only its own media."""
    before, own = rows[:index], rows[index]
    out: dict[str, Any] = {
        "input_ids": own[0][None],
        "attention_mask": torch.ones(1, len(own[0]), dtype=torch.long),
    }
    for which, pixels, grids in (
        (1, "pixel_values", "image_grid_thw"),
        (2, "pixel_values_videos", "video_grid_thw"),
    ):
        first = sum(len(row[which]) for row in before)
        count = len(own[which])
        if not count:
            continue
        sizes = [int(g.prod()) for g in arguments[grids]]
        start, stop = sum(sizes[:first]), sum(sizes[: first + count])
        out[pixels], out[grids] = arguments[pixels][start:stop], arguments[grids][first : first + count]
        if which == 2:
            out["second_per_grid_ts"] = arguments["second_per_grid_ts"][first : first + count]
    return out


MIXED = (
    prompt_row(5, ("image", (1, 4, 6)), 7, seed=1),
    prompt_row(3, ("video", (3, 4, 4)), 4, ("image", (1, 6, 10)), 2, seed=2),
    prompt_row(9, seed=3),
    prompt_row(2, ("image", (1, 4, 4)), 1, ("image", (1, 8, 4)), 3, ("video", (2, 6, 4)), 1, seed=4),
)
