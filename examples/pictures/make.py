"""Draws the example pictures: numbers from scans that the small model never saw.

Held-out scans, enlarged and set side by side on coloured paper. The file names say how many digits.

    python -m examples.pictures.make
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from examples.digits.data import Scans, load_scans

FOLDER = Path(__file__).parent
DIGIT = 130  # pixels on a side
STEP = 104  # from one digit to the next


@dataclass(frozen=True)
class Sheet:
    """``number`` as it is to be written; ``skip``: scans of each digit to pass over before taking one."""

    name: str
    number: str
    skip: tuple[int, ...]
    size: tuple[int, int]
    paper: tuple[int, int, int]
    ink: tuple[int, int, int]


SHEETS = (
    Sheet("digits.png", "407", (15, 13, 0), (400, 190), (247, 241, 227), (28, 44, 92)),
    Sheet("two_digits.png", "25", (9, 7), (320, 200), (40, 52, 48), (236, 240, 232)),
    Sheet("one_digit.png", "8", (9,), (280, 220), (226, 236, 246), (120, 24, 32)),
)


def pick(scans: Scans, digit: int, skip: int) -> Tensor:
    """The ink of one scan of that digit, enlarged smoothly and drawn with a firm edge."""
    chosen = (scans.labels_N == digit).nonzero().flatten()[skip]
    ink = F.interpolate(scans.ink_NSS[chosen][None, None], size=DIGIT, mode="bicubic", align_corners=False)
    return ((ink[0, 0] - 0.42) * 4 + 0.5).clamp(0, 1)


def draw(sheet: Sheet, scans: Scans) -> Image.Image:
    """The sheet: its digits in a row in the middle, each a little higher or lower than the last."""
    width, height = sheet.size
    mask = torch.zeros(height, width)
    left = (width - STEP * (len(sheet.number) - 1) - DIGIT) // 2
    top = (height - DIGIT) // 2
    for i, (digit, skip) in enumerate(zip(sheet.number, sheet.skip, strict=True)):
        y, x = top + (-5, 6, -2)[i], left + STEP * i
        place = mask[y : y + DIGIT, x : x + DIGIT]
        torch.maximum(place, pick(scans, int(digit), skip), out=place)
    stencil = Image.fromarray((mask * 255).to(torch.uint8).numpy()).filter(ImageFilter.GaussianBlur(0.8))
    page = Image.new("RGB", sheet.size, sheet.paper)
    page.paste(Image.new("RGB", sheet.size, sheet.ink), mask=stencil)
    return page


def main() -> None:
    _, held_out = load_scans()
    for sheet in SHEETS:
        draw(sheet, held_out).save(FOLDER / sheet.name, optimize=True)
        print(f"{FOLDER / sheet.name}: {sheet.number}")


if __name__ == "__main__":
    main()
