"""Lessons about shapes: what there is, how many, where, and whether two pictures are the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image, ImageEnhance

from examples.tiny import drawing
from examples.tiny.drawing import Size, Thing
from examples.tiny.lesson import COLOURS, SHAPES, Lesson
from examples.tiny.wordings import DIFFERENT, FIRST, SAME, SECOND, ask, box_answer, conversation, plural
from qvl.processing.sizes import smart_resize

MIN_PIXELS, MAX_PIXELS = 56 * 56, drawing.LIMIT
PAIRED = (112, 112, drawing.LARGEST_SIDE)  # longest sides of two pictures that are compared
APART = 4  # pixels between things
MOST_THINGS = 6
ASIDE = 0.1  # share of lessons about one thing whose question stands before the picture
# Colours that come too near to each other to be a clear difference between two pictures.
NEAR = {
    frozenset(pair)
    for pair in (("red", "orange"), ("orange", "yellow"), ("blue", "purple"), ("yellow", "white"))
}
Kind = tuple[str, str]  # shape and colour


def any_kind(rng: random.Random) -> Kind:
    return rng.choice(SHAPES), rng.choice([*COLOURS])


def overlaps(one: drawing.Box, other: drawing.Box, apart: float = APART) -> bool:
    return (
        one[0] < other[2] + apart
        and other[0] < one[2] + apart
        and one[1] < other[3] + apart
        and other[1] < one[3] + apart
    )


def place(kinds: Sequence[Kind], size: Size, rng: random.Random) -> list[Thing]:
    """The things somewhere in a picture of ``size``, none touching another."""
    height, width = size
    largest = min(0.8 * min(size), 0.95 * (height * width / max(1, len(kinds))) ** 0.5)
    least = max(16.0, min(20.0, largest / 2))
    for attempt in range(60):
        most = max(least, largest * 0.97**attempt)
        sides = sorted((rng.uniform(least, most) for _ in kinds), reverse=True)
        placed: list[Thing] = []
        for (shape, colour), side in zip(kinds, sides, strict=True):
            free = _free_place(drawing.thing(shape, colour, side, rng), placed, size, rng)
            if free is None:
                break
            placed.append(free)
        else:
            return placed
    raise ValueError(f"{len(kinds)} things do not fit into {size}")


def _free_place(made: Thing, placed: Sequence[Thing], size: Size, rng: random.Random) -> Thing | None:
    """``made``, which stands at the origin, where nothing else is. None: no such place was found."""
    _, _, wide, high = made.box
    for _ in range(12):
        x, y = 1 + rng.random() * (size[1] - 2 - wide), 1 + rng.random() * (size[0] - 2 - high)
        box = (x, y, x + wide, y + high)
        if not any(overlaps(box, other.box) for other in placed):
            return made.moved(x, y)
    return None


def roomy_size(things: int, rng: random.Random, largest: int = drawing.LARGEST_SIDE) -> Size:
    """A picture's size with room for so many things."""
    while True:
        size = drawing.any_size(rng, largest=largest)
        if size[0] * size[1] >= 1500 * things:
            return size


def show(things: Sequence[Thing], size: Size, rng: random.Random, held_out: bool) -> Image.Image:
    """A background with the things on it."""
    picture = drawing.background(size, [thing.paint for thing in things], rng, held_out)
    for thing in things:
        drawing.draw_thing(picture, thing)
    return picture


def name_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """One thing: its colour and its shape; in training sometimes only one of them."""
    size, (shape, colour) = drawing.any_size(rng), any_kind(rng)
    side = rng.uniform(18, 0.95 * min(size))
    made = drawing.thing(shape, colour, side, rng)
    _, _, right, bottom = made.box
    made = made.moved(rng.uniform(1, size[1] - 1 - right), rng.uniform(1, size[0] - 1 - bottom))
    picture = drawing.wear(show([made], size, rng, held_out), rng)
    kind = "name" if held_out else rng.choice(("name", "name", "name the colour", "name the shape"))
    answer = {"name": f"{colour} {shape}", "name the colour": colour, "name the shape": shape}[kind]
    messages = conversation([picture], ask(kind, rng, shape=shape), answer, rng.random() < ASIDE)
    return Lesson("name", messages, answer, ((made.mark,),), kind, answer)


