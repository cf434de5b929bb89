"""How many guesses a step runs: what is measured of steps and guesses, and what follows from it."""

import pytest
import torch

from qvl.engine.engine import Engine
from qvl.engine.guessing import RISK, STALE, Guessing, StepTimes
from qvl.engine.lookup import MeasuredLookup
from qvl.engine.pace import FIRST_PAUSE, MOST_DRAFTED, Costs, DraftPace
from qvl.types import Prompt, SamplingParams
from support.fake_network import VOCAB, WIDTH, FakeNetwork


def timed(seconds_of, sizes, repeat=3):
    times = StepTimes()
    for size in sizes:
        for _ in range(repeat):
            times.note(size, seconds_of(size))
    return times


class TestTimes:
    def test_the_line_through_what_was_seen(self):
        times = timed({1: 10.0, 3: 12.0, 5: 20.0}.__getitem__, (1, 3, 5))
        assert [times.estimate(n) for n in (1, 2, 3, 4, 5, 7)] == [10, 11, 12, 16, 20, 28]
        assert times.longest == 5 and times.spent == 126

    def test_one_size_says_only_the_worst(self):
        assert timed(lambda n: 4.0 * n, (2,)).estimate(6) == 24
        assert StepTimes().estimate(1) is None

    def test_a_longer_step_is_never_expected_to_be_shorter(self):
        assert timed({1: 10.0, 2: 9.0}.__getitem__, (1, 2)).estimate(9) == 9

    def test_one_slow_step_does_not_count(self):
        times = timed(lambda n: 1.0, (1,), repeat=4)
        times.note(1, 50.0)
        assert times.estimate(1) == 1

    def test_what_was_not_seen_for_long_is_forgotten(self):
        times = timed(lambda n: float(n), (1, 8), repeat=1)
        for _ in range(2 * STALE):
            times.note(1, 1.0)
        assert times.longest == 1


class TestMeasuredLookup:
    def test_a_guess_is_compared_with_what_came_though_nobody_ran_it(self):
        lookup = MeasuredLookup([1, 2, 3, 4, 5, 6, 7, 8] * 2)
        lookup.append(1)
        before = lookup.outlook(1)[0]
        for token in (2, 3, 4, 5, 6, 7, 8, 1, 2, 3):
            lookup.append(token)
        assert lookup.draft(3) == (4, 5, 6)
        assert lookup.outlook(1)[0] > before

    def test_guesses_that_fail_lose_their_trust(self):
        lookup = MeasuredLookup([1, 2, 3] * 5)
        for i in range(40):
            lookup.append(1 if i % 2 else 10 + i)  # behind every 1 comes something new
        assert not [p for p in lookup.outlook(3) if p > 0.3]

    def test_more_agreement_promises_more(self):
        known = [1, 2, 3, 4, 5, 9, 9]
        short, long = MeasuredLookup(known), MeasuredLookup(known)
        for token in (7, 4):
            short.append(token)
        for token in (7, 1, 2, 3, 4):
            long.append(token)
        assert short.draft(1) == long.draft(1) == (5,)
        assert long.outlook(1)[0] > short.outlook(1)[0]

    def test_nothing_seen_nothing_guessed(self):
        lookup = MeasuredLookup([1, 2, 3])
        assert lookup.outlook(4) == [] == list(lookup.draft(0))
        lookup.append(9)
        assert lookup.outlook(4) == []

    def test_likelihoods_fall(self):
        lookup = MeasuredLookup(range(20))
        lookup.append(0)
        chain = lookup.outlook(8)
        assert chain == sorted(chain, reverse=True) and 1 > chain[0] > chain[-1] > 0


