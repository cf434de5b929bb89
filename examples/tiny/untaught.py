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
from examples.tiny.films_drawing import HELD_OUT_LOOKS, TRAINING_LOOKS, Look
from examples.tiny.lesson import CANNOT_TELL, COLOURS, SHAPES, Lesson, Mark
from examples.tiny.untaught_questions import (
    ABOUT_MEDIA,
    ABOUT_MEDIA_HELD_OUT,
    FILLINGS,
    GENERAL,
    GENERAL_HELD_OUT,
)
from examples.tiny.wordings import QUESTIONS, ask, plural

Marks = tuple[tuple[Mark, ...], ...]

FILM_WORDINGS = (
    *films.MOTION_QUESTIONS, *films.COMES_FIRST, *films.COMES_LAST, *films.GOES_FIRST, *films.GOES_LAST,
    *films.WHEN_APPEARS, *films.WHEN_VANISHES, *films.WHEN_CHANGES,
)  # fmt: skip
# What the model is taught to answer where there is an answer.
TAUGHT = tuple(dict.fromkeys([*(words for kind in QUESTIONS.values() for words in kind), *FILM_WORDINGS]))
TAUGHT_HELD_OUT = TAUGHT[::5]
READING = tuple(
    dict.fromkeys(wording for kind in ("text", "word", "digits", "digit") for wording in QUESTIONS[kind])
)


def draw(rng: random.Random, held_out: bool = False) -> Lesson:
    """A lesson of the task "unknown", a function of ``rng`` alone, whose answer is CANNOT_TELL."""
    (drawer,) = rng.choices(list(DRAWERS), list(DRAWERS.values()))
    return drawer(rng, held_out)


def _lesson(question: str, media: Sequence[dict[str, Any]], kind: str, marks: Marks = ()) -> Lesson:
    content: Any = [*media, {"type": "text", "text": question}] if media else question
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": CANNOT_TELL}]
    return Lesson("unknown", messages, CANNOT_TELL, marks, f"unknown, {kind}", CANNOT_TELL)


def _media(lesson: Lesson) -> list[dict[str, Any]]:
    """The pictures or the film of a lesson."""
    return [part for part in lesson.messages[0]["content"] if part["type"] != "text"]


def _filled(rng: random.Random, wording: str) -> str:
    words = {name: rng.choice(values) for name, values in FILLINGS.items()}
    question = wording.format(shape=rng.choice(SHAPES), **words)
    return films.hurried(rng, question)


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


def _looks(held_out: bool) -> tuple[Look, ...]:
    """What is asked for where it is not."""
    return HELD_OUT_LOOKS if held_out else TRAINING_LOOKS


def _wordings(wordings: Sequence[str], held_out: bool) -> list[str]:
    """Those of taught ``wordings`` that are held out, or the others."""
    return [wording for wording in wordings if (wording in TAUGHT_HELD_OUT) == held_out]


def _absent(rng: random.Random, held_out: bool) -> Lesson:
    """Things, and the question where another is."""
    shown = stills.draw("find", rng, held_out)
    there = {(mark.colour, mark.what) for mark in shown.marks[0]}
    asked = [look for look in _looks(held_out) if (look.colour, look.shape) not in there]
    question = ask("find", rng, thing=rng.choice(asked).name)
    return _lesson(question, _media(shown), "not there", shown.marks)


def _missing(rng: random.Random, held_out: bool) -> Lesson:
    """A film, and the question what another thing does or when."""
    if rng.random() < 0.5:
        film, _ = films.motion_film(rng, held_out)
        wording = rng.choice(films.MOTION_QUESTIONS)
    else:
        film, event, _ = films.when_film(rng, held_out)
        wording = rng.choice(films.WHEN_QUESTIONS[event])
    asked = rng.choice([look for look in _looks(held_out) if look not in film.looks])
    new = rng.choice([colour for colour in COLOURS if colour != asked.colour])
    question = films.hurried(rng, wording.format(thing=asked.name, new=new))
    return _lesson(question, [film.part], "not in the film")


def _unwritten(rng: random.Random, held_out: bool) -> Lesson:
    """Shapes, and the question what is written there."""
    shown = stills.draw(rng.choice(("name", "count", "find")), rng, held_out)
    question = films.hurried(rng, rng.choice(_wordings(READING, held_out)))
    return _lesson(question, _media(shown), "not written", shown.marks)


def _no_picture(rng: random.Random, held_out: bool) -> Lesson:
    """A question about a picture or a film without one."""
    a, b = rng.sample(_looks(held_out), 2)
    wording = rng.choice(_wordings(TAUGHT, held_out))
    words = {"thing": a.name, "things": plural(a.name), "shape": a.shape, "colour": a.colour}
    question = wording.format(a=a.name, b=b.name, new=b.colour, **words)
    return _lesson(films.hurried(rng, question), (), "no picture")


DRAWERS: dict[Callable[[random.Random, bool], Lesson], float] = {
    _in_words: 0.3,
    _not_shown: 0.37,
    _absent: 0.16,
    _missing: 0.05,
    _unwritten: 0.07,
    _no_picture: 0.05,
}


def _all_text() -> tuple[str, ...]:
    """Every wording that is only here, filled in with words that take turns, every such word, the answer."""
    wordings = (*GENERAL, *GENERAL_HELD_OUT, *ABOUT_MEDIA, *ABOUT_MEDIA_HELD_OUT)
    values = {**FILLINGS, "shape": SHAPES}
    questions = [
        wording.format(**{name: words[index % len(words)] for name, words in values.items()})
        for index, wording in enumerate(wordings)
    ]
    words = [word for words in FILLINGS.values() for word in words]
    return (*questions, *words, CANNOT_TELL)


ALL_TEXT = _all_text()
