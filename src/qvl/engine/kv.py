"""The keys and values that one sequence has left behind, and the attention that reads them.

This file knows tensors and lengths. It does not know which tokens the keys belong to, who shares a step
with whom, or that a prompt can be cut into chunks: it writes at the end and shows everything so far.

Legend: T new tokens, N sequences with one new token each, S all keys (cached and new), D head width, H query
heads, G key/value heads. Storage is head-major, (G, capacity, D) for each layer, so that attention walks
contiguous keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qvl.errors import CacheError
from qvl.ops.attention import Attend, Backend
from qvl.ops.attention.sdpa import sdpa_attention, single_query_attention

SMALLEST_CAPACITY = 64  # tokens; below this, growing costs more calls than it saves bytes


class SequenceKV:
    """Keys and values of one sequence in all layers, in buffers that grow by doubling.

    ``capacity`` tokens are allocated at once; ``max_capacity`` is a wall that raises `CacheError`. A layer
    whose keys arrive on another device or in another dtype (a model spread over devices, autocast) moves
    its still empty buffer there.
    """

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
    ) -> None:
        if max_capacity is not None and capacity > max_capacity:
            raise CacheError(
                f"A cache of at most {max_capacity} tokens cannot start with room for {capacity}."
            )
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.max_capacity = max_capacity
        self.length = 0
        self._keys = [_buffer(num_kv_heads, capacity, head_dim, dtype, device) for _ in range(num_layers)]
        self._values = [_buffer(num_kv_heads, capacity, head_dim, dtype, device) for _ in range(num_layers)]

    @property
    def num_layers(self) -> int:
        return len(self._keys)

    @property
    def capacity(self) -> int:
        """Tokens that fit before the first layer has to grow."""
        return min((k.shape[1] for k in self._keys), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, used or not."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))

    def write(self, layer: int, k_TGD: Tensor, v_TGD: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys behind the ``length`` known ones; views ``(k_SGD, v_SGD)`` of all come back.

        ``length`` itself moves only with `advance`, once every layer has written.
        """
        count = k_TGD.shape[0]
        end = self.length + count
        self.check(k_TGD)
        self._reserve(layer, end, k_TGD)
        # As (S, G, D) views of head-major memory. A buffer is never part of a graph.
        keys, values = self._keys[layer].transpose(0, 1), self._values[layer].transpose(0, 1)
        keys.narrow(0, self.length, count).copy_(k_TGD.detach())
        values.narrow(0, self.length, count).copy_(v_TGD.detach())
        return keys.narrow(0, 0, end), values.narrow(0, 0, end)

    def append(self, layer: int, k_GD: Tensor, v_GD: Tensor) -> tuple[Tensor, Tensor]:
        """`write` for one token; the views of all keys and values come back head-major, (G, S, D)."""
        at, keys = self.length, self._keys[layer]
        if at >= keys.shape[1] or keys.dtype != k_GD.dtype or keys.device != k_GD.device:
            self._reserve(layer, at + 1, k_GD)
        keys, values = self._keys[layer], self._values[layer]
        keys.select(1, at).copy_(k_GD)
        values.select(1, at).copy_(v_GD)
        return keys.narrow(1, 0, at + 1), values.narrow(1, 0, at + 1)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views ``(k_SGD, v_SGD)`` of the first ``length`` tokens."""
        end = self.length
        return self._keys[layer][:, :end].transpose(0, 1), self._values[layer][:, :end].transpose(0, 1)

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

    def copy(self) -> SequenceKV:
        """An independent copy that holds the same tokens, with room for as many more as this one has."""
        twin = object.__new__(SequenceKV)
        twin.num_kv_heads, twin.head_dim = self.num_kv_heads, self.head_dim
        twin.max_capacity, twin.length = self.max_capacity, self.length
        twin._keys = [_resized(t, t.shape[1], self.length, t) for t in self._keys]
        twin._values = [_resized(t, t.shape[1], self.length, t) for t in self._values]
        return twin

    def follow(self, other: SequenceKV, same: int) -> None:
        """Hold what ``other`` holds from now on. The first ``same`` tokens are equal already and stay."""
        self.length = same
        for layer, source in enumerate(zip(other._keys, other._values, strict=True)):
            self._reserve(layer, other.length, source[0])
            for mine, theirs in zip((self._keys[layer], self._values[layer]), source, strict=True):
                mine[:, same : other.length] = theirs[:, same : other.length]
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
        keys = self._keys[layer]
        size = keys.shape[1]
        same = keys.dtype == like.dtype and keys.device == like.device
        if size >= needed and same:
            return
        if self.length and not same:
            raise CacheError(
                f"This cache holds {keys.dtype} keys on {keys.device}, but the model now writes {like.dtype} "
                f"on {like.device}; use one dtype and one placement from start to end."
            )
        if size < needed:
            size = max(needed, 2 * size, SMALLEST_CAPACITY)
        size = size if self.max_capacity is None else min(size, self.max_capacity)
        self._keys[layer] = _resized(keys, size, self.length, like)
        self._values[layer] = _resized(self._values[layer], size, self.length, like)


def _buffer(heads: int, capacity: int, width: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    # Not an inference tensor even when generate() makes it: forward() may later write to it outside.
    with torch.inference_mode(False):
        return torch.empty(heads, capacity, width, dtype=dtype, device=device)


def _resized(buffer: Tensor, capacity: int, used: int, like: Tensor) -> Tensor:
    fresh = _buffer(buffer.shape[0], capacity, buffer.shape[2], like.dtype, like.device)
    fresh[:, :used].copy_(buffer[:, :used])
    return fresh


def cached_attends(
    backend: Backend,
    kvs: Sequence[SequenceKV],
    lengths: Sequence[int],
    windows: Sequence[int | None],
) -> list[Attend]:
    """One attend for each layer of a packed step: sequence i brings ``lengths[i]`` new tokens to ``kvs[i]``.

    ``backend`` is a function of `qvl.ops.attention`; ``windows`` has one entry per layer (None: full). Each
    attend writes the new keys and attends causally to all keys of its own sequence. The caller advances
    the caches when the step is over. A sequence's keys are read where they lie, never gathered with others.
    """
    return [_layer_attend(backend, kvs, lengths, layer, window) for layer, window in enumerate(windows)]


def _layer_attend(
    backend: Backend,
    kvs: Sequence[SequenceKV],
    lengths: Sequence[int],
    layer: int,
    window: int | None,
) -> Attend:
    def one(kv: SequenceKV, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        k_SGD, v_SGD = _written(kv, layer, q_THD, k_TGD, v_TGD)
        sizes = ((q_THD.shape[0],), (k_SGD.shape[0],))
        return backend(q_THD, k_SGD, v_SGD, *sizes, causal=True, window=window)

    decoding = backend is sdpa_attention and all(length == 1 for length in lengths)

    def attend(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        if decoding and not _traced(q_THD, k_TGD, v_TGD):
            return _decoded(kvs, layer, window, q_THD, k_TGD, v_TGD)
        if len(kvs) == 1:
            return one(kvs[0], q_THD, k_TGD, v_TGD)
        parts = zip(kvs, *(t.split(list(lengths)) for t in (q_THD, k_TGD, v_TGD)), strict=True)
        return torch.cat([one(*part) for part in parts])

    return attend


def _decoded(
    kvs: Sequence[SequenceKV], layer: int, window: int | None, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor
) -> Tensor:
    """Attention of a step in which every sequence brings one token."""
    for kv in kvs:
        kv.check(k_NGD)
    pairs = [kv.append(layer, k, v) for kv, k, v in zip(kvs, k_NGD.unbind(0), v_NGD.unbind(0), strict=True)]
    keys, values = zip(*pairs, strict=True)
    return single_query_attention(q_NHD, keys, values, window)


def _traced(*tensors: Tensor) -> bool:
    """Whether an autograd graph is being built."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _written(
    kv: SequenceKV, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor
) -> tuple[Tensor, Tensor]:
    """All keys and values of the sequence, attached to the autograd graph where one is being built.

    A buffer cannot be part of a graph (the next step writes into it), so with gradients the fresh keys are
    joined to a copy of the past.
    """
    if not _traced(q_THD, k_TGD, v_TGD):
        return kv.write(layer, k_TGD, v_TGD)
    k_past, v_past = (t.clone() for t in kv.read(layer))
    kv.write(layer, k_TGD, v_TGD)
    if not kv.length:
        return k_TGD, v_TGD
    return torch.cat([k_past, k_TGD]), torch.cat([v_past, v_TGD])
