"""The bundled model's examination, and what breaks it: its score stands guard over windows and time.

A part of the questions of ``python -m examples.tiny.exam``, so the limits here are lower than its figures.
"""

from __future__ import annotations

import copy
import random
from functools import cache

import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn", reason="scikit-learn ships the handwritten digits")
pytest.importorskip("skimage", reason="scikit-image ships photographs for backgrounds")

from examples.tiny import fonts
from examples.tiny.exam import TITLES, examine, questions
from qvl import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

NAME = "qvl/tiny"
SHARE = 0.25
FILMS = ("motion", "order", "when")
LEAST = {
    "text": 0.55,
    "page": 0.3,
    "scan": 0.96,
    "digits": 0.88,
    "name": 0.97,
    "count": 0.6,
    "find": 0.33,
    "compare": 0.65,
    "motion": 0.93,
    "order": 0.4,
    "when": 0.38,
    "unknown": 0.6,
}
LARGE = 504  # pixels: the side of a canvas of 25 windows


@pytest.fixture(scope="module", autouse=True)
def typefaces():
    try:
        fonts.faces(held_out=True)
    except ImportError as missing:
        pytest.skip(str(missing))


@cache
def asked(*tasks):
    return list(questions(SHARE, tasks or tuple(TITLES)))


@cache
def model(full: bool | None = None):
    """``full``: whether every block of the tower sees whole pictures, or none; else as trained."""
    config = AutoConfig.from_pretrained(NAME)
    if full is not None:
        config.vision_config.fullatt_block_indexes = [*range(config.vision_config.depth)] if full else []
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(NAME, config=config, dtype=torch.float32)


def scores(rows, of=None, **limits):
    report = examine(of or model(), AutoProcessor.from_pretrained(NAME, **limits), rows)
    assert report.total.errors == 0
    return {task.task: task.score for task in report.tasks}


@cache
def whole():
    return scores(asked())


@pytest.mark.parametrize("task", TITLES)
def test_the_examination(task):
    assert whole()[task] >= LEAST[task]


def changed(tasks, change):
    """Those questions, ``change`` applied to the part that is the film."""
    rows = copy.deepcopy(asked(*tasks))
    for row in rows:
        for part in row["messages"][-1]["content"]:
            if part["type"] == "video":
                change(part)
    return rows


def test_the_order_of_frames_matters():
    order = random.Random(0)

    def shuffle(part):
        part["video"] = part["video"][order.sample(range(len(part["video"])), len(part["video"]))]

    found = scores(changed(FILMS, shuffle))
    assert found["motion"] < whole()["motion"] - 0.3
    assert found["when"] < whole()["when"] - 0.1


def test_absolute_time_matters():
    """At rates that are not told, every step is taken to be a second, as without ``second_per_grid_ts``."""
    found = scores(changed(("motion", "when"), lambda part: part.update(fps=2.0)))
    assert found["when"] < whole()["when"] - 0.2
    assert found["motion"] > whole()["motion"] - 0.05  # which needs no seconds


def test_seconds_per_step_are_what_tells_the_time():
    """The same through `generate`, the entry removed from what the processor made."""
    processor = AutoProcessor.from_pretrained(NAME)
    rows = asked("when")
    right = {True: 0, False: 0}
    for row in rows:
        inputs = processor.apply_chat_template(
            row["messages"], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        for kept in right:
            given = {name: value for name, value in inputs.items() if kept or name != "second_per_grid_ts"}
            said = model().generate(**given, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
            words = processor.decode(said, skip_special_tokens=True).split()
            right[kept] += bool(words) and abs(float(words[0]) - row["expected"]) <= 0.5
    assert right[True] == round(whole()["when"] * len(rows))
    assert right[False] < right[True] - 0.2 * len(rows)


def on_a_large_canvas(rows):
    """The same questions, each picture somewhere on a canvas of the colour of its corner."""
    place = random.Random(0)
    for row in copy.deepcopy(rows):
        for part in row["messages"][-1]["content"]:
            if part["type"] == "image":
                picture = part["image"]
                canvas = Image.new("RGB", (LARGE, LARGE), picture.getpixel((1, 1)))
                room = (LARGE - picture.width, LARGE - picture.height)
                canvas.paste(picture, (place.randint(0, max(0, room[0])), place.randint(0, max(0, room[1]))))
                part["image"] = canvas
        yield row


@cache
def large():
    """What each tower says about pictures of 25 windows: as it is, every block full, no block full."""
    rows = list(on_a_large_canvas(asked("text", "digits")))
    found = {}
    for full in (None, True, False):
        found[full] = scores(rows, model(full), max_pixels=LARGE**2)
    return {full: sum(by_task.values()) / len(by_task) for full, by_task in found.items()}


@pytest.mark.parametrize("full", [True, False], ids=["every block full", "no block full"])
def test_windows_matter(full):
    assert large()[full] < large()[None] - 0.05, large()
