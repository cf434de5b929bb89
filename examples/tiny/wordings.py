"""The questions of the lessons about still pictures, and the conversation that asks one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from PIL import Image

from examples.tiny.lesson import COLOURS, SHAPES

ONE_LINE = "Which word or number do you see?"
READING = (
    "What does it say?",
    "What is written here?",
    "What text is in the picture?",
    "Read the text.",
    ONE_LINE,
    "What do you read?",
    "Read this image.",
    "Please read the text in the picture.",
    "Transcribe the text.",
    "What text is shown in this image?",
    "Can you read this?",
    "Read what is printed here.",
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "text": READING,
    "page": (
        *(wording for wording in READING if wording != ONE_LINE),
        "Read all of the text.",
        "Write down every line.",
    ),
    "word": (
        "What word is this?",
        "Which word is in the picture?",
        "Read the word.",
        "What word do you see?",
    ),
    "digits": (
        "What number is written here?",
        "What number is this?",
        "What number do you see?",
        "What number is in the picture?",
        "What number is shown in this image?",
        "What does it say?",
        "What is written here?",
        "Which number is this?",
        "Which digits are in this image?",
        "Read the number.",
        "Read the digits.",
        "Read the handwritten number.",
        "Read this image.",
        "Please read the digits in the picture.",
        "Please tell me the number.",
        "Write down the digits.",
        "Transcribe the handwriting.",
        "Can you read this number?",
    ),
    "digit": (
        "Which digit is this?",
        "What digit is written here?",
        "What digit do you see in the picture?",
        "Read the digit.",
    ),
    "name": (
        "What is this?",
        "What is in the picture?",
        "What do you see?",
        "What is shown in this image?",
        "Describe the picture.",
        "Describe this image.",
        "Name the colour and the shape.",
        "Which shape is it, and in which colour?",
        "What colored shape is this?",
    ),
    "name the colour": (
        "What colour is it?",
        "What color is it?",
        "Which colour does the shape have?",
        "Which color do you see?",
        "What is the colour of the {shape}?",
        "What color is the {shape}?",
        "What colour is the shape?",
        "Name the colour.",
    ),
    "name the shape": (
        "What shape is it?",
        "Which shape is this?",
        "What shape do you see?",
        "What kind of shape is in the picture?",
        "Name the shape.",
        "Which shape is shown here?",
    ),
    "colour of one": (
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "What is the colour of the {shape}?",
        "What is the color of the {shape}?",
        "Name the colour of the {shape}.",
        "Which colour does the {shape} have?",
    ),
    "shape of one": (
        "Which shape is {colour}?",
        "What is the {colour} thing?",
        "What shape is the {colour} thing?",
        "Which {colour} thing do you see?",
        "What is {colour} here?",
        "Name the {colour} shape.",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} do you see?",
        "How many {things} are in the picture?",
        "Count the {things}.",
        "What is the number of {things}?",
        "How many {things} does this image show?",
        "Please count the {things}.",
    ),
    "find": (
        "Where is the {thing}?",
        "Find the {thing}.",
        "Give the box of the {thing}.",
        "Locate the {thing}.",
        "Give the bounding box of the {thing}.",
        "Where in the picture is the {thing}?",
        "Locate the {thing}, output its bbox coordinates in JSON format.",
        "Point out the {thing}.",
    ),
    "compare": (
        "Are the two pictures the same?",
        "Are these pictures the same or different?",
        "Do both pictures show the same?",
        "Same or different?",
        "Is there a difference between the two images?",
        "Compare the two pictures: same or different?",
        "Are both images equal?",
    ),
    "compare numbers": (
        "Which picture has more shapes?",
        "Which image has more shapes, the first or the second?",
        "Where are more shapes, in the first or the second picture?",
        "In which picture are more shapes?",
        "Which of the two pictures shows more shapes?",
        "Which picture has more things in it?",
    ),
}
SAME, DIFFERENT, FIRST, SECOND = "same", "different", "first", "second"
FIXED_ANSWERS = (
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *COLOURS,
    *SHAPES,
    *"0123456",
    *(SAME, DIFFERENT, FIRST, SECOND),
)


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("ss") else f"{shape}s"


def box_answer(box: Sequence[int], label: str) -> str:
    """A box as the released models write it."""
    x1, y1, x2, y2 = box
    return f'```json\n[\n\t{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "{label}"}}\n]\n```'


def _careless(question: str) -> str:
    """As people write who are in a hurry."""
    return (question[0].lower() + question[1:]).rstrip("?.")


def ask(kind: str, rng: random.Random, **words: str) -> str:
    """One of the wordings; one in ten is written carelessly."""
    question = rng.choice(QUESTIONS[kind]).format(**words)
    return _careless(question) if rng.random() < 0.1 else question


def conversation(
    pictures: Sequence[Image.Image], question: str, answer: str, question_first: bool = False
) -> list[dict[str, Any]]:
    """The pictures and the question in one message of the user, and the answer."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    words = {"type": "text", "text": question}
    content = [words, *parts] if question_first else [*parts, words]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _every_question() -> set[str]:
    shapes, coloured = (
        [*SHAPES, "shape"],
        [f"{colour} {shape}" for colour in COLOURS for shape in (*SHAPES, "shape")],
    )
    filled = set()
    for questions in QUESTIONS.values():
        for question in questions:
            for noun in [*shapes, *coloured] if "{" in question else [""]:
                words = {"thing": noun, "things": plural(noun), "shape": noun.split(" ")[-1]}
                filled |= {question.format(colour=colour, **words) for colour in COLOURS}
    return filled | {_careless(question) for question in filled}


# Every question and every answer that is not read off a picture, and the frame of a box.
ALL_TEXT: tuple[str, ...] = (
    *sorted(_every_question()),
    *FIXED_ANSWERS,
    *(box_answer((0, 28, 99, 168), answer) for answer in FIXED_ANSWERS if " " in answer or answer in SHAPES),
)
