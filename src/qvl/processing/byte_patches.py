"""Frames of bytes to normalised patches: 256 values per channel, computed once and looked up.

Normalising works on each value alone, so a table of what it makes of every byte gives the same numbers, bit
for bit, without ever holding the frames as floats. It knows no sizes and no rules of normalising.

Legend of shape suffixes: T frames, C channels or, at the end of PC, values of one patch, H height, W width,
P patches. Axes in einops' letters: r rows of tokens, w tokens in a row, c channels, a frames of a patch,
m and n patches down and across a token, p and q pixels down and across a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qvl.processing.threads import in_threads

PIECE = 1 << 17  # bytes of frames that are looked up at a time: their patches stay in the processor's cache


@dataclass(frozen=True)
class Cut:
    """How frames are cut: ``patch`` pixels a side, ``temporal`` frames deep, ``merge`` patches a side."""

    patch: int
    temporal: int
    merge: int


def byte_table(normalise: Callable[[torch.Tensor], torch.Tensor], channels: int) -> torch.Tensor:
    """(C, 256): what ``normalise``, which takes (patches, C, frames, pixels), makes of every byte."""
    bytes_ = torch.arange(256, dtype=torch.uint8).expand(1, channels, 1, 256)
    return normalise(bytes_)[0, :, 0].contiguous()


def fill_rows(
    media: Sequence[torch.Tensor], cut: Cut, table_C256: torch.Tensor, rows_PC: torch.Tensor
) -> None:
    """Writes the patches of all ``media`` (frames (T, C, H, W) uint8 each) into ``rows_PC``, end to end.

    T divides by ``cut.temporal``, or is 1: then the frame stands for all of its patch's.
    """
    table = table_C256.numpy().reshape(-1)
    offsets = 256 * np.arange(len(table_C256), dtype=np.intp)[:, None]
    pieces, position = [], 0
    for frames_TCHW in media:
        for piece in _pieces(frames_TCHW.numpy(), cut):
            count = piece.shape[0] * piece.shape[4] * cut.merge**2
            pieces.append((piece, rows_PC[position : position + count].numpy()))
            position += count

    def work(item: tuple[np.ndarray, np.ndarray]) -> None:
        _fill(*item, cut, table, offsets)

    in_threads(work, pieces)


def _pieces(frames_TCHW: np.ndarray, cut: Cut) -> Iterator[np.ndarray]:
    """Views of the frames with the axes (r, a, c, m p, w, n, q), in the order in which their patches come."""
    total, channels, height, width = frames_TCHW.shape
    depth = 1 if total == 1 else cut.temporal
    side = cut.merge * cut.patch
    shape = (total // depth, depth, channels, height // side, side, width // side, cut.merge, cut.patch)
    steps = frames_TCHW.reshape(shape).transpose(0, 3, 1, 2, 4, 5, 6, 7)
    many = max(1, PIECE // (depth * channels * side * width))
    for step in steps:
        for start in range(0, len(step), many):
            yield step[start : start + many]


def _fill(piece: np.ndarray, rows_PC: np.ndarray, cut: Cut, table: np.ndarray, offsets: np.ndarray) -> None:
    rows, depth, channels, _, tokens, merge, patch = piece.shape
    split = piece.reshape(rows, depth, channels, merge, patch, tokens, merge, patch)
    places = np.ascontiguousarray(split.transpose(0, 5, 3, 6, 2, 1, 4, 7)).astype(np.intp)
    places = places.reshape(-1, channels, depth * patch * patch)
    places += offsets
    target = rows_PC.reshape(-1, channels, cut.temporal, patch * patch)
    values = table.take(places, mode="clip").reshape(-1, channels, depth, patch * patch)
    target[:] = values
