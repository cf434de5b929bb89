"""One task of qvl or transformers, timed inside a fresh process: ``python -m benchmarks.tasks qvl tokens``.

Prints the median seconds of several repetitions after one that is not counted.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

MODEL = Path(__file__).parents[1] / "src" / "qvl" / "assets" / "tiny"
PICTURE = Path(__file__).parents[1] / "examples" / "pictures" / "digits.png"
NEW_TOKENS = 64


def photo() -> Image.Image:
    """A photo-like picture: smooth shapes and some noise, the same every time."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((1024, 768), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((smooth + generator.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8))


def image_processor(who: str, **settings: Any) -> Any:
    if who == "qvl":
        from qvl import Qwen2VLImageProcessor
    else:
        from transformers import Qwen2VLImageProcessor
    return Qwen2VLImageProcessor(**settings)


def model_of(who: str) -> Any:
    if who == "qvl":
        from qvl import Qwen2_5_VLForConditionalGeneration
    else:
        from transformers import Qwen2_5_VLForConditionalGeneration
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()


def pixels(who: str) -> Callable[[], Any]:
    processor, picture = image_processor(who, max_pixels=12_845_056), photo()
    return lambda: processor(picture, return_tensors="pt")


def tokens(who: str, rows: int = 1) -> Callable[[], Any]:
    """The same inputs for both: made once by qvl's processor."""
    from qvl import AutoProcessor

    content = [
        {"type": "image", "path": str(PICTURE)},
        {"type": "text", "text": "What number is written here?"},
    ]
    inputs = AutoProcessor.from_pretrained(MODEL).apply_chat_template(
        [[{"role": "user", "content": content}]] * rows,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    model = model_of(who)
    settings = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    return lambda: model.generate(**inputs, **settings)


def batch(who: str) -> Callable[[], Any]:
    return tokens(who, rows=8)


TASKS: dict[str, Callable[[str], Callable[[], Any]]] = {"pixels": pixels, "tokens": tokens, "batch": batch}


def seconds_of(task: Callable[[], Any]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


if __name__ == "__main__":
    run = TASKS[sys.argv[2]](sys.argv[1])
    run()
    print(statistics.median(seconds_of(run) for _ in range(5)))
