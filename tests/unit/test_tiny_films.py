"""Films and unanswerable questions for the bundled model: the answers follow from the pixels and the rate.

The films are read here by a small reader of its own, which knows colours and shapes and nothing of how they
were drawn.
"""

import random
import warnings
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from examples.tiny import films, untaught
from examples.tiny.films_drawing import HELD_OUT_LOOKS, LOOKS, TRAINING_LOOKS
from examples.tiny.lesson import CANNOT_TELL, COLOURS
from qvl import AutoConfig, Qwen2_5_VLProcessor
from qvl.train.encode import Encoder
from qvl.train.sample import IGNORED

TASKS = ("motion", "order", "when")


def lessons(task, count, held_out=False, start=0):
    return [films.draw(task, random.Random(seed), held_out) for seed in range(start, start + count)]


def content(lesson):
    given = lesson.messages[0]["content"]
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


def question(lesson):
    (text,) = (part["text"] for part in content(lesson) if part["type"] == "text")
    return text


def film(lesson):
    (part,) = (part for part in content(lesson) if part["type"] == "video")
    return part["video"], part["fps"]


# The reader --------------------------------------------------------------------------------------------


def is_thing(pixels_HW):
    """Whether these are a shape's: not the rim of another, nor a ground of nearly the colour."""
    if np.count_nonzero(pixels_HW) < 20:
        return False
    sides = [np.ptp(np.flatnonzero(pixels_HW.any(axis))) + 1 for axis in (0, 1)]
    return max(sides) <= 27 and np.count_nonzero(pixels_HW) > 0.22 * sides[0] * sides[1]


def shown(frames_THWC):
    """For the colours of all things that are ever to be seen: their pixels in every frame, (T, H, W)."""
    seen = {}
    ground_C = np.median(frames_THWC[0], (0, 1))
    for colour, value_C in COLOURS.items():
        near_THW = np.ones(frames_THWC.shape[:3], bool)
        for channel, value in enumerate(value_C):
            low, high = max(value - 16, 0), min(value + 16, 255)
            near_THW &= (frames_THWC[..., channel] >= low) & (frames_THWC[..., channel] <= high)
        for pixels_HW in near_THW:
            pixels_HW &= is_thing(pixels_HW)
        if near_THW.any() and np.abs(ground_C - value_C).max() > 40:  # else it may be a patch of the ground
            seen[colour] = near_THW
    return seen


def there(pixels_THW):
    """The frames in which anything is."""
    return np.flatnonzero(pixels_THW.any((1, 2)))


def names(frames_THWC):
    """Names of all things that are ever to be seen."""
    return {name_of(colour, frames_THWC, pixels) for colour, pixels in shown(frames_THWC).items()}


def outlines():
    """Pictures of the shapes that fill a square of 64 pixels."""
    y, x = (np.mgrid[:64, :64] + 0.5) / 64 - 0.5
    star = Image.new("1", (64, 64))
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.44, 1.0)
    corners = np.stack([np.sin(turns) * radii, -np.cos(turns) * radii], 1)
    corners = (corners - corners.min(0)) / np.ptp(corners, axis=0) * 63
    ImageDraw.Draw(star).polygon([tuple(corner) for corner in corners], fill=1)
    return {
        "circle": x**2 + y**2 <= 0.25,
        "square": np.ones((64, 64), bool),
        "triangle": np.abs(x) <= (y + 0.5) / 2,
        "diamond": np.abs(x) + np.abs(y) <= 0.5,
        "cross": (np.abs(x) < 0.17) | (np.abs(y) < 0.17),
        "star": np.asarray(star),
    }


OUTLINES = outlines()


def shape_of(frame_HWC, pixels_HW):
    """The name of the outline that fits best, told by how much of each pixel the thing covers."""
    rows, columns = np.flatnonzero(pixels_HW.any(1)), np.flatnonzero(pixels_HW.any(0))
    window = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(columns[0] - 2, 0) : columns[-1] + 3]
    ground_C = np.median(frame_HWC, (0, 1))
    away_C = np.median(frame_HWC[pixels_HW], 0) - ground_C
    covered_HW = ((frame_HWC[window] - ground_C) @ away_C / (away_C @ away_C)).clip(0, 1)
    return min(OUTLINES, key=lambda name: min(misfit(covered_HW, name, least) for least in (0.3, 0.6)))