def count_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """How many shapes, how many of one shape, or how many of one colour."""
    what = rng.choice(("shapes", "shapes", "of a shape", "of a colour"))
    shape, colour = any_kind(rng)
    if what == "shapes":
        kinds = [any_kind(rng) for _ in range(rng.randint(1, MOST_THINGS))]
        count, noun = len(kinds), "shapes"
    else:
        kinds, count = _with_others(what, shape, colour, rng)
        noun = plural(shape) if what == "of a shape" else f"{colour} shapes"
    size = roomy_size(len(kinds), rng)
    things = place(kinds, size, rng)
    picture = drawing.wear(show(things, size, rng, held_out), rng)
    messages = conversation([picture], ask("count", rng, things=noun), str(count))
    marks = tuple(thing.mark for thing in things)
    return Lesson("count", messages, str(count), (marks,), f"count, {what}", str(count))


def _with_others(what: str, shape: str, colour: str, rng: random.Random) -> tuple[list[Kind], int]:
    """Things that are to be counted among others, mixed, and how many they are: 0 to 6."""
    count = rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6))
    others = rng.randint(1 if count == 0 else 0, max(MOST_THINGS - count, 0))
    kinds = [any_kind(rng) for _ in range(count + others)]
    other_shapes = [other for other in SHAPES if other != shape]
    other_colours = [other for other in COLOURS if other != colour]
    for i, (its_shape, its_colour) in enumerate(kinds):
        if what == "of a shape":
            kinds[i] = (shape if i < count else rng.choice(other_shapes), its_colour)
        else:
            kinds[i] = (its_shape, colour if i < count else rng.choice(other_colours))
    rng.shuffle(kinds)
    return kinds, count


def find_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """One of up to four different things: its box."""
    wanted = rng.randint(1, 4)
    kinds: list[Kind] = []
    while len(kinds) < wanted:
        kind = any_kind(rng)
        if kind not in kinds:
            kinds.append(kind)
    size = roomy_size(wanted, rng)
    things = place(kinds, size, rng)
    picture = drawing.wear(show(things, size, rng, held_out), rng)
    sought = rng.choice(things)
    label = rng.choice(labels(sought, things))
    answer = box_answer(resized_box(sought.box, size), label)
    marks = tuple(thing.mark for thing in things)
    messages = conversation([picture], ask("find", rng, thing=label), answer)
    return Lesson("find", messages, answer, (marks,), f"find, of {wanted}", sought.box)


def labels(sought: Thing, things: Sequence[Thing]) -> list[str]:
    """What the thing may be called without being taken for another."""
    labels = [f"{sought.colour} {sought.shape}"] * 2
    if sum(thing.shape == sought.shape for thing in things) == 1:
        labels.append(sought.shape)
    if sum(thing.colour == sought.colour for thing in things) == 1:
        labels.append(f"{sought.colour} shape")
    return labels


def resized_box(box: drawing.Box, size: Size) -> tuple[int, int, int, int]:
    """The box in whole pixels of the picture as the processor resizes it."""
    height, width = smart_resize(*size, 28, MIN_PIXELS, MAX_PIXELS)
    across, down = width / size[1], height / size[0]
    return round(box[0] * across), round(box[1] * down), round(box[2] * across), round(box[3] * down)


def compare_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """Two pictures: the same or different, or which has more shapes."""
    return (_same_or_different if rng.random() < 0.55 else _more)(rng, held_out)


