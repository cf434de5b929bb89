"""Beam search over sequences that share a prompt.

The beams are ordinary sequences in the engine's steps; this file only decides which of them live on. The
rules, down to ties and to the order of float operations, are those of transformers 4.57's beam search, so
that the same model gives the same ids: `num_beams` running beams; the candidates of a step that end (among
the best `num_beams` of it) compete for `num_beams` places of finished ones by log-probability divided by
length ** length_penalty, the length counted without the prompt.

Legend: B beams, K candidates of a step, V vocabulary, N rows of a step, R answers returned; a
leading 1 is the one prompt of the search.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from qvl.engine.kv import SequenceKV
from qvl.engine.sequence import Sequence, Status
from qvl.errors import GenerationError
from qvl.ops.sampling import draw_without_replacement
from qvl.types import FinishReason

WORST = -1e9  # the score of a place that nobody has taken; finite, so that sums stay finite


@dataclass(frozen=True)
class BeamParams:
    """``early_stopping``: True ends when every place is taken; False when the best running beam would not
    get in as it is; "never" when no running beam could get in at any length. Candidates are drawn at random
    instead of taken from the top when the `SamplingParams` beside it say so (temperature above 0).
    ``keep_scores`` and ``keep_logits`` collect (B, V) tensors of every step.
    """

    num_beams: int
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    keep_scores: bool = False
    keep_logits: bool = False

    def __post_init__(self) -> None:
        if self.num_beams < 1 or not 1 <= self.num_return_sequences <= self.num_beams:
            raise GenerationError(
                f"num_return_sequences ({self.num_return_sequences}) must lie between 1 and num_beams "
                f"({self.num_beams})."
            )
        if self.early_stopping not in (True, False, "never"):
            raise GenerationError(
                f'early_stopping must be True, False or "never", not {self.early_stopping!r}.'
            )


@dataclass(frozen=True, eq=False)
class BeamResult:
    """The best answers, best first.

    ``token_ids``: new tokens of each. ``scores_R``: float32, their penalized log-probabilities.
    ``beam_indices``: for each new token, the running beam that it continued. ``step_scores`` (processed
    log-probabilities) and ``step_logits``: (B, V) of every step, where asked for. ``kvs``: the caches of the
    beams that were still running, where asked for.
    """

    token_ids: tuple[tuple[int, ...], ...]
    scores_R: Tensor
    beam_indices: tuple[tuple[int, ...], ...]
    step_scores: tuple[Tensor, ...] = ()
    step_logits: tuple[Tensor, ...] = ()
    kvs: tuple[SequenceKV, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer; an empty one holds a place open."""

    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Candidates:
    """One step's continuations: score, beam that is continued, new token, and whether the answer ends."""

    scores_1K: Tensor
    parents: list[int]
    tokens: list[int]
    ended_1K: Tensor


