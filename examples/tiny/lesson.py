"""What a lesson is, and the words that all lessons share: tasks, colours and shapes.

A lesson is a conversation about pictures or a film that ends with the right answer. It is a function of a
seed alone. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TASKS = (
    "text",  # printed words and numbers
    "page",  # several printed lines
    "digits",  # handwritten digits
    "name",  # colour and shape of the one thing in the picture
    "count",  # how many, up to 6
    "find",  # where, as JSON with bbox_2d
    "compare",  # two pictures: same or different, which has more
    "motion",  # which way a thing moves in a film
    "order",  # which of two things comes first in a film
    "when",  # at how many seconds something happens in a film
    "talk",  # several of these, about one picture or film
    "unknown",  # what it was not taught
)
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 215, 30),
    "green": (44, 160, 60),
    "blue": (40, 80, 210),
    "purple": (140, 60, 170),
    "black": (25, 25, 25),
    "white": (248, 248, 248),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
CANNOT_TELL = "I can't tell."


@dataclass(frozen=True)
class Mark:
    """Something that stands in a picture: ``box`` (x1, y1, x2, y2) in its pixels, and ``what`` it is.

    ``what``: a character, the name of a shape, or "hand:7" for a handwritten 7. ``colour``: one of COLOURS,
    or "" where it has another.
    """

    box: tuple[float, float, float, float]
    what: str
    colour: str = ""


@dataclass(frozen=True)
class Lesson:
    """``messages``: a conversation whose last message is the assistant's, with PIL pictures or frames in it.

    ``answer``: that last message. ``marks``: for each still picture, in order, all that stands in it (films
    have none). ``kind``: a finer name than the task, for tables ("text, word"). ``expected``: what the
    examination compares with: the answer, a box in pixels of the original picture, or seconds.
    """

    task: str
    messages: list[dict[str, Any]]
    answer: str
    marks: tuple[tuple[Mark, ...], ...] = ()
    kind: str = ""
    expected: Any = None
