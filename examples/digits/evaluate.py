"""How well the small model reads scans that it never saw: the figures of the README.

Most of their writers it never saw either.

Pictures of one, two and three held-out digits, in sizes and proportions as people have them, go the public
way: processor, chat template, ``generate``. A number counts as read if the whole answer is exactly it. Every
held-out scan stands in one picture of each kind at least. Seeded: the pictures are the same every time.

    python -m examples.digits.evaluate [--model FOLDER] [--dtype float32] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track

from examples.digits.checkpoint import ASSETS
from examples.digits.data import FAITHFUL, MAX_DIGITS, QUESTIONS, Scans, draw_pictures, load_scans
from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration

KINDS = {1: "single digits", 2: "two digits", 3: "three digits"}
# Width over height of the pictures, by the number of digits.
PROPORTIONS = {1: (0.7, 1.6), 2: (1.0, 2.2), 3: (1.3, 3.0)}
HEIGHTS = (60, 300)


@dataclass(frozen=True)
class Case:
    """A picture, the question about it and the number that it shows."""

    picture: Image.Image
    question: str
    number: str


def cases(scans: Scans, digits: int, seed: int = 0) -> Iterator[Case]:
    """One case for each scan, which stands first; the others beside it are drawn at random."""
    generator = torch.Generator().manual_seed(1000 * seed + digits)
    for first in range(len(scans)):
        rest = torch.randint(len(scans), (MAX_DIGITS - 1,), generator=generator).tolist()
        question = QUESTIONS[int(torch.randint(len(QUESTIONS), (1,), generator=generator))]
        height = int(torch.randint(*HEIGHTS, (1,), generator=generator))
        low, high = PROPORTIONS[digits]
        width = round(height * (low + (high - low) * float(torch.rand(1, generator=generator))))
        chosen = torch.tensor([[first, *rest]])
        drawn = draw_pictures(
            scans.ink_NSS[chosen], torch.tensor([digits]), (height, width), FAITHFUL, generator
        )
        number = "".join(map(str, scans.labels_N[chosen[0, :digits]].tolist()))
        yield Case(Image.fromarray(drawn.pixels[0].permute(1, 2, 0).numpy()), question, number)


def conversation(case: Case) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": case.picture}, {"type": "text", "text": case.question}]
    return [{"role": "user", "content": content}]


def answers(model: Any, processor: Any, group: Sequence[Case]) -> list[str]:
    """What the model says to each case, read in one batch."""
    inputs = processor.apply_chat_template(
        [conversation(case) for case in group],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    generated = model.generate(**inputs, max_new_tokens=MAX_DIGITS + 2, do_sample=False)
    new = generated[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)


def score(model: Any, processor: Any, all_cases: Sequence[Case], batch: int = 64, label: str = "") -> int:
    """How many of the cases the model reads exactly."""
    groups = [all_cases[start : start + batch] for start in range(0, len(all_cases), batch)]
    right = 0
    for group in track(groups, description=label):
        said = answers(model, processor, group)
        right += sum(answer == case.number for answer, case in zip(said, group, strict=True))
    return right


def held_out_figures(folder: Path, dtype: str = "auto") -> dict[str, Any]:
    """The score of a checkpoint folder, printed kind by kind."""
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    _, held_out = load_scans()
    start, figures = time.monotonic(), {}
    for digits, name in KINDS.items():
        all_cases = list(cases(held_out, digits))
        right = score(model, processor, all_cases, label=name)
        share = right / len(all_cases)
        figures[name] = {"right": right, "of": len(all_cases), "percent": round(100 * share, 2)}
        print(f"{name}: {right} of {len(all_cases)} read exactly, {share:.2%}")
    seconds = round(time.monotonic() - start, 1)
    print(f"{seconds} s, {model.dtype}")
    return {"held_out": figures, "dtype": str(model.dtype).removeprefix("torch."), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ASSETS)
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, float16 or bfloat16")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    report = held_out_figures(options.model, options.dtype)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
