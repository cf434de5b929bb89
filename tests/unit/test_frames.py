"""Which frames of a video are taken: counts, indices, segments, varying rates."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from qvl.errors import InputError, InputTypeError, UnknownNameError
from qvl.processing.video.frames import SamplingRule, Timeline, choose_frames


def choose(total, file_fps=30.0, start=None, end=None, timestamps=None, **rule):
    return choose_frames(Timeline(total, file_fps, timestamps), SamplingRule(**rule), start, end)


def test_uniform_is_floor_of_i_times_t_over_n():
    choice = choose(100, num_frames=8)
    assert choice.indices == tuple(i * 100 // 8 for i in range(8))
    assert choice.timestamps == tuple(i / 30 for i in choice.indices)


@pytest.mark.parametrize("total", [2, 3, 5, 49, 2997, 107_892, 1_000_003])
def test_indices_stay_inside_and_ascend(total):
    for n in range(2, min(total, 768) + 1, 2):
        indices = choose(total, num_frames=n).indices
        assert len(indices) == n
        assert indices[0] == 0
        assert indices[-1] < total
        assert all(a < b for a, b in pairwise(indices))


@pytest.mark.parametrize(
    ("total", "rule", "count"),
    [
        (300, {"fps": 2}, 20),
        (300, {"fps": 2.04}, 20),  # 20.4, floored to even
        (300, {"fps": 1.99}, 18),
        (300, {"fps": 0.1}, 4),  # min_frames
        (300, {"fps": 30, "max_frames": 33}, 32),
        (300, {"fps": 2, "max_frames": 2}, 2),  # max_frames wins over min_frames
        (5, {"fps": 30}, 4),
        (3, {"fps": 30}, 2),
        (1, {"fps": 2}, 1),
        (300, {"fps": 0.01, "min_frames": 1}, 2),  # never nothing
        (300, {"num_frames": 5}, 4),  # half to even
        (300, {"num_frames": 7}, 8),
        (7, {"num_frames": 7}, 6),  # rounding up would be more than there are
        (300, {"num_frames": 1}, 2),
        (1, {"num_frames": 1}, 1),
        (300, {"fps": 2, "temporal_patch_size": 4}, 20),
        (301, {}, 301),
    ],
)
def test_counts(total, rule, count):
    assert len(choose(total, **rule).indices) == count


def test_sampled_rate_is_the_one_that_came_about():
    assert choose(300, fps=2).sampled_fps == 2.0
    assert choose(300, fps=0.1).sampled_fps == 4 / 10
    assert choose(3000, fps=2, max_frames=50).sampled_fps == 0.5
    assert choose(300, num_frames=6).sampled_fps == pytest.approx(0.6)
    assert choose(90, file_fps=None, num_frames=6).sampled_fps is None


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": -1}, "fps must be a positive number"),
        ({"fps": float("nan")}, "fps must be a positive number"),
        ({"fps": float("inf")}, "fps must be a positive number"),
        ({"fps": 1, "num_frames": 4}, "exclude each other"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"max_frames": 1}, "max_frames must be at least 2"),
    ],
)
def test_rules_that_make_no_sense(rule, words):
    with pytest.raises(InputError, match=words):
        SamplingRule(**rule)
    with pytest.raises(UnknownNameError, match="frame_sampling"):
        SamplingRule(method="random")


@pytest.mark.parametrize("rule", [{"fps": "2"}, {"num_frames": "4"}, {"fps": 1, "max_frames": "9"}])
def test_numbers_must_be_numbers(rule):
    with pytest.raises(InputTypeError, match="must be a number, not '"):
        SamplingRule(**rule)


def test_linspace_is_that_of_qwen_vl_utils():
    assert choose(100, num_frames=8, method="linspace").indices == tuple(
        torch.linspace(0, 99, 8).round().long().tolist()
    )
    segment = choose(100, file_fps=10.0, start=2.0, end=6.0, num_frames=4, method="linspace")
    assert segment.indices == tuple(torch.linspace(20, 60, 4).round().long().tolist())


def test_segments():
    choice = choose(300, start=1.0, end=3.0)
    assert choice.indices == tuple(range(30, 91))  # both ends belong to it, as in qwen-vl-utils
    assert choice.timestamps[0] == 1.0
    assert choose(300, start=0.1, end=0.2).indices[0] == 3  # 0.1 * 30 is a hair above 3
    assert choose(300, start=9.0).indices[-1] == 299
    assert choose(300, end=1.0).indices[-1] == 30
    assert choose(300, start=2.0, end=7.0, fps=2).sampled_fps == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("start", "end"), [(5.0, 5.0), (5.0, 4.0), (-1.0, 4.0), (10.5, None), (1.001, 1.002), (None, 0.0)]
)
def test_bad_segments(start, end):
    with pytest.raises(InputError, match="video_start"):
        choose(300, start=start, end=end)


def test_unknown_rates():
    with pytest.raises(InputError, match="video_metadata with fps"):
        choose(300, file_fps=None, fps=2)
    with pytest.raises(InputError, match="video_start"):
        choose(300, file_fps=None, start=1.0)


def test_varying_rate_is_sampled_evenly_in_time():
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 4.0, 8.0])
    choice = choose(8, file_fps=0.8, timestamps=times, num_frames=4)  # every 2.5 of 10 seconds
    assert choice.indices == (0, 5, 6, 6)  # on screen at 0, 2.5, 5 and 7.5
    assert choice.timestamps == (0.0, 0.5, 4.0, 4.0)
    assert choice.sampled_fps == pytest.approx(0.4)


def test_a_part_of_a_varying_rate_has_a_rate_of_its_own():
    """Six frames in the first half second, then two in 9.5: the mean of the whole says nothing of a part."""
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 4.0, 8.0])
    slow = choose(8, file_fps=0.8, timestamps=times, start=4.0, num_frames=2)
    assert slow.indices == (6, 7)  # 4 to 10 seconds
    assert slow.sampled_fps == pytest.approx(2 / 6)
    fast = choose(8, file_fps=0.8, timestamps=times, end=0.35, fps=10)
    assert fast.indices == (0, 1, 2, 3)
    assert fast.sampled_fps == pytest.approx(10)
    assert len(choose(8, file_fps=0.8, timestamps=times, end=0.35, fps=5, min_frames=1).indices) == 2


def test_constant_times_give_the_indices_of_a_constant_rate():
    times = np.arange(101) / 30
    for n in (2, 8, 34, 100):
        assert choose(101, timestamps=times, num_frames=n).indices == choose(101, num_frames=n).indices
