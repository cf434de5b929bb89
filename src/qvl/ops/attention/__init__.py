"""Attention over packed sequences: one signature, three back-ends.

A layer is handed an ``Attend`` and knows nothing else. Vision windows, whole frames, training sequences and
a cache of keys are different callables made here (and in the engine) from a back-end.

Legend: T query rows of all sequences, S key rows, H heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from qvl.errors import UnknownNameError
from qvl.ops.attention.eager import eager_attention
from qvl.ops.attention.flash import load_flash_attention
from qvl.ops.attention.sdpa import sdpa_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attend(q_THD, k_TGD, v_TGD) -> o_THD``: all that a layer knows of attention."""

BACKENDS = ("eager", "sdpa", "flash_attention_2")


class Backend(Protocol):
    """Softmax attention of packed sequences, which lie end to end in the rows of the tensors."""

    def __call__(
        self,
        q_THD: Tensor,
        k_SGD: Tensor,
        v_SGD: Tensor,
        q_lengths: Sequence[int],
        k_lengths: Sequence[int],
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """o_THD, in the dtype of ``q_THD``.

        q_lengths, k_lengths: rows of each sequence. causal: query i sees keys j <= i, where the last query
        stands at the last key (so queries may be the tail of a sequence whose past is cached).
        window: causal, and only the keys with i - j < window. scale: of the products, 1/sqrt(D) unless given.
        dropout: probability for a weight to be zeroed (training). Raises InputError if the lengths do not
        fit the tensors or a query has no key.
        """
        ...


def get_backend(name: str) -> Backend:
    """The back-end of that name: "eager", "sdpa" or "flash_attention_2".

    Raises UnknownNameError for another name; for "flash_attention_2" MissingDependencyError without the
    flash-attn package and UnsupportedError without a GPU.
    """
    if name == "eager":
        return eager_attention
    if name == "sdpa":
        return sdpa_attention
    if name == "flash_attention_2":
        return load_flash_attention()
    raise UnknownNameError(f"Attention {name!r} is not offered; choose one of {', '.join(BACKENDS)}.")


def packed_attend(
    backend: Backend,
    lengths: Sequence[int],
    *,
    causal: bool,
    window: int | None = None,
    dropout: float = 0.0,
) -> Attend:
    """Attention inside each of the packed sequences, nothing cached."""

    def attend(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        return backend(q_THD, k_TGD, v_TGD, lengths, lengths, causal=causal, window=window, dropout=dropout)

    return attend


def recording_backend(store: list[Tensor]) -> Backend:
    """The eager back-end, appending each sequence's (H, T, S) weights to ``store``."""
    return partial(eager_attention, store=store)


__all__ = [
    "BACKENDS",
    "Attend",
    "Backend",
    "get_backend",
    "packed_attend",
    "recording_backend",
]