class BeamSearch:
    """A request of the scheduler: one sequence until its prompt is computed, then ``num_beams`` of them."""

    def __init__(self, leader: Sequence, beams: BeamParams, device: torch.device) -> None:
        B = beams.num_beams
        self.id = leader.id
        self.status: Status = "waiting"
        self.finish_reason: FinishReason | None = None
        self.leader = leader
        self.beams = beams
        self.width = B
        self.result: BeamResult | None = None
        self._lanes = [leader]
        self._trails: list[list[int]] = [[]]
        # Only the first beam counts at first: the others would be copies of it.
        self._running_1B = torch.tensor([[0.0] + [WORST] * (B - 1)], device=device)
        self._finished_1B = torch.full((1, B), WORST, device=device)
        self._taken_1B = torch.zeros(1, B, dtype=torch.bool, device=device)
        self._hypotheses = [Hypothesis()] * B
        self._improvable = True
        self._scores: list[Tensor] = []
        self._logits: list[Tensor] = []
        leader.group = self

    @property
    def lanes(self) -> tuple[Sequence, ...]:
        return tuple(self._lanes)

    @property
    def client(self) -> str:
        return self.leader.client

    @property
    def new_tokens(self) -> int:
        """Tokens that every running beam has behind the prompt."""
        return len(self._lanes[0].output_ids)

    def advance(self, logits_NV: Tensor) -> None:
        """Take one step from the logits of every lane (the leader's alone after the prompt).

        Afterwards the lanes are the next running beams, or ``result`` is there and ``status`` is finished.
        """
        scores_BV = self._processed(logits_NV)
        candidates = self._candidates(scores_BV)
        length = self.new_tokens + 1
        chosen = self._choose_running(candidates)
        self._update_finished(candidates, length)
        self._improvable = self._improvable and self._can_improve(length)
        if self._goes_on(candidates):
            self._continue(candidates, chosen)
            return
        if self.leader.keep_kv:
            self._continue(candidates, chosen)
        self._finish(length)

    def _processed(self, logits_NV: Tensor) -> Tensor:
        """Log-probabilities after penalties, hook and truncation; the leader's first stand for all."""
        log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
        scores_BV = torch.cat(
            [lane.sampler.scores(lane, log_probs_NV[i : i + 1]) for i, lane in enumerate(self._lanes)]
        )
        if len(self._lanes) < self.width:
            scores_BV, logits_NV = (t.expand(self.width, -1) for t in (scores_BV, logits_NV))
        if self.beams.keep_scores:
            self._scores.append(scores_BV.clone())
        if self.beams.keep_logits:
            self._logits.append(logits_NV.clone())
        return scores_BV

    def _candidates(self, scores_BV: Tensor) -> Candidates:
        params, vocabulary = self.leader.params, scores_BV.shape[-1]
        # Enough that num_beams can go on even if each beam's best continuations are all ends.
        count = max(2, 1 + len(params.eos_token_ids)) * self.width
        total_1C = (scores_BV + self._running_1B[0, :, None]).reshape(1, -1)
        count = min(count, total_1C.shape[-1])
        if params.greedy:
            scores_1K, index_1K = torch.topk(total_1C, count)
        else:
            index_1K = draw_without_replacement(total_1C, count, self.leader.sampler.generator)
            scores_1K = total_1C.gather(1, index_1K)
        index = index_1K[0].tolist()
        parents, tokens = [i // vocabulary for i in index], [i % vocabulary for i in index]
        ended = [self._ends(*pair, scores_BV) for pair in zip(parents, tokens, strict=True)]
        return Candidates(scores_1K, parents, tokens, torch.tensor([ended], device=scores_1K.device))

    def _ends(self, parent: int, token: int, scores_BV: Tensor) -> bool:
        params, stop = self.leader.params, self.leader.hooks.stop
        ended = token in params.eos_token_ids or self.new_tokens + 1 >= params.max_new_tokens
        if stop is None:
            return ended
        lane = self._lane(parent)
        trial = replace(lane, output_ids=[*lane.output_ids, token], vision={})
        return bool(stop(trial, scores_BV[parent : parent + 1])) or ended

    def _choose_running(self, candidates: Candidates) -> list[int]:
        """Candidates that go on: the best that have not ended."""
        open_1K = candidates.scores_1K + candidates.ended_1K.to(torch.float32) * WORST
        index_1B = torch.topk(open_1K, self.width).indices
        self._running_1B = open_1K.gather(1, index_1B)
        chosen: list[int] = index_1B[0].tolist()
        return chosen

    def _update_finished(self, candidates: Candidates, length: int) -> None:
        """Let the ended ones among the first ``num_beams`` candidates compete for the finished places."""
        B = self.width
        ended_1K = candidates.ended_1K.clone()
        ended_1K[:, B:] = False
        scores_1K = candidates.scores_1K / (length**self.beams.length_penalty)
        closed = bool(self._taken_1B.all()) and self.beams.early_stopping is True
        # Added one by one: the sums of such numbers depend on the order, and ties are decided by them.
        for shut in (closed, not self._improvable):
            scores_1K = scores_1K + float(shut) * WORST
        scores_1K = scores_1K + (~ended_1K).to(torch.float32) * WORST
        merged = torch.cat((self._finished_1B, scores_1K), dim=1)
        index_1B = torch.topk(merged, B).indices
        self._finished_1B = merged.gather(1, index_1B)
        self._taken_1B = torch.cat((self._taken_1B, ended_1K), dim=1).gather(1, index_1B)
        self._hypotheses = [
            self._hypotheses[i] if i < B else self._hypothesis(candidates, i - B)
            for i in index_1B[0].tolist()
        ]

    def _hypothesis(self, candidates: Candidates, k: int) -> Hypothesis:
        parent = candidates.parents[k]
        return Hypothesis(
            (*self._lane(parent).output_ids, candidates.tokens[k]), (*self._trail(parent), parent)
        )

    def _can_improve(self, length: int) -> bool:
        """Whether the best running beam could still beat the worst finished one, at the length assumed."""
        penalty = self.beams.length_penalty
        if self.beams.early_stopping == "never" and penalty > 0.0:
            length = self.leader.params.max_new_tokens
        best_11 = self._running_1B[:, :1] / (length**penalty)
        lowest_11 = self._finished_1B.min(dim=1, keepdim=True).values
        worst_1B = torch.where(self._taken_1B, lowest_11, WORST)
        return bool((best_11 > worst_1B).any())

    def _goes_on(self, candidates: Candidates) -> bool:
        full = bool(self._taken_1B.all()) and self.beams.early_stopping is True
        return self._improvable and not full and not bool(candidates.ended_1K.all())

    def _continue(self, candidates: Candidates, chosen: SequenceOf[int]) -> None:
        """Make the chosen candidates the lanes.

        A parent's first child takes its cache; others get copies, in the caches of beams that end here.
        """
        parents = [candidates.parents[k] for k in chosen]
        alive = {id(self._lane(parent)) for parent in parents}
        spare = [lane.kv for lane in self._lanes if id(lane) not in alive]
        used: set[int] = set()
        lanes: list[Sequence] = []
        for parent in parents:  # all forks before any lane grows
            lane = self._lane(parent)
            again = id(lane) in used
            lanes.append(lane.fork(spare.pop() if spare else None) if again else lane)
            used.add(id(lane))
        trails = [[*self._trail(parent), parent] for parent in parents]
        for lane, k in zip(lanes, chosen, strict=True):
            lane.output_ids.append(candidates.tokens[k])
            lane.sampler.append(candidates.tokens[k])
        self._lanes, self._trails = lanes, trails

    def _finish(self, length: int) -> None:
        count = self.beams.num_return_sequences
        best = self._hypotheses[:count]
        self.result = BeamResult(
            token_ids=tuple(h.token_ids for h in best),
            scores_R=self._finished_1B[0, :count].clone(),
            beam_indices=tuple(h.parents for h in best),
            step_scores=tuple(self._scores),
            step_logits=tuple(self._logits),
            kvs=tuple(lane.kv for lane in self._lanes) if self.leader.keep_kv else (),
        )
        ids = best[0].token_ids
        stopped = bool(ids) and (ids[-1] in self.leader.params.eos_token_ids or len(ids) < length)
        self.status = "finished"
        self.finish_reason = "stop" if stopped else "length"

    def _lane(self, beam: int) -> Sequence:
        return self._lanes[beam if len(self._lanes) == self.width else 0]

    def _trail(self, beam: int) -> list[int]:
        return self._trails[beam if len(self._trails) == self.width else 0]
