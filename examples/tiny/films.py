"""Films and questions about them: which way a thing moves, which of two comes first, when something happens.

A film is handed over as frames that are decoded already, with the rate at which they were sampled:
``{"type": "video", "video": frames_THWC, "fps": rate}``. The processor then takes every frame as it is (sides
are multiples of 28, so nothing is resized where ``min_pixels`` is at most 56 * 56 and ``max_pixels`` at least
84 * 84), knows the rate and gives ``second_per_grid_ts = 2 / rate``, without a warning.

The vision tower sees frames in pairs; a film has an even number of frames. Pair i begins ``2 * i / rate``
seconds after the start, and its tokens stand at the temporal position ``int(i * second_per_grid * 2)``: with
two positions per second these are half seconds. That is all that a model can know of time.

When something happens: the time of an event is the start of the first pair of frames that shows it. Events
fall on the first frame of a pair, so this is also the time of the first frame that shows them; only at rates
of INSIDE_RATE and more they may fall on the second frame, 1 / rate <= 0.25 seconds later. Which pair it is
and the rate are drawn so that the number of the pair tells little about the seconds: see RATE_WEIGHTS.

Legend of shape suffixes: T frames, H height, W width, C channels (RGB).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.tiny.films_drawing import (
    LOOKS,
    TRAINING_LOOKS,
    Look,
    Thing,
    backdrop,
    draw_looks,
    free_place,
    painted,
)
from examples.tiny.lesson import COLOURS, Lesson

# Height and width: what films of any shape are resized to where a frame may have 84 * 84 pixels.
SIZES = ((56, 56), (56, 84), (84, 56), (84, 84), (56, 112), (112, 56))
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NOWHERE = "nowhere"

MOTION_RATES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
MOTION_FRAMES = (4, 6, 8, 10, 12)
LEAST_TRAVEL = 16  # pixels over a film

ORDER_RATES = (1.0, 2.0, 3.0, 4.0, 8.0)
ORDER_FRAMES = (4, 6, 8, 10, 12)

WHEN_STEPS = (4, 5, 6, 7, 8)  # pairs of frames
LATEST = 8.5  # seconds
INSIDE_RATE = 4.0
ASIDE = 0.1  # share of lessons whose question stands before the film
HURRIED = 0.1
# How often each rate (frames per second) is drawn among those that keep the event before LATEST. Slow rates
# have more weight, because quick ones crowd the times of all their pairs together.
RATE_WEIGHTS = {0.5: 3.0, 0.75: 2.0, 1.0: 4.0, 1.5: 2.0, 2.0: 4.0, 3.0: 2.0, 4.0: 3.0, 8.0: 2.0}

MOTION_QUESTIONS = (
    "Which way does the {thing} move?",
    "In which direction does the {thing} move?",
    "Where does the {thing} go?",
    "Which way does the {thing} go?",
    "What is the direction of the {thing}?",
    "Does the {thing} move left, right, up or down?",
    "Which direction does the {thing} take?",
    "Tell me which way the {thing} moves.",
)
COMES_FIRST = (
    "Which comes first, the {a} or the {b}?",
    "Which appears first, the {a} or the {b}?",
    "What appears first?",
    "What comes first?",
    "Which thing do you see first?",
    "What is seen first, the {a} or the {b}?",
    "Name the thing that appears first.",
    "Which is earlier, the {a} or the {b}?",
)
COMES_LAST = (
    "Which comes last, the {a} or the {b}?",
    "Which appears last, the {a} or the {b}?",
    "What appears last?",
    "What comes last?",
    "Which thing appears second?",
    "What comes later, the {a} or the {b}?",
    "Name the thing that appears last.",
    "Which is later, the {a} or the {b}?",
)
GOES_FIRST = (
    "Which disappears first, the {a} or the {b}?",
    "Which vanishes first, the {a} or the {b}?",
    "What disappears first?",
    "What goes away first?",
    "What vanishes first?",
    "Name the thing that disappears first.",
)
GOES_LAST = (
    "Which disappears last, the {a} or the {b}?",
    "Which vanishes last, the {a} or the {b}?",
    "What disappears last?",
    "What goes away last?",
    "What vanishes last?",
    "Name the thing that disappears last.",
)
WHEN_APPEARS = (
    "When does the {thing} appear?",
    "At what time does the {thing} appear?",
    "After how many seconds does the {thing} appear?",
    "How many seconds pass until the {thing} appears?",
    "When do you first see the {thing}?",
    "When does the {thing} come in?",
    "At how many seconds does the {thing} show up?",
)
WHEN_VANISHES = (
    "When does the {thing} disappear?",
    "When does the {thing} vanish?",
    "At what time does the {thing} disappear?",
    "After how many seconds does the {thing} vanish?",
    "How many seconds pass until the {thing} disappears?",
    "When is the {thing} gone?",
    "At how many seconds does the {thing} go away?",
)
WHEN_CHANGES = (
    "When does the {thing} change its colour?",
    "When does the {thing} turn {new}?",
    "At what time does the {thing} become {new}?",
    "After how many seconds does the {thing} turn {new}?",
    "How many seconds pass until the {thing} changes its colour?",
    "When does the colour of the {thing} change?",
    "At how many seconds does the {thing} change colour?",
)
WHEN_QUESTIONS = {"appears": WHEN_APPEARS, "vanishes": WHEN_VANISHES, "changes": WHEN_CHANGES}


@dataclass(frozen=True)
class Film:
    """``frames_THWC``: uint8, sampled at ``rate`` frames per second. ``looks``: all that is ever in it."""

    frames_THWC: np.ndarray
    rate: float
    looks: tuple[Look, ...]

    @property
    def part(self) -> dict[str, Any]:
        """The film as a part of a message's content."""
        return {"type": "video", "video": self.frames_THWC, "fps": self.rate}


