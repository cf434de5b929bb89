"""The lessons about still pictures that train the bundled model: what they show is what they say."""

import json
import random
import string
from collections import Counter
from functools import cache
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageChops

pytest.importorskip("sklearn", reason="scikit-learn ships the handwritten digits")
pytest.importorskip("skimage", reason="scikit-image ships photographs for backgrounds")

from examples.tiny import drawing, fonts, handwriting, things, wordings, words
from examples.tiny.lesson import COLOURS, SHAPES, Lesson
from examples.tiny.reading import CONTRAST, LEAST_CAPITALS, ground_and_ink
from examples.tiny.show import CAPTION, CELL, sheet
from examples.tiny.stills import DRAWERS, draw
from qvl.processing.grounding import find_shapes
from qvl.processing.sizes import smart_resize

TASKS = [*DRAWERS]
COUNT = 250  # lessons of each task


@pytest.fixture(scope="module", autouse=True)
def typefaces():
    try:
        return fonts.faces(False), fonts.faces(True)
    except ImportError as missing:
        pytest.skip(str(missing))


@cache
def lessons(task: str, held_out: bool = False) -> list[Lesson]:
    return [draw(task, random.Random(f"test {task} {i}"), held_out) for i in range(COUNT)]


def question(lesson: Lesson) -> str:
    return next(part["text"] for part in lesson.messages[0]["content"] if part["type"] == "text")


def pictures(lesson: Lesson) -> list[Image.Image]:
    return [part["image"] for part in lesson.messages[0]["content"] if part["type"] == "image"]


def fingerprint(lesson: Lesson) -> tuple:
    pixels = [(picture.size, picture.tobytes()) for picture in pictures(lesson)]
    return question(lesson), lesson.answer, lesson.marks, lesson.kind, lesson.expected, pixels


# What every lesson keeps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])
@pytest.mark.parametrize("task", TASKS)
def test_a_lesson_is_a_function_of_its_generator_alone(task, held_out):
    first = [fingerprint(draw(task, random.Random(i), held_out)) for i in range(30)]
    random.seed(1)
    np.random.seed(1)
    later = [fingerprint(draw(task, random.Random(i), held_out)) for i in reversed(range(30))]
    assert first == later[::-1]
    assert len({str(one[:2]) + str(one[2]) for one in first}) > 25  # and another seed is another lesson


@pytest.mark.parametrize("task", TASKS)
def test_the_form_of_a_lesson(task):
    for lesson in lessons(task):
        asked, answered = lesson.messages
        assert (asked["role"], answered) == ("user", {"role": "assistant", "content": lesson.answer})
        assert lesson.task == task and lesson.kind.startswith(task)
        assert len(lesson.marks) == len(pictures(lesson)) == (2 if task == "compare" else 1)
        assert all(picture.mode == "RGB" for picture in pictures(lesson))


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_small_and_mostly_need_no_resizing(task):
    whole = 0
    for lesson in lessons(task):
        for picture in pictures(lesson):
            assert min(picture.size) >= 56 and max(picture.size) <= 420
            assert picture.width * picture.height <= 280 * 280
        whole += (picture.width % 28, picture.height % 28) == (0, 0)
    assert 0.7 < whole / COUNT < 0.95


@pytest.mark.parametrize("task", TASKS)
def test_marks_are_within_their_picture(task):
    for lesson in lessons(task):
        for picture, marks in zip(pictures(lesson), lesson.marks, strict=True):
            for mark in marks:
                x1, y1, x2, y2 = mark.box
                assert 0 <= x1 < x2 <= picture.width and 0 <= y1 < y2 <= picture.height, (mark, picture.size)


@pytest.mark.parametrize("task", ["text", "digits", "name"])
def test_the_question_is_sometimes_before_the_picture(task):
    first = Counter(lesson.messages[0]["content"][0]["type"] for lesson in lessons(task))
    assert 0.05 < first["text"] / COUNT < 0.16


# Text and digits -----------------------------------------------------------------------------------------


def test_text_is_short_and_every_character_is_marked():
    kinds = Counter()
    for lesson in lessons("text"):
        assert 1 <= len(lesson.answer) <= 8
        assert set(lesson.answer) <= set(string.ascii_letters + string.digits)
        assert "".join(mark.what for mark in lesson.marks[0]) == lesson.answer == lesson.expected
        kinds[lesson.kind] += 1
    assert set(kinds) == {f"text, {kind}" for kind in words.KINDS} and min(kinds.values()) > 15


