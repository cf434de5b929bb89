"""Cross entropy of the learned tokens, a few rows at a time: no logits of all tokens are ever alive.

The logits of N tokens over a vocabulary of V words are the largest tensor of a step by far (4,096 tokens and
151,936 words: 2.5 GB, and their gradient as much again). As the loss is where the backward pass begins, the
gradient with respect to a row of logits is known as soon as the row is: so each chunk of rows is turned into
its share of the gradients at once, in the forward pass, and the backward pass only scales them.

Legend: N tokens that are learned, D width, V vocabulary, C rows of a chunk, S rows of a slab of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qvl.ops.linear import Linear

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**28}  # of float32 logits; products of fewer rows leave a GPU idle
SLAB_ROWS = 2**14  # of a half-precision weight's gradient, made at once before it is added in float32


def chunked_cross_entropy(
    x_ND: Tensor, head: nn.Module, targets_N: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of ``head(x_ND)``, and how many of the targets have the greatest score.

    ``x_ND``: hidden states of the learned tokens alone. ``head``: any module that makes scores (N, V) of
    them. ``targets_N``: int64 in [0, V), none ignored. ``chunk``: rows at a time; None: by bytes.
    A plain linear head is multiplied by its weight; any other (with an adapter, a bias, quantized, hooked) is
    called for each chunk, and once more in the backward pass. Returns two scalars, the sum in at least
    float32 with a gradient, the number as int64. The sum can go backward once, and not twice differentiated.
    """
    rows = chunk or _rows_at_once(head, x_ND)
    dtype = _autocast_dtype(x_ND)
    weight_VD: Any = getattr(head, "weight", None)
    if not _plain(head) or (dtype is None and weight_VD.dtype != x_ND.dtype):
        return _called(head, x_ND, targets_N, rows)
    if not torch.is_grad_enabled():
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
    with torch.autocast(x_ND.device.type, enabled=False):
        return _Chunked.apply(x_ND, weight_VD, targets_N, rows, dtype or x_ND.dtype)


class _Chunked(torch.autograd.Function):
    """For a weight that is multiplied by. One that needs no gradient costs none.

    ``dtype``: of the products. Sums over chunks are float32 or wider.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, rows: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        losses_N, own_N = x_ND.new_empty(2, len(x_ND), dtype=wide)
        grad_x_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[0] else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if ctx.needs_input_grad[1] else None
        cast_VD = weight_VD.to(dtype)
        # One piece of memory for all chunks: fresh pages cost more than what is computed on them.
        logits_CV = x_ND.new_empty(min(rows, len(x_ND)), len(weight_VD), dtype=dtype)
        scores_CV = logits_CV.to(wide)
        for start in range(0, len(x_ND), rows):
            part = slice(start, start + rows)
            x_CD = x_ND[part].to(dtype)
            logits_CV, scores_CV = logits_CV[: len(x_CD)], scores_CV[: len(x_CD)]
            torch.mm(x_CD, cast_VD.T, out=logits_CV)
            losses_N[part], own_N[part] = _turn_into_gradients(scores_CV.copy_(logits_CV), targets_N[part])
            logits_CV.copy_(scores_CV)
            if grad_x_ND is not None:
                grad_x_ND[part] = logits_CV @ cast_VD
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, logits_CV, x_CD)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        ctx.gradients = grad_x_ND, grad_weight_VD
        right = (own_N == 0).sum()
        ctx.mark_non_differentiable(right)
        return losses_N.sum(), right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _right: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradients of this loss are gone: they went backward before")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if grad is None else grad.mul_(scale) for grad in gradients), None, None, None


def _turn_into_gradients(scores_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Losses, and the targets' scores below the greatest; the scores become their gradients in place."""
    scores_CV -= scores_CV.amax(dim=1, keepdim=True)
    own_C1 = scores_CV.gather(1, targets_C[:, None])
    totals_C1 = scores_CV.exp_().sum(dim=1, keepdim=True)
    scores_CV /= totals_C1
    scores_CV.scatter_add_(1, targets_C[:, None], torch.full_like(own_C1, -1))
    return (totals_C1.log() - own_C1).squeeze(1), own_C1.squeeze(1)


def _add_product(sum_VD: Tensor, slopes_CV: Tensor, x_CD: Tensor) -> None:
    """``sum_VD += slopes_CV.T @ x_CD``; a half-precision product is added in float32, slab by slab."""
    if sum_VD.dtype == x_CD.dtype:
        sum_VD.addmm_(slopes_CV.T, x_CD)
        return
    for sum_SD, slopes_CS in zip(sum_VD.split(SLAB_ROWS), slopes_CV.split(SLAB_ROWS, dim=1), strict=True):
        sum_SD += slopes_CS.T @ x_CD


def _plain(head: nn.Module) -> bool:
    """Whether calling the head is multiplying by its weight and nothing else."""
    if type(head) not in (nn.Linear, Linear) or head.bias is not None:
        return False
    hooks = any(
        getattr(head, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
    )
    return type(head.weight) in (nn.Parameter, Tensor) and not hooks


def _autocast_dtype(x_ND: Tensor) -> torch.dtype | None:
    kind = x_ND.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _called(head: nn.Module, x_ND: Tensor, targets_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """By the head's own operators and hooks, a chunk's logits alive at a time."""

    def score(x_CD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
        scores_CV = head(x_CD)
        scores_CV = scores_CV.to(torch.promote_types(scores_CV.dtype, torch.float32))
        with torch.no_grad():
            right = (scores_CV.gather(1, targets_C[:, None]) == scores_CV.amax(dim=1, keepdim=True)).sum()
        return F.cross_entropy(scores_CV, targets_C, reduction="sum"), right

    pairs = zip(x_ND.split(rows), targets_N.split(rows), strict=True)
    if not torch.is_grad_enabled():
        found = [score(*pair) for pair in pairs]
    else:
        found = [checkpoint(score, *pair, use_reentrant=False) for pair in pairs]
    sums, rights = zip(*found, strict=True)
    return torch.stack(sums).sum(), torch.stack(rights).sum()


def _rows_at_once(head: nn.Module, x_ND: Tensor) -> int:
    """How many rows of float32 logits fill a chunk, at least one."""
    vocabulary = getattr(head, "out_features", None)
    if not isinstance(vocabulary, int):  # the head doesn't say: one row is tried
        with torch.no_grad():
            vocabulary = int(head(x_ND[:1]).shape[-1])
    return max(1, CHUNK_BYTES.get(x_ND.device.type, CHUNK_BYTES["cpu"]) // (4 * vocabulary))