class TestShares:
    def test_free_rows_are_taken_and_dear_ones_are_not(self):
        chain = [0.9, 0.8, 0.7]
        assert Guessing(timed(lambda n: 1.0, (1, 8))).shares([chain], 1, 100) == [3]
        assert Guessing(timed(lambda n: float(n), (1, 8))).shares([chain], 1, 100) == [0]

    def test_as_long_as_a_row_brings_more_than_it_costs(self):
        times = timed(lambda n: 1.0 + 0.25 * (n - 1), (1, 2, 16))
        assert Guessing(times).shares([[0.9, 0.8, 0.5, 0.3, 0.1]], 1, 100) == [3]

    def test_the_likelier_sequence_comes_first(self):
        times = timed(lambda n: 1.0 if n <= 5 else 9.0, (2, 5, 6))
        assert Guessing(times).shares([[0.9, 0.8], [0.5, 0.4]], 2, 100) == [2, 1]
        assert Guessing(times).shares([[0.9, 0.8], [0.5, 0.4]], 2, 1) == [1, 0]

    def test_a_step_is_at_most_twice_the_longest_seen(self):
        assert sum(Guessing(timed(lambda n: 1.0, (1, 2))).shares([[0.99] * 16], 1, 100)) == 3

    def test_unmeasured_nothing_is_run(self):
        assert Guessing(StepTimes()).shares([[0.99]], 1, 100) == [0]

    def test_finding_out_is_bounded(self):
        """On a machine where a row costs a step, guesses that never hold lose no more than the risk taken."""
        times = timed(lambda n: 1.0, (1,))
        guessing, lost = Guessing(times), 0.0
        for _ in range(3000):
            (count,) = guessing.shares([[0.4]], 1, 100)
            times.note(1 + count, 1.0 + count)
            lost += count
        assert 0 < lost <= 1 + RISK * 3000

    def test_the_first_trial_waits_for_time_to_lose(self):
        times = timed(lambda n: 1.0, (1,), repeat=2)
        assert Guessing(times).shares([[0.5]], 1, 100) == [0]
        for _ in range(20):
            times.note(1, 1.0)
        assert Guessing(times).shares([[0.5]], 1, 100) == [1]


class TestPace:
    CHEAP, DEAR = Costs(0.05, 0.0), Costs(1.0, 0.5)

    def pace(self, **settings):
        return DraftPace(SamplingParams(**settings))

    def test_the_most_tokens_in_a_second(self):
        assert self.CHEAP.best(0.99) == MOST_DRAFTED
        assert self.CHEAP.best(0.02) == 0 == self.DEAR.best(0.9)
        few, many = (Costs(0.2, 0.05).best(rate) for rate in (0.5, 0.95))
        assert 0 < few < many

    def test_a_number_is_a_number(self):
        pace = self.pace(num_assistant_tokens=5)
        pace.note(5, 0)
        assert pace.count(self.DEAR) == 5

    def test_heuristic(self):
        pace = self.pace(num_assistant_tokens=2, num_assistant_tokens_schedule="heuristic")
        counts = []
        for accepted in (True, True, False, False, False):
            drafted = pace.count(self.DEAR)
            pace.note(drafted, drafted if accepted else 0)
            counts.append(pace.count(self.DEAR))
        assert counts == [4, 6, 5, 4, 3]

    def test_a_model_that_is_no_help_is_tried_ever_less(self):
        pace, cost, drafted = self.pace(), Costs(0.3, 0.05), []
        for _ in range(600):
            drafted.append(pace.count(cost))
            pace.note(drafted[-1], 0)
        assert sum(drafted[:FIRST_PAUSE]) > 0
        assert sum(drafted[300:]) <= 10

    def test_a_model_that_becomes_a_help_is_found_out(self):
        pace, cost, drafted = self.pace(), Costs(0.1, 0.0), []
        for step in range(400):
            drafted.append(pace.count(cost))
            pace.note(drafted[-1], drafted[-1] if step > 50 else 0)
        assert min(drafted[-20:]) == MOST_DRAFTED

    @pytest.mark.parametrize("draft", [0.02, 0.1, 0.3])
    def test_drafts_behind_a_refusal_say_nothing(self, draft):
        one, other = self.pace(), self.pace()
        for _ in range(5):
            one.note(2, 1)
            other.note(8, 1)
        assert one.count(Costs(draft, 0.01)) == other.count(Costs(draft, 0.01))


@pytest.mark.parametrize(
    ("dtype", "precision", "guesses"),
    [(torch.float32, "highest", True), (torch.bfloat16, "highest", False), (torch.float32, "high", False)],
    ids=["float32", "bfloat16", "rough-products"],
)
def test_unasked_only_where_guesses_cannot_show(dtype, precision, guesses):
    """Rows of half precision differ with how many share a pass: there guesses could change an answer."""
    network, before = FakeNetwork(), torch.get_float32_matmul_precision()
    network.model.language_model.embed_tokens.weight = torch.zeros(VOCAB, WIDTH, dtype=dtype)
    torch.set_float32_matmul_precision(precision)
    try:
        engine = Engine(network)
        prompt = Prompt([1, 2, 3], torch.arange(3).expand(3, -1))
        number = engine.add(prompt, SamplingParams(max_new_tokens=4, prompt_lookup_num_tokens=None))
        assert isinstance(engine.sequence(number).lookup, MeasuredLookup) is guesses
    finally:
        torch.set_float32_matmul_precision(before)