def test_pages_are_read_line_by_line():
    counts = set()
    for lesson in lessons("page"):
        lines = lesson.answer.split("\n")
        counts.add(len(lines))
        (marks,) = lesson.marks
        assert [mark.what for mark in marks] == list("".join(lines))
        boxes = iter(mark.box for mark in marks)
        bottom = 0.0
        for line in lines:
            its = [next(boxes) for _ in line]
            assert min(box[1] for box in its) >= bottom  # below all of the line above
            assert all(one[0] < other[0] for one, other in pairwise(its))
            bottom = max(box[3] for box in its)
    assert counts >= {2, 3, 4, 5}


def test_small_letters_can_be_told_from_capitals():
    for i in range(2000):
        _, text = words.printed(random.Random(i))
        letters = [letter for letter in text if letter.isalpha()]
        by_size = all(letter in "ckopsuvwxyzCKOPSUVWXYZ" for letter in text)
        assert not letters or not by_size or {letter.islower() for letter in letters} == {True, False}, text


@pytest.mark.parametrize("turn", [0.0, 5.0, -6.0])
@pytest.mark.parametrize("stretch", [1.0, 1.2])
def test_character_boxes_hold_the_ink(turn, stretch, typefaces):
    for face in (typefaces[0][0][0], typefaces[0][10][0], typefaces[1][0][0]):
        setting = fonts.set_text("Hill49", face, 50, turn, stretch)
        ink = np.asarray(setting.ink)
        outside = ink.copy()
        for x1, y1, x2, y2 in setting.boxes:
            left, top, right, bottom = round(x1) - 1, round(y1) - 1, round(x2) + 1, round(y2) + 1
            assert ink[max(top, 0) : bottom, max(left, 0) : right].max() > 200
            outside[max(top, 0) : bottom, max(left, 0) : right] = 0
        assert outside.max() < 60
        assert setting.ink.getbbox() == (0, 0, *setting.ink.size)


def test_print_is_tall_enough_to_read():
    heights = []
    for lesson in lessons("text"):
        heights += [
            y2 - y1 for mark in lesson.marks[0] for _, y1, _, y2 in [mark.box] if mark.what in "BDEHLTZ"
        ]
    assert len(heights) > 50 and min(heights) >= LEAST_CAPITALS - 1.5 and max(heights) > 45


@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])
def test_print_stands_out_from_its_background(held_out):
    for i in range(200):
        ground, ink = ground_and_ink((84, 112), random.Random(i), held_out)
        apart = np.asarray(ground.convert("L"), dtype=float) - drawing.luminance(ink)
        assert abs(apart.mean()) >= CONTRAST - 3
        assert (abs(apart) > 35).mean() > 0.97 and (np.sign(apart) == np.sign(apart.mean())).mean() > 0.97


@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])
def test_digits_are_marked_where_they_stand(held_out):
    lengths = Counter()
    for lesson in lessons("digits", held_out):
        assert [mark.what for mark in lesson.marks[0]] == [f"hand:{digit}" for digit in lesson.answer]
        lengths[len(lesson.answer)] += 1
        lefts = [mark.box[0] for mark in lesson.marks[0]]
        assert lefts == sorted(lefts) and all(mark.box[3] - mark.box[1] >= 12 for mark in lesson.marks[0])
    assert set(lengths) == {1, 2, 3}


def test_all_ink_of_digits_is_within_their_boxes():
    for i in range(60):
        rng, held_out = random.Random(i), i % 2 == 0
        scans = handwriting.scans_of_digits("407", rng, held_out)
        ink, boxes = handwriting.row(scans, (84, 140), rng, held_out)
        outside = np.asarray(ink).copy()
        for x1, y1, x2, y2 in boxes:
            inside = outside[int(y1) : int(y2), int(x1) : int(x2)]
            assert inside.max() > 90
            inside[:] = 0
        assert outside.max() == 0


def test_training_digits_are_bent_and_held_out_ones_are_not():
    def masks(held_out: bool) -> list[bytes]:
        scan = handwriting.scans_of(3, held_out)[0]
        return [handwriting.digit_mask(scan, 60, random.Random(i), held_out).tobytes() for i in range(4)]

    assert len(set(masks(True))) == 1 and len(set(masks(False))) == 4


# Shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_of_a_shape_is_where_its_pixels_are(shape):
    for i in range(25):
        rng = random.Random(i)
        made = drawing.thing(shape, "red", rng.uniform(18, 80), rng).moved(
            rng.uniform(1, 20), rng.uniform(1, 20)
        )
        blank = Image.new("RGB", (112, 112), (255, 255, 255))
        drawn = blank.copy()
        drawing.draw_thing(drawn, made)
        changed = ImageChops.difference(drawn, blank).convert("L").point(lambda value: 255 * (value > 30))
        assert changed.getbbox() == pytest.approx(made.box, abs=1.2)
        x1, y1, x2, y2 = made.box
        assert drawn.getpixel((round((x1 + x2) / 2), round((y1 + y2) / 2))) == made.paint