def draw(task: str, rng: random.Random, held_out: bool = False) -> Lesson:
    """A lesson of ``task`` "motion", "order" or "when", a function of ``rng`` alone.

    ``held_out``: about a thing of a colour and shape that no film of training shows together. ``expected`` is
    the answer, for "when" the seconds as a float, not rounded. Raises KeyError for another task.
    """
    return DRAWERS[task](rng, held_out)


def conversation(rng: random.Random, film: Film, question: str, answer: str) -> list[dict[str, Any]]:
    """The film and the question, in one of ten after it, and the answer."""
    content = [film.part, {"type": "text", "text": hurried(rng, question)}]
    if rng.random() < ASIDE:
        content.reverse()
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def hurried(rng: random.Random, question: str) -> str:
    """One question in ten is written without its capital and its mark."""
    if rng.random() < HURRIED:
        return (question[0].lower() + question[1:]).rstrip("?.")
    return question


def draw_motion(rng: random.Random, held_out: bool) -> Lesson:
    """One thing moves evenly along a side of the picture, or not at all; another may rest beside its way."""
    film, direction = motion_film(rng, held_out)
    question = rng.choice(MOTION_QUESTIONS).format(thing=called(rng, film.looks))
    kind = "motion, alone" if len(film.looks) == 1 else "motion, beside another"
    return Lesson(
        "motion", conversation(rng, film, question, direction), direction, kind=kind, expected=direction
    )


def motion_film(rng: random.Random, held_out: bool) -> tuple[Film, str]:
    """A film, the look of what moves first, and the direction."""
    direction = rng.choice((*DIRECTIONS, *DIRECTIONS, NOWHERE))
    (height, width), frames = rng.choice(SIZES), rng.choice(MOTION_FRAMES)
    looks = draw_looks(rng, 2 if rng.random() < 0.35 else 1, held_out)
    size = rng.randint(14, 24)
    path = _path(rng, DIRECTIONS.get(direction, (0, 0)), frames, (height - size - 2, width - size - 2))
    things = [Thing(looks[0], size, x, y) for x, y in path]
    ground_HWC = backdrop(rng, height, width, [look.colour for look in looks])
    rest = _beside(rng, looks[1], things, height, width) if len(looks) > 1 else None
    if rest is None:
        looks = looks[:1]
    else:
        ground_HWC = painted(ground_HWC, [rest])
    frames_THWC = np.stack([painted(ground_HWC, [thing]) for thing in things])
    return Film(frames_THWC, rng.choice(MOTION_RATES), tuple(looks)), direction


