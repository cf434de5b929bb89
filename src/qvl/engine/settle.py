"""From a step's logits to the new tokens of everybody in it: what fails for one request ends that one.

Legend: N rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from qvl.engine.beams import BeamSearch
from qvl.engine.sampler import Choice, choose_together, extend, is_plain
from qvl.engine.scheduler import Step, Work
from qvl.engine.sequence import Sequence
from qvl.ops.likeliest import likeliest

Request = Sequence | BeamSearch


@dataclass
class Outcome:
    """What a step was for one request: new tokens (none yet from a search that goes on), or an error."""

    request: Request
    token_ids: tuple[int, ...] = ()
    error: Exception | None = None


@dataclass
class Settled:
    """Outcomes in the order of the step."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def fail(self, request: Request, error: Exception, token_ids: tuple[int, ...] = ()) -> None:
        self.outcomes[request.id] = Outcome(request, token_ids, error)

    def failed(self, request: Request) -> bool:
        return request.id in self.outcomes and self.outcomes[request.id].error is not None


def request_of(sequence: Sequence) -> Request:
    """The search that the sequence is a beam of, or the sequence."""
    request: Request = sequence.group or sequence
    return request


def settle(step: Step, logits_NV: Tensor, broken: Mapping[int, Exception]) -> Iterable[Outcome]:
    """Draw from the logits for every sequence that has reached its end, and call the hooks.

    broken: by row, what is wrong with it.
    """
    settled = Settled()
    ends = list(accumulate(work.samples for work in step.work))
    slices = [slice(end - work.samples, end) for work, end in zip(step.work, ends, strict=True)]
    for work in step.chunks:
        _report_progress(work, settled)
    going = [(work, rows) for work, rows in zip(step.work, slices, strict=True) if rows.start < rows.stop]
    for work, rows in going if broken else ():
        for row in range(rows.start, rows.stop):
            if row in broken:
                settled.fail(request_of(work.sequence), broken[row])
    if settled.outcomes:
        going = [(work, rows) for work, rows in going if not settled.failed(request_of(work.sequence))]
    plain = any(is_plain(work.sequence) for work, _ in going)
    best_ids: list[int] = likeliest(logits_NV).tolist() if plain else []
    shared = [(work.sequence, logits_NV[rows]) for work, rows in going if _is_shared(work)]
    choices = dict(zip([s.id for s, _ in shared], choose_together(shared), strict=True))
    for work, rows in going:
        sequence, group = work.sequence, work.sequence.group
        if group is None:
            best = best_ids[rows] if is_plain(sequence) else None
            settled.outcomes[sequence.id] = _extended(
                sequence, logits_NV[rows], best, choices.get(sequence.id)
            )
        elif sequence is group.lanes[-1]:  # lanes lie side by side: the last one speaks for all
            settled.outcomes[group.id] = _advanced(group, logits_NV[rows.stop - len(group.lanes) : rows.stop])
    return settled.outcomes.values()


def _extended(
    sequence: Sequence,
    logits_NV: Tensor,
    likeliest: list[int] | None,
    choice: Choice | Exception | None,
) -> Outcome:
    before = len(sequence.output_ids)
    try:
        if isinstance(choice, Exception):
            raise choice
        new = extend(sequence, logits_NV, likeliest, choice)
        sequence.kv.truncate(sequence.length - 1)  # what was computed for wrong guesses
        sequence.num_computed = sequence.kv.length
        if sequence.hooks.on_tokens is not None:
            sequence.hooks.on_tokens(sequence, new)
    except Exception as error:
        return Outcome(sequence, tuple(sequence.output_ids[before:]), error)
    return Outcome(sequence, tuple(new))


def _advanced(search: BeamSearch, logits_NV: Tensor) -> Outcome:
    try:
        search.advance(logits_NV)
    except Exception as error:
        return Outcome(search, (), error)
    return Outcome(search, () if search.result is None else search.result.token_ids[0])


def _is_shared(work: Work) -> bool:
    """Whether the work brings one row, to be drawn from together with others'."""
    return work.samples == 1 and work.sequence.group is None and not is_plain(work.sequence)


def _report_progress(work: Work, settled: Settled) -> None:
    sequence = work.sequence
    if sequence.hooks.progress is None or work.start >= sequence.prompt_length or sequence.output_ids:
        return
    try:
        done = min(work.start + work.count, sequence.prompt_length)
        sequence.hooks.progress(done, sequence.prompt_length)
    except Exception as error:
        settled.fail(request_of(sequence), error)
