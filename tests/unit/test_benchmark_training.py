"""The benchmark of a training step's memory runs, and shows what it is for."""

import sys

import pytest

from benchmarks.training import LEAST, measured

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(sys.platform != "linux", reason="the most memory of a process is told by Linux"),
]


def test_a_step_takes_less_than_half_of_the_memory_of_transformers():
    found = measured(tokens=1024, vocabulary=40_000)
    assert found["transformers"]["bytes"] > LEAST * found["qvl"]["bytes"] > 0
    assert found["qvl"]["loss"] == pytest.approx(found["transformers"]["loss"], abs=0.1)
