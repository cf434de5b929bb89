"""The keys and values that one sequence has left behind.

This file knows tensors and lengths. It does not know which tokens the keys belong to, who shares a step
with whom, or that a prompt can be cut into chunks: it writes at the end and shows everything so far. Who
reads them is in `qvl.engine.attends`.

Legend: T new tokens, S all keys (cached and new), D head width, G key/value heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qvl.engine.kvbuffer import Buffer
from qvl.errors import CacheError

SMALLEST_CAPACITY = 64  # tokens; below this, growing costs more calls than it saves bytes


class SequenceKV:
    """Keys and values of one sequence in all layers, in buffers that grow by doubling.

    ``capacity`` tokens are allocated at once; ``max_capacity`` is a wall that raises `CacheError`. A layer
    whose keys arrive on another device or in another dtype (a model spread over devices, autocast) moves
    its still empty buffer there.

    ``stored``: the dtype that keys are kept in, float32, bfloat16 or int8 (each 32 values with a scale of
    their own, 8.5 bits a value); None keeps them as the model writes them.
    """

    draft: Any = None  # what a draft model keeps of the same tokens; see `qvl.engine.draft`

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        capacity: int = 0,
        max_capacity: int | None = None,
        stored: torch.dtype | None = None,
    ) -> None:
        if max_capacity is not None and capacity > max_capacity:
            raise CacheError(
                f"A cache of at most {max_capacity} tokens cannot start with room for {capacity}."
            )
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.max_capacity = max_capacity
        self.stored = stored
        self.length = 0
        self._dtype = dtype  # of the keys that come and go
        shape = (num_kv_heads, capacity, head_dim, stored or dtype, device)
        self._keys = [Buffer.empty(*shape) for _ in range(num_layers)]
        self._values = [Buffer.empty(*shape) for _ in range(num_layers)]
        self._table: Tensor | None = None  # see make_room
        self._table_room = 0

    @property
    def num_layers(self) -> int:
        return len(self._keys)

    @property
    def capacity(self) -> int:
        """Tokens that fit before the first layer has to grow."""
        return min((k.capacity for k in self._keys), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, used or not."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    @property
    def token_bytes(self) -> int:
        """Bytes that room for one token takes, in all layers."""
        return sum(buffer.token_bytes for buffer in (*self._keys, *self._values))

    @property
    def kept(self) -> torch.dtype | None:
        """The dtype of all buffers, if they are plain memory of the processor's own."""
        first = self._keys[0].cells
        return first.dtype if all(k.cells.is_cpu for k in self._keys) else None

    def write(self, layer: int, k_TGD: Tensor, v_TGD: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys behind the ``length`` known ones; ``(k_SGD, v_SGD)`` of all come back.

        ``length`` itself moves only with `advance`, once every layer has written.
        """
        k_GSD, v_GSD = self.append(layer, k_TGD, v_TGD)
        return k_GSD.transpose(0, 1), v_GSD.transpose(0, 1)

    def append(self, layer: int, k_TGD: Tensor, v_TGD: Tensor) -> tuple[Tensor, Tensor]:
        """`write` whose keys and values come back head-major, (G, S, D)."""
        end = self.length + k_TGD.shape[0]
        self.check(k_TGD)
        self._reserve(layer, end, k_TGD)
        self._dtype = k_TGD.dtype
        keys, values = self._keys[layer], self._values[layer]
        keys.write(self.length, k_TGD)
        values.write(self.length, v_TGD)
        return keys.read(end, k_TGD.dtype), values.read(end, v_TGD.dtype)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """``(k_SGD, v_SGD)`` of the first ``length`` tokens, in the dtype in which the model writes them."""
        k_GSD, v_GSD = (b[layer].read(self.length, self._dtype) for b in (self._keys, self._values))
        return k_GSD.transpose(0, 1), v_GSD.transpose(0, 1)

    def make_room(self, count: int, like: Tensor) -> Tensor:
        """Room for ``count`` tokens in all layers; int64 (layers, 5): where a kernel finds each.

        Addresses of keys, values, key scales and value scales, and the elements from one head to the next.
        They hold until a buffer grows, so this is asked before every step, and made anew only then.
        """
        needed = self.length + count
        if self._table is None or needed > self._table_room or like.dtype != self._dtype:
            for layer in range(self.num_layers):
                self._reserve(layer, needed, like)
            self._dtype = like.dtype
            self._table = torch.tensor(
                [
                    [k.addresses[0], v.addresses[0], k.addresses[1], v.addresses[1], k.cells.stride(0)]
                    for k, v in zip(self._keys, self._values, strict=True)
                ]
            )
            self._table_room = self.capacity
        return self._table

    def advance(self, count: int) -> None:
        """Count the ``count`` tokens that every layer has just written."""
        if self.length + count > self.capacity:
            raise CacheError(
                f"Cannot count {count} tokens behind {self.length}: the layers have written at most "
                f"{self.capacity}."
            )
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget everything behind the first ``length`` tokens. The memory stays."""
        if not 0 <= length <= self.length:
            raise CacheError(f"Cannot cut a cache of {self.length} tokens to {length}.")
        self.length = length

    def resize(self, capacity: int) -> None:
        """Room for just so many tokens in all layers, at least those that are there."""
        if self.max_capacity is not None:
            capacity = min(capacity, self.max_capacity)
        capacity = max(capacity, self.length)
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                if buffer.capacity != capacity:
                    cells = buffer.cells
                    buffers[layer] = buffer.resized(capacity, self.length, cells.dtype, cells.device)
        self._table = None

    def copy(self, length: int | None = None, capacity: int | None = None) -> SequenceKV:
        """An independent copy that holds the same tokens, with room for as many more as this one has.

        ``length``: only the first so many. ``capacity``: room for so many.
        """
        twin = object.__new__(SequenceKV)
        twin.num_kv_heads, twin.head_dim = self.num_kv_heads, self.head_dim
        twin.max_capacity = self.max_capacity
        twin.length = self.length if length is None else min(length, self.length)
        twin.stored, twin._dtype, twin._table = self.stored, self._dtype, None
        twin._keys, twin._values = (
            [
                b.resized(
                    b.capacity if capacity is None else max(capacity, twin.length),
                    twin.length,
                    b.cells.dtype,
                    b.cells.device,
                )
                for b in buffers
            ]
            for buffers in (self._keys, self._values)
        )
        return twin

    def follow(self, other: SequenceKV, same: int) -> None:
        """Hold what ``other`` holds from now on. The first ``same`` tokens are equal already and stay."""
        self.length, self._dtype = same, other._dtype
        for layer, (keys, values) in enumerate(zip(other._keys, other._values, strict=True)):
            self._reserve(layer, other.length, keys.cells)
            self._keys[layer].copy_tokens(keys, same, other.length)
            self._values[layer].copy_tokens(values, same, other.length)
        self.length = other.length

    def check(self, k_TGD: Tensor) -> None:
        """Raises CacheError for keys of another model."""
        if k_TGD.shape[1:] != (self.num_kv_heads, self.head_dim):
            raise CacheError(
                f"This cache holds {self.num_kv_heads} key/value heads of width {self.head_dim}, but the "
                f"model writes {k_TGD.shape[1]} of width {k_TGD.shape[2]}: it was made for another model."
            )

    def _reserve(self, layer: int, needed: int, like: Tensor) -> None:
        """Make room for ``needed`` tokens in one layer, on the device and in the dtype of ``like``."""
        if self.max_capacity is not None and needed > self.max_capacity:
            raise CacheError(
                f"This cache holds at most {self.max_capacity} tokens and {needed} are needed; "
                "make it larger or generate fewer tokens."
            )
        buffer, dtype = self._keys[layer], self.stored or like.dtype
        size, cells = buffer.capacity, buffer.cells
        same = cells.dtype == dtype and cells.device == like.device
        if size >= needed and same:
            return
        if self.length and not same:
            raise CacheError(
                f"This cache holds {cells.dtype} keys on {cells.device}, but the model now writes "
                f"{like.dtype} on {like.device}; use one dtype and one placement from start to end."
            )
        if size < needed:
            size = max(needed, 2 * size, SMALLEST_CAPACITY)
        size = size if self.max_capacity is None else min(size, self.max_capacity)
        for buffers in (self._keys, self._values):
            buffers[layer] = buffers[layer].resized(size, self.length, dtype, like.device)
        self._table = None
