"""Attention written out: the reference that the other back-ends are tested against, and the one that can
hand out its weights. Holds one T x S matrix of scores per head, so it is not for long sequences.

Legend: T query rows, S key rows, H heads, G key/value heads, D head dim, X = T * H / G rows of one key head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qvl.ops.attention.packing import check_packing, visible_keys


def eager_attention(
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
    store: list[Tensor] | None = None,
) -> Tensor:
    """Attention over packed sequences; see ``qvl.ops.attention.Backend``.

    ``store``: receives the (H, T, S) weights of each sequence, in the dtype of the queries, after dropout.
    """
    causal = causal or window is not None
    check_packing(q_THD, k_SGD, q_lengths, k_lengths, causal)
    outputs = []
    for q, k, v in zip(
        q_THD.split(list(q_lengths)), k_SGD.split(list(k_lengths)), v_SGD.split(list(k_lengths)), strict=True
    ):
        weights_HTS = F.dropout(_weights(q, k, causal, window, scale), dropout, training=dropout > 0)
        outputs.append(_mix(weights_HTS, v))
        if store is not None:
            store.append(weights_HTS)
    return torch.cat(outputs) if outputs else torch.empty_like(q_THD)


def _weights(q_THD: Tensor, k_SGD: Tensor, causal: bool, window: int | None, scale: float | None) -> Tensor:
    """Softmax of the scaled products, taken in float32 whatever the dtype: (H, T, S)."""
    (T, H, D), (S, G, _) = q_THD.shape, k_SGD.shape
    # Heads that share a key head become more rows of one product, so keys are never repeated.
    q_GXD = q_THD.unflatten(1, (G, H // G)).permute(1, 2, 0, 3).reshape(G, -1, D)
    scores_HTS = (q_GXD @ k_SGD.permute(1, 2, 0)).view(H, T, S) * (D**-0.5 if scale is None else scale)
    if causal:
        hidden_TS = ~visible_keys(S - T, T, 0, S, window, q_THD.device)
        scores_HTS = scores_HTS.masked_fill(hidden_TS, float("-inf"))
    return scores_HTS.softmax(dim=-1, dtype=torch.float32).to(q_THD.dtype)


def _mix(weights_HTS: Tensor, v_SGD: Tensor) -> Tensor:
    (H, T, S), (_, G, D) = weights_HTS.shape, v_SGD.shape
    mixed_GXD = weights_HTS.reshape(G, H // G * T, S) @ v_SGD.transpose(0, 1)
    return mixed_GXD.view(H, T, D).transpose(0, 1)
