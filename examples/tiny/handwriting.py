"""Handwritten digits: real scans, bent and turned for training, as they are where they are held out.

The scans are scikit-learn's ``load_digits``: 1,797 scans of 8 x 8 grey values in the order of their writers.
The first three quarters train, the last quarter is held out: most of its writers were never seen in training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from PIL import Image

SIDE = 60  # 8 x 8 cells and a margin of one cell on every side, 6 times enlarged
INK = 48  # the part of a scan within its margins
EDGE = 2  # pixels between digits and the border of the picture
LEAST_SIDE = 20.0  # pixels: the smallest digits, about
FIRM = [255 if value > 90 else 0 for value in range(256)]  # what counts as ink
BENDS = 6  # ways in which each training scan is bent, beside the turns and stretches


@lru_cache(maxsize=1)
def _all_scans() -> tuple[np.ndarray, np.ndarray]:
    """Grey values, uint8 (1797, 10, 10) with margins, 255 is ink; and the digits they show."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    cells = np.pad(
        np.clip(raw.images * (255 / 16), 0, 255).round().astype(np.uint8), ((0, 0), (1, 1), (1, 1))
    )
    return cells, raw.target


@lru_cache(maxsize=20)
def scans_of(digit: int, held_out: bool) -> tuple[int, ...]:
    """The numbers of the scans that show ``digit``."""
    labels = _all_scans()[1]
    cut = math.ceil(len(labels) * 3 / 4)
    part = range(cut, len(labels)) if held_out else range(cut)
    return tuple(i for i in part if labels[i] == digit)


@cache
def _enlarged(scan: int) -> Image.Image:
    return Image.fromarray(_all_scans()[0][scan]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@cache
def _bent(scan: int, bend: int) -> Image.Image:
    """The scan with its strokes pushed about smoothly; ``bend`` says in which of a few ways."""
    from scipy.ndimage import map_coordinates

    pushes = np.random.default_rng((scan, bend)).standard_normal((2, 5, 5)).astype(np.float32) * (
        SIDE * 0.019
    )
    shift_y, shift_x = (
        np.asarray(Image.fromarray(push).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for push in pushes
    )
    along = np.arange(SIDE, dtype=np.float32)
    ink = np.asarray(_enlarged(scan), dtype=np.float32)
    moved = map_coordinates(ink, [along[:, None] + shift_y, along + shift_x], order=1, mode="nearest")
    return Image.fromarray(moved.clip(0, 255).round().astype(np.uint8))


def _shape_matrix(rng: random.Random) -> tuple[float, float, float, float]:
    """A little turn, shear and stretch: from places in the picture to places in the scan."""
    turn, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.22, 0.22)
    wide, high = math.exp(rng.uniform(-0.18, 0.18)), math.exp(rng.uniform(-0.18, 0.18))
    cos, sin = math.cos(turn), math.sin(turn)
    return cos * wide, (cos * shear + sin) * high, -sin * wide, (cos - sin * shear) * high


def _pen(side: float, rng: random.Random, held_out: bool) -> list[int]:
    """Soft or firm edges, as pens leave them, and thinner or thicker strokes: a table of 256."""
    firmness = rng.uniform(1.0, 2.2) if rng.random() < 0.4 else max(1.2, side / 8 / rng.uniform(2.0, 6.0))
    threshold = rng.uniform(0.5, 0.58) if held_out else rng.uniform(0.48, 0.66)
    levels = (np.linspace(0, 1, 256) - threshold) * firmness + 0.5
    return (255 * levels.clip(0, 1)).round().astype(int).tolist()


def scans_of_digits(digits: str, rng: random.Random, held_out: bool) -> list[int]:
    """A scan for each digit."""
    return [rng.choice(scans_of(int(digit), held_out)) for digit in digits]


def held_out_scans() -> range:
    """The numbers of all scans that no lesson of training shows."""
    count = len(_all_scans()[1])
    return range(math.ceil(count * 3 / 4), count)


def shown_by(scan: int) -> int:
    """The digit that a scan shows."""
    return int(_all_scans()[1][scan])


def digit_mask(scan: int, side: float, rng: random.Random, held_out: bool) -> Image.Image:
    """A scan as a mask of mode L; its 8 x 8 cells are about ``side`` pixels large."""
    full = math.ceil(side * SIDE / INK)
    step = SIDE / full
    a, b, c, d = (1.0, 0.0, 0.0, 1.0) if held_out else _shape_matrix(rng)
    a, b, c, d = (value * step for value in (a, b, c, d))
    middle = full / 2
    matrix = (a, b, SIDE / 2 - (a + b) * middle, c, d, SIDE / 2 - (c + d) * middle)
    source = _enlarged(scan) if held_out else _bent(scan, rng.randrange(BENDS))
    return source.transform((full, full), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _inked(mask: Image.Image) -> Image.Image:
    """The part of the mask that has ink."""
    return mask.crop(mask.point(FIRM).getbbox() or (0, 0, *mask.size))


def row(
    scans: Sequence[int], size: tuple[int, int], rng: random.Random, held_out: bool
) -> tuple[Image.Image, list[tuple[float, float, float, float]]]:
    """Scans side by side: a mask of mode L of ``size`` (height, width), and each digit's box in it."""
    height, width = size
    side = max(LEAST_SIDE, min(0.95 * height, 1.3 * width / len(scans)) * rng.uniform(0.4, 1.0))
    table = _pen(side, rng, held_out)
    masks = [_inked(digit_mask(scan, side, rng, held_out).point(table)) for scan in scans]
    gap = rng.uniform(0.04, 0.3) * side
    long, high = (
        sum(mask.width for mask in masks) + gap * (len(masks) - 1),
        max(mask.height for mask in masks),
    )
    fit = min(1.0, (width - 2 * EDGE) / long, (height - 2 * EDGE) / high)
    if fit < 1:
        masks = [mask.resize((int(mask.width * fit) or 1, int(mask.height * fit) or 1)) for mask in masks]
        gap, long, high = gap * fit, long * fit, int(high * fit)
    x, middle = rng.uniform(EDGE, width - EDGE - long), rng.uniform(EDGE, height - EDGE - high) + high / 2
    ink, boxes = Image.new("L", (width, height)), []
    for mask in masks:
        free = height - 2 * EDGE - mask.height
        top = min(max(0.0, middle - mask.height / 2 + rng.uniform(-0.05, 0.05) * high - EDGE), free)
        left, upper = int(x), EDGE + int(top)
        ink.paste(255, (left, upper), mask)
        boxes.append((float(left), float(upper), float(left + mask.width), float(upper + mask.height)))
        x += mask.width + gap
    return ink, boxes
