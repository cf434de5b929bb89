"""How far ahead a draft model runs for one sequence: a number, transformers' heuristic, or what pays.

Counts and costs only: no torch, and nothing of how the drafts are made.
"""

from __future__ import annotations

from dataclasses import dataclass

from qvl.types import SamplingParams

MOST_DRAFTED = 8  # tokens ahead where nobody gave a number
LEAST_GAIN = 1.05  # tokens per second that drafts must promise over none
FORGET = 0.9  # an observation weighs this much after the next one
BELIEVED, BELIEF = 4.0, 0.7  # observations' worth of trust that a draft model starts with, and how much it is
FIRST_PAUSE, LONGEST_PAUSE = 8, 512  # steps without drafts before the model is tried again; doubled each time
TRIED = 2  # drafts of such a trial


@dataclass(frozen=True)
class Costs:
    """In steps of the model that checks: one token of the draft model, and every token more in a step."""

    draft: float
    row: float

    def gain(self, rate: float, count: int) -> float:
        """Tokens in the time of one plain step, when ``count`` drafts are made of which ``rate`` hold.

        The expected number is that of 2211.17192, equation 1.
        """
        tokens = sum(rate**i for i in range(count + 1))
        return tokens / (1 + count * (self.row + self.draft))

    def best(self, rate: float) -> int:
        """The number of drafts that pays most; 0 where none does."""
        counts = range(1, MOST_DRAFTED + 1)
        best = max(counts, key=lambda count: self.gain(rate, count))
        return best if self.gain(rate, best) >= LEAST_GAIN else 0


class DraftPace:
    """Decides the number of drafts of one sequence from step to step. The state is the request's own."""

    def __init__(self, params: SamplingParams) -> None:
        self._given = params.num_assistant_tokens
        self._heuristic = params.num_assistant_tokens_schedule != "constant"
        self._tried, self._held = BELIEVED, BELIEVED * BELIEF
        self._pause, self._waiting = FIRST_PAUSE, 0

    def count(self, costs: Costs) -> int:
        """Drafts to make for the next step."""
        if self._given is not None:
            return self._given
        if self._waiting:
            self._waiting -= 1
            return 0 if self._waiting else TRIED
        best = costs.best(self._held / self._tried)
        if not best:
            self._waiting, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return best

    def note(self, drafted: int, accepted: int) -> None:
        """What became of the last drafts."""
        if not drafted:
            return
        for held in [True] * accepted + [False] * (accepted < drafted):  # nothing is known of those behind
            self._tried = 1 + FORGET * self._tried
            self._held = held + FORGET * self._held
        if self._given is not None and self._heuristic:
            self._given = self._given + 2 if accepted == drafted else max(1, self._given - 1)
