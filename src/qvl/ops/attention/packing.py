"""Packed sequences: how the rows of a (T, H, D) tensor divide, and which keys a query may see.

Shared by the back-ends. Knows no softmax.

Legend: T query rows, S key rows, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from qvl.errors import InputError


def check_packing(
    q_THD: Tensor, k_SGD: Tensor, q_lengths: Sequence[int], k_lengths: Sequence[int], causal: bool
) -> None:
    """Raise InputError unless the lengths cover both tensors and every query has a key to look at."""
    if len(q_lengths) != len(k_lengths):
        raise InputError(
            f"{len(q_lengths)} lengths of queries but {len(k_lengths)} of keys; a sequence has one of each."
        )
    for what, rows, lengths in (("query", q_THD.shape[0], q_lengths), ("key", k_SGD.shape[0], k_lengths)):
        if sum(lengths) != rows:
            raise InputError(
                f"The {what} lengths add up to {sum(lengths)}, but there are {rows} {what} rows."
            )
    if q_THD.shape[1] % k_SGD.shape[1]:
        raise InputError(
            f"{q_THD.shape[1]} query heads cannot share {k_SGD.shape[1]} key heads: not a whole multiple."
        )
    for q_length, k_length in zip(q_lengths, k_lengths, strict=True):
        if q_length and (not k_length or (causal and q_length > k_length)):
            raise InputError(
                f"A sequence of {q_length} queries has {k_length} keys; a query needs one that it may see."
            )


def equal_runs(q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(count, query length, key length) of each stretch of neighbouring sequences of equal lengths."""
    for (q_length, k_length), group in groupby(zip(q_lengths, k_lengths, strict=True)):
        yield len(list(group)), q_length, k_length


def visible_keys(
    first_query: int, queries: int, first_key: int, keys: int, window: int | None, device: torch.device
) -> Tensor:
    """Bool (queries, keys): may query i see key j? j <= i, and i - j < window where there is one.

    Both are indices into the whole sequence; the rows start at ``first_query``, the columns at ``first_key``.
    """
    i_T1 = torch.arange(first_query, first_query + queries, device=device)[:, None]
    j_S = torch.arange(first_key, first_key + keys, device=device)
    visible_TS = j_S <= i_T1
    return visible_TS if window is None else visible_TS & (i_T1 - j_S < window)
