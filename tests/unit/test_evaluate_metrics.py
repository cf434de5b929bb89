"""Metrics of answers, by tables of what people write: texts, numbers, letters, boxes."""

from __future__ import annotations

import itertools
import random

import pytest

from qvl.errors import InputError, UnknownNameError
from qvl.evaluate import METRICS, scoring
from qvl.evaluate.boxes import iou, matched, pointed, reference_boxes
from qvl.evaluate.metrics import Answer, Picture
from qvl.evaluate.numbers import number_in, relaxed, within
from qvl.evaluate.report import wilson
from qvl.evaluate.texts import anls, choice, contains, edits, exact, letter_of, vqa, vqa_text
from qvl.processing.grounding import Box, Point
from qvl.types import Grid


@pytest.mark.parametrize(
    ("answer", "references", "ignore", "score"),
    [
        ("red", ["red"], (), 1),
        (" red\n", ["red"], (), 1),
        ("Red", ["red"], (), 0),
        ("Red", ["red"], ("case",), 1),
        ("red.", ["red"], (), 0),
        ("red.", ["red"], ("stop",), 1),
        ("红色。", ["红色"], ("stop",), 1),
        ("red  circle", ["red circle"], (), 0),
        ("red\n circle", ["red circle"], ("spaces",), 1),
        ("RED  circle.", ["red circle"], ("case", "spaces"), 0),
        ("3.5", ["3"], ("stop",), 0),
        ("blue", ["red", "blue"], (), 1),
        ("", ["red"], (), 0),
    ],
)
def test_exact(answer, references, ignore, score):
    assert exact(answer, references, ignore) == score


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("It says OPEN today", ["open"], 1),
        ("It says  open\ntoday", ["open today"], 1),
        ("It says shut", ["open"], 0),
        ("312", ["12"], 1),
        ("anything", [""], 0),
    ],
)
def test_contains(answer, references, score):
    assert contains(answer, references) == score


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_edits(one, other, count):
    assert edits(one, other) == edits(other, one) == count


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Hello World", ["hello world"], 1.0),
        ("hello  worlt", ["hello world"], 1 - 1 / 11),
        ("hell", ["hello world"], 0.0),  # 4 of 11: below the threshold
        ("abcd", ["abxy"], 0.5),  # on the threshold
        ("abcd", ["axyz"], 0.0),
        ("$1,250", ["1,250", "$1250"], 1 - 1 / 6),
        ("", ["x"], 0.0),
        ("a" * 500, ["b"], 0.0),
    ],
)
def test_anls(answer, references, score):
    assert anls(answer, references) == pytest.approx(score)


def test_anls_with_another_threshold():
    assert anls("hell", ["hello world"], threshold=0.3) == pytest.approx(4 / 11)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two Dogs", "2 dogs"),
        ("isnt it", "isn't it"),
        ("1,000 cats", "1000 cats"),
        ("b-c", "b c"),
        ("yes !", "yes"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("none", "0"),
        ("were", "were"),
    ],
)
def test_vqa_text(text, normal):
    assert vqa_text(text) == normal


@pytest.mark.parametrize(("agree", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_of_ten_people_as_the_challenge_averages(agree, score):
    people = ["Yes."] * agree + ["no"] * (10 - agree)
    assert vqa("yes", people) == pytest.approx(score)
    others = [people[:i] + people[i + 1 :] for i in range(10)]
    direct = sum(min(sum(vqa_text(p) == "yes" for p in nine) / 3, 1) for nine in others) / 10
    assert vqa("yes", people) == pytest.approx(direct)


def test_vqa_of_few_people():
    assert vqa("yes", ["yes"]) == vqa("yes", ["no", "yes"]) == 1
    assert vqa("no", ["yes"]) == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) cat", "B"),
        ("**B**", "B"),
        ("The answer is (C).", "C"),
        ("Answer: D", "D"),
        ("Option A is right", "A"),
        ("cat", "B"),
        ("Cat.", "B"),
        ("A cat", None),
        ("I think it is a cat", None),
        ("the answer is a dog", None),
        ("E", None),
        ("", None),
    ],
)
def test_letters(text, letter):
    assert letter_of(text, ["dog", "cat", "cow", "hen"]) == letter