def misfit(covered_HW, name, least):
    """How far the outline, drawn where ``least`` of a pixel is covered, is from what is covered."""
    rows, columns = (np.flatnonzero((covered_HW > least).any(axis)) for axis in (1, 0))
    covered_HW = covered_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    outline = Image.fromarray(OUTLINES[name].astype(np.uint8) * 255)
    drawn_HW = np.asarray(outline.resize(covered_HW.shape[::-1], Image.Resampling.BOX)) / 255
    return np.abs(drawn_HW - covered_HW).mean()


def name_of(colour, frames_THWC, pixels_THW):
    start = there(pixels_THW)[0]
    return f"{colour} {shape_of(frames_THWC[start], pixels_THW[start])}"


def read_direction(frames_THWC):
    way = np.zeros(2)
    for pixels_THW in shown(frames_THWC).values():
        first, last = (np.argwhere(pixels_HW).mean(0) for pixels_HW in (pixels_THW[0], pixels_THW[-1]))
        way = max(way, last - first, key=lambda down_across: np.abs(down_across).max())
    down, across = way
    if max(abs(down), abs(across)) < 5:
        return "nowhere"
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def read_order(frames_THWC):
    """((first frame with it, name), ...) and ((first frame without it again, name), ...), by time, of what
    comes and of what goes.
    """
    come, go = [], []
    for colour, pixels_THW in shown(frames_THWC).items():
        start, *_, end = [*there(pixels_THW), there(pixels_THW)[-1] + 1]
        name = name_of(colour, frames_THWC, pixels_THW)
        come += [(start, name)] if start else []
        go += [(end, name)] if end < len(frames_THWC) else []
    return sorted(come), sorted(go)


def read_change(frames_THWC):
    """The one frame that differs from the frame before it."""
    changed = (frames_THWC[1:] != frames_THWC[:-1]).any((1, 2, 3))
    (frame,) = np.flatnonzero(changed) + 1
    return frame


# Films -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_a_lesson_is_a_function_of_the_generator(task, held_out):
    for seed in range(5):
        one, other = (films.draw(task, random.Random(seed), held_out) for _ in range(2))
        assert np.array_equal(film(one)[0], film(other)[0]) and film(one)[1] == film(other)[1]
        assert (one.task, question(one), one.answer) == (task, question(other), other.answer)
        assert one.messages[-1] == {"role": "assistant", "content": one.answer}
    assert question(films.draw(task, random.Random(1))) != question(films.draw(task, random.Random(2)))


@pytest.mark.parametrize("task", TASKS)
def test_frames_come_in_pairs_and_need_no_resizing(task):
    for lesson in lessons(task, 150):
        frames_THWC, rate = film(lesson)
        assert frames_THWC.dtype == np.uint8 and frames_THWC.shape[3] == 3
        assert len(frames_THWC) in range(4, 17, 2) and 0.5 <= rate <= 8
        assert frames_THWC.shape[1:3] in films.SIZES and frames_THWC[0, ..., 0].size <= 84 * 84


@pytest.mark.parametrize("held_out", [False, True])
def test_direction_follows_from_the_pixels(held_out):
    drawn = lessons("motion", 200, held_out)
    read = [read_direction(film(lesson)[0]) for lesson in drawn]
    assert read == [lesson.answer for lesson in drawn] == [lesson.expected for lesson in drawn]
    counts = {answer: read.count(answer) for answer in read}
    assert set(counts) == {"left", "right", "up", "down", "nowhere"} and min(counts.values()) >= 8


def test_a_moving_thing_moves_on_in_every_pair():
    for lesson in lessons("motion", 100):
        frames_THWC, _ = film(lesson)
        if lesson.answer != "nowhere":
            assert (frames_THWC[2::2] != frames_THWC[:-2:2]).any((1, 2, 3)).all()


@pytest.mark.parametrize("held_out", [False, True])
def test_order_follows_from_the_pixels(held_out):
    for lesson in lessons("order", 200, held_out):
        come, go = read_order(film(lesson)[0])
        assert ("appears" in lesson.kind) == bool(come)
        (first_frame, first), (second_frame, second) = come or go
        assert first_frame // 2 < second_frame // 2
        assert lesson.answer == lesson.expected == (second if lesson.kind.endswith("last") else first)


def test_no_side_of_an_order_question_is_favoured():
    named = [lesson for lesson in lessons("order", 600) if " or " in question(lesson)]
    before = [question(lesson).split(" or ")[0].endswith(lesson.answer) for lesson in named]
    assert 0.42 < np.mean(before) < 0.58