@pytest.mark.parametrize("task", ["name", "count", "find", "compare"])
def test_things_do_not_touch_and_are_large_enough(task):
    for lesson in lessons(task):
        for marks in lesson.marks:
            boxes = [mark.box for mark in marks]
            for i, one in enumerate(boxes):
                assert max(one[2] - one[0], one[3] - one[1]) >= 15.9
                assert not any(things.overlaps(one, other, apart=3.9) for other in boxes[:i])


@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])
def test_backgrounds_are_clear_of_what_stands_on_them(held_out):
    clear = 0
    for i in range(200):
        rng = random.Random(i)
        paints = [drawing.paint(rng.choice([*COLOURS]), rng) for _ in range(i % 4 + 1)]
        picture = drawing.background((84, 84), paints, rng, held_out)
        clear += drawing.is_clear(picture, paints)
        pixels = {picture.getpixel((x, y)) for x in range(0, 84, 12) for y in range(0, 84, 12)}
        assert np.mean([drawing.distance(pixel, paint) > 45 for pixel in pixels for paint in paints]) > 0.9
    assert clear > 180


def test_name_says_what_is_there():
    for lesson in lessons("name"):
        ((mark,),) = lesson.marks
        says = {
            "name": f"{mark.colour} {mark.what}",
            "name the colour": mark.colour,
            "name the shape": mark.what,
        }
        assert lesson.answer == lesson.expected == says[lesson.kind]
    assert {lesson.kind for lesson in lessons("name")} == set(says)
    assert {lesson.kind for lesson in lessons("name", held_out=True)} == {"name"}


def test_count_counts_what_is_asked_for():
    answers = Counter()
    for lesson in lessons("count"):
        asked = question(lesson).lower()
        shape = next((shape for shape in SHAPES if shape in asked), "")
        colour = next((colour for colour in COLOURS if colour in asked), "")
        assert lesson.kind == (
            "count, of a shape" if shape else "count, of a colour" if colour else "count, shapes"
        )
        counted = [
            mark for mark in lesson.marks[0] if shape in ("", mark.what) and colour in ("", mark.colour)
        ]
        assert lesson.answer == lesson.expected == str(len(counted))
        answers[lesson.answer] += 1
    assert set(answers) == set("0123456")


def test_find_gives_the_box_of_the_only_thing_of_that_name():
    for lesson in lessons("find"):
        (picture,) = pictures(lesson)
        assert lesson.answer.startswith("```json\n[\n\t{") and lesson.answer.endswith("}\n]\n```")
        (written,) = json.loads(lesson.answer.removeprefix("```json").removesuffix("```"))
        assert all(isinstance(edge, int) for edge in written["bbox_2d"])
        assert written["label"] in question(lesson)
        *colour, shape = written["label"].split()
        named = [
            mark
            for mark in lesson.marks[0]
            if shape in ("shape", mark.what) and colour in ([], [mark.colour])
        ]
        assert [mark.box for mark in named] == [lesson.expected]
        height, width = smart_resize(picture.height, picture.width, 28, 56 * 56, 280 * 280)
        (read,) = find_shapes(lesson.answer)
        scale = (width / picture.width, height / picture.height) * 2
        assert read.xyxy == pytest.approx(
            [a * b for a, b in zip(lesson.expected, scale, strict=True)], abs=0.51
        )
        assert read.xyxy[2] <= width and read.xyxy[3] <= height


def test_find_is_right_about_pixels():
    """The middle of each thing has its colour."""
    for lesson in lessons("find"):
        (picture,) = pictures(lesson)
        for mark in lesson.marks[0]:
            x1, y1, x2, y2 = mark.box
            x, y = round((x1 + x2) / 2), round((y1 + y2) / 2)
            middle = picture.crop((x - 2, y - 2, x + 3, y + 3))
            mean = tuple(np.asarray(middle, dtype=float).mean(axis=(0, 1)))
            nearest = min(COLOURS, key=lambda name: drawing.distance(mean, COLOURS[name]))
            assert nearest == mark.colour, (mark, mean)


