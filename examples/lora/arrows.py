"""Pictures of arrows that point one of eight ways, and files of rows about them for ``qvl train``.

A picture is a function of its seed alone. Training takes seeds from 0 on, the held-out file those from
1,000,000 on, so no arrow is in both.

    python -m examples.lora.arrows runs/arrows --count 4000 --held-out 400
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

WAYS = ("up", "up right", "right", "down right", "down", "down left", "left", "up left")  # clockwise
QUESTIONS = (
    "Which way does the arrow point?",
    "In which direction is the arrow pointing?",
    "Where does this arrow point to?",
    "Direction of the arrow?",
)
HELD_OUT = 1_000_000  # the first seed of the held-out file
SIDE = 84  # pixels: nine tokens
FINE = 4  # drawn so much larger and then reduced, so that edges are smooth
TURN = 9.0  # degrees that an arrow may be off its way; the next way is 45 away
CONTRAST = 110  # least difference of arrow and ground in one of red, green and blue


def draw(seed: int) -> tuple[Image.Image, str]:
    """A picture and the way that its arrow points: any place, size, thickness and colours."""
    chance = random.Random(f"arrow {seed}")
    way = chance.randrange(len(WAYS))
    ground, ink = _colours(chance)
    picture = Image.new("RGB", (SIDE * FINE, SIDE * FINE), ground)
    angle = math.radians(45 * way + chance.uniform(-TURN, TURN))
    _arrow(ImageDraw.Draw(picture), angle, ink, chance)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), WAYS[way]


def _colours(chance: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    while True:
        ground, ink = (tuple(chance.randrange(256) for _ in range(3)) for _ in range(2))
        if max(abs(a - b) for a, b in zip(ground, ink, strict=True)) >= CONTRAST:
            return ground, ink


def _arrow(pencil: ImageDraw.ImageDraw, angle: float, ink: tuple[int, ...], chance: random.Random) -> None:
    """A shaft and a filled head; ``angle``: clockwise from straight up."""
    side = SIDE * FINE
    length = chance.uniform(0.45, 0.75) * side
    wide, head = length * chance.uniform(0.05, 0.1), length * chance.uniform(0.3, 0.4)
    room = (side - length) / 2
    middle = [side / 2 + chance.uniform(-room, room) for _ in range(2)]

    def place(along: float, across: float) -> tuple[float, float]:
        """``along``: from the middle towards the tip; ``across``: to the right of it."""
        return (
            middle[0] + along * math.sin(angle) + across * math.cos(angle),
            middle[1] - along * math.cos(angle) + across * math.sin(angle),
        )

    tip, neck = length / 2, length / 2 - head
    shaft = (place(-tip, -wide), place(-tip, wide), place(neck, wide), place(neck, -wide))
    pencil.polygon(shaft, fill=ink)
    pencil.polygon((place(neck, -head * 0.6), place(neck, head * 0.6), place(tip, 0)), fill=ink)


def write(path: Path, first: int, count: int) -> Path:
    """A JSON-lines file of ``count`` rows, with their pictures in a folder of its name beside it."""
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for seed in range(first, first + count):
            picture, way = draw(seed)
            name = pictures / f"{seed}.png"
            picture.save(name)
            question = random.Random(f"question {seed}").choice(QUESTIONS)
            file.write(json.dumps(_row(f"{pictures.name}/{name.name}", question, way)) + "\n")
    return path


def _row(picture: str, question: str, answer: str) -> dict[str, object]:
    """In the chat format; the path counts from the file's folder."""
    content = [{"type": "image", "path": picture}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"task": "arrow", "messages": messages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for train.jsonl, held_out.jsonl and the pictures")
    parser.add_argument("--count", type=int, default=4000, help="rows to train on")
    parser.add_argument("--held-out", type=int, default=400, help="rows to score with")
    options = parser.parse_args()
    print(write(options.out / "train.jsonl", 0, options.count))
    print(write(options.out / "held_out.jsonl", HELD_OUT, options.held_out))


if __name__ == "__main__":
    main()
