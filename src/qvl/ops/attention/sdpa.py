"""Attention through torch's scaled_dot_product_attention, which picks the fused kernel of the device, or
through qvl's own kernel where that is faster (`qvl.ops.attention.compiled`).

What is added: neighbouring sequences of equal length share one call (in training, all of them wherever they
lie: `qvl.ops.attention.gathered`); heads that share a key head read it
through a stride instead of a copy; causal queries with a past, and sliding windows, are aligned to the last
key (torch's own ``is_causal`` aligns to the first) by masks of at most BLOCK query rows.

Legend: N sequences in a run, T query rows, S key rows, H heads, G key/value heads, R = H / G, D head dim,
B whatever stands in the batch place of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from qvl.ops.attention.compiled import compiled_attention
from qvl.ops.attention.gathered import gathered_attention
from qvl.ops.attention.packing import check_packing, equal_runs, visible_keys

BLOCK = 1024  # query rows per explicit mask: memory grows with the keys, not with their square


@dataclass(frozen=True)
class Rule:
    """Who sees whom, and how the products are scaled: the keywords of ``qvl.ops.attention.Backend``."""

    causal: bool
    window: int | None
    scale: float | None
    dropout: float


def sdpa_attention(
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
    """Attention over packed sequences; see ``qvl.ops.attention.Backend``."""
    rule = Rule(causal or window is not None, window, scale, dropout)
    check_packing(q_THD, k_SGD, q_lengths, k_lengths, rule.causal)
    if not dropout:
        o_THD = compiled_attention(
            q_THD, k_SGD, v_SGD, q_lengths, k_lengths, causal=rule.causal, window=window, scale=scale
        )
        if o_THD is not None:
            return o_THD
    if _trained(q_THD, k_SGD, v_SGD) and tuple(q_lengths) == tuple(k_lengths) and len(set(q_lengths)) > 1:
        return gathered_attention(q_THD, k_SGD, v_SGD, q_lengths, partial(_run, rule=rule))
    outputs, q_start, k_start = [], 0, 0
    for count, T, S in equal_runs(q_lengths, k_lengths):
        q_end, k_end = q_start + count * T, k_start + count * S
        if q_end > q_start:
            q_NTHD = q_THD[q_start:q_end].unflatten(0, (count, T))
            k_NSGD, v_NSGD = (x[k_start:k_end].unflatten(0, (count, S)) for x in (k_SGD, v_SGD))
            outputs.append(_run(q_NTHD, k_NSGD, v_NSGD, rule).flatten(0, 1))
        q_start, k_start = q_end, k_end
    if not outputs:
        return torch.empty_like(q_THD)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def single_query_attention(
    q_NHD: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], window: int | None = None
) -> Tensor:
    """The last token of each of N sequences over all its keys, (G, S, D) of its own length S: (N, H, D).

    What `sdpa_attention` gives for the same sequences packed, without packing, checks or a copy of any key:
    while decoding, those would cost more than the attention.
    """
    G = keys[0].shape[0]
    if window is not None:
        keys, values = ([x[:, -window:] for x in xs] for xs in (keys, values))
    queries = q_NHD.unflatten(1, (G, -1)).unsqueeze(1).unbind(0)  # (1, G, R, D): keys' heads are rows
    rows = [
        F.scaled_dot_product_attention(q, k.unsqueeze(0), v.unsqueeze(0))
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).flatten(1, 2)


def _run(q_NTHD: Tensor, k_NSGD: Tensor, v_NSGD: Tensor, rule: Rule) -> Tensor:
    """Sequences of equal lengths: (N, T, H, D)."""
    T, H, S, G = *q_NTHD.shape[1:3], *k_NSGD.shape[1:3]
    if T == 1 and rule.causal:  # the last query sees all keys, or the last ``window`` of them: no mask needed
        if rule.window is not None:
            k_NSGD, v_NSGD = k_NSGD[:, -rule.window :], v_NSGD[:, -rule.window :]
        rule = replace(rule, causal=False, window=None)
    elif rule.window is not None and rule.window >= S:
        rule = replace(rule, window=None)

    k_NGSD, v_NGSD = k_NSGD.transpose(1, 2), v_NSGD.transpose(1, 2)
    if H == G:
        return _kernel(q_NTHD.transpose(1, 2), k_NGSD, v_NGSD, rule).transpose(1, 2)
    if T == 1:  # one query per head: the heads that share keys become the rows
        q_NGRD = q_NTHD.squeeze(1).unflatten(1, (G, H // G))
        return _kernel(q_NGRD, k_NGSD, v_NGSD, rule).flatten(1, 2).unsqueeze(1)
    if _trained(q_NTHD, k_NSGD, v_NSGD) and not rule.dropout and rule.window is None and T == S:
        return F.scaled_dot_product_attention(
            q_NTHD.transpose(1, 2), k_NGSD, v_NGSD, is_causal=rule.causal, scale=rule.scale, enable_gqa=True
        ).transpose(1, 2)
    return torch.stack([_shared_keys(*one, rule) for one in zip(q_NTHD, k_NGSD, v_NGSD, strict=True)])


def _trained(*tensors: Tensor) -> bool:
    """Whether a backward pass will follow, in which pieces and copies cost more than they spare."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _shared_keys(q_THD: Tensor, k_GSD: Tensor, v_GSD: Tensor, rule: Rule) -> Tensor:
    """One sequence, (T, H, D): R heads read their key head through a stride of 0.

    G takes the batch place; with several sequences there, no stride repeats heads and keys would be copied.
    """
    G = len(k_GSD)
    q_GRTD = q_THD.unflatten(1, (G, -1)).permute(1, 2, 0, 3)
    k_GRSD, v_GRSD = (x[:, None].expand(-1, q_GRTD.shape[1], -1, -1) for x in (k_GSD, v_GSD))
    return _kernel(q_GRTD, k_GRSD, v_GRSD, rule).permute(2, 0, 1, 3).flatten(1, 2)


def _kernel(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, rule: Rule) -> Tensor:
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if not rule.causal or (T == S and rule.window is None):
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, dropout_p=rule.dropout, is_causal=rule.causal, scale=rule.scale
        )
    starts = range(0, T, BLOCK)
    outputs = [_masked_rows(q_BHTD, k_BHSD, v_BHSD, start, min(start + BLOCK, T), rule) for start in starts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _masked_rows(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, start: int, end: int, rule: Rule) -> Tensor:
    """Queries ``start`` to ``end``, each seeing its own keys; keys that none of them sees are cut off."""
    past = k_BHSD.shape[2] - q_BHTD.shape[2]
    low = 0 if rule.window is None else max(0, past + start - rule.window + 1)
    high = past + end
    mask_TS = visible_keys(past + start, end - start, low, high - low, rule.window, q_BHTD.device)
    q, k, v = q_BHTD[:, :, start:end], k_BHSD[:, :, low:high], v_BHSD[:, :, low:high]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask_TS, dropout_p=rule.dropout, scale=rule.scale
    )
