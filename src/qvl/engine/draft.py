"""A smaller model that guesses the next tokens of many sequences; the larger one checks them in one step.

Speculative decoding (2211.17192). A sequence that is drafted for has a twin: the same prompt, pictures and
all, with the draft model's own keys and values, which follow when drafts are refused. The twin lives on the
sequence; nothing here outlives a step but the time that the draft model takes.

Legend: N sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qvl.engine.guessing import StepTimes
from qvl.engine.kv import SequenceKV
from qvl.engine.pace import Costs, DraftPace
from qvl.engine.runner import Runner
from qvl.engine.scheduler import Step, Work
from qvl.engine.sequence import Sequence
from qvl.errors import GenerationError, QvlError

if TYPE_CHECKING:
    from qvl.network.vlm import CausalLM

ROW = 0.03  # a row more in a step of the large model, in steps: believed until it was measured


@dataclass(eq=False)
class Draft:
    """What a draft model keeps of a sequence. ``agreed``: output tokens that were known to both last time."""

    twin: Sequence
    pace: DraftPace
    agreed: int = 0
    probs: list[Tensor] = field(default_factory=list)

    def follow(self, sequence: Sequence) -> None:
        """Take over what became of the last drafts: keep what holds, forget what was refused."""
        twin, real = self.twin, sequence.output_ids
        same, drafted = self.agreed, len(twin.output_ids) - self.agreed
        while same < min(len(real), len(twin.output_ids)) and twin.output_ids[same] == real[same]:
            same += 1
        self.pace.note(drafted, same - self.agreed)
        twin.output_ids[same:] = real[same:]
        twin.kv.truncate(min(twin.kv.length, twin.prompt_length + same))
        twin.num_computed = twin.kv.length
        self.agreed = len(real)


@dataclass(frozen=True, eq=False)
class KeptDraft:
    """Keys and values of a finished sequence's twin, with the ids that they belong to: for the next turn."""

    network: Any
    ids: tuple[int, ...]
    kv: SequenceKV


