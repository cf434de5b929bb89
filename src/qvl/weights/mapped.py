"""A safetensors file as a mapping that is read once, piece by piece, and gives back the pages behind it.

For tensors that are converted or sent to an accelerator: the pages of what was read would count as memory of
the process until the file is closed. Tensors that stay as they are stored are views made by safetensors.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

PIECE = 8 * 2**20  # bytes of the file in memory at a time


class MappedFile:
    """The values of stored tensors; the file is one that safetensors has opened before. Raises OSError."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._header = json.loads(file.read(length))
            self._first = 8 + length
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def copy(self, name: str, stored: torch.dtype, target: Tensor) -> None:
        """Fills ``target``, of any dtype and device, with the values of ``name``, stored as ``stored``."""
        flat = target.view(-1)
        for start, piece in self._pieces(name, stored):
            flat[start : start + piece.numel()] = piece

    def _pieces(self, name: str, stored: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """(number of the first value, values) one after the other; a piece holds only until the next."""
        begin, end = (self._first + offset for offset in self._header[name]["data_offsets"])
        for position in range(begin, end, PIECE):
            size = min(PIECE, end - position)
            count = size // stored.itemsize
            piece = torch.frombuffer(self._mapping, dtype=stored, count=count, offset=position)
            yield (position - begin) // stored.itemsize, piece
            self._forget(position, size)

    def _forget(self, position: int, size: int) -> None:
        """Takes the pages of this stretch out of the process; the system still has them in its cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = position - position % mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_DONTNEED, start, position + size - start)