@pytest.mark.parametrize("held_out", [False, True])
def test_time_follows_from_the_pixels_and_the_rate(held_out):
    for lesson in lessons("when", 200, held_out):
        frames_THWC, rate = film(lesson)
        frame = read_change(frames_THWC)
        assert lesson.expected == frame // 2 * 2 / rate and lesson.answer == f"{lesson.expected:.1f} seconds"
        assert frame % 2 == 0 or rate >= 4
        assert 0 < lesson.expected <= 8.5 and abs(lesson.expected - frame / rate) <= 0.25
        before, after = names(frames_THWC[:1]), names(frames_THWC[-1:])
        kept, gone, new = before & after, before - after, after - before
        events = {"appears": (0, 1), "vanishes": (1, 0), "changes": (1, 1)}
        assert (len(gone), len(new)) == events[lesson.kind.removeprefix("when, ")] and len(kept) <= 1
        asked = question(lesson).lower()
        assert any(word in asked for name in gone or new for word in (name, name.split()[1]))


def within_half_a_second(times):
    """Share that the best single guess gets right."""
    times = np.array(times)
    return max(
        (np.abs(times - guess) <= 0.5).mean() for guess in np.unique(np.concatenate([times, times + 0.5]))
    )


def test_the_time_takes_both_the_pair_and_the_rate():
    """What a model could reach that knows only one of the two, or none."""
    by_pair, by_rate, times = defaultdict(list), defaultdict(list), []
    for lesson in lessons("when", 2500):
        frames_THWC, rate = film(lesson)
        pair = read_change(frames_THWC) // 2
        times.append(lesson.expected)
        by_pair[pair].append(lesson.expected)
        by_rate[rate].append(lesson.expected)
    ceilings = {
        name: sum(within_half_a_second(part) * len(part) for part in parts) / len(times)
        for name, parts in (("pair", by_pair.values()), ("rate", by_rate.values()), ("none", [times]))
    }
    assert set(by_pair) == set(range(1, 8)) and len(by_rate) >= 7
    assert all(len(set(part)) >= 3 for part in by_pair.values())
    assert ceilings["pair"] < 0.45 and ceilings["rate"] < 0.55 and ceilings["none"] < 0.4


def test_the_length_of_a_film_does_not_tell_its_rate():
    by_rate = defaultdict(list)
    for seed in range(6000):
        _, steps, rate, _ = films.draw_moment(random.Random(seed))
        by_rate[rate].append(steps)
    means = [np.mean(steps) for rate, steps in by_rate.items() if rate >= 1]
    assert max(means) - min(means) < 1


@pytest.mark.parametrize("task", TASKS)
def test_held_out_films_show_looks_that_training_never_shows(task):
    held_out, training = ({look.name for look in looks} for looks in (HELD_OUT_LOOKS, TRAINING_LOOKS))
    assert len(held_out) == 8 and not held_out & training and len(held_out | training) == len(LOOKS)

    assert all(names(film(lesson)[0]) <= training for lesson in lessons(task, 100))
    assert all(names(film(lesson)[0]) & held_out for lesson in lessons(task, 100, held_out=True))


def test_every_kind_of_question_has_six_wordings():
    kinds = (films.MOTION_QUESTIONS, films.COMES_FIRST, films.COMES_LAST, films.GOES_FIRST, films.GOES_LAST)
    for wordings in (*kinds, *films.WHEN_QUESTIONS.values()):
        assert len(set(wordings)) == len(wordings) >= 6


@pytest.mark.parametrize("task", TASKS)
def test_all_words_of_films_are_in_the_text_for_the_tokenizer(task):
    known = {
        word for text in films.ALL_TEXT for word in text.lower().replace("?", "").replace(".", "").split()
    }
    for lesson in lessons(task, 200):
        spoken = question(lesson).lower().replace("?", "").replace(".", "").split()
        assert set(spoken) <= known and lesson.answer in films.ALL_TEXT


# Through the processor ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    processor = Qwen2_5_VLProcessor.from_pretrained("qvl/tiny", min_pixels=56 * 56, max_pixels=84 * 84)
    config = AutoConfig.from_pretrained("qvl/tiny")
    assert config.vision_config.tokens_per_second == 2
    return Encoder(processor, config)