def test_choice():
    assert choice("The answer is B", ["B"]) == 1
    assert choice("cat", ["B"], ["dog", "cat"]) == choice("B", ["cat"], ["dog", "cat"]) == 1
    assert choice("A", ["B"]) == choice("no idea", ["B"]) == 0
    assert choice("same", ["A"], ["same", "same"]) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.5", 3.5),
        ("about 2.5s", 2.5),
        ("1,234.5 cats", 1234.5),
        ("12,5", 12),
        ("-3", -3),
        ("−4", -4),
        ("item-3", 3),
        ("3-5", 3),
        (".5", 0.5),
        ("2.", 2),
        ("1e3", 1000),
        ("5%", 5),
        ("01:02.5", 62.5),
        ("1:00:00", 3600),
        ("at 0:03 and 7", 3),
        ("7 at 0:03", 7),
        ("none", None),
        (4, 4),
        (float("nan"), None),
    ],
)
def test_numbers_in_text(text, number):
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "score"),
    [
        ("2.0 s", 1.5, 0.5, 1),
        ("2.01", 1.5, 0.5, 0),
        ("0.8", 0.3, 0.5, 1),  # 0.5000000000000001 in floating point
        ("3", "3", 0.0, 1),
        ("4", "3", 0.0, 0),
        ("soon", 3, 10.0, 0),
        ("00:01.5", 1.5, 0.0, 1),
    ],
)
def test_numbers_within_a_tolerance(answer, reference, tolerance, score):
    assert within(answer, [reference], tolerance) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("14.", "14", 1),
        ("14%", "0.14", 1),
        ("14%", "14", 0),  # a percentage is a hundredth
        ("0", "0", 1),
        ("0.0", "0", 0),  # nothing is within 5 % of nothing
        ("Yes", "yes", 1),
        ("1,000", "1000", 0),
        ("2015", "2010", 1),  # years too: the metric's own weakness
        ("[0.57, 0.23]", "[0.57, 0.23]", 1),
    ],
)
def test_relaxed_accuracy(answer, reference, score):
    assert relaxed(answer, [reference]) == score


UNIT = Box(0, 0, 10, 10)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (UNIT, UNIT, 1.0),
        (UNIT, Box(0, 0, 10, 5), 0.5),
        (UNIT, Box(5, 5, 15, 15), 25 / 175),
        (UNIT, Box(10, 0, 20, 10), 0.0),
        (UNIT, Box(20, 20, 30, 30), 0.0),
        (Box(3, 3, 3, 3), Box(3, 3, 3, 3), 0.0),
    ],
    ids=["same", "half", "corner", "edge", "apart", "empty"],
)
def test_iou(one, other, value):
    assert iou(one, other) == iou(other, one) == pytest.approx(value)


def test_one_box_is_the_accuracy_at_a_half():
    assert matched([Box(0, 0, 10, 5)], [UNIT]).f1 == 1
    assert matched([Box(0, 0, 10, 4.9)], [UNIT]).f1 == 0
    assert matched([Box(0, 0, 10, 5)], [UNIT], threshold=0.6).f1 == 0


def test_several_boxes():
    far = Box(50, 50, 60, 60)
    found = matched([UNIT, UNIT, far], [UNIT, far])
    assert (found.precision, found.recall, found.iou) == (2 / 3, 1, 1)
    assert found.f1 == pytest.approx(0.8)
    missed = matched([UNIT], [UNIT, far])
    assert (missed.precision, missed.recall, missed.iou) == (1, 0.5, 0.5)
    assert matched([], [UNIT]).f1 == matched([UNIT], []).f1 == 0
    assert matched([], []).f1 == 1


def test_the_best_assignment_and_not_the_first():
    """The first box fits both references, the second only the one that a greedy choice would take away."""
    wide, left, right = Box(0, 0, 10, 10), Box(0, 0, 10, 8), Box(0, 2, 10, 10)
    low = Box(0, 0, 10, 6)
    assert iou(wide, left) == iou(wide, right) == 0.8
    assert iou(low, left) == 0.75 and iou(low, right) < 0.5
    assert matched([wide, low], [left, right]).f1 == 1
    assert matched([wide, low], [right, left]).f1 == 1


def test_assignments_are_the_largest_there_are():
    generator = random.Random(0)
    for _ in range(100):
        boxes = [
            Box(x, y, x + 10, y + 10)
            for x, y in ((generator.randrange(12), generator.randrange(12)) for _ in range(8))
        ]
        said, wanted = boxes[:4], boxes[4:]
        fits = [[iou(s, w) >= 0.5 for w in wanted] for s in said]
        most = max(
            sum(fits[i][column] for i, column in enumerate(order))
            for order in itertools.permutations(range(4))
        )
        assert matched(said, wanted).recall == most / 4


def test_labels_of_boxes():
    cat, dog = Box(0, 0, 10, 10, "Cat"), Box(0, 0, 10, 10, "dog")
    assert matched([dog], [cat]).f1 == 1
    assert matched([dog], [cat], labels=True).f1 == 0
    assert matched([Box(0, 0, 10, 10, " cat ")], [cat], labels=True).f1 == 1


def test_pointing():
    assert pointed([Point(5, 5)], [UNIT]) == pointed([Box(2, 2, 4, 4)], [UNIT]) == 1
    assert pointed([Point(11, 5), Point(5, 5)], [UNIT]) == 0
    assert pointed([], [UNIT]) == 0


