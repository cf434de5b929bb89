"""Attention of a step's new tokens to all keys of their sequences: one callable for each layer.

On the CPU, and where no gradient is wanted, one kernel call for each layer writes the new keys of all
sequences and attends to them where they lie. Elsewhere torch does it, sequence by sequence.

Legend: T new tokens, N sequences with one new token each, S all keys (cached and new), D head width, H query
heads, G key/value heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from qvl.engine.kv import SequenceKV
from qvl.ops.attention import Attend, Backend
from qvl.ops.attention.sdpa import sdpa_attention, single_query_attention
from qvl.ops.kernels import Kernels, kernels
from qvl.ops.kernels.attention import MOST_WIDTH, STORED, CachedAttention
from qvl.ops.kernels.plain import plain


def cached_attends(
    backend: Backend,
    kvs: Sequence[SequenceKV],
    lengths: Sequence[int],
    windows: Sequence[int | None],
    samples: Sequence[int] | None = None,
) -> list[Attend]:
    """One attend for each layer of a packed step: sequence i brings ``lengths[i]`` new tokens to ``kvs[i]``.

    ``backend`` is a function of `qvl.ops.attention`; ``windows`` has one entry per layer (None: full). Each
    attend writes the new keys and attends causally to all keys of its own sequence. The caller advances
    the caches when the step is over. A sequence's keys are read where they lie, never gathered with others.

    ``samples``: of the new tokens of each sequence, how many, from the end, the last layer asks about: its
    ``q_THD`` holds only those (0: none).
    """
    lengths = list(lengths)
    step = _Step(backend, kvs, lengths, lengths)
    steps = [step] * len(windows)
    if samples is not None:
        steps[-1] = _Step(backend, kvs, lengths, list(samples))
    layers = enumerate(zip(steps, windows, strict=True))
    return [partial(step.attend, layer, window) for layer, (step, window) in layers]


class _Step:
    """What layers of a step that ask about the same tokens have in common."""

    def __init__(
        self, backend: Backend, kvs: Sequence[SequenceKV], lengths: list[int], queries: list[int]
    ) -> None:
        self.backend, self.kvs, self.lengths, self.queries = backend, kvs, lengths, queries
        self.kernels = kernels() if backend is sdpa_attention else None
        self.decoding = backend is sdpa_attention and all(length == 1 for length in (*lengths, *queries))
        self.kernel_step: CachedAttention | None = None

    def attend(self, layer: int, window: int | None, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        if self.kernels is not None and _fits(q_THD, k_TGD, v_TGD):
            if self.kernel_step is None:
                self.kernel_step = self._kernel_step(self.kernels, k_TGD)
            if self.kernel_step is not None:
                return self.kernel_step(layer, window, *(_heads_together(t) for t in (q_THD, k_TGD, v_TGD)))
            self.kernels = None
        if self.decoding and not _traced(q_THD, k_TGD, v_TGD):
            return _decoded(self.kvs, layer, window, q_THD, k_TGD, v_TGD)
        if len(self.kvs) == 1:
            return self._one(layer, window, self.kvs[0], q_THD, k_TGD, v_TGD)
        rows = (self.queries, self.lengths, self.lengths)
        pieces = (t.split(n) for t, n in zip((q_THD, k_TGD, v_TGD), rows, strict=True))
        parts = zip(self.kvs, *pieces, strict=True)
        return torch.cat([self._one(layer, window, *part) for part in parts])

    def _kernel_step(self, offered: Kernels, k_TGD: Tensor) -> CachedAttention | None:
        """The step as the kernel takes it; None where a cache lies elsewhere or is of another kind."""
        for kv in self.kvs:
            kv.check(k_TGD)
        tables = [kv.make_room(count, k_TGD) for kv, count in zip(self.kvs, self.lengths, strict=True)]
        kept = {kv.kept for kv in self.kvs}
        stored = kept.pop()
        if kept or stored not in STORED:
            return None
        past = [kv.length for kv in self.kvs]
        table = tables[0].unsqueeze(1) if len(tables) == 1 else torch.stack(tables, 1)
        return CachedAttention(offered, table, past, self.lengths, stored, self.queries)

    def _one(
        self, layer: int, window: int | None, kv: SequenceKV, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor
    ) -> Tensor:
        k_SGD, v_SGD = _written(kv, layer, q_THD, k_TGD, v_TGD)
        if not len(q_THD):
            return q_THD
        sizes = ((q_THD.shape[0],), (k_SGD.shape[0],))
        return self.backend(q_THD, k_SGD, v_SGD, *sizes, causal=True, window=window)


def _fits(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> bool:
    """Whether the kernel may take these. There may be no queries at all."""
    same = q_THD.dtype == k_TGD.dtype == v_TGD.dtype and q_THD.shape[2] <= MOST_WIDTH
    return same and plain(*(t for t in (q_THD, k_TGD, v_TGD) if len(t)))


def _heads_together(x_THD: Tensor) -> Tensor:
    """With the heads of each token side by side; a copy only where they are not."""
    return x_THD if x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2] else x_THD.contiguous()


def _decoded(
    kvs: Sequence[SequenceKV], layer: int, window: int | None, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor
) -> Tensor:
    """Attention of a step in which every sequence brings one token."""
    pairs = [kv.append(layer, k, v) for kv, k, v in zip(kvs, k_NGD.split(1), v_NGD.split(1), strict=True)]
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