@pytest.mark.parametrize("task", TASKS)
def test_the_encoder_takes_every_frame_as_it_is_and_knows_the_rate(task, encoder):
    for lesson in lessons(task, 40):
        frames_THWC, rate = film(lesson)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample = encoder.encode(lesson.messages)
        (medium,), (span,) = sample.prompt.media, sample.prompt.spans
        steps, height, width = len(frames_THWC) // 2, frames_THWC.shape[1], frames_THWC.shape[2]
        assert (medium.grid.t, medium.grid.h, medium.grid.w) == (steps, height // 14, width // 14)
        assert medium.seconds_per_grid == pytest.approx(2 / rate)
        times_T = sample.prompt.positions_3T[0, span.start : span.end].view(steps, -1)
        assert (times_T - times_T[0, 0]).tolist() == [
            [int(i * (2 / rate) * 2)] * (height // 28 * (width // 28)) for i in range(steps)
        ]
        learned = [token for token in sample.targets_T.tolist() if token != IGNORED]
        text = encoder.processor.tokenizer.decode(learned, skip_special_tokens=True)
        assert text.strip() == lesson.answer


def test_the_same_frames_at_another_rate_differ_in_positions_alone(encoder):
    lesson = next(lesson for lesson in lessons("when", 20) if film(lesson)[1] == 1.0)
    slow = encoder.encode(lesson.messages).prompt
    part = next(part for part in content(lesson) if part["type"] == "video")
    part["fps"] = 4.0
    quick = encoder.encode(lesson.messages).prompt
    assert slow.token_ids == quick.token_ids and slow.media[0].patches_PC.equal(quick.media[0].patches_PC)
    assert not slow.positions_3T.equal(quick.positions_3T)


# What cannot be answered -------------------------------------------------------------------------------


def unknown(count, held_out=False):
    return [untaught.draw(random.Random(seed), held_out) for seed in range(count)]


@pytest.mark.parametrize("held_out", [False, True])
def test_untaught_lessons_are_a_function_of_the_generator(held_out):
    for one, other in zip(unknown(60, held_out), unknown(60, held_out), strict=True):
        assert (question(one), one.kind, one.marks) == (question(other), other.kind, other.marks)
        for part, same in zip(content(one), content(other), strict=True):
            kind = part["type"]
            assert np.array_equal(np.asarray(part[kind]), np.asarray(same[kind]))


def test_the_answer_is_always_the_same_and_all_kinds_occur():
    drawn = unknown(600)
    assert {(lesson.task, lesson.answer, lesson.expected) for lesson in drawn} == {
        ("unknown", CANNOT_TELL, CANNOT_TELL)
    }
    assert all(lesson.messages[-1] == {"role": "assistant", "content": CANNOT_TELL} for lesson in drawn)
    assert len({lesson.kind for lesson in drawn}) == 6
    for lesson in drawn:
        pictures = [part for part in content(lesson) if part["type"] == "image"]
        assert len(pictures) == len(lesson.marks)


def test_what_is_asked_for_is_not_there():
    for lesson in unknown(600) + unknown(200, held_out=True):
        asked = question(lesson).lower()
        if lesson.kind == "unknown, not there":
            assert not any(f"{mark.colour} {mark.what}" in asked for mark in lesson.marks[0])
        if lesson.kind == "unknown, not in the film":
            assert not any(name in asked for name in names(film(lesson)[0]))
        if lesson.kind == "unknown, not written":
            assert all(mark.what in OUTLINES for mark in lesson.marks[0])


def test_held_out_questions_are_never_taught():
    taught = {question(lesson).lower().rstrip("?.") for lesson in unknown(2500)}
    asked = {question(lesson).lower().rstrip("?.") for lesson in unknown(1000, held_out=True)}
    assert len(asked) > 150 and len(taught) > 500
    assert not taught & asked
    lists = (
        (untaught.GENERAL, untaught.ABOUT_MEDIA),
        (untaught.GENERAL_HELD_OUT, untaught.ABOUT_MEDIA_HELD_OUT),
    )
    everyday, kept = ({wording for part in parts for wording in part} for parts in lists)
    assert not everyday & kept and len(everyday | kept) >= 60
    assert 0.18 <= len(kept) / len(everyday | kept) <= 0.25


def test_questions_without_an_answer_are_not_those_with_one():
    """But for the kinds that ask in the words of other lessons, about what is not there."""
    taught = {wording.lower() for wording in untaught.TAUGHT}
    own = (
        *untaught.GENERAL,
        *untaught.GENERAL_HELD_OUT,
        *untaught.ABOUT_MEDIA,
        *untaught.ABOUT_MEDIA_HELD_OUT,
    )
    assert not taught & {wording.lower() for wording in own}
