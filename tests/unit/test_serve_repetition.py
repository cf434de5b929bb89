"""Loops are found soon and everywhere, and what only looks like one is left alone."""

import random

import pytest

from qvl.serve.repetition import FEWEST_REPEATS, LONGEST_BLOCK, RepetitionDetector
from support.serving import bundled_processor

LIMIT = 256


def first_alarm(tokens, limit=LIMIT):
    """How many tokens were taken when the alarm came; None if it did not."""
    detector = RepetitionDetector(limit)
    return next((i + 1 for i, token in enumerate(tokens) if detector.append(token)), None)


def ends_in_a_loop(tokens, limit):
    """The definition, written out."""
    for period in range(1, LONGEST_BLOCK + 1):
        needed = max(limit, FEWEST_REPEATS * period)
        tail = tokens[-needed:]
        if len(tokens) >= needed and all(tail[i] == tail[i - period] for i in range(period, needed)):
            return True
    return False


def text_tokens(text):
    return bundled_processor().tokenizer.encode(text)


@pytest.mark.parametrize("period", [1, 2, 7, 63, 64, 65, 100, 127, 128])
def test_a_block_is_found_as_soon_as_it_fills_the_limit(period):
    beginning = list(range(1000, 1300))
    tokens = beginning + [i % period for i in range(2000)]
    assert first_alarm(tokens) == len(beginning) + max(LIMIT, FEWEST_REPEATS * period)


def test_a_block_longer_than_the_longest_is_none():
    assert first_alarm([i % (LONGEST_BLOCK + 1) for i in range(20_000)]) is None


@pytest.mark.parametrize("limit", [1, 5, 16, 40])
def test_agrees_with_the_definition_on_random_tokens_that_often_repeat(limit):
    draw = random.Random(limit)
    for _ in range(20):
        block = [draw.randrange(3) for _ in range(draw.randrange(1, 12))]
        tokens = [draw.randrange(3) for _ in range(draw.randrange(30))]
        tokens += (block * 40)[: draw.randrange(200)] + [draw.randrange(3) for _ in range(9)]
        expected = next((n for n in range(1, len(tokens) + 1) if ends_in_a_loop(tokens[:n], limit)), None)
        assert first_alarm(tokens, limit) == expected


def test_a_long_answer_moves_the_window_without_forgetting():
    draw = random.Random(1)
    noise = [draw.randrange(10_000) for _ in range(5_000)]
    assert first_alarm(noise) is None
    assert first_alarm(noise + [1, 2, 3] * 200) == len(noise) + LIMIT


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("| 0 | 0 | 0 |\n" * 8, id="a table of zeros"),
        pytest.param(
            "|---|---|---|\n" + "".join(f"| {i} | 0 | 0 |\n" for i in range(200)), id="numbered rows"
        ),
        pytest.param("".join(f"{i}. yes\n" for i in range(300)), id="a numbered list"),
        pytest.param(
            "".join(f'{{"bbox_2d": [{i}, 0, {i + 9}, 20]}},\n' for i in range(99)), id="boxes in a row"
        ),
        pytest.param("-" * 200 + "\n" + "=" * 200, id="two long lines"),
        pytest.param("0" * 255, id="just below the limit"),
    ],
)
def test_ordinary_answers_are_left_alone(text):
    assert first_alarm(text_tokens(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0" * 256, id="zeros"),
        pytest.param("the cat sat on the mat. " * 300, id="a sentence"),
        pytest.param('{"bbox_2d": [1, 2, 3, 4], "label": "cat"},\n' * 200, id="one box"),
        pytest.param("ok\n" * 600, id="lines"),
    ],
)
def test_runaway_answers_are_found(text):
    assert first_alarm(text_tokens(text)) is not None


def test_one_other_token_begins_anew():
    tokens = [7] * (LIMIT - 1) + [8] + [7] * (LIMIT - 1)
    assert first_alarm(tokens) is None
    assert first_alarm([*tokens, 7]) == len(tokens) + 1
