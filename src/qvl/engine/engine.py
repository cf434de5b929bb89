"""The one decoding loop: sequences go in, deltas come out, many at a time.

``generate()``, the pipeline, the command line and the server all use this class. It puts the parts together:
the scheduler says who runs, the runner makes logits, samplers and beam searches turn them into tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from qvl.engine.beams import BeamParams, BeamSearch
from qvl.engine.budget import Memory
from qvl.engine.draft import DraftModel
from qvl.engine.guessing import Guessing, StepTimes
from qvl.engine.kv import SequenceKV
from qvl.engine.lookup import MeasuredLookup, PromptLookup
from qvl.engine.prefixes import Prefixes
from qvl.engine.runner import Runner
from qvl.engine.sampler import Sampler
from qvl.engine.scheduler import Scheduler, Step
from qvl.engine.sequence import Hooks, Sequence
from qvl.engine.settings import EngineSettings, EngineStats
from qvl.engine.settle import Outcome, Request, request_of, settle
from qvl.engine.stepsize import StepSize
from qvl.errors import GenerationError
from qvl.types import Delta, Prompt, SamplingParams

if TYPE_CHECKING:
    from qvl.network.vlm import CausalLM

__all__ = ["Engine", "EngineSettings", "EngineStats"]

KEPT = ("stop", "length", "repetition")  # ends after which keys and values serve later prompts


class Engine:
    """Continues prompts with one network.

    Requests are independent: each has its settings, hooks, random numbers and cache, and a request's result
    does not depend on who shares its steps. What goes wrong for one of them (a hook that raises, numbers that
    are not finite) ends that one.

    All methods belong to one thread, except `stats`. Hooks run on that thread, inside `step`; of the
    methods they may call `abort`, `sequence` and `stats`.

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
        self.settings = settings = settings or EngineSettings()
        self.runner = Runner(network, settings.kv_dtype, settings.vision_bytes)
        self.times = times or StepTimes()
        self.draft = None
        if draft is not None and self.runner.can_guess:
            limit = settings.max_step_tokens
            self.draft = DraftModel(draft, self.runner, limit, self.times, draft_times or StepTimes())
        self.prefixes = Prefixes() if settings.keep_prefixes and self.runner.can_share else None
        memory = None if settings.kv_bytes is None else Memory(settings.kv_bytes, self.prefixes)
        self.step_size = None if settings.step_seconds is None else StepSize(settings.step_seconds)
        self.scheduler = Scheduler(
            settings.max_step_tokens,
            settings.max_sequences,
            Guessing(self.times, None if self.draft is None else self.draft.propose),
            settings.client_share,
            memory,
            None if self.step_size is None else self.runner.media.ready,
            one_by_one=not self.runner.can_guess,
            on_preempt=self._on_preempt,
        )
        self.count = self.runner.media.count
        self._requests: dict[int, Request] = {}
        self._aborted: list[Delta] = []
        self._stepping = False
        self._to_abort: list[int] = []
        self._next_id = 0

    @property
    def capacity(self) -> int | None:
        """Tokens, of a prompt and its answer together, that ``kv_bytes`` hold; None: no limit."""
        limit = self.settings.kv_bytes
        return None if limit is None else limit // self.runner.token_bytes

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        kv: SequenceKV | None = None,
        hooks: Hooks | None = None,
        keep_kv: bool = False,
        client: str = "",
    ) -> int:
        """Queue a prompt; returns the id that its deltas carry.

        ``kv``: keys and values of the prompt's first ``kv.length`` tokens; they are not computed again, and
        the cache grows with the answer (where memory is limited, all that it may need is set aside when the
        request begins). ``keep_kv``: leave the cache on the finished sequence (it holds all tokens but the
        last).
        ``client``: whose share of the engine the request takes. Raises GenerationError (also where prompt and
        answer would not fit into ``kv_bytes``), PromptError, PromptTooLongError, PlaceholderMismatchError or
        CacheError, and then nothing was queued.
        """
        sequence = self._sequence(prompt, params, kv, hooks, keep_kv, client, keep=1)
        sequence.shares = (
            self.prefixes is not None and kv is None and not keep_kv and prompt.embeds_TD is None
        )
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
        client: str = "",
    ) -> int:
        """Queue a beam search. Its one `Delta` brings the best answer, and in ``extras["beams"]`` the
        `BeamResult`. Of the hooks, ``process``, ``stop`` (asked about every candidate) and ``progress`` are
        used. Raises what `add` raises. A search has all memory that it may need from its start.
        """
        keep = max(2, 1 + len(params.eos_token_ids)) if beams.num_beams > 1 else 1
        sequence = self._sequence(prompt, params, kv, hooks, keep_kv, client, keep)
        return self._queue(BeamSearch(sequence, beams, self.runner.device))

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._aborted)

    def sequence(self, sequence_id: int) -> Request:
        """A request that is under way. Raises KeyError for one that is finished or was never there."""
        return self._requests[sequence_id]

    def abort(self, sequence_id: int) -> bool:
        """Stop a request and free its memory; its last delta, with reason "abort", comes from the next step.

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

    def stats(self) -> EngineStats:
        """How things stand. May be called from any thread: every figure is right, but perhaps a step apart
        from the next one."""
        kept = 0 if self.prefixes is None else self.prefixes.nbytes
        lanes = [lane for request in tuple(self.scheduler.running) for lane in request.lanes]
        caches = [kv for kv in (lane.kv for lane in lanes) if kv is not None]
        job = self.runner.media.job
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_bytes=kept + sum(kv.nbytes for kv in caches),
            kept_bytes=kept,
            kept_prefixes=0 if self.prefixes is None else len(self.prefixes),
            vision_bytes=self.runner.media.cache.nbytes,
            encoding=0 if job is None else len(job.media),
            **vars(self.count),
        )

    def run(self) -> Iterator[Delta]:
        """Deltas until nothing is left to do."""
        while self.has_work:
            yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Delta]:
        """One pass through the network: at most one delta for every sequence that got new tokens.

        The last delta of a request has a ``finish_reason`` and carries the `Sequence` in
        ``extras["sequence"]``; with reason "error", the exception in ``extras["error"]``. There may be none
        at all, while a picture is being encoded. If anything raises that is not one request's own doing, the
        requests of the step are dropped, and the others go on with the next step.
        """
        deltas, self._aborted = self._aborted, []
        step = Step()
        self._stepping = True
        try:
            if self.step_size is not None:
                self._share_time(self.step_size, deltas)
            step = self.scheduler.next()
            if step.work:
                step = self._prepare(step, deltas)
            if step.work:
                self._forward(step, deltas)
            return deltas
        except BaseException:
            self._drop(step)
            self._aborted = deltas
            raise
        finally:
            self._stepping = False
            while self._to_abort:
                self.abort(self._to_abort.pop(0))

    def _share_time(self, size: StepSize, deltas: list[Delta]) -> None:
        """Give pictures their share of the step, and what is left of it to prompt tokens."""
        started = perf_counter()
        self.scheduler.admit()
        running = (lane for request in self.scheduler.running for lane in request.lanes)
        decoding = sum(not lane.prefilling for lane in running)
        seconds = size.begin(self.times.estimate(decoding) or 0.0 if decoding else 0.0)
        prompts = self.scheduler.prompts
        if prompts:
            self._fail(self.runner.media.advance(prompts, self._sequences(), seconds), deltas)
        self.scheduler.prompt_tokens = size.prompt_tokens(decoding, perf_counter() - started)

    def _prepare(self, step: Step, deltas: list[Delta]) -> Step:
        """Embeddings and caches for the step; without those for whom there are none."""
        failures = self.runner.media.encode(step) if step.chunks else {}
        for work in step.work:
            try:
                self.runner.prepare(work.sequence)
            except Exception as error:  # no memory
                failures[work.sequence.id] = error
        self._fail(failures, deltas)
        return step.without(failures) if failures else step

    def _forward(self, step: Step, deltas: list[Delta]) -> None:
        started = perf_counter()
        logits_NV = self.runner.rows(step)
        broken = self.runner.broken(logits_NV)
        self._note(step, perf_counter() - started)
        for outcome in settle(step, logits_NV, broken):
            deltas += self._deltas(outcome)

    def _note(self, step: Step, seconds: float) -> None:
        tokens = sum(work.count for work in step.work)
        if not step.chunks:
            self.times.note(tokens, seconds)
        elif self.step_size is not None:
            self.step_size.note(tokens, seconds)
        self.count.steps += 1
        for work in step.chunks:
            if work.sequence.recompute:
                self.count.recomputed_tokens += work.count
            else:
                self.count.prompt_tokens += work.count

    def _deltas(self, outcome: Outcome) -> list[Delta]:
        request = outcome.request
        self.count.output_tokens += len(outcome.token_ids)
        if outcome.error is not None:
            return [self._failed(request, outcome.error, outcome.token_ids)]
        if request.status == "finished":
            return [self._close(request, outcome.token_ids)]
        return [Delta(request.id, outcome.token_ids)] if outcome.token_ids else []

    def _fail(self, errors: dict[int, Exception], deltas: list[Delta]) -> None:
        for sequence_id, error in errors.items():
            deltas.append(self._failed(self._requests[sequence_id], error, ()))

    def _failed(self, request: Request, error: Exception, token_ids: tuple[int, ...]) -> Delta:
        sequence = request.leader if isinstance(request, BeamSearch) else request
        sequence.error = error
        request.status, request.finish_reason = "finished", "error"
        return self._close(request, token_ids)

    def _sequence(
        self,
        prompt: Prompt,
        params: SamplingParams,
        kv: SequenceKV | None,
        hooks: Hooks | None,
        keep_kv: bool,
        client: str,
        keep: int,
    ) -> Sequence:
        if params.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be at least 1, not {params.max_new_tokens}.")
        sequence = Sequence(self._next_id, prompt, params, hooks or Hooks(), keep_kv, client)
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

    def _close(self, request: Request, token_ids: tuple[int, ...]) -> Delta:
        """Let go of a finished request; its last delta."""
        self._remove(request)
        extras: dict[str, object] = {}
        if isinstance(request, BeamSearch):
            extras["beams"] = request.result
            sequence = request.leader
        else:
            sequence = request
        if request.finish_reason == "error":
            extras["error"] = sequence.error
        if not sequence.keep_kv:
            if self.prefixes is not None and sequence.shares and request.finish_reason in KEPT:
                self.prefixes.keep(sequence)
            sequence.kv = None
        elif sequence.draft is not None and self.draft is not None and sequence.kv is not None:
            self.draft.keep(sequence)
        sequence.draft = sequence.beginning = None
        self.count.finished += 1
        self.count.failed += request.finish_reason == "error"
        self.count.prefix_tokens += sequence.cached_tokens
        return Delta(request.id, token_ids, request.finish_reason, {**extras, "sequence": sequence})

    def _drop(self, step: Step) -> None:
        """Forget the requests of a step that failed as a whole."""
        for request in {id(r): r for r in (request_of(w.sequence) for w in step.work)}.values():
            if request.id in self._requests:
                self._remove(request)
                for lane in request.lanes:
                    lane.kv = None

    def _remove(self, request: Request) -> None:
        """All that holds memory for a request: its place, its caches, pictures that only it waits for."""
        self.scheduler.remove(request)
        self._requests.pop(request.id, None)
        for lane in request.lanes:
            lane.vision.clear()
            if not lane.keep_kv and lane is not request:
                lane.kv = None
            if self.prefixes is not None:
                self.prefixes.stop(lane)
        self.runner.media.release(self._sequences())

    def _on_preempt(self, sequence: Sequence) -> None:
        self.count.preempted += 1
        if self.prefixes is not None:
            self.prefixes.stop(sequence)
        if sequence.draft is not None and self.draft is not None:
            self.draft.forget(sequence)

    def _sequences(self) -> list[Sequence]:
        return [lane for request in self._requests.values() for lane in request.lanes]