def _path(
    rng: random.Random, step: tuple[int, int], frames: int, room: tuple[int, int]
) -> list[tuple[int, int]]:
    """Corners (x, y) of a thing on its way, at least 1 pixel from every edge; ``room``: (down, across)."""
    spans = (room[1], room[0])
    along = 0 if step[0] else 1
    sideways = spans[1 - along]
    travel = rng.randint(min(LEAST_TRAVEL, spans[along]), spans[along]) if any(step) else 0
    start = rng.randint(0, spans[along] - travel)
    if step[along] < 0:
        start += travel
    drift = rng.uniform(-0.15, 0.15) * travel
    aside = rng.uniform(max(0.0, -drift), sideways - max(0.0, drift))
    path = []
    for frame in range(frames):
        done = frame / (frames - 1)
        at = (round(start + step[along] * travel * done) + 1, round(aside + drift * done) + 1)
        path.append(at if along == 0 else (at[1], at[0]))
    return path


def _beside(rng: random.Random, look: Look, way: list[Thing], height: int, width: int) -> Thing | None:
    """A thing that rests off the ``way``, if there is room."""
    size = rng.randint(14, 20)
    corners = [thing.box for thing in (way[0], way[-1])]
    swept = (
        min(box[0] for box in corners),
        min(box[1] for box in corners),
        max(box[2] for box in corners),
        max(box[3] for box in corners),
    )
    place = free_place(rng, size, height, width, [swept])
    return None if place is None else Thing(look, size, *place)


def called(rng: random.Random, looks: Sequence[Look]) -> str:
    """The name of the first, with its colour where the shape alone would also mean another."""
    needed = any(look.shape == looks[0].shape for look in looks[1:])
    return looks[0].name if needed or rng.random() < 0.5 else looks[0].shape


def draw_order(rng: random.Random, held_out: bool) -> Lesson:
    """Two things appear one after the other, to stay or to vanish again; or two vanish one after the
    other. The two events lie in different pairs of frames.
    """
    looks = draw_looks(rng, 2, held_out)
    rng.shuffle(looks)
    things, ground_HWC = placed(rng, looks)
    frames = rng.choice(ORDER_FRAMES)
    appear = rng.random() < 0.65
    spans = _spans(rng, frames, appear)
    film = Film(filmed(ground_HWC, things, spans, frames), rng.choice(ORDER_RATES), tuple(looks))
    last = rng.random() < 0.5
    wordings = (COMES_FIRST, COMES_LAST, GOES_FIRST, GOES_LAST)[2 * (not appear) + last]
    names = [look.name for look in looks]
    a, b = names if rng.random() < 0.5 else names[::-1]
    answer = names[last]
    messages = conversation(rng, film, rng.choice(wordings).format(a=a, b=b), answer)
    kind = f"order, {'appears' if appear else 'vanishes'} {'last' if last else 'first'}"
    return Lesson("order", messages, answer, kind=kind, expected=answer)


def _spans(rng: random.Random, frames: int, appear: bool) -> list[tuple[int, int]]:
    """Frames [start, end) in which the first thing and the second are there."""
    early, late = _two_moments(rng, frames)
    if not appear:
        return [(0, early), (0, late)]
    gone = rng.choice((frames, frames, late, rng.randint(early + 1, late)))
    return [(early, gone), (late, rng.choice((frames, frames, rng.randint(late + 1, frames))))]


def _two_moments(rng: random.Random, frames: int) -> tuple[int, int]:
    """Two frames in different pairs, the earlier first; frame 0 is none of them."""
    while True:
        early, late = sorted((rng.randrange(1, frames), rng.randrange(1, frames)))
        if early // 2 < late // 2:
            return early, late


def placed(rng: random.Random, looks: list[Look], spare: tuple[str, ...] = ()) -> tuple[list[Thing], Any]:
    """Things with ``looks`` that do not touch, and a backdrop for them and for the ``spare`` colours."""
    height, width = rng.choice(SIZES)
    things: list[Thing] = []
    while len(things) < len(looks):
        size = rng.randint(16, 26)
        place = free_place(rng, size, height, width, [thing.box for thing in things])
        things = [] if place is None else [*things, Thing(looks[len(things)], size, *place)]
    return things, backdrop(rng, height, width, [*(look.colour for look in looks), *spare])


def filmed(
    ground_HWC: np.ndarray, things: list[Thing], spans: list[tuple[int, int]], frames: int
) -> np.ndarray:
    """uint8 (T, H, W, C): thing k is there in the frames [start, end) of span k."""
    pictures: dict[tuple[bool, ...], np.ndarray] = {}
    shown = []
    for frame in range(frames):
        there = tuple(start <= frame < end for start, end in spans)
        if there not in pictures:
            pictures[there] = painted(
                ground_HWC, [thing for thing, now in zip(things, there, strict=True) if now]
            )
        shown.append(pictures[there])
    return np.stack(shown)


