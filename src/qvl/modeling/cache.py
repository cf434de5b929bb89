"""The documented caches: keys and values of every row of a batch, without its padding.

A row is an engine `SequenceKV`, so what ``generate`` leaves behind and what ``forward`` returns are one.
The cache also carries what else belongs to its rows: which padded cells were real, and the rotary offsets.

Legend: B batch, L new cells, S cells so far, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from qvl.engine.kv import SequenceKV
from qvl.errors import CacheError


class Cache:
    """Base of `DynamicCache` and `StaticCache`; not made by itself.

    ``rows``: one `SequenceKV` per batch row (empty before the first forward). ``mask_BS``: which of the
    padded cells so far hold real tokens. ``rope_deltas``: (B, 1), rotary position of the next token minus
    the number of real tokens. ``ends``: per row, the rotary position that follows each of its real tokens,
    from which `crop` finds the deltas again. ``stored``: the dtype that rows keep keys and values in (see
    `SequenceKV`); `__getitem__` gives them in the model's.
    """

    stored: torch.dtype | None = None

    def __init__(self) -> None:
        self.rows: list[SequenceKV] = []
        self.mask_BS: torch.Tensor | None = None
        self.rope_deltas: torch.Tensor | None = None
        self.ends: list[torch.Tensor] = []

    # -- what the models call -------------------------------------------------------------------------

    def prepare(self, text_config: Any, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        """Makes the rows on the first use; later only checks that the batch is the same."""
        if not self.rows:
            self.rows = [self._new_row(text_config, dtype, device) for _ in range(batch)]
        if len(self.rows) != batch:
            raise CacheError(
                f"past_key_values holds {len(self.rows)} rows but the call has {batch}; "
                "use batch_repeat_interleave or batch_select_indices to change the cache's batch"
            )

    def _new_row(self, text_config: Any, dtype: torch.dtype, device: torch.device) -> SequenceKV:
        return SequenceKV(
            text_config.num_hidden_layers,
            text_config.num_key_value_heads,
            text_config.head_dim,
            dtype=dtype,
            device=device,
            stored=self.stored,
        )

    def extend_mask(self, mask_BL: torch.Tensor | None, columns: int) -> None:
        """Notes which of the new ``columns`` cells are real (None: all)."""
        new = (
            torch.ones(len(self.rows), columns, dtype=torch.bool) if mask_BL is None else (mask_BL != 0).cpu()
        )
        self.mask_BS = new if self.mask_BS is None else torch.cat([self.mask_BS, new], dim=1)

    def advance(
        self,
        lengths: Sequence[int],
        mask_BL: torch.Tensor | None,
        columns: int,
        ends: Sequence[torch.Tensor],
    ) -> None:
        """Counts what every layer has just written: ``lengths`` real tokens in ``columns`` new cells."""
        for row, length in zip(self.rows, lengths, strict=True):
            row.advance(length)
        self.extend_mask(mask_BL, columns)
        before = self.ends or [torch.empty(0, dtype=torch.int64)] * len(ends)
        self.ends = [torch.cat(both) for both in zip(before, ends, strict=True)]

    def next_positions(self) -> list[int]:
        """Per row, the rotary position of its next token: real tokens so far + rope delta."""
        deltas = [0] * len(self.rows) if self.rope_deltas is None else self.rope_deltas.flatten().tolist()
        return [row.length + int(delta) for row, delta in zip(self.rows, deltas, strict=True)]

    # -- the documented surface -----------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Cells seen so far, padding included."""
        return 0 if self.mask_BS is None else self.mask_BS.shape[1]

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """The most cells that fit, -1 if there is no limit."""
        return -1

    @property
    def max_cache_len(self) -> int:
        return self.get_max_cache_shape()

    @property
    def max_batch_size(self) -> int:
        return len(self.rows)

    @property
    def is_initialized(self) -> bool:
        return bool(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(row.nbytes for row in self.rows)

    def crop(self, max_length: int) -> None:
        """Keeps the first ``max_length`` cells; a negative number drops that many from the end."""
        if self.mask_BS is None:
            return
        cells = self.mask_BS.shape[1]
        keep = max(0, cells + max_length) if max_length < 0 else min(max_length, cells)
        self.mask_BS = self.mask_BS[:, :keep]
        lengths = self.mask_BS.sum(1).tolist()
        for row, length in zip(self.rows, lengths, strict=True):
            row.truncate(length)
        self.ends = [end[:length] for end, length in zip(self.ends, lengths, strict=True)]
        following = [int(end[-1]) if len(end) else 0 for end in self.ends]
        self.rope_deltas = (torch.tensor(following) - torch.tensor(lengths)).unsqueeze(1)

    def reset(self) -> None:
        """Forgets every token, keeps the memory."""
        self.mask_BS = None
        self.rope_deltas = None
        self.ends = []
        for row in self.rows:
            row.truncate(0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Row i becomes what row ``indices[i]`` was."""
        order = indices.tolist()
        first_use: set[int] = set()
        rows = []
        for index in order:
            rows.append(self.rows[index].copy() if index in first_use else self.rows[index])
            first_use.add(index)
        self.rows = rows
        self.mask_BS = None if self.mask_BS is None else self.mask_BS[order]
        self.ends = [self.ends[index] for index in order] if self.ends else []
        self.rope_deltas = None if self.rope_deltas is None else self.rope_deltas[order]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """`batch_select_indices` under the name that beam search uses."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times, copies beside each other."""
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, padded: two (B, G, S, D); padded cells are zeros."""
        return self._padded(layer_idx, 0), self._padded(layer_idx, 1)

    def __len__(self) -> int:
        """Number of layers."""
        return self.rows[0].num_layers if self.rows else 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self[layer] for layer in range(len(self)))

    def _padded(self, layer: int, which: int) -> torch.Tensor:
        if self.mask_BS is None:
            raise CacheError("the cache is empty: run a forward pass with it first")
        stored = [row.read(layer)[which] for row in self.rows]  # (S, G, D) each
        out = stored[0].new_zeros(*self.mask_BS.shape, *stored[0].shape[1:])
        out[self.mask_BS.to(out.device)] = torch.cat(stored)
        return out.transpose(1, 2)


class DynamicCache(Cache):
    """Grows with the sequences it holds, geometrically: no copy per step.

    ``config`` is accepted as in transformers and not needed.
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__()

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Per layer the padded keys and values, two (B, G, S, D)."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> DynamicCache:
        """From per-layer (keys, values) of shape (B, G, S, D); all cells count as real tokens."""
        cache = cls()
        if not past_key_values:
            return cache
        batch, heads, cells, width = past_key_values[0][0].shape
        for b in range(batch):
            first = past_key_values[0][0]
            row = SequenceKV(
                len(past_key_values), heads, width, dtype=first.dtype, device=first.device, capacity=cells
            )
            for layer, (keys, values) in enumerate(past_key_values):
                row.write(layer, keys[b].transpose(0, 1), values[b].transpose(0, 1))
            cache.rows.append(row)
        cache.advance([cells] * batch, None, cells, [torch.arange(1, cells + 1)] * batch)
        return cache


class StaticCache(Cache):
    """Allocated once for ``max_cache_len`` tokens a row; a longer sequence is an error, not a new allocation.

    More rows than ``max_batch_size`` are an error. ``device`` and ``dtype`` are accepted as in transformers
    and decide nothing: rows are made at the first forward pass, on the model's device and in its dtype.
    """

    def __init__(
        self,
        config: Any,
        max_cache_len: int,
        max_batch_size: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if max_cache_len <= 0:
            raise CacheError(f"max_cache_len must be positive, got {max_cache_len}")
        self._max_cache_len = max_cache_len
        self._batch_limit = max_batch_size

    def prepare(self, text_config: Any, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        if self._batch_limit is not None and batch > self._batch_limit:
            raise CacheError(
                f"the StaticCache was made for {self._batch_limit} rows but the call has {batch}"
            )
        super().prepare(text_config, batch, dtype, device)

    def _new_row(self, text_config: Any, dtype: torch.dtype, device: torch.device) -> SequenceKV:
        return SequenceKV(
            text_config.num_hidden_layers,
            text_config.num_key_value_heads,
            text_config.head_dim,
            dtype=dtype,
            device=device,
            capacity=self._max_cache_len,
            max_capacity=self._max_cache_len,
            stored=self.stored,
        )

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return self._max_cache_len
