"""Stopping criteria, stop strings above all."""

import time

import pytest
import torch

from qvl.errors import GenerationError
from qvl.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    merged,
)

WORDS = [b"st", b"op", b"stop", b"top", b" the", b"end", b"\xc3", b"\xa9", b"s", b"t", b"xstopy"]


class Words:
    """A tokenizer of a few byte strings; counts how many tokens it was ever asked to decode."""

    def __init__(self):
        self.decoded = 0

    def decode(self, ids, **kwargs):
        self.decoded += len(ids)
        return b"".join(WORDS[i] for i in ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("ids", "done"),
    [
        ([0, 1], True),  # st|op
        ([2], True),
        ([8, 3], True),  # s|top
        ([8, 9, 1], True),  # s|t|op
        ([10], True),  # inside one token
        ([2, 4], False),  # was complete before the last token
        ([0, 0], False),
        ([2, 8], False),
        ([2, 2], True),
    ],
)
def test_stop_string_across_tokens(ids, done):
    assert StopStringCriteria(Words(), "stop")(torch.tensor([ids]), None).tolist() == [done]


def test_a_character_in_two_tokens():
    assert StopStringCriteria(Words(), "é").completes([5, 6, 7])
    assert not StopStringCriteria(Words(), "é").completes([5, 6])
    assert not StopStringCriteria(Words(), "end").completes([5, 6])


def test_several_strings_and_rows():
    criterion = StopStringCriteria(Words(), ["stop", "end"])
    assert criterion(torch.tensor([[4, 5], [0, 1], [4, 4]]), None).tolist() == [True, True, False]


def test_the_cost_does_not_grow_with_the_length():
    words = Words()
    StopStringCriteria(words, "stop").completes([4] * 10_000)
    assert words.decoded < 20


def test_empty_stop_string():
    with pytest.raises(GenerationError):
        StopStringCriteria(Words(), [""])


def test_lists_end_when_one_of_them_does():
    class Never(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return False

    ids = torch.tensor([[1, 2], [1, 3]])
    criteria = StoppingCriteriaList([Never(), EosTokenCriteria([3, 4]), MaxLengthCriteria(9)])
    assert criteria(ids, None).tolist() == [False, True]
    assert criteria.max_length == 9
    assert StoppingCriteriaList([MaxLengthCriteria(2)])(ids, None).tolist() == [True, True]


def test_time():
    ids = torch.tensor([[1]])
    assert MaxTimeCriteria(0.5, initial_timestamp=time.time() - 1)(ids, None).tolist() == [True]
    assert MaxTimeCriteria(60.0)(ids, None).tolist() == [False]


def test_a_callers_criterion_replaces_one_of_the_same_class():
    own, custom, other = MaxLengthCriteria(5), MaxLengthCriteria(7), EosTokenCriteria(1)
    assert merged([own], [custom, other]) == [custom, other]
