"""Lessons of several turns: one picture or one film, and question after question about it.

Most of what a lesson costs is its picture; what it teaches is its answers. Asked about everything that it
shows, a picture teaches several times as much of where and how many, a film of when. And conversations have
more than one turn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from examples.tiny import drawing, films
from examples.tiny.films import COMES_FIRST, COMES_LAST, GOES_FIRST, GOES_LAST, Film
from examples.tiny.films_drawing import Look, draw_looks
from examples.tiny.lesson import COLOURS, SHAPES, Lesson
from examples.tiny.things import Kind, Thing, any_kind, labels, place, resized_box, roomy_size, show
from examples.tiny.wordings import ask, box_answer, conversation, plural

MOST_QUESTIONS = 6
Turn = tuple[str, str]  # question and answer


def draw(rng: random.Random, held_out: bool = False) -> Lesson:
    """About a picture or, less often, a film."""
    return (scene_talk if rng.random() < 0.6 else film_talk)(rng, held_out)


def scene_talk(rng: random.Random, held_out: bool) -> Lesson:
    """Two to six things, some of one kind: what they are, where and how many."""
    kinds = _kinds(rng)
    size = roomy_size(len(kinds), rng)
    things = place(kinds, size, rng)
    picture = drawing.wear(show(things, size, rng, held_out), rng)
    turns = [
        _where(thing, things, size, rng) for thing in things if kinds.count((thing.shape, thing.colour)) == 1
    ]
    turns += [turn for thing in things for turn in _what(thing, things, rng)]
    turns += [_how_many(kinds, rng) for _ in range(3)]
    (question, answer), *more = rng.sample(turns, min(len(turns), rng.randint(2, MOST_QUESTIONS)))
    messages = _continued(conversation([picture], question, answer), more)
    marks = tuple(thing.mark for thing in things)
    return Lesson(
        "talk", messages, messages[-1]["content"], (marks,), "talk, picture", messages[-1]["content"]
    )


def _kinds(rng: random.Random) -> list[Kind]:
    """What is in the picture. Few shapes and colours, so that each comes more than once."""
    shapes, colours = rng.sample(SHAPES, rng.randint(2, 4)), rng.sample([*COLOURS], rng.randint(2, 4))
    few = rng.random() < 0.5
    return [
        (rng.choice(shapes), rng.choice(colours)) if few else any_kind(rng) for _ in range(rng.randint(2, 6))
    ]


def _where(thing: Thing, things: Sequence[Thing], size: drawing.Size, rng: random.Random) -> Turn:
    label = rng.choice(labels(thing, things))
    return ask("find", rng, thing=label), box_answer(resized_box(thing.box, size), label)


def _what(thing: Thing, things: Sequence[Thing], rng: random.Random) -> list[Turn]:
    """Its colour, where no other has its shape; its shape, where no other has its colour."""
    turns = []
    if sum(other.shape == thing.shape for other in things) == 1:
        turns.append((ask("colour of one", rng, shape=thing.shape), thing.colour))
    if sum(other.colour == thing.colour for other in things) == 1:
        turns.append((ask("shape of one", rng, colour=thing.colour), thing.shape))
    return turns


def _how_many(kinds: Sequence[Kind], rng: random.Random) -> Turn:
    """All, those of a shape or those of a colour; sometimes of one that is not there."""
    shape, colour = rng.choice(kinds) if rng.random() < 0.8 else any_kind(rng)
    noun, count = rng.choice(
        (
            ("shapes", len(kinds)),
            (plural(shape), sum(its == shape for its, _ in kinds)),
            (f"{colour} shapes", sum(its == colour for _, its in kinds)),
        )
    )
    return ask("count", rng, things=noun), str(count)


def _continued(messages: list[dict[str, Any]], turns: Sequence[Turn]) -> list[dict[str, Any]]:
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def film_talk(rng: random.Random, held_out: bool) -> Lesson:
    """Two or three things appear or vanish, each in another pair of frames: when, and which comes first."""
    looks = draw_looks(rng, rng.choice((2, 2, 3)), held_out)
    rng.shuffle(looks)
    steps = rng.choice([steps for steps in films.WHEN_STEPS if steps > len(looks)])
    pairs = rng.sample(range(1, steps), len(looks))
    rate = films.draw_rate(rng, max(pairs))
    together = rng.random() < 0.5
    appears = [together] * len(looks) if rng.random() < 0.6 else [rng.random() < 0.5 for _ in looks]
    spans = [
        (2 * pair, 2 * steps) if comes else (0, 2 * pair) for pair, comes in zip(pairs, appears, strict=True)
    ]
    things, ground_HWC = films.placed(rng, looks)
    film = Film(films.filmed(ground_HWC, things, spans, 2 * steps), rate, tuple(looks))
    turns = [
        _when(rng, [look, *(other for other in looks if other != look)], comes, 2 * pair / rate)
        for look, pair, comes in zip(looks, pairs, appears, strict=True)
    ]
    for comes in (True, False):
        events = sorted(
            (pair, look.name) for pair, look, its in zip(pairs, looks, appears, strict=True) if its == comes
        )
        if len(events) == 2:
            turns += [_which(rng, [name for _, name in events], comes) for _ in range(2)]
    (question, answer), *more = rng.sample(turns, min(len(turns), MOST_QUESTIONS))
    messages = _continued(films.conversation(rng, film, question, answer), more)
    return Lesson(
        "talk", messages, messages[-1]["content"], kind="talk, film", expected=messages[-1]["content"]
    )


def _when(rng: random.Random, looks: Sequence[Look], appears: bool, seconds: float) -> Turn:
    """``looks``: the one that is asked for, then the others."""
    wordings = films.WHEN_QUESTIONS["appears" if appears else "vanishes"]
    return rng.choice(wordings).format(thing=films.called(rng, looks)), f"{seconds:.1f} seconds"


def _which(rng: random.Random, names: Sequence[str], appears: bool) -> Turn:
    """``names``: of the two, in the order of their events."""
    last = rng.random() < 0.5
    wordings = (COMES_FIRST, COMES_LAST) if appears else (GOES_FIRST, GOES_LAST)
    a, b = rng.sample(names, 2)
    return rng.choice(wordings[last]).format(a=a, b=b), names[last]
