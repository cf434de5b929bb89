"""Which samples a step takes and at what rate: functions of the settings and the step alone."""

from dataclasses import replace

import pytest

from qvl.errors import InputError
from qvl.train.packing import groups
from qvl.train.schedule import indices, rate
from qvl.train.settings import TrainSettings

PLAIN = TrainSettings(batch=4, epochs=2, warm_up=0)


def all_indices(samples, settings):
    return [indices(step, samples, settings) for step in range(settings.total_steps(samples))]


def taken_in_order(samples, settings):
    return [i for step in all_indices(samples, settings) for i in step]


def test_every_epoch_takes_every_sample_once():
    taken = taken_in_order(10, PLAIN)
    assert len(taken) == 20
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:], "each epoch has its own order"


def test_the_last_step_takes_what_is_left():
    assert [len(step) for step in all_indices(10, PLAIN)] == [4, 4, 4, 4, 4]
    assert [len(step) for step in all_indices(9, PLAIN)] == [4, 4, 4, 4, 2]


def test_steps_win_over_epochs_and_go_round():
    settings = replace(PLAIN, steps=7)
    assert settings.total_steps(10) == 7
    assert sum(map(len, all_indices(10, settings))) == 28


def test_a_part_of_an_epoch():
    assert taken_in_order(10, replace(PLAIN, epochs=0.5)) == taken_in_order(10, PLAIN)[:5]


def test_the_order_follows_the_seed():
    assert all_indices(10, PLAIN) == all_indices(10, PLAIN)
    assert all_indices(10, PLAIN) != all_indices(10, replace(PLAIN, seed=1))
    assert taken_in_order(10, replace(PLAIN, shuffle=False)) == [*range(10), *range(10)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.85355339, 0.5, 0.14644661]),
        ("trapezoid", [1, 1, 1, 1]),
    ],
)
def test_rates(schedule, expected):
    settings = replace(PLAIN, schedule=schedule)
    assert [rate(step, 4, settings) for step in range(4)] == pytest.approx(expected)


def test_a_trapezoid_falls_in_its_last_fifth():
    settings = replace(PLAIN, schedule="trapezoid")
    assert [rate(step, 100, settings) for step in (79, 80, 90, 100)] == pytest.approx([1, 1, 0.5, 0])


def test_warm_up_and_floor():
    settings = replace(PLAIN, schedule="linear", warm_up=4, floor=0.2)
    assert [rate(step, 8, settings) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rate(8, 8, settings) == pytest.approx(0.2)
    assert rate(80, 8, settings) == pytest.approx(0.2), "never below, whatever is asked"


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("batch", 0, "batch must be 1 or more, not 0"),
        ("steps", 0, "steps must be 1 or more, not 0"),
        ("epochs", 0, "epochs must be more than 0, not 0"),
        ("learning_rate", 0.0, "learning_rate must be more than 0, not 0.0"),
        ("floor", 2, "floor must be between 0 and 1, not 2"),
        ("average", 1.0, "average must be at least 0 and below 1, not 1.0"),
        ("schedule", "sine", "schedule must be one of cosine, linear, trapezoid, constant, not 'sine'"),
        ("dtype", "float16", "dtype must be one of float32, bfloat16, not 'float16'"),
        ("keep", -1, "keep must be 0 or more, not -1"),
    ],
)
def test_bad_settings_are_named(setting, value, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        TrainSettings(**{setting: value})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([3, 4, 3, 9, 1], [[0, 1, 2], [3, 4]]),
        ([11, 1, 10, 12], [[0], [1], [2], [3]]),
        ([5, 5, 5], [[0, 1], [2]]),
    ],
    ids=["none", "fit", "too large ones stand alone", "exactly full"],
)
def test_groups(sizes, expected):
    assert groups(sizes, 10) == expected
