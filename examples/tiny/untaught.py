"""Lessons in saying "I can't tell.": about what the model was not taught, or what a picture does not show.

Their pictures and films are those of the other lessons, so that only question and content together tell
that there is no answer: a thing that is not there is asked for in the words that ask for one that is, and
writing is asked for where there is none. The questions of held-out lessons never occur in training here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from examples.tiny import films, stills
from examples.tiny.films_drawing import HELD_OUT_LOOKS, LOOKS, TRAINING_LOOKS
from examples.tiny.lesson import CANNOT_TELL, SHAPES, Lesson, Mark
from examples.tiny.untaught_questions import (
    ABOUT_MEDIA,
    ABOUT_MEDIA_HELD_OUT,
    FILLINGS,
    GENERAL,
    GENERAL_HELD_OUT,
)
from examples.tiny.wordings import QUESTIONS, ask

Marks = tuple[tuple[Mark, ...], ...]

READING = tuple(
    dict.fromkeys(QUESTIONS["text"] + QUESTIONS["word"] + QUESTIONS["digits"] + QUESTIONS["digit"])
)
READING_HELD_OUT = READING[::5]
READING_TAUGHT = tuple(wording for wording in READING if wording not in READING_HELD_OUT)
HURRIED = 0.1  # share of questions written without a capital and a question mark


def draw(rng: random.Random, held_out: bool = False) -> Lesson:
    """A lesson of the task "unknown", a function of ``rng`` alone, whose answer is CANNOT_TELL."""
    (drawer,) = rng.choices(list(DRAWERS), list(DRAWERS.values()))
    return drawer(rng, held_out)


def _lesson(question: str, media: Sequence[dict[str, Any]], kind: str, marks: Marks = ()) -> Lesson:
    messages = [
        {"role": "user", "content": [*media, {"type": "text", "text": question}] if media else question},
        {"role": "assistant", "content": CANNOT_TELL},
    ]
    return Lesson("unknown", messages, CANNOT_TELL, marks, f"unknown, {kind}", CANNOT_TELL)


def _media(lesson: Lesson) -> list[dict[str, Any]]:
    """The pictures or the film of a lesson."""
    return [part for part in lesson.messages[0]["content"] if part["type"] != "text"]


def _filled(rng: random.Random, wording: str) -> str:
    words = {name: rng.choice(values) for name, values in FILLINGS.items()}
    question = wording.format(shape=rng.choice(SHAPES), **words)
    if rng.random() < HURRIED:
        return (question[0].lower() + question[1:]).rstrip("?.")
    return question


def _in_words(rng: random.Random, held_out: bool) -> Lesson:
    """A question of general knowledge, without a picture."""
    wordings = GENERAL_HELD_OUT if held_out else GENERAL
    return _lesson(_filled(rng, rng.choice(wordings)), (), "text only")


def _not_shown(rng: random.Random, held_out: bool) -> Lesson:
    """A picture or two, or a film, and a question that it does not answer."""
    task = rng.choice(("text", "digits", "name", "name", "count", "count", "find", "find", "compare", "film"))
    if task == "film":
        shown = films.draw(rng.choice(("motion", "order", "when")), rng, held_out)
    else:
        shown = stills.draw(task, rng, held_out)
    about, general = (ABOUT_MEDIA_HELD_OUT, GENERAL_HELD_OUT) if held_out else (ABOUT_MEDIA, GENERAL)
    wording = rng.choice(about if rng.random() < 0.8 else general)
    return _lesson(_filled(rng, wording), _media(shown), "not shown", shown.marks)


def _absent(rng: random.Random, held_out: bool) -> Lesson:
    """Things, and the question where another is."""
    shown = stills.draw("find", rng, held_out)
    there = {(mark.colour, mark.what) for mark in shown.marks[0]}
    asked = rng.choice(
        [
            look
            for look in (HELD_OUT_LOOKS if held_out else TRAINING_LOOKS)
            if (look.colour, look.shape) not in there
        ]
    )
    return _lesson(ask("find", rng, thing=asked.name), _media(shown), "not there", shown.marks)


def _unwritten(rng: random.Random, held_out: bool) -> Lesson:
    """Shapes, and the question what is written there."""
    shown = stills.draw(rng.choice(("name", "count", "find")), rng, held_out)
    question = _filled(rng, rng.choice(READING_HELD_OUT if held_out else READING_TAUGHT))
    return _lesson(question, _media(shown), "not written", shown.marks)


DRAWERS: dict[Callable[[random.Random, bool], Lesson], float] = {
    _in_words: 0.35,
    _not_shown: 0.4,
    _absent: 0.17,
    _unwritten: 0.08,
}


def _all_text() -> tuple[str, ...]:
    """Every wording filled in with words that take turns, every word, the questions for absent things, the
    answer.
    """
    wordings = (*GENERAL, *GENERAL_HELD_OUT, *ABOUT_MEDIA, *ABOUT_MEDIA_HELD_OUT)
    values = {**FILLINGS, "shape": SHAPES}
    questions = [
        wording.format(**{name: words[index % len(words)] for name, words in values.items()})
        for index, wording in enumerate(wordings)
    ]
    absent = [
        wording.format(thing=LOOKS[7 * index % len(LOOKS)].name)
        for index, wording in enumerate(QUESTIONS["find"])
    ]
    words = [word for words in FILLINGS.values() for word in words]
    return (*questions, *READING, *absent, *words, CANNOT_TELL)


ALL_TEXT = _all_text()
