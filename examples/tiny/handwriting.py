"""Handwritten digits: real scans, bent and turned for training, as they are where they are held out.

The scans are scikit-learn's ``load_digits``: 1,797 scans of 8 x 8 grey values in the order of their writers.
The first three quarters train, the last quarter is held out: most of its writers were never seen in training.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image

SIDE = 60  # 8 x 8 cells and a margin of one cell on every side, 6 times enlarged
INK = 48  # the part of a scan within its margins
BENDS = 6  # ways in which each training scan is bent, beside the turns and stretches


@lru_cache(maxsize=1)
def _all_scans() -> tuple[np.ndarray, np.ndarray]:
    """Grey values, uint8 (1797, 10, 10) with margins, 255 is ink; and the digits they show."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    cells = np.pad(np.clip(raw.images * (255 / 16), 0, 255).round().astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    return cells, raw.target


@lru_cache(maxsize=20)
def scans_of(digit: int, held_out: bool) -> tuple[int, ...]:
    """The numbers of the scans that show ``digit``."""
    labels = _all_scans()[1]
    cut = math.ceil(len(labels) * 3 / 4)
    part = range(cut, len(labels)) if held_out else range(cut)
    return tuple(i for i in part if labels[i] == digit)


@lru_cache(maxsize=None)
def _enlarged(scan: int) -> Image.Image:
    return Image.fromarray(_all_scans()[0][scan]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@lru_cache(maxsize=None)
def _bent(scan: int, bend: int) -> Image.Image:
    """The scan with its strokes pushed about smoothly; ``bend`` says in which of a few ways."""
    from scipy.ndimage import map_coordinates

    pushes = np.random.default_rng((scan, bend)).standard_normal((2, 5, 5)).astype(np.float32) * (SIDE * 0.024)
    shift_y, shift_x = (
        np.asarray(Image.fromarray(push).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for push in pushes
    )
    y, x = np.mgrid[:SIDE, :SIDE]
    ink = np.asarray(_enlarged(scan), dtype=np.float32)
    moved = map_coordinates(ink, [y + shift_y, x + shift_x], order=1, mode="nearest")
    return Image.fromarray(moved.clip(0, 255).round().astype(np.uint8))


def _shape_matrix(rng: random.Random) -> tuple[float, float, float, float]:
    """A little turn, shear and stretch: from places in the picture to places in the scan."""
    turn, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.22, 0.22)
    wide, high = math.exp(rng.uniform(-0.18, 0.18)), math.exp(rng.uniform(-0.18, 0.18))
    cos, sin = math.cos(turn), math.sin(turn)
    return cos * wide, (cos * shear + sin) * high, -sin * wide, (cos - sin * shear) * high


def _pen(rng: random.Random, stroke: float) -> list[int]:
    """Firmer edges, as a pen leaves them, and strokes thinner or thicker by ``stroke``: a table of 256."""
    firmness, threshold = rng.uniform(1.0, 2.2), 0.48 + rng.uniform(-stroke, stroke)
    return [round(255 * min(1.0, max(0.0, (i / 255 - threshold) * firmness + 0.5))) for i in range(256)]


def digit_mask(digit: int, side: float, rng: random.Random, held_out: bool) -> Image.Image:
    """A handwritten ``digit`` as a mask of mode L; its 8 x 8 cells are about ``side`` pixels large."""
    scan = rng.choice(scans_of(digit, held_out))
    full = math.ceil(side * SIDE / INK)
    step = SIDE / full
    a, b, c, d = (1.0, 0.0, 0.0, 1.0) if held_out else _shape_matrix(rng)
    a, b, c, d = (value * step for value in (a, b, c, d))
    middle = full / 2
    matrix = (a, b, SIDE / 2 - (a + b) * middle, c, d, SIDE / 2 - (c + d) * middle)
    source = _enlarged(scan) if held_out else _bent(scan, rng.randrange(BENDS))
    return source.transform((full, full), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def row(digits: str, size: tuple[int, int], rng: random.Random, held_out: bool):
    """The digits side by side: a mask of mode L of ``size`` (height, width), and each digit's box in it."""
    height, width = size
    pitch = rng.uniform(0.68, 0.95)
    length = (len(digits) - 1) * pitch + 0.8  # of a row of digits of side 1
    side = min(height / 0.95, width / length) * rng.uniform(0.5, 0.97)
    side = max(side, 18.0)
    left = rng.uniform(0, max(0.0, width - length * side))
    top = rng.uniform(0, max(0.0, height - 0.95 * side))
    ink, boxes = Image.new("L", (width, height)), []
    table = _pen(rng, 0.0 if held_out else 0.12)
    for i, digit in enumerate(digits):
        mask = digit_mask(int(digit), side, rng, held_out).point(table)
        x = round(left + side * (0.4 + i * pitch) - mask.width / 2)
        y = round(top + side * (0.475 + rng.uniform(-0.04, 0.04)) - mask.height / 2)
        ink.paste(255, (x, y), mask)
        x1, y1, x2, y2 = mask.point(lambda value: value > 100 and 255).getbbox() or (0, 0, *mask.size)
        box = (max(0, x + x1), max(0, y + y1), min(width, x + x2), min(height, y + y2))
        boxes.append(tuple(float(edge) for edge in box))
    return ink, boxes