class DraftModel:
    """Makes drafts with one network, for sequences of another.

    ``target``: who checks them. ``times`` and ``draft_times``: of the steps of the two. Both vocabularies
    number the same tokens; rows that only one of them has are never drafted.
    """

    def __init__(
        self,
        network: CausalLM,
        target: Runner,
        max_step_tokens: int,
        times: StepTimes,
        draft_times: StepTimes,
    ) -> None:
        self.runner = Runner(network)
        self._target = target
        self._target_times, self.times = times, draft_times
        self._max_step_tokens = max_step_tokens
        # Bytes to read decide what a step takes, until it was measured.
        self._size_ratio = _bytes(network) / max(1, _bytes(target.network))

    def adopt(self, sequence: Sequence, kept: KeptDraft | None) -> None:
        """Give a new sequence its twin. ``kept``: what an earlier turn of the conversation left behind.

        Raises GenerationError where the draft model cannot read this prompt.
        """
        prompt, params = sequence.prompt, sequence.params
        if prompt.embeds_TD is not None:
            raise GenerationError(
                "A draft model looks up token ids in a table of its own, but this prompt is given as "
                "embeddings; leave out the assistant model, or inputs_embeds."
            )
        twin = Sequence(sequence.id, prompt, replace(params, max_new_tokens=params.max_new_tokens + 1))
        kv = None
        if kept is not None and kept.network is self.runner.network:
            kv = kept.kv
            kv.truncate(min(kv.length, _common(kept.ids, prompt.token_ids[:-1])))
        try:
            self.runner.admit(twin, kv)
            self.runner.prepare(twin)
        except QvlError as error:
            raise GenerationError(f"The draft model cannot follow this prompt: {error}") from error
        sequence.draft = Draft(twin, DraftPace(params))

    def forget(self, sequence: Sequence) -> None:
        """Let go of the twin's keys and values, which are computed again when drafts are asked for."""
        twin = sequence.draft.twin
        twin.kv, twin.num_computed = None, 0
        self.runner.prepare(twin)

    def keep(self, sequence: Sequence) -> None:
        """Leave the twin's keys and values on those of a finished sequence."""
        twin = sequence.draft.twin
        sequence.draft.follow(sequence)
        known = (*sequence.prompt.token_ids, *twin.output_ids)[: twin.kv.length]
        sequence.kv.draft = KeptDraft(self.runner.network, known, twin.kv)

    @torch.no_grad()
    def propose(self, sequences: SequenceOf[Sequence], budget: int) -> None:
        """Set ``draft_ids`` and ``draft_probs`` of the sequences, at most ``budget`` drafts in all.

        How many are made never depends on a draft's own value: that would bend the distribution. If anything
        raises, the sequences go on without drafts.
        """
        try:
            counts = self._counts(sequences, budget)
            drafting = [sequence for sequence in sequences if counts[sequence.id]]
            if drafting:
                self._draft(drafting, counts)
        except BaseException:
            for sequence in sequences:
                sequence.draft, sequence.draft_ids, sequence.draft_probs = None, (), ()
            raise

    def _counts(self, sequences: SequenceOf[Sequence], budget: int) -> dict[int, int]:
        share = budget // len(sequences)
        static = Costs(self._size_ratio, ROW)
        timed = self._target_times.known(len(sequences))  # a step without drafts, to compare with
        measured = self._measured(len(sequences)) or static
        counts = {}
        for sequence in sequences:
            draft: Draft = sequence.draft
            draft.follow(sequence)
            # Random draws are repeatable: their number must not follow a clock.
            follows_clock = sequence.sampler.greedy and sequence.params.num_assistant_tokens is None
            wanted = draft.pace.count(measured if follows_clock else static)
            if follows_clock and not timed:
                wanted = 0
            counts[sequence.id] = max(0, min(wanted, sequence.most_guesses, share))
        return counts

    def _measured(self, rows: int) -> Costs | None:
        """What a draft and a row cost now, once both models have been timed."""
        plain, draft = self._target_times.estimate(rows), self.times.estimate(rows)
        longest = self._target_times.longest
        if plain is None or draft is None or longest <= rows:
            return None
        more = (longest - rows) / rows  # drafts of each sequence in the longest step
        longer = self._target_times.estimate(longest) or plain
        return Costs(draft / plain, max(0.0, (longer - plain) / plain / more))

    def _draft(self, active: list[Sequence], counts: dict[int, int]) -> None:
        self._read([sequence.draft.twin for sequence in active])
        buffers = [s.sampler.tokens for s in active if s.sampler.tokens is not None]
        marks = [buffer.length for buffer in buffers]
        for sequence in active:
            sequence.draft.probs = []
        drafting = list(active)
        try:
            while drafting:
                rows_NV = self._run(drafting)
                going = []
                for sequence, row_1V in zip(drafting, rows_NV.split(1), strict=True):
                    sure = self._extend(sequence, self._fitted(row_1V))
                    twin = sequence.draft.twin
                    made = len(twin.output_ids) - sequence.draft.agreed
                    ended = twin.output_ids[-1] in sequence.params.eos_token_ids
                    if made < counts[sequence.id] and sure and not ended:
                        going.append(sequence)
                drafting = going
        finally:
            for buffer, length in zip(buffers, marks, strict=True):  # what penalties saw of the drafts
                buffer.length = length
        for sequence in active:
            sequence.draft_ids = tuple(sequence.draft.twin.output_ids[sequence.draft.agreed :])
            sequence.draft_probs = tuple(sequence.draft.probs)

    def _read(self, twins: SequenceOf[Sequence]) -> None:
        """Keys and values of prompts, pictures included, and of what came while nothing was drafted.

        The tokens behind the prompts are left for the pass that drafts, if they fit into it.
        """
        while any(t.prefilling for t in twins) or sum(map(_lacking, twins)) > self._max_step_tokens:
            budget, works = self._max_step_tokens, []
            for twin in sorted(twins, key=lambda t: t.prefilling):  # in the order in which a step packs them
                rest = twin.prompt_length - twin.num_computed if twin.prefilling else _lacking(twin) - 1
                count = min(rest, budget)
                if count > 0:
                    works.append(Work(twin, twin.num_computed, count))
                    budget -= count
            chunks = tuple(work for work in works if work.sequence.prefilling)
            self.runner.run(Step(tuple(work for work in works if not work.sequence.prefilling), chunks))

    def _run(self, sequences: SequenceOf[Sequence]) -> Tensor:
        """Logits (N, V) of the next token of each twin, which first reads what it lacks of the sequence."""
        twins = [sequence.draft.twin for sequence in sequences]
        works = tuple(Work(t, t.num_computed, _lacking(t)) for t in twins)
        started = perf_counter()
        rows_NV = self.runner.run(Step(works))
        if all(work.count == 1 for work in works):
            self.times.note(len(works), perf_counter() - started)
        return rows_NV

    def _extend(self, sequence: Sequence, logits_1V: Tensor) -> bool:
        """One draft more; whether the draft model was sure enough to go on behind it."""
        token, probs_1V = sequence.sampler.guess(logits_1V)
        sequence.draft.twin.output_ids.append(token)
        if not sequence.sampler.greedy:
            sequence.draft.probs.append(probs_1V)
        return float(probs_1V[0, token]) >= sequence.params.assistant_confidence_threshold

    def _fitted(self, logits_1V: Tensor) -> Tensor:
        """Logits for the checking model's vocabulary, on its device."""
        logits_1V = logits_1V.to(self._target.device)
        missing = self._target.vocab_size - logits_1V.shape[1]
        return torch.nn.functional.pad(logits_1V, (0, missing), value=-torch.inf)  # negative: cut off


def _lacking(twin: Sequence) -> int:
    """Tokens without keys and values."""
    return twin.length - twin.num_computed


def _common(known: SequenceOf[int], wanted: SequenceOf[int]) -> int:
    """Ids at the start that are equal."""
    pairs = enumerate(zip(known, wanted, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(known), len(wanted)))


def _bytes(network: Any) -> int:
    return sum(p.numel() * p.element_size() for _, p in network.named_parameters())
