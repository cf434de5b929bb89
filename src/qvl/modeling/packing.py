"""Between the documented padded call (B, L) and the network's packed tokens (T).

The network has no padding. A padded call is packed on the way in and unpacked on the way out; a padded cell
costs nothing and comes back as zeros.

Legend: B batch, L padded length, T real tokens, K chosen columns, D any trailing sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qvl.errors import InputError, InputTypeError, UnsupportedError


@dataclass(frozen=True, eq=False)
class Packing:
    """Which cells of a (B, L) call hold real tokens.

    ``cells_T``: int64 indices into the flattened B * L cells, row after row; None when all are real.
    ``lengths``: real tokens of each row.
    """

    batch: int
    columns: int
    lengths: tuple[int, ...]
    cells_T: torch.Tensor | None

    @staticmethod
    def of(mask_BL: torch.Tensor | None, batch: int, columns: int) -> Packing:
        """From a mask that is nonzero at real tokens; None means that all are."""
        if mask_BL is None or bool(mask_BL.all()):
            return Packing(batch, columns, (columns,) * batch, None)
        real_BL = mask_BL != 0
        return Packing(batch, columns, tuple(real_BL.sum(1).tolist()), real_BL.flatten().nonzero().squeeze(1))

    def pack(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) to (T, ...)."""
        flat = x_BLD.flatten(0, 1)
        return flat if self.cells_T is None else flat[self.cells_T.to(flat.device)]

    def unpack(self, x_TD: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """(T, ...) to (B, L, ...); padded cells hold ``fill``."""
        tail = x_TD.shape[1:]
        if self.cells_T is None:
            return x_TD.view(self.batch, self.columns, *tail)
        flat = x_TD.new_full((self.batch * self.columns, *tail), fill)
        return flat.index_copy(0, self.cells_T.to(x_TD.device), x_TD).view(self.batch, self.columns, *tail)

    def rows_at(self, columns_K: torch.Tensor) -> torch.Tensor:
        """Packed index of every row's cell in each of K columns, -1 where it is padding: (B, K)."""
        total = sum(self.lengths)
        order = torch.arange(total, device=columns_K.device)
        return self.unpack(order, fill=-1)[:, columns_K]

    def split(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(T, ...) to one tensor per row."""
        return x_TD.split(list(self.lengths))


def read_mask(mask: torch.Tensor | None, batch: int, past: int, columns: int) -> torch.Tensor | None:
    """The mask of the new cells, (B, columns), from a documented ``attention_mask``.

    The mask may cover the new cells only, or the ``past`` cells before them too.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise InputTypeError(
            f"attention_mask must be a tensor of shape (batch, length), not {type(mask).__name__}"
        )
    if mask.ndim != 2:
        raise UnsupportedError(
            f"attention_mask has {mask.ndim} dimensions; qvl takes (batch, length) with 1 at real tokens, "
            "because packed sequences need no mask inside the network"
        )
    if mask.shape[0] != batch or mask.shape[1] not in (columns, past + columns):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; expected ({batch}, {columns})"
            + (f" or ({batch}, {past + columns}), which counts the {past} cells in the cache" if past else "")
        )
    return mask[:, -columns:]