def test_compare_tells_same_from_different():
    answers = Counter()
    for lesson in lessons("compare"):
        first, second = lesson.marks
        answers[lesson.kind, lesson.answer] += 1
        if lesson.kind == "compare, same or different":
            one, other = (np.asarray(picture, dtype=float) for picture in pictures(lesson))
            assert (lesson.answer == "same") == (first == second)
            if first == second:
                assert abs(one - other).max() <= 0.08 * 255 + 1
            else:
                assert (abs(one - other).max(axis=-1) > 40).sum() > 60
        else:
            more = "same" if len(first) == len(second) else "first" if len(first) > len(second) else "second"
            assert lesson.answer == more
    assert len(answers) == 5 and min(answers.values()) > 12


@pytest.mark.parametrize("change", ["colour", "shape", "place", "missing"])
def test_one_thing_differs_clearly(change):
    for i in range(40):
        _, before, after = things._pair(change, random.Random(i))
        new = [thing for thing in after if thing not in before]
        old = [thing for thing in before if thing not in after]
        assert len(old) == 1 and len(new) == (0 if change == "missing" else 1)
        if change == "colour":
            assert drawing.distance(COLOURS[old[0].colour], COLOURS[new[0].colour]) > 70
        if change == "shape":
            assert old[0].shape != new[0].shape and old[0].paint == new[0].paint
        if change == "place":
            assert max(abs(a - b) for a, b in zip(old[0].box, new[0].box, strict=True)) >= 14


# Held out ------------------------------------------------------------------------------------------------


def test_nothing_held_out_is_in_training(typefaces):
    training, held_out = ({face.file for family in families for face in family} for families in typefaces)
    assert len(training) > 80 and len(held_out) > 15 and not training & held_out
    assert not set(fonts.TRAINING_FAMILIES) & set(fonts.HELD_OUT_FAMILIES)
    photographs = [
        {(folder, name) for folder, names in part.items() for name in names}
        for part in (drawing.PHOTOGRAPHS, drawing.HELD_OUT_PHOTOGRAPHS)
    ]
    assert all(photographs) and not photographs[0] & photographs[1]
    for digit in range(10):
        trained, kept = handwriting.scans_of(digit, False), handwriting.scans_of(digit, True)
        assert max(trained) < 1348 <= min(kept) and len(kept) > 30


def test_each_part_uses_its_own(monkeypatch):
    used = set()
    for name in ("faces", "scans_of", "photographs"):
        where = next(module for module in (fonts, handwriting, drawing) if hasattr(module, name))
        true = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda *given, name=name, true=true: used.add((name, given[-1])) or true(*given)
        )
    for held_out in (False, True):
        used.clear()
        for task in TASKS:
            [draw(task, random.Random(i), held_out) for i in range(25)]
        assert used == {(name, held_out) for name in ("faces", "scans_of", "photographs")}


def test_every_typeface_has_plain_figures(typefaces):
    for family in (*typefaces[0], *typefaces[1]):
        for face in family:
            boxes = {character: fonts._character(face, 100, character)[0] for character in "Hx0123456789"}
            height = {character: box[3] - box[1] for character, box in boxes.items()}
            assert all(0.9 < height[figure] / height["H"] < 1.15 for figure in string.digits), face
            assert 0.6 < height["x"] / height["H"] < 0.85, face


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    def absent(name):
        return None if name == "fontpkg_lora" else find_spec(name)

    monkeypatch.setattr(fonts, "find_spec", absent)
    fonts.faces.cache_clear()
    with pytest.raises(ImportError, match=r"fontpkg_lora.*pip install .*fontpkg-lora"):
        fonts.faces(True)
    fonts.faces(False)
    monkeypatch.undo()
    fonts.faces.cache_clear()


# Wordings ------------------------------------------------------------------------------------------------


def test_there_are_many_wordings_and_all_are_in_the_text_for_the_tokenizer():
    assert all(
        len(set(known)) >= 6 for kind, known in wordings.QUESTIONS.items() if kind not in ("word", "digit")
    )
    everything = set(wordings.ALL_TEXT)
    for task in TASKS:
        for lesson in lessons(task):
            assert question(lesson) in everything
            if task in ("name", "count", "compare"):
                assert lesson.answer in everything


def test_the_sheet_shows_every_lesson():
    row = CELL + CAPTION
    shown = [draw(task, random.Random(3)) for task in TASKS]
    whole = sheet(shown, columns=6, marks=True)
    assert whole.width == 6 * CELL
    for i, lesson in enumerate(shown):
        column = np.asarray(
            whole.crop((i % 6 * CELL, i // 6 * row, (i % 6 + 1) * CELL, whole.height)), dtype=int
        )
        picture = np.asarray(pictures(lesson)[0], dtype=int)
        there = column[4 : 4 + picture.shape[0], 4 : 4 + picture.shape[1]]
        assert (abs(there - picture).max(axis=-1) == 0).mean() > 0.7