def draw_when(rng: random.Random, held_out: bool) -> Lesson:
    """A thing appears, vanishes or changes its colour, once."""
    film, event, seconds = when_film(rng, held_out)
    before = film.looks[:-1] if event == "changes" else film.looks
    wording = rng.choice(WHEN_QUESTIONS[event])
    question = wording.format(thing=called(rng, before), new=film.looks[-1].colour)
    answer = f"{seconds:.1f} seconds"
    messages = conversation(rng, film, question, answer)
    return Lesson("when", messages, answer, kind=f"when, {event}", expected=seconds)


def when_film(rng: random.Random, held_out: bool) -> tuple[Film, str, float]:
    """A film, what happens in it (a key of WHEN_QUESTIONS) and after how many seconds. The look that it
    happens to comes first in the film's looks, what it turns to last; another may be there all the time.
    """
    step, steps, rate, frame = draw_moment(rng)
    event = rng.choice(tuple(WHEN_QUESTIONS))
    looks = draw_looks(rng, 2 if rng.random() < 0.3 else 1, held_out)
    turned = Look(rng.choice(_other_colours(looks, held_out)), looks[0].shape)
    (thing, *others), ground_HWC = placed(rng, looks, (turned.colour,))
    before, after = _event(event, thing, turned)
    pictures = [painted(ground_HWC, [*others, *things]) for things in (before, after)]
    frames_THWC = np.stack([pictures[index >= frame] for index in range(2 * steps)])
    shown = (*looks, turned) if event == "changes" else tuple(looks)
    return Film(frames_THWC, rate, shown), event, 2 * step / rate


def _other_colours(looks: list[Look], held_out: bool) -> list[str]:
    """What the first of ``looks`` can turn to: no colour that is there, in training no look held out."""
    there = {look.colour for look in looks}
    known = LOOKS if held_out else TRAINING_LOOKS
    return [look.colour for look in known if look.shape == looks[0].shape and look.colour not in there]


def _event(event: str, thing: Thing, turned: Look) -> tuple[list[Thing], list[Thing]]:
    """What is there before and after."""
    if event == "changes":
        return [thing], [Thing(turned, thing.size, thing.x, thing.y)]
    return ([], [thing]) if event == "appears" else ([thing], [])


def draw_moment(rng: random.Random) -> tuple[int, int, float, int]:
    """(pair that shows the event first, pairs of the film, rate, frame that shows it first).

    The pair is drawn first, then the rate, among all that do not lead beyond LATEST.
    """
    step = rng.choice((1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7))
    steps = rng.choice([steps for steps in WHEN_STEPS if steps > step])
    rate = draw_rate(rng, step)
    inside = rate >= INSIDE_RATE and rng.random() < 0.3
    return step, steps, rate, 2 * step + inside


def draw_rate(rng: random.Random, step: int) -> float:
    """Frames per second with which pair ``step`` does not lie beyond LATEST."""
    weights = {rate: weight for rate, weight in RATE_WEIGHTS.items() if 2 * step / rate <= LATEST}
    (rate,) = rng.choices(list(weights), list(weights.values()))
    return rate


DRAWERS: dict[str, Callable[[random.Random, bool], Lesson]] = {
    "motion": draw_motion,
    "order": draw_order,
    "when": draw_when,
}


def _all_text() -> tuple[str, ...]:
    """Every wording, filled in with looks that take turns, and every answer."""
    names = [look.name for look in LOOKS]
    wordings = (
        *MOTION_QUESTIONS, *COMES_FIRST, *COMES_LAST, *GOES_FIRST, *GOES_LAST,
        *WHEN_APPEARS, *WHEN_VANISHES, *WHEN_CHANGES,
    )  # fmt: skip
    questions = [
        wording.format(
            thing=names[5 * index % len(names)],
            a=names[7 * index % len(names)],
            b=names[(11 * index + 3) % len(names)],
            new=list(COLOURS)[index % len(COLOURS)],
        )
        for index, wording in enumerate(wordings)
    ]
    times = sorted({2 * step / rate for step in range(1, 8) for rate in RATE_WEIGHTS})
    seconds = [f"{time:.1f} seconds" for time in times if time <= LATEST]
    return (*questions, *names, *DIRECTIONS, NOWHERE, *seconds)


ALL_TEXT = _all_text()
