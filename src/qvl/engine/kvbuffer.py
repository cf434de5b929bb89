"""Memory for the keys, or the values, of one layer of one sequence: in their dtype, another, or 8 bits.

Legend: T new tokens, S tokens that are shown, D head width, G key/value heads, B scales of a row in 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvl.ops.kernels.attention import SCALE_GROUP, dequantize_keys, quantize_keys


@dataclass(frozen=True, eq=False)
class Buffer:
    """``cells``: (G, capacity, D), head-major, so that attention walks contiguous keys. ``scales``: where the
    cells are int8, bfloat16 (G, capacity, B), one for every 32 values."""

    cells: Tensor
    scales: Tensor | None = None

    @classmethod
    def empty(
        cls, heads: int, capacity: int, width: int, dtype: torch.dtype, device: torch.device | str
    ) -> Buffer:
        # Not inference tensors even when generate() makes them: forward() may later write to them outside.
        with torch.inference_mode(False):
            cells = torch.empty(heads, capacity, width, dtype=dtype, device=device)
            if dtype != torch.int8:
                return cls(cells)
            groups = -(-width // SCALE_GROUP)
            return cls(cells, torch.empty(heads, capacity, groups, dtype=torch.bfloat16, device=device))

    @property
    def capacity(self) -> int:
        return self.cells.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors())

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's room."""
        return sum(t.shape[0] * t.shape[2] * t.element_size() for t in self._tensors())

    @property
    def addresses(self) -> tuple[int, int]:
        """Of cells and scales; 0 where there are none."""
        return self.cells.data_ptr(), 0 if self.scales is None else self.scales.data_ptr()

    def write(self, at: int, x_TGD: Tensor) -> None:
        """Put T tokens at place ``at`` and behind it. A buffer is never part of a graph."""
        x_TGD = x_TGD.detach()
        if self.scales is None:
            self.cells.narrow(1, at, len(x_TGD)).transpose(0, 1).copy_(x_TGD)
            return
        for mine, new in zip(self._tensors(), quantize_keys(x_TGD), strict=True):
            mine.narrow(1, at, len(x_TGD)).transpose(0, 1).copy_(new)

    def read(self, end: int, dtype: torch.dtype) -> Tensor:
        """The first ``end`` tokens, head-major (G, S, D): a view, or a copy in another dtype."""
        cells_GSD = self.cells.narrow(1, 0, end)
        if self.scales is not None:
            return dequantize_keys(cells_GSD, self.scales.narrow(1, 0, end), dtype)
        return cells_GSD if cells_GSD.dtype == dtype else cells_GSD.to(dtype)

    def resized(self, capacity: int, used: int, dtype: torch.dtype, device: torch.device) -> Buffer:
        """A new buffer with the first ``used`` tokens of this one."""
        heads, _, width = self.cells.shape
        fresh = Buffer.empty(heads, capacity, width, dtype, device)
        if used:
            fresh.copy_tokens(self, 0, used)
        return fresh

    def copy_tokens(self, other: Buffer, start: int, end: int) -> None:
        """Take tokens ``start`` to ``end`` over from a buffer of the same kind."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine[:, start:end].copy_(theirs[:, start:end])

    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.cells,) if self.scales is None else (self.cells, self.scales)
