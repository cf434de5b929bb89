"""Which samples a step takes, and at what rate: functions of the settings and the step alone.

So a run that was stopped goes on exactly where it was, whatever was drawn before.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from qvl.train.settings import TrainSettings

LAST_SHARE = 0.2  # of a run, in which a trapezoid falls


def indices(step: int, samples: int, settings: TrainSettings) -> list[int]:
    """The samples of a step (counted from 0): the next ``batch`` of the order, epoch after epoch."""
    first = step * settings.batch
    last = first + settings.batch
    if settings.steps is None:  # the last step takes what is left
        last = min(last, max(1, int(settings.epochs * samples)))
    places = (divmod(place, samples) for place in range(first, last))
    if not settings.shuffle:
        return [within for _, within in places]
    return [_order(settings.seed, epoch, samples)[within] for epoch, within in places]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, samples: int) -> list[int]:
    """The samples of an epoch in the order in which they are taken."""
    order = list(range(samples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def rate(step: int, steps: int, settings: TrainSettings) -> float:
    """The factor on every learning rate at a step (counted from 0) of a run of so many ``steps``.

    It rises linearly over ``warm_up`` steps, then falls to ``floor``: along half a cosine (as in
    arXiv 1608.03983, without restarts), along a line, along a line in the last fifth only (arXiv 2404.06395),
    or not at all.
    """
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    gone = min(1.0, (step - settings.warm_up) / max(1, steps - settings.warm_up))
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}
    left["trapezoid"] = min(1.0, (1 - gone) / LAST_SHARE)
    return settings.floor + (1 - settings.floor) * left[settings.schedule]
