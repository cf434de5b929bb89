"""examples/lora: arrows that a seed draws, and adapters that learn which way they point."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from examples.lora.arrows import HELD_OUT, QUESTIONS, SIDE, WAYS, draw, write
from examples.lora.run import STEPS, learn, score
from qvl.hub import BUNDLED

MODEL = next(iter(BUNDLED))


def test_a_picture_is_a_function_of_its_seed():
    first, way = draw(7)
    again, same = draw(7)
    assert (first.tobytes(), way) == (again.tobytes(), same)
    assert first.size == (SIDE, SIDE)
    assert len({draw(seed)[0].tobytes() for seed in range(50)}) == 50
    assert {draw(seed)[1] for seed in range(100)} == set(WAYS)


def test_arrows_point_where_they_say():
    """Along the ink's longest axis, towards the half where it is widest: the head."""
    for seed in range(60):
        picture, way = draw(seed)
        pixels = np.asarray(picture).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).max(axis=2) > 55)
        places = np.stack([columns, -rows], axis=1) - [columns.mean(), -rows.mean()]
        axis, over = np.linalg.svd(places, full_matrices=False)[2]
        along, across = places @ axis, np.abs(places @ over)
        front = along > (along.min() + along.max()) / 2
        axis *= np.sign(across[front].max() - across[~front].max())
        turn = np.degrees(np.arctan2(axis[0], axis[1])) - 45 * WAYS.index(way)
        assert abs((turn + 180) % 360 - 180) < 15, seed


def test_the_files(tmp_path):
    path = write(tmp_path / "held_out.jsonl", HELD_OUT, 5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 5
    for seed, row in enumerate(rows, HELD_OUT):
        question, answer = row["messages"]
        picture, way = draw(seed)
        image, text = question["content"]
        assert answer == {"role": "assistant", "content": way}
        assert text["text"] in QUESTIONS
        assert np.array_equal(np.asarray(Image.open(tmp_path / image["path"])), np.asarray(picture))


def test_a_short_run_learns(tmp_path):
    """A few seconds: it says ways, and the loss has fallen to what that is worth."""
    pytest.importorskip("peft")
    train = write(tmp_path / "train.jsonl", 0, 128)
    learn(MODEL, train, tmp_path / "adapter", 40)
    with (tmp_path / "adapter" / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.slow
def test_the_whole_run(tmp_path):
    """From next to nothing right to nearly everything."""
    pytest.importorskip("peft")
    train = write(tmp_path / "train.jsonl", 0, 4000)
    held_out = write(tmp_path / "held_out.jsonl", HELD_OUT, 400)
    assert score(MODEL, held_out) < 0.2
    learn(MODEL, train, tmp_path / "adapter", STEPS)
    assert score(tmp_path / "adapter", held_out) >= 0.9
