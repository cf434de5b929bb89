"""The lessons of several turns: every answer is true of the picture or the film before all of them."""

import random
import re
from functools import cache

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn ships photographs for backgrounds")
pytest.importorskip("skimage", reason="scikit-image ships photographs for backgrounds")

from examples.tiny import talks
from examples.tiny.lesson import COLOURS, SHAPES
from examples.tiny.things import resized_box
from qvl.processing.grounding import find_shapes

COUNT = 200


@cache
def drawn(kind: str, held_out: bool = False):
    drawer = talks.scene_talk if kind == "picture" else talks.film_talk
    return [drawer(random.Random(f"talk {i}"), held_out) for i in range(COUNT)]


def turns(lesson):
    """(question, answer) of each turn, in small letters and without marks at the end."""
    texts = []
    for message in lesson.messages:
        content = message["content"]
        if not isinstance(content, str):
            (content,) = (part["text"] for part in content if part["type"] == "text")
        texts.append(content)
    return [(q.lower().rstrip("?."), a) for q, a in zip(texts[::2], texts[1::2], strict=True)]


@pytest.mark.parametrize("kind", ["picture", "film"])
@pytest.mark.parametrize("held_out", [False, True])
def test_the_form(kind, held_out):
    again = (talks.scene_talk if kind == "picture" else talks.film_talk)(random.Random("talk 3"), held_out)
    lesson = drawn(kind, held_out)[3]
    assert turns(again) == turns(lesson) and again.marks == lesson.marks
    for lesson in drawn(kind, held_out):
        roles = [message["role"] for message in lesson.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 4 <= len(roles) <= 12
        assert lesson.answer == lesson.messages[-1]["content"]
        assert all(isinstance(message["content"], str) for message in lesson.messages[1:])


def test_things_are_counted_and_found():
    counted = found = told = 0
    for lesson in drawn("picture"):
        (marks,) = lesson.marks
        picture = next(part["image"] for part in lesson.messages[0]["content"] if part["type"] == "image")
        for question, answer in turns(lesson):
            shapes = [shape for shape in SHAPES if re.search(rf"\b{shape}", question)]
            colours = [colour for colour in COLOURS if re.search(rf"\b{colour}\b", question)]
            if answer in COLOURS or answer in SHAPES:
                told += 1
                (mark,) = (m for m in marks if (m.what in shapes if shapes else m.colour in colours))
                assert answer == (mark.colour if shapes else mark.what), question
                continue
            meant = [m for m in marks if m.what in (shapes or SHAPES) and m.colour in (colours or COLOURS)]
            if answer.isdigit():
                counted += 1
                assert int(answer) == len(meant), question
            else:
                found += 1
                (box,) = find_shapes(answer)
                assert len(meant) == 1, question
                assert [box.x1, box.y1, box.x2, box.y2] == list(resized_box(meant[0].box, picture.size[::-1]))
    assert min(counted, found, told) > COUNT / 2


def test_times_and_order_are_those_of_the_film():
    """What changes between two pairs of frames, at the times that are told."""
    times = orders = 0
    for lesson in drawn("film"):
        film = next(part for part in lesson.messages[0]["content"] if part["type"] == "video")
        frames_THWC = film["video"].astype(int)
        changed = np.abs(np.diff(frames_THWC, axis=0)).reshape(len(frames_THWC) - 1, -1).max(1) > 30
        moments = {round(int(frame + 1) / film["fps"], 1) for frame in np.flatnonzero(changed)}
        told = {}
        for question, answer in turns(lesson):
            if answer.endswith(" seconds"):
                times += 1
                told[question] = float(answer.split()[0])
                assert min(abs(told[question] - moment) for moment in moments) < 0.06, (question, answer)
            else:
                orders += 1
                colour, shape = answer.split()
                assert colour in COLOURS and shape in SHAPES
        assert len(set(told.values())) == len(told), "every thing has its own moment"
    assert times > COUNT and orders > COUNT / 4


def test_first_and_last_agree_with_the_times():
    """Where a talk tells both when two things appear or vanish and which was first."""
    agreed = 0
    for lesson in drawn("film"):
        when = {}
        for question, answer in turns(lesson):
            if answer.endswith(" seconds"):
                words = question.split()
                shape = next(word for word in words if word in SHAPES)
                colour = next((word for word in words if word in COLOURS), "")
                when[colour, shape] = float(answer.split()[0])
        for question, answer in turns(lesson):
            if answer.endswith(" seconds") or len(when) != 2:
                continue
            colour, shape = answer.split()
            mine = [time for (c, s), time in when.items() if s == shape and c in ("", colour)]
            if len(mine) != 1:
                continue
            agreed += 1
            last = any(word in question for word in ("last", "second", "later"))
            assert mine[0] == (max if last else min)(when.values()), (question, answer, when)
    assert agreed > 20
