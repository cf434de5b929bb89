"""What a training run is: every setting that decides its course, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qvl.errors import InputError

Schedule = Literal["cosine", "linear", "trapezoid", "constant"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainSettings:
    """Rates are per step of the optimizer, lengths in tokens, times in steps.

    ``batch``: samples of one step, of all processes together. ``pass_tokens``: tokens that one pass through
    the network may hold; a step takes as many passes as its samples need, so this sets the memory, not the
    result. ``steps``: where training ends; None: after ``epochs``. ``warm_up``: steps of rising rate.
    ``floor``: the share of the rate that is left at the end. ``shuffle``: another order in every epoch; off
    for sources that are drawn at random anyway. ``average``: decay of a moving average of the
    weights, which is then what is saved; 0 for none. ``dtype``: of the computation; trained weights
    themselves are always held in float32. ``save_dtype``: of the saved weights; None: as they were loaded.
    ``keep``: complete checkpoints that stay; 0 for all.
    """

    batch: int = 16
    pass_tokens: int = 8192
    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float = 1e-5
    schedule: Schedule = "cosine"
    warm_up: int = 20
    floor: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    average: float = 0.0
    dtype: Dtype = "float32"
    save_dtype: str | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    shuffle: bool = True
    workers: int = 1
    log_every: int = 10
    save_every: int = 500
    evaluate_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("batch", "pass_tokens", "log_every", "save_every"):
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        for name in ("warm_up", "weight_decay", "workers", "evaluate_every", "keep", "clip"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        _require(self.steps is None or self.steps >= 1, "steps", "1 or more", self.steps)
        _require(self.epochs > 0, "epochs", "more than 0", self.epochs)
        _require(self.learning_rate > 0, "learning_rate", "more than 0", self.learning_rate)
        _require(0 <= self.floor <= 1, "floor", "between 0 and 1", self.floor)
        _require(0 <= self.average < 1, "average", "at least 0 and below 1", self.average)
        _require(self.schedule in get_args(Schedule), "schedule", _one_of(Schedule), self.schedule)
        _require(self.dtype in get_args(Dtype), "dtype", _one_of(Dtype), self.dtype)

    def total_steps(self, samples: int) -> int:
        """Steps of the whole run over a source of so many samples; the last one may be smaller."""
        return self.steps if self.steps is not None else max(1, -(-int(self.epochs * samples) // self.batch))


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}, not {value!r}")


def _one_of(choices: object) -> str:
    return "one of " + ", ".join(get_args(choices))
