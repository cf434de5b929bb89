"""Who runs when, without a tensor in sight; and guessing ahead."""

from types import SimpleNamespace

import pytest

from qvl.engine.guessing import Guessing, StepTimes
from qvl.engine.lookup import PromptLookup
from qvl.engine.scheduler import Scheduler
from qvl.engine.sequence import Sequence
from qvl.errors import GenerationError
from qvl.types import Prompt, SamplingParams


def sequence(number, length, **params):
    positions = SimpleNamespace(shape=(3, length))
    return Sequence(number, Prompt(range(length), positions), SamplingParams(**params))


def beams(number, width):
    return SimpleNamespace(id=number, status="waiting", client="", width=width, lanes=(sequence(number, 3),))


def run(scheduler):
    """Take a step as the engine would, with token 7 for everyone; what ran, as (id, start, count)."""
    step = scheduler.next()
    for work in step.work:
        work.sequence.num_computed += work.count
        if work.samples:
            work.sequence.append(7)
    return [(w.sequence.id, w.start, w.count) for w in step.work]


def test_prompts_in_chunks_and_decodes_first():
    scheduler = Scheduler(max_step_tokens=8, max_sequences=4)
    for number, length in enumerate((5, 9)):
        scheduler.add(sequence(number, length))
    assert run(scheduler) == [(0, 0, 5), (1, 0, 3)]
    assert run(scheduler) == [(0, 5, 1), (1, 3, 6)]
    assert run(scheduler) == [(0, 6, 1), (1, 9, 1)]


def test_only_the_end_of_a_prompt_is_sampled():
    scheduler = Scheduler(max_step_tokens=4, max_sequences=4)
    scheduler.add(sequence(0, 6))
    samples = []
    for _ in range(3):
        step = scheduler.next()
        samples.append([w.samples for w in step.work])
        for w in step.work:
            w.sequence.num_computed += w.count
            if w.samples:
                w.sequence.append(1)
    assert samples == [[0], [1], [1]]


def test_first_come_first_served_within_max_sequences():
    scheduler = Scheduler(max_step_tokens=100, max_sequences=2)
    requests = [sequence(number, 3) for number in range(3)]
    for request in requests:
        scheduler.add(request)
    assert [r[0] for r in run(scheduler)] == [0, 1]
    assert [r.status for r in requests] == ["running", "running", "waiting"]
    scheduler.remove(requests[0])
    assert [r[0] for r in run(scheduler)] == [1, 2]
    scheduler.remove(requests[2])
    scheduler.remove(requests[1])
    assert not scheduler.has_work
    assert scheduler.next().work == ()


def test_a_step_always_has_a_token_for_everyone():
    scheduler = Scheduler(max_step_tokens=3, max_sequences=100)
    for number in range(5):
        scheduler.add(sequence(number, 1))
    run(scheduler)
    assert [r[0] for r in run(scheduler)] == [0, 1, 2]


def test_a_search_counts_as_its_widest():
    scheduler = Scheduler(max_step_tokens=100, max_sequences=5)
    scheduler.add(beams(0, 3))
    scheduler.add(beams(1, 3))
    assert [r[0] for r in run(scheduler)] == [0]
    with pytest.raises(GenerationError, match="6 beams do not fit"):
        scheduler.add(beams(2, 6))


def test_a_waiting_request_can_be_removed():
    scheduler = Scheduler(max_step_tokens=4, max_sequences=1)
    first, second = sequence(0, 3), sequence(1, 3)
    scheduler.add(first)
    scheduler.add(second)
    run(scheduler)
    scheduler.remove(second)
    scheduler.remove(second)
    scheduler.remove(first)
    assert not scheduler.has_work


@pytest.mark.parametrize("settings", [(0, 1), (1, 0)])
def test_budgets_are_positive(settings):
    with pytest.raises(GenerationError):
        Scheduler(*settings)


def test_guesses_use_what_is_left():
    scheduler = Scheduler(max_step_tokens=6, max_sequences=4, guess=Guessing(StepTimes()))
    guesser = sequence(0, 4, max_new_tokens=20, prompt_lookup_num_tokens=5)
    guesser.lookup = PromptLookup([7, 7, 7, 7], 2)
    scheduler.add(guesser)
    assert run(scheduler) == [(0, 0, 4)]
    scheduler.add(sequence(1, 2))
    step = scheduler.next()
    assert [(w.sequence.id, w.start, w.count, w.samples) for w in step.work] == [(0, 4, 4, 4), (1, 0, 2, 1)]
    assert guesser.draft_ids == (7, 7, 7)


def test_guesses_stop_before_the_length():
    guesser = sequence(0, 4, max_new_tokens=3, prompt_lookup_num_tokens=5)
    guesser.lookup = PromptLookup([7, 7, 7, 7], 2)
    guesser.append(7)
    guesser.propose(100)
    assert guesser.draft_ids == (7,)
    guesser.append(7)
    guesser.propose(100)
    assert guesser.draft_ids == ()


@pytest.mark.parametrize(
    ("ids", "count", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 2, (3, 4)),
        ([1, 2, 3, 9, 2, 4, 1, 2], 2, (3, 9)),  # the longer match wins over the later one
        ([1, 2, 3, 1, 4, 1], 2, (4, 1)),  # of equal ones the latest
        ([5, 6, 5], 5, (6, 5, 6, 5, 6)),  # a loop goes on
        ([5, 5], 3, (5, 5, 5)),
        ([1, 2, 3], 4, ()),
        ([1, 1], 0, ()),
        ([], 3, ()),
    ],
)
def test_lookup(ids, count, expected):
    assert PromptLookup(ids, 2).draft(count) == expected


def test_ids_of_any_stretch():
    s = sequence(0, 4)
    s.output_ids, s.draft_ids = [10, 11], (12, 13)
    assert s.ids(1, 3) == [1, 2, 3]
    assert s.ids(5, 3) == [11, 12, 13]
    assert s.length == 6
