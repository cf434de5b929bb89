"""Writes a small examination as people keep one: ``rows.jsonl`` beside pictures and films, for ``qvl eval``.

The lessons are drawn as those of `examples.tiny.exam`, with seeds of their own.

    python -m examples.exam.make
    qvl eval qvl/tiny examples/exam/rows.jsonl
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from examples.tiny.exam import TITLES, row
from examples.tiny.film_files import write_film
from examples.tiny.lessons import draw

FOLDER = Path(__file__).parent
EACH = 6  # questions of each task
QUALITY = 95  # of JPEG


def main() -> None:
    for old in (FOLDER / "media").glob("*"):
        old.unlink()
    (FOLDER / "media").mkdir(exist_ok=True)
    with (FOLDER / "rows.jsonl").open("w", encoding="utf-8") as file:
        for task in TITLES:
            for number in range(0 if task == "scan" else EACH):
                lesson = draw(task, random.Random(f"golden/{task}/{number}"), held_out=True)
                asked = row(lesson, task)
                asked["messages"] = [with_files(message, f"{task}-{number}") for message in asked["messages"]]
                print(json.dumps(asked), file=file)


def with_files(message: dict[str, Any], name: str) -> dict[str, Any]:
    """The message with its pictures and its film in files."""
    if isinstance(message["content"], str):
        return message
    parts, letters = [], iter("abc")
    for part in message["content"]:
        if part["type"] == "image":
            path = FOLDER / "media" / f"{name}{next(letters)}.jpg"
            part["image"].save(path, quality=QUALITY, subsampling=0)
            parts.append({"type": "image", "image": str(path.relative_to(FOLDER))})
        elif part["type"] == "video":
            path = FOLDER / "media" / f"{name}.mp4"
            write_film(path, part["video"], part["fps"], exact=True)
            parts.append({"type": "video", "video": str(path.relative_to(FOLDER)), "fps": part["fps"]})
        else:
            parts.append(part)
    return {**message, "content": parts}


if __name__ == "__main__":
    main()
