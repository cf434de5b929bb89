"""The whole way in one command: pictures, ``qvl train`` with LoRA, ``qvl merge``, scores before and after.

    python -m examples.lora.run runs/arrows

A run that was broken off goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from examples.lora.arrows import HELD_OUT, write
from qvl import AutoModelForImageTextToText, AutoProcessor
from qvl.cli import main as qvl
from qvl.evaluate import Settings, evaluate
from qvl.hub import BUNDLED
from qvl.processing.rows import read_rows

PARTS = ("tower", "merger", "decoder")
OPTIONS = ("--lora-r", 16, "--learning-rate", 1e-3, "--batch", 32, "--warm-up", 10, "--save-every", 300)
STEPS = 600
ANSWERS = Settings(max_new_tokens=16)


def learn(model: str, data: Path, out: Path, steps: int) -> None:
    """``qvl train`` with adapters on all parts; they are in ``out`` afterwards. SystemExit if it fails."""
    parts = [word for part in PARTS for word in ("--train", part)]
    command("train", model, data, "--out", out, "--lora", *parts, *OPTIONS, "--steps", steps)


def command(*words: object) -> None:
    """A command of ``qvl`` in this process."""
    code = qvl([str(word) for word in words])
    if code:
        raise SystemExit(code)


def score(model_name: str | Path, data: Path) -> float:
    """The share of rows that are answered exactly right. ``model_name``: also that of an adapter."""
    model = AutoModelForImageTextToText.from_pretrained(model_name, dtype="float32")
    processor = AutoProcessor.from_pretrained(model_name)
    found = evaluate(model, processor, list(read_rows(data)), metric="exact", settings=ANSWERS).total.score
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the data, the adapter and the merged model")
    parser.add_argument("--model", default=next(iter(BUNDLED)), help="checkpoint to begin with")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--count", type=int, default=4000, help="rows to train on")
    parser.add_argument("--held-out", type=int, default=400, help="rows to score with")
    options = parser.parse_args()
    train = write(options.out / "train.jsonl", 0, options.count)
    held_out = write(options.out / "held_out.jsonl", HELD_OUT, options.held_out)
    print(f"before: {score(options.model, held_out):.1%} of {options.held_out} arrows")
    start = time.perf_counter()
    learn(options.model, train, options.out / "adapter", options.steps)
    minutes = (time.perf_counter() - start) / 60
    print(
        f"after {options.steps} steps, {minutes:.1f} minutes: {score(options.out / 'adapter', held_out):.1%}"
    )
    if not (options.out / "merged").exists():
        command("merge", options.out / "adapter", options.out / "merged")
    print(f"merged: {score(options.out / 'merged', held_out):.1%}")


if __name__ == "__main__":
    main()
