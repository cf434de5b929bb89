"""From the finished rows to what ``generate()`` returns, and to the cache that a next call can continue
from.

Rows that end early are filled up: ids with the pad id; scores and logits with a row that says "the pad id,
for certain" (0 there and minus infinity elsewhere), so that its log-probability is 0. transformers has
there whatever the network makes of padding.

Legend: R rows of the answer, B prompts, L columns handed in, S cells of the cache, T tokens of one row, N
steps, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qvl.engine.beams import BeamResult
from qvl.engine.kv import SequenceKV
from qvl.generation.rows import OutputRow
from qvl.types import Prompt


def joined_ids(handed_RL: Tensor, rows: Sequence[OutputRow], pad_id: int | None) -> Tensor:
    """(R, L + longest answer) int64: every row as handed in, its new tokens, then pad ids."""
    columns = handed_RL.shape[1]
    longest = max(len(row.token_ids) for row in rows)
    out = handed_RL.new_full((len(rows), columns + longest), -1 if pad_id is None else pad_id)
    out[:, :columns] = handed_RL
    for i, row in enumerate(rows):
        new = torch.tensor(row.token_ids, dtype=torch.int64)
        out[i, columns : columns + len(new)] = new
    return out


def joined_steps(parts: Sequence[Sequence[Tensor]], pad_id: int | None) -> tuple[Tensor, ...]:
    """One tensor per step out of one list of (n, V) tensors per prompt or row; those that ended are filled
    up.
    """
    filler = _certain(parts[0][0], pad_id)
    steps = max(len(part) for part in parts)
    return tuple(
        torch.cat([part[step] if step < len(part) else filler for part in parts]) for step in range(steps)
    )


def _certain(like_NV: Tensor, pad_id: int | None) -> Tensor:
    row_NV = torch.full_like(like_NV, -math.inf)
    row_NV[:, pad_id if pad_id is not None and pad_id < like_NV.shape[1] else 0] = 0.0
    return row_NV


def joined_beam_indices(results: Sequence[BeamResult], num_beams: int, like: Tensor) -> Tensor:
    """(R, longest answer) int32: for every token the beam it continued, counted through the batch; -1
    behind.
    """
    rows = [
        [parent + prompt * num_beams for parent in parents]
        for prompt, result in enumerate(results)
        for parents in result.beam_indices
    ]
    out = torch.full((len(rows), max(map(len, rows))), -1, dtype=torch.int32, device=like.device)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return out


def fill_cache(
    cache: Any, kvs: Sequence[SequenceKV], prompts: Sequence[Prompt], real_BL: Tensor, rows_per_prompt: int
) -> Any:
    """Leave in ``cache`` what a next call needs: rows, which cells are real (R, S), rope deltas (R, 1).

    The last token of every row is not in it: it has not been through the network.
    """
    real_RL = real_BL.repeat_interleave(rows_per_prompt, dim=0)
    new = [kv.length - count for kv, count in zip(kvs, real_RL.sum(1).tolist(), strict=True)]
    behind = torch.arange(max(new))[None] < torch.tensor(new)[:, None]
    known = getattr(cache, "ends", None) or [torch.empty(0, dtype=torch.int64)] * len(prompts)
    cache.rows = list(kvs)
    cache.mask_BS = torch.cat([real_RL, behind], dim=1)
    deltas = [p.rope_delta for p in prompts for _ in range(rows_per_prompt)]
    cache.rope_deltas = torch.tensor(deltas)[:, None]
    cache.ends = [
        _ends(kv, prompts[r // rows_per_prompt], known[r // rows_per_prompt]) for r, kv in enumerate(kvs)
    ]
    return cache


def _ends(kv: SequenceKV, prompt: Prompt, known_T: Tensor) -> Tensor:
    """The rotary position behind each token of a row: as known, in the prompt, then one after the other.

    ``known_T``: of the tokens that an earlier call left in the cache, whose positions a prompt leaves out.
    """
    prompt_T = prompt.positions_3T[:, len(known_T) :].amax(0).cummax(0).values + 1
    count = prompt.positions_3T.shape[1]
    new_T = torch.arange(count, kv.length) + prompt.rope_delta + 1
    return torch.cat([known_T, prompt_T, new_T])
