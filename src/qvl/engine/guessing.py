"""How many guesses a step runs: as many as make it bring more tokens in a second, by what was measured.

A guess that holds saves a step, and every guess makes the step that checks it longer: by nothing where the
weights' bytes decide, by a whole step where arithmetic does. So both sides are measured: the seconds of a
step by the tokens in it, and how often guesses hold. No torch here.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from statistics import median

from qvl.engine.lookup import MeasuredLookup
from qvl.engine.sequence import Sequence

MOST_LOOKED_UP = 16  # guesses of one sequence in a step
LEAST_GAIN = 1.05  # tokens per second that guesses must promise, to be tried at all
RISK = 0.03  # of the time spent in steps may be lost on finding out what a longer step takes
RECENT = 5  # measurements of one size of step that count
STALE = 512  # steps after which a size that was not seen again is unknown
ENOUGH = 2  # measurements, before a size is believed: the first step of all is slow


class StepTimes:
    """Seconds that a step without prompts takes, by the tokens in it: medians of the latest measurements.

    They belong to a network on a machine, and outlive a request.
    """

    def __init__(self) -> None:
        self.spent = 0.0  # seconds in all steps noted
        self._seconds: dict[int, deque[float]] = {}
        self._seen: dict[int, int] = {}  # size -> number of the step that had it last
        self._sizes: list[int] = []  # sorted
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """One step of ``tokens`` took ``seconds``."""
        self.spent += seconds
        self._steps += 1
        if tokens not in self._seconds:
            self._seconds[tokens] = deque(maxlen=RECENT)
            insort(self._sizes, tokens)
        self._seconds[tokens].append(seconds)
        self._seen[tokens] = self._steps
        if self._steps % STALE == 0:
            for size in [s for s in self._sizes[1:] if self._seen[s] <= self._steps - STALE]:
                self._sizes.remove(size)
                del self._seconds[size], self._seen[size]

    def known(self, tokens: int) -> bool:
        """Whether steps of just so many tokens were seen often enough."""
        return len(self._seconds.get(tokens, ())) >= ENOUGH

    @property
    def longest(self) -> int:
        """Tokens of the longest step noted; 0 before any."""
        return self._sizes[-1] if self._sizes else 0

    def estimate(self, tokens: int) -> float | None:
        """Seconds of a step; None before any was noted.

        Between sizes that were seen, on the line through them; beyond the last, on the line through the last
        two; where only one was seen, in proportion, which is the worst that can be.
        """
        sizes = self._sizes
        if not sizes:
            return None
        if tokens in self._seconds or tokens < sizes[0]:
            return median(self._seconds[max(tokens, sizes[0])])
        if len(sizes) == 1:
            return median(self._seconds[sizes[0]]) * tokens / sizes[0]
        above = next((i for i, size in enumerate(sizes) if size > tokens), len(sizes) - 1)
        low, high = sizes[above - 1], sizes[above]
        before, after = median(self._seconds[low]), median(self._seconds[high])
        slope = (after - before) / (high - low)
        return before + slope * (tokens - low) if tokens < high else after + max(slope, 0.0) * (tokens - high)


class Guessing:
    """Fills in the drafts of a step: numbers that were asked for first, then what is worth its time.

    ``draft``: drafts for sequences that have a draft model; gets them and the tokens that are left for all.
    """

    def __init__(
        self, times: StepTimes, draft: Callable[[SequenceOf[Sequence], int], None] | None = None
    ) -> None:
        self.times = times
        self._draft = draft
        self._risked = 0.0  # seconds

    def __call__(self, decoding: SequenceOf[Sequence], budget: int) -> None:
        """Set the drafts of sequences that decode, at most ``budget`` of them."""
        free, modelled = [], []
        for sequence in decoding:
            if sequence.draft is not None:
                sequence.draft_ids, sequence.draft_probs = (), ()
                modelled.append(sequence)
            elif isinstance(sequence.lookup, MeasuredLookup):
                sequence.draft_ids = ()
                free.append(sequence)
            else:
                sequence.propose(budget)
                budget -= len(sequence.draft_ids)
        if modelled and self._draft is not None:
            self._draft(modelled, budget)
            budget -= sum(len(sequence.draft_ids) for sequence in modelled)
        if not free:
            return
        rows = sum(1 + len(sequence.draft_ids) for sequence in decoding)
        chains = [s.lookup.outlook(min(MOST_LOOKED_UP, s.most_guesses)) for s in free]  # type: ignore[union-attr]
        for sequence, count in zip(free, self.shares(chains, rows, budget), strict=True):
            sequence.propose(count)

    def shares(self, chains: SequenceOf[SequenceOf[float]], rows: int, budget: int) -> list[int]:
        """How many guesses of each chain to run, so that the step brings the most tokens in a second.

        chains: for each sequence how likely its first, first two, ... guesses hold. rows: tokens of the step
        without them. budget: the most guesses of all. A step is never made more than twice as long as the
        longest seen, so that a size nobody knows is met on small steps.
        """
        counts = [0] * len(chains)
        ranked = sorted(((p, i) for i, chain in enumerate(chains) for p in chain), reverse=True)
        ranked = ranked[: max(0, min(budget, 2 * self.times.longest - rows))]
        plain = self.times.estimate(rows)
        if not ranked or plain is None or not self.times.known(rows):
            return counts
        best, take, tokens = LEAST_GAIN * rows / plain, 0, float(rows)
        for j, (likely, _) in enumerate(ranked, 1):
            tokens += likely
            rate = tokens / (self.times.estimate(rows + j) or plain)
            if rate > best:
                best, take = rate, j
        if not take and self.times.longest <= rows and self._dares(plain, rows, ranked[0][0]):
            take = 1
        for _, i in ranked[:take]:
            counts[i] += 1
        return counts

    def _dares(self, plain: float, rows: int, likely: float) -> bool:
        """Whether one guess may be run only to see what it costs: at worst a row as much as every other."""
        risk = plain * (1 - likely) / rows
        if self._risked + risk > RISK * self.times.spent:
            return False
        self._risked += risk
        return True