def _same_or_different(rng: random.Random, held_out: bool) -> Lesson:
    change = None if rng.random() < 0.5 else rng.choice(("colour", "shape", "place", "missing"))
    size, things, changed = _pair(change, rng)
    paints = [thing.paint for thing in (*things, *changed)]
    ground = drawing.wear(drawing.background(size, paints, rng, held_out), rng)
    first, second = ground, ground.copy()
    for picture, shown in ((first, things), (second, changed)):
        for thing in shown:
            drawing.draw_thing(picture, thing)
    if rng.random() < 0.3:
        second = ImageEnhance.Brightness(second).enhance(rng.uniform(0.92, 1.06))
    answer = DIFFERENT if change else SAME
    marks = tuple(tuple(thing.mark for thing in shown) for shown in (things, changed))
    messages = conversation([first, second], ask("compare", rng), answer)
    return Lesson("compare", messages, answer, marks, "compare, same or different", answer)


def _pair(change: str | None, rng: random.Random) -> tuple[Size, list[Thing], list[Thing]]:
    """A size, things for the first picture, and the same or changed things for the second."""
    while True:
        kinds = [any_kind(rng) for _ in range(rng.randint(1, 3))]
        size = roomy_size(len(kinds) + 1, rng, rng.choice(PAIRED))
        things = place(kinds, size, rng)
        changed = _changed(things, size, change, rng) if change else things
        if changed is not None:
            return size, things, changed


def _changed(things: Sequence[Thing], size: Size, change: str, rng: random.Random) -> list[Thing] | None:
    """The things with one of them changed: its colour, its shape, its place, or gone. None: no room."""
    i = rng.randrange(len(things))
    old, rest = things[i], [*things[:i], *things[i + 1 :]]
    if change == "missing":
        return rest
    if change == "colour":
        others = [c for c in COLOURS if c != old.colour and frozenset((c, old.colour)) not in NEAR]
        colour = rng.choice(others)
        new: Thing | None = replace(old, colour=colour, paint=drawing.paint(colour, rng))
    elif change == "shape":
        new = _other_shape(old, rng)
    else:
        new = _elsewhere(old, rest, size, rng)
    return None if new is None else [*things[:i], new, *things[i + 1 :]]


def _other_shape(old: Thing, rng: random.Random) -> Thing:
    """Another shape of the same size and colour in the same place."""
    unlike = {"square": "diamond", "diamond": "square"}.get(old.shape, old.shape)
    shape = rng.choice([other for other in SHAPES if other not in (old.shape, unlike)])
    x1, y1, x2, y2 = old.box
    new = drawing.thing(shape, old.colour, min(x2 - x1, y2 - y1), rng)
    return replace(new, paint=old.paint).moved(x1, y1)


def _elsewhere(old: Thing, rest: Sequence[Thing], size: Size, rng: random.Random) -> Thing | None:
    x1, y1, x2, _ = old.box
    new = _free_place(old.moved(-x1, -y1), rest, size, rng)
    if new is None or max(abs(new.box[0] - x1), abs(new.box[1] - y1)) < max(14.0, 0.4 * (x2 - x1)):
        return None
    return new


def _more(rng: random.Random, held_out: bool) -> Lesson:
    """Which of two pictures has more shapes."""
    counts = (rng.randint(0, 5), rng.randint(0, 5))
    if rng.random() < 0.15:
        counts = (counts[0], counts[0])
    size = roomy_size(max(counts), rng, rng.choice(PAIRED))
    things = [place([any_kind(rng) for _ in range(count)], size, rng) for count in counts]
    pictures = [drawing.wear(show(shown, size, rng, held_out), rng) for shown in things]
    answer = SAME if counts[0] == counts[1] else FIRST if counts[0] > counts[1] else SECOND
    marks = tuple(tuple(thing.mark for thing in shown) for shown in things)
    messages = conversation(pictures, ask("compare numbers", rng), answer)
    return Lesson("compare", messages, answer, marks, "compare, which has more", answer)
