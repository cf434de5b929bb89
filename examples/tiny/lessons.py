"""All lessons as one endless source of samples: the number of a sample decides all of it."""

from __future__ import annotations

import random
from collections.abc import Mapping

from examples.tiny import films, stills, talks, untaught
from examples.tiny.lesson import Lesson
from examples.tiny.reader import MarkedSample, marked
from qvl.train.encode import Encoder

FILMS = ("motion", "order", "when")
# How often each task is drawn in training: what is hard more often.
SHARES: Mapping[str, float] = {
    "text": 0.14,
    "page": 0.14,
    "digits": 0.07,
    "name": 0.03,
    "count": 0.05,
    "find": 0.06,
    "compare": 0.09,
    "motion": 0.04,
    "order": 0.03,
    "when": 0.05,
    "talk": 0.27,
    "unknown": 0.03,
}


def draw(task: str, rng: random.Random, held_out: bool = False) -> Lesson:
    """A lesson of any task, a function of ``rng`` alone."""
    if task in ("talk", "unknown"):
        return (talks if task == "talk" else untaught).draw(rng, held_out)
    return (films if task in FILMS else stills).draw(task, rng, held_out)


class Lessons:
    """``encoder``: of the model that learns."""

    def __init__(self, encoder: Encoder, seed: int = 0) -> None:
        self.encoder, self.seed = encoder, seed

    def __len__(self) -> int:
        return 2**40  # nobody gets to the end

    def __getitem__(self, index: int) -> MarkedSample:
        rng = random.Random(f"{self.seed}/{index}")
        (task,) = rng.choices([*SHARES], [*SHARES.values()])
        lesson = draw(task, rng)
        return marked(self.encoder.encode(lesson.messages, name=f"{task} {index}"), lesson)