@pytest.mark.parametrize(
    ("value", "form", "boxes"),
    [
        ([1, 2, 3, 4], "xyxy", [(1, 2, 3, 4)]),
        ([3, 4, 1, 2], "xyxy", [(1, 2, 3, 4)]),
        ([1, 2, 3, 4], "xywh", [(1, 2, 4, 6)]),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], "xyxy", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ({"bbox_2d": [1, 2, 3, 4], "label": "cat"}, "xyxy", [(1, 2, 3, 4)]),
        ("[1, 2, 3, 4]", "xyxy", [(1, 2, 3, 4)]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]\n```', "xyxy", [(1, 2, 3, 4)]),
        ("[]", "xyxy", []),
        ([], "xyxy", []),
    ],
    ids=["numbers", "turned", "xywh", "several", "object", "text", "fenced", "no text", "none"],
)
def test_references_that_are_boxes(value, form, boxes):
    assert [box.xyxy for box in reference_boxes(value, form)] == boxes


@pytest.mark.parametrize(
    "value", ["over there", [1, 2, 3], {"box": [1, 2, 3, 4]}, 7, {"bbox_2d": [1, 2, "x", 4]}], ids=str
)
def test_references_that_are_none(value):
    with pytest.raises(InputError):
        reference_boxes(value)


def test_boxes_of_an_answer_are_mapped_to_the_original_picture():
    """The model speaks of a picture of 56 x 28 pixels, the reference of the original, 5 times that."""
    answer = Answer('{"bbox_2d": [10, 10, 20, 20]}', picture=Picture(280, 140, Grid(1, 2, 4)))
    score = scoring("iou").score(answer, [[50, 50, 100, 100]])
    assert score.value == score.details["mean IoU"] == 1
    assert scoring("iou").score(answer, [[10, 10, 20, 20]]).value == 0
    assert scoring("point").score(answer, [[70, 70, 80, 80]]).value == 1
    tokens = Answer("(10,10),(20,20)", "<|box_start|>(10,10),(20,20)<|box_end|>", answer.picture)
    assert scoring("iou").score(tokens, [[50, 50, 100, 100]]).value == 1


def test_every_metric_by_name():
    """A perfect answer scores 1 with each of them."""
    picture = Picture(28, 28, Grid(1, 2, 2))
    right = {"choice": "B", "iou": '{"bbox_2d": [1, 1, 9, 9]}', "point": '{"bbox_2d": [1, 1, 9, 9]}'}
    for name in METRICS.keys() - {"none"}:
        text = right.get(name, "5")
        found = scoring(name)
        found.check([text])
        assert found.score(Answer(text, text, picture), [text]).value == 1, name
        if name != "contains":
            assert found.score(Answer("no", "no", picture), [text]).value == 0, name


def test_settings_of_metrics():
    found = scoring({"name": "number", "tolerance": 0.5}, {"tolerance": 3, "threshold": 0.7})
    assert found.settings == {"tolerance": 0.5}
    assert found.name == "number (tolerance 0.5)"
    assert scoring("iou", {"tolerance": 3, "threshold": 0.7}).settings == {"threshold": 0.7}
    assert scoring({"name": "exact", "ignore": ["case", "stop"]}).name == "exact (ignore case+stop)"
    assert scoring("relaxed").name == "relaxed"


@pytest.mark.parametrize(
    ("metric", "references", "error", "message"),
    [
        ("nearly", ["x"], UnknownNameError, "there is no metric 'nearly'; there are exact"),
        ({"tolerance": 1}, ["x"], UnknownNameError, "there is no metric"),
        ({"name": "exact", "tolerance": 1}, ["x"], InputError, "no setting tolerance; it has ignore"),
        ("number", ["soon"], InputError, "needs numbers"),
        ({"name": "number", "tolerance": -1}, [3], InputError, "at least 0"),
        ({"name": "exact", "ignore": "case"}, ["x"], InputError, "ignore is a list"),
        ({"name": "exact", "ignore": ["dots"]}, ["x"], InputError, "ignore is a list"),
        ("choice", ["maybe"], InputError, "needs a letter"),
        ("iou", ["there"], InputError, "no box"),
        ({"name": "iou", "form": "cxcywh"}, [[1, 2, 3, 4]], InputError, "xyxy or xywh"),
        ("exact", [], InputError, "no answer to compare with"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_what_is_refused(metric, references, error, message):
    with pytest.raises(error, match=message):
        scoring(metric).check(references)


def test_wilson():
    """Against figures of Newcombe, "Two-sided confidence intervals for the single proportion" (1998)."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(1, 20)[1] == 1
    assert wilson(0, 0) == (0, 1)
