"""What films are drawn with: anti-aliased shapes, gently shaded backdrops, places that do not overlap.

Everything is a function of the random generator handed over. Shapes are cached as coverage masks, so that
pasting one is a few small numpy operations. Legend of shape suffixes: H height, W width, C channels (RGB).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from examples.tiny.lesson import COLOURS, SHAPES

Box = tuple[int, int, int, int]

FINENESS = 8  # of the mask that is drawn before it is scaled down
CONTRAST = 110.0  # least distance in RGB between a backdrop and what stands on it
SHADING = 14.0  # most that a backdrop's light differs from its middle to its edge


@dataclass(frozen=True)
class Look:
    """A colour and a shape."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Thing:
    """A look of ``size`` pixels a side whose left upper corner stands at (``x``, ``y``)."""

    look: Look
    size: int
    x: int
    y: int

    @property
    def box(self) -> Box:
        return self.x, self.y, self.x + self.size, self.y + self.size


LOOKS = tuple(Look(colour, shape) for colour in COLOURS for shape in SHAPES)
# One shape of each colour never stands in a film of training, nor is it asked for there.
HELD_OUT_LOOKS = tuple(Look(colour, SHAPES[-index % len(SHAPES)]) for index, colour in enumerate(COLOURS))
TRAINING_LOOKS = tuple(look for look in LOOKS if look not in HELD_OUT_LOOKS)


def _ring(corners: int, radii: Sequence[float]) -> list[tuple[float, float]]:
    """Corners around the middle of the unit square, the first on top; ``radii`` take turns."""
    points = []
    for index in range(corners):
        angle, radius = 2 * math.pi * index / corners, radii[index % len(radii)]
        points.append((0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle)))
    return points


POLYGONS = {
    "square": [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)],
    "triangle": [(0.5, 0.0), (1.0, 0.95), (0.0, 0.95)],
    "star": _ring(10, (0.52, 0.23)),
    "cross": [
        (0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66),
        (0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34),
    ],
    "diamond": [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)],
}  # fmt: skip


@lru_cache(maxsize=1024)
def coverage_HW1(shape: str, size: int) -> np.ndarray:
    """How much of each pixel of a square of ``size`` pixels a shape covers, 0..1, float32 (H, W, 1)."""
    side = size * FINENESS
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    else:
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in POLYGONS[shape]], fill=255)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, np.float32)[:, :, None] / 255


def paste(picture_HWC: np.ndarray, thing: Thing) -> None:
    """Draws ``thing`` into a uint8 picture, in place."""
    x1, y1, x2, y2 = thing.box
    place_HWC = picture_HWC[y1:y2, x1:x2]
    alpha_HW1 = coverage_HW1(thing.look.shape, thing.size)
    colour_C = np.array(COLOURS[thing.look.colour], np.float32)
    place_HWC[:] = place_HWC + (colour_C - place_HWC) * alpha_HW1 + 0.5


def painted(backdrop_HWC: np.ndarray, things: Iterable[Thing]) -> np.ndarray:
    """A copy of the backdrop with ``things`` on it, uint8 (H, W, C)."""
    picture_HWC = backdrop_HWC.copy()
    for thing in things:
        paste(picture_HWC, thing)
    return picture_HWC


def backdrop(rng: random.Random, height: int, width: int, colours: Iterable[str]) -> np.ndarray:
    """A plain, shaded or slightly grainy ground that ``colours`` stand out from, uint8 (H, W, C)."""
    base_C = _ground(rng, [COLOURS[colour] for colour in colours])
    style = rng.choice(("plain", "shaded", "grainy"))
    if style == "plain":
        return np.full((height, width, 3), base_C, np.uint8)
    angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(4, SHADING)
    across_W = np.linspace(-depth, depth, width, dtype=np.float32) * math.cos(angle)
    down_H = np.linspace(-depth, depth, height, dtype=np.float32) * math.sin(angle)
    ground_HWC = (down_H[:, None] + across_W[None])[:, :, None] + np.array(base_C, np.float32)
    if style == "grainy":
        top, left = rng.randrange(64), rng.randrange(64)
        ground_HWC += _grain()[top : top + height, left : left + width] * rng.uniform(1, 5)
    return ground_HWC.clip(0, 255).astype(np.uint8)


def _ground(rng: random.Random, colours: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A dull colour at least CONTRAST away from ``colours``, or the farthest of many tried."""
    best, farthest = (128, 128, 128), -1.0
    for _ in range(40):
        light = rng.randint(20, 240)
        tried = (_tinted(rng, light), _tinted(rng, light), _tinted(rng, light))
        nearest = min((math.dist(tried, colour) for colour in colours), default=CONTRAST)
        if nearest >= CONTRAST:
            return tried
        if nearest > farthest:
            best, farthest = tried, nearest
    return best


def _tinted(rng: random.Random, light: int) -> int:
    return min(max(light + rng.randint(-22, 22), 0), 255)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Fixed noise to cut pieces from, one value for the three channels, float32 (H, W, 1)."""
    return np.random.default_rng(5).standard_normal((256, 256, 1)).astype(np.float32)


def free_place(
    rng: random.Random, size: int, height: int, width: int, taken: Iterable[Box] = (), gap: int = 2
) -> tuple[int, int] | None:
    """A corner (x, y) where a thing of ``size`` keeps ``gap`` pixels from all ``taken`` boxes; None if 30
    throws find none.
    """
    boxes = [(x1 - gap - size, y1 - gap - size, x2 + gap, y2 + gap) for x1, y1, x2, y2 in taken]
    for _ in range(30):
        x, y = rng.randint(1, width - size - 1), rng.randint(1, height - size - 1)
        if not any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in boxes):
            return x, y
    return None


def draw_looks(rng: random.Random, count: int, held_out: bool = False) -> list[Look]:
    """``count`` looks of different colours; held out: the first is one that training never shows."""
    chosen = [rng.choice(HELD_OUT_LOOKS if held_out else TRAINING_LOOKS)]
    others = LOOKS if held_out else TRAINING_LOOKS
    while len(chosen) < count:
        look = rng.choice(others)
        if all(look.colour != known.colour for known in chosen):
            chosen.append(look)
    return chosen
