"""A run that was killed at any step and started again: the same losses, bit for bit, and the same weights."""

import pytest
import torch

from qvl.errors import CheckpointMismatchError
from qvl.train import saving
from qvl.train.metrics import FILE
from support.training_run import SAMPLES, make_trainer

# Of passes of 40 tokens each step needs several; 9 steps of 3 samples are more than two epochs.
RUN = {"steps": 9, "save_every": 2, "average": 0.9, "dropout": 0.1, "schedule": "cosine"}


class Killed(Exception):
    """Whatever ends a process without a word."""


class Killer:
    """Ends the run before the listeners after it hear of a step."""

    def __init__(self, step):
        self.at = step

    def started(self, step, steps): ...

    def stepped(self, step, values):
        if step == self.at:
            raise Killed

    def evaluated(self, step, values): ...

    def saved(self, step, folder): ...


def timeless(path):
    """The file of metrics without the seconds that steps took."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    place = lines[0].index("seconds")
    return [line[:place] + line[place + 1 :] for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    make_trainer(out, **RUN).run()
    return out


def broken(out, step, **settings):
    trainer = make_trainer(out, **{**RUN, **settings})
    trainer.listeners = [*trainer.listeners, Killer(step)]
    with pytest.raises(Killed):
        trainer.run()


@pytest.mark.parametrize("step", range(1, 10))
def test_it_goes_on_bit_for_bit(tmp_path, unbroken, step):
    broken(tmp_path, step)
    make_trainer(tmp_path, **RUN).run()
    assert timeless(tmp_path / FILE) == timeless(unbroken / FILE)
    own, whole = (
        torch.load(saving.newest(out)[1] / saving.STATE, weights_only=True) for out in (tmp_path, unbroken)
    )
    for kind in ("weights", "average"):
        assert all(torch.equal(own[kind][name], value) for name, value in whole[kind].items())


def test_killed_twice(tmp_path, unbroken):
    broken(tmp_path, 3)
    broken(tmp_path, 7)
    make_trainer(tmp_path, **RUN).run()
    assert timeless(tmp_path / FILE) == timeless(unbroken / FILE)


def test_a_step_with_several_passes_and_the_end_of_an_epoch_are_among_them(tmp_path):
    trainer = make_trainer(tmp_path, **RUN)
    assert any(len(trainer.lessons[step].batches) > 1 for step in range(9))
    assert 9 * trainer.settings.batch > 2 * SAMPLES


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate \(then 0.003, now 0.001\)"),
        ({"samples": 12}, r"samples \(then 13, now 12\)"),
        ({"frozen": ("model.visual",)}, "which parameters are trained"),
    ],
    ids=["rate", "data", "parts"],
)
def test_another_run_is_refused(tmp_path, change, told):
    broken(tmp_path, 3)
    with pytest.raises(CheckpointMismatchError, match=told):
        make_trainer(tmp_path, **{**RUN, **change}).run()


def test_what_does_not_change_the_course_may_change(tmp_path, unbroken):
    broken(tmp_path, 5)
    make_trainer(tmp_path, **{**RUN, "save_every": 3, "keep": 1, "workers": 1}).run()
    assert timeless(tmp_path / FILE) == timeless(unbroken / FILE)
