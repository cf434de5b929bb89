"""The one decoding loop: sequences go in, deltas come out, many at a time.

``generate()``, the pipeline and the command line all use this class. It puts the parts together:
the scheduler says who runs, the runner makes logits, samplers and beam searches turn them into tokens.

Legend: N rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvl.engine.beams import BeamParams, BeamSearch
from qvl.engine.draft import DraftModel
from qvl.engine.guessing import Guessing, StepTimes
from qvl.engine.kv import SequenceKV
from qvl.engine.lookup import MeasuredLookup, PromptLookup
from qvl.engine.runner import Runner
from qvl.engine.sampler import Choice, Sampler, choose_together, extend, is_plain
from qvl.engine.scheduler import Scheduler, Step, Work
from qvl.engine.sequence import Hooks, Sequence
from qvl.errors import GenerationError
from qvl.ops.likeliest import likeliest
from qvl.types import Delta, Prompt, SamplingParams

if TYPE_CHECKING:
    from qvl.network.vlm import CausalLM

Request = Sequence | BeamSearch


@dataclass(frozen=True)
class EngineSettings:
    """``max_step_tokens``: tokens that one pass through the network computes; long prompts are cut into such
    pieces. ``max_sequences``: sequences (beams counted) that are under way at the same time. ``kv_dtype``:
    what new caches keep keys and values in, float32, bfloat16 or int8; None: as the network computes.
    """

    max_step_tokens: int = 2048
    max_sequences: int = 256
    kv_dtype: torch.dtype | None = None


class Engine:
    """Continues prompts with one network.

    Requests are independent: each has its settings, hooks, random numbers and cache, and a request's result
    does not depend on who shares its steps. Not to be used from two threads at once.

    ``draft``: a smaller network with the same vocabulary that guesses for every request whose
    ``num_assistant_tokens`` is not 0. ``times``, ``draft_times``: what earlier engines measured of the steps
    of the two networks.
    """

    def __init__(
        self,
        network: CausalLM,
        settings: EngineSettings | None = None,
        *,
        draft: CausalLM | None = None,
        times: StepTimes | None = None,
        draft_times: StepTimes | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.runner = Runner(network, self.settings.kv_dtype)
        self.times = times or StepTimes()
        self.draft = None
        if draft is not None and self.runner.can_guess:
            limit = self.settings.max_step_tokens
            self.draft = DraftModel(draft, self.runner, limit, self.times, draft_times or StepTimes())
        guessing = Guessing(self.times, None if self.draft is None else self.draft.propose)
        self.scheduler = Scheduler(self.settings.max_step_tokens, self.settings.max_sequences, guessing)
        self._requests: dict[int, Request] = {}
        self._aborted: list[Delta] = []
        self._stepping = False
        self._to_abort: list[int] = []
        self._next_id = 0

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        kv: SequenceKV | None = None,
        hooks: Hooks | None = None,
        keep_kv: bool = False,
    ) -> int:
        """Queue a prompt; returns the id that its deltas carry.

        ``kv``: keys and values of the prompt's first ``kv.length`` tokens; they are not computed again, and
        the cache grows with the answer. ``keep_kv``: leave the cache on the finished sequence (it holds all
        tokens but the last). Raises GenerationError, PromptError, PromptTooLongError,
        PlaceholderMismatchError or CacheError, and then nothing was queued.
        """
        sequence = self._sequence(prompt, params, kv, hooks, keep_kv, keep=1)
        self._prepare_guesses(sequence, kv)
        return self._queue(sequence)

    def add_beams(
        self,
        prompt: Prompt,
        params: SamplingParams,
        beams: BeamParams,
        *,
        kv: SequenceKV | None = None,
        hooks: Hooks | None = None,
        keep_kv: bool = False,
    ) -> int:
        """Queue a beam search. Its one `Delta` brings the best answer, and in ``extras["beams"]`` the
        `BeamResult`. Of the hooks, ``process``, ``stop`` (asked about every candidate) and ``progress`` are
        used. Raises what `add` raises.
        """
        keep = max(2, 1 + len(params.eos_token_ids)) if beams.num_beams > 1 else 1
        sequence = self._sequence(prompt, params, kv, hooks, keep_kv, keep)
        return self._queue(BeamSearch(sequence, beams, self.runner.device))

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._aborted)

    def sequence(self, sequence_id: int) -> Request:
        """A request that is under way. Raises KeyError for one that is finished or was never there."""
        return self._requests[sequence_id]

    def abort(self, sequence_id: int) -> bool:
        """Stop a request; its last delta, with reason "abort", comes from the next step.

        False if it was already finished. A hook may call this: the step that is under way is then done first.
        """
        request = self._requests.get(sequence_id)
        if request is None:
            return False
        if self._stepping:
            self._to_abort.append(sequence_id)
            return True
        request.status, request.finish_reason = "finished", "abort"
        self._aborted.append(self._close(request, ()))
        return True

    def run(self) -> Iterator[Delta]:
        """Deltas until nothing is left to do."""
        while self.has_work:
            yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Delta]:
        """One pass through the network: at most one delta for every sequence that got new tokens.

        The last delta of a request has a ``finish_reason`` and carries the `Sequence` in
        ``extras["sequence"]``. If anything raises, the requests of the step are dropped, the others go on
        with the next step.
        """
        deltas, self._aborted = self._aborted, []
        step = self.scheduler.next()
        if not step.work:
            return deltas
        self._stepping = True
        try:
            started = perf_counter()
            logits_NV = self.runner.run(step)
            if not step.chunks:
                self.times.note(sum(work.count for work in step.decodes), perf_counter() - started)
            return deltas + self._settle(step, logits_NV)
        except BaseException:
            self._drop(step)
            self._aborted = deltas
            raise
        finally:
            self._stepping = False
            while self._to_abort:
                self.abort(self._to_abort.pop(0))

    def _sequence(
        self,
        prompt: Prompt,
        params: SamplingParams,
        kv: SequenceKV | None,
        hooks: Hooks | None,
        keep_kv: bool,
        keep: int,
    ) -> Sequence:
        if params.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be at least 1, not {params.max_new_tokens}.")
        sequence = Sequence(self._next_id, prompt, params, hooks or Hooks(), keep_kv)
        sequence.sampler = Sampler(
            params,
            prompt.token_ids,
            vocab_size=self.runner.vocab_size,
            device=self.runner.device,
            keep=keep,
        )
        self.runner.admit(sequence, kv)
        return sequence

    def _prepare_guesses(self, sequence: Sequence, kv: SequenceKV | None) -> None:
        prompt, params = sequence.prompt, sequence.params
        if self.draft is not None and params.num_assistant_tokens != 0:
            self.draft.adopt(sequence, None if kv is None else kv.draft)
        elif params.prompt_lookup_num_tokens is None:
            if self.runner.guesses_cannot_show:
                sequence.lookup = MeasuredLookup(prompt.token_ids)
        elif params.prompt_lookup_num_tokens > 0 and self.runner.can_guess:
            sequence.lookup = PromptLookup(prompt.token_ids, params.max_matching_ngram_size)

    def _queue(self, request: Request) -> int:
        self.scheduler.add(request)
        self._requests[request.id] = request
        self._next_id += 1
        return request.id

    def _settle(self, step: Step, logits_NV: Tensor) -> list[Delta]:
        """Tokens from logits, for every sequence that has reached its end."""
        ends = list(accumulate(work.samples for work in step.work))
        slices = [slice(end - work.samples, end) for work, end in zip(step.work, ends, strict=True)]
        for work in step.work:
            _report_progress(work)
        plain = any(w.samples and is_plain(w.sequence) for w in step.work)
        best_ids: list[int] = likeliest(logits_NV).tolist() if plain else []
        shared = [(w.sequence, logits_NV[s]) for w, s in zip(step.work, slices, strict=True) if _is_shared(w)]
        choices = dict(zip([s.id for s, _ in shared], choose_together(shared), strict=True))
        deltas: list[Delta] = []
        for work, rows in zip(step.work, slices, strict=True):
            sequence, group = work.sequence, work.sequence.group
            if not work.samples:
                continue
            if group is None:
                best = best_ids[rows] if is_plain(sequence) else None
                deltas.append(self._extend(sequence, logits_NV[rows], best, choices.get(sequence.id)))
            elif sequence is group.lanes[-1]:  # lanes lie side by side: the last one speaks for all
                deltas += self._advance_beams(group, logits_NV[rows.stop - len(group.lanes) : rows.stop])
        return deltas

    def _extend(
        self, sequence: Sequence, logits_NV: Tensor, likeliest: list[int] | None, choice: Choice | None
    ) -> Delta:
        new = extend(sequence, logits_NV, likeliest, choice)
        sequence.kv.truncate(sequence.length - 1)  # what was computed for wrong guesses
        sequence.num_computed = sequence.kv.length
        if sequence.hooks.on_tokens is not None:
            sequence.hooks.on_tokens(sequence, new)
        if sequence.status == "finished":
            return self._close(sequence, tuple(new))
        return Delta(sequence.id, tuple(new))

    def _advance_beams(self, search: BeamSearch, logits_NV: Tensor) -> list[Delta]:
        search.advance(logits_NV)
        if search.result is None:
            return []
        return [self._close(search, search.result.token_ids[0])]

    def _close(self, request: Request, token_ids: tuple[int, ...]) -> Delta:
        """Let go of a finished request; its last delta."""
        self.scheduler.remove(request)
        del self._requests[request.id]
        extras: dict[str, object] = {}
        if isinstance(request, BeamSearch):
            extras["beams"] = request.result
            sequence = request.leader
        else:
            sequence = request
        if not sequence.keep_kv:
            sequence.kv = None
        elif sequence.draft is not None and self.draft is not None:
            self.draft.keep(sequence)
        sequence.draft = None
        sequence.vision.clear()
        return Delta(request.id, token_ids, request.finish_reason, {**extras, "sequence": sequence})

    def _drop(self, step: Step) -> None:
        for request in {id(r): r for r in (w.sequence.group or w.sequence for w in step.work)}.values():
            self.scheduler.remove(request)
            self._requests.pop(request.id, None)


def _is_shared(work: Work) -> bool:
    """Whether the work brings one row, to be drawn from together with others'."""
    return work.samples == 1 and work.sequence.group is None and not is_plain(work.sequence)


def _report_progress(work: Work) -> None:
    sequence = work.sequence
    if work.start < sequence.prompt_length and sequence.hooks.progress is not None:
        sequence.hooks.progress(work.start + work.count, sequence.prompt_length)
