"""Coloured shapes and what lies behind them: plain, graded, noisy or photographed backgrounds.

Everything is a function of the given ``random.Random``; sizes are (height, width) and boxes (x1, y1, x2, y2),
both in pixels; colours are (red, green, blue), 0 to 255.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from examples.tiny.lesson import COLOURS, Mark
from qvl.processing.sizes import smart_resize

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Size = tuple[int, int]

LEAST_SIDE, LARGEST_SIDE, LARGEST_AREA = 56, 168, 140 * 168
LIMIT = 280 * 280  # pixels of the largest pictures; people's photographs and screens are brought to this size
FINE = 4  # shapes are drawn this many times larger, then reduced: smooth edges
CLEAR = 80.0  # how far a background must be from the colours that stand on it, see distance()
INSTALL = "pip install scikit-image scikit-learn matplotlib"
# Photographs by the package that ships them: without writing, circles and stars, which would be counted.
PHOTOGRAPHS = {
    "skimage/data": ("chelsea.png", "grass.png", "brick.png", "motorcycle_left.png", "ihc.png", "camera.png"),
    "sklearn/datasets/images": ("china.jpg",),
    "matplotlib/mpl-data/sample_data": ("grace_hopper.jpg",),
}
HELD_OUT_PHOTOGRAPHS = {
    "skimage/data": ("coffee.png", "gravel.png", "rocket.jpg"),
    "sklearn/datasets/images": ("flower.jpg",),
}


@dataclass(frozen=True)
class Thing:
    """A shape of one colour; ``points``: the corners of its outline in pixels (of a circle: of its box)."""

    shape: str
    colour: str
    paint: Colour
    points: tuple[tuple[float, float], ...]
    box: Box

    @property
    def mark(self) -> Mark:
        return Mark(self.box, self.shape, self.colour)

    def moved(self, x: float, y: float) -> Thing:
        points = tuple((px + x, py + y) for px, py in self.points)
        x1, y1, x2, y2 = self.box
        return Thing(self.shape, self.colour, self.paint, points, (x1 + x, y1 + y, x2 + x, y2 + y))


def any_size(rng: random.Random, least: int = LEAST_SIDE, largest: int = LARGEST_SIDE) -> Size:
    """One in four large, as people's pictures come out of the processor.

    Of the others four in five have sides that are multiples of 28, so that nothing is resized.
    """
    while largest == LARGEST_SIDE and rng.random() < 1 / 4:
        area, shape = LIMIT * rng.uniform(0.35, 1.0), 2.2 ** rng.uniform(-1, 1)
        height, width = smart_resize(
            round((area * shape) ** 0.5), round((area / shape) ** 0.5), max_pixels=LIMIT
        )
        if min(height, width) >= least:
            return height, width
    step = 28 if rng.random() < 0.8 else 1
    while True:
        height = rng.randrange(least, largest + 1, step)
        width = rng.randrange(least, largest + 1, step)
        if height * width <= LARGEST_AREA and max(height, width) <= 3 * min(height, width):
            return height, width


def distance(one: Colour, other: Colour) -> float:
    """How different two colours look, roughly: 0 to 255 (black and white)."""
    red, green, blue = (a - b for a, b in zip(one, other, strict=True))
    return math.sqrt(2 * red * red + 4 * green * green + 3 * blue * blue) / 3


def luminance(colour: Sequence[float]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def paint(colour: str, rng: random.Random) -> Colour:
    """The named colour, a little different every time."""
    red, green, blue = (min(255, max(0, value + rng.randint(-10, 10))) for value in COLOURS[colour])
    return red, green, blue


# Shapes ------------------------------------------------------------------------------------------------


def _around(radii: Sequence[float], start: float) -> list[tuple[float, float]]:
    step = 2 * math.pi / len(radii)
    return [(r * math.cos(start + i * step), r * math.sin(start + i * step)) for i, r in enumerate(radii)]


def _cross(rng: random.Random) -> list[tuple[float, float]]:
    arm = rng.uniform(0.28, 0.38)
    quarter = [(arm, arm), (arm, 1.0), (-arm, 1.0)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _turned(points: Sequence[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _outline(shape: str, rng: random.Random) -> list[tuple[float, float]]:
    """Corners around the origin, turned only so far that the shape keeps its name."""
    if shape == "circle":
        return [(-1, -1), (1, 1)]
    if shape == "square":
        return _turned([(-1, -1), (1, -1), (1, 1), (-1, 1)], rng.uniform(-9, 9))
    if shape == "triangle":
        return _turned(_around([1] * 3, -math.pi / 2), rng.uniform(-16, 16))
    if shape == "star":
        return _turned(_around([1, rng.uniform(0.38, 0.46)] * 5, -math.pi / 2), rng.uniform(-36, 36))
    if shape == "cross":
        return _turned(_cross(rng), rng.uniform(-10, 10))
    narrow = rng.uniform(0.66, 0.9)
    return _turned([(0, -1), (narrow, 0), (0, 1), (-narrow, 0)], rng.uniform(-9, 9))


def thing(shape: str, colour: str, side: float, rng: random.Random) -> Thing:
    """A ``shape`` whose box is ``side`` pixels long on its longer side, with its upper left at the origin."""
    points = _outline(shape, rng)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top, wide, high = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    scale = side / max(wide, high)
    placed = tuple([((x - left) * scale, (y - top) * scale) for x, y in points])
    return Thing(shape, colour, paint(colour, rng), placed, (0.0, 0.0, wide * scale, high * scale))


def draw_thing(picture: Image.Image, thing: Thing) -> None:
    """Paints it onto the picture with smooth edges."""
    x1, y1, x2, y2 = thing.box
    left, top = math.floor(x1), math.floor(y1)
    mask = Image.new("L", ((math.ceil(x2) - left) * FINE, (math.ceil(y2) - top) * FINE))
    points = [((x - left) * FINE - 0.5, (y - top) * FINE - 0.5) for x, y in thing.points]
    pen = ImageDraw.Draw(mask)
    if thing.shape == "circle":
        pen.ellipse(points, fill=255)
    else:
        pen.polygon(points, fill=255)
    picture.paste(thing.paint, (left, top), mask.reduce(FINE))


# Backgrounds -------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Normal noise, float32 (480, 480, 3), from which every picture takes a piece."""
    return np.random.default_rng(28).standard_normal((480, 480, 3), dtype=np.float32)


def noise(size: Size, rng: random.Random) -> np.ndarray:
    """Normal noise of deviation 1: float32 (height, width, 3), or grey (height, width, 1)."""
    y, x = rng.randrange(480 - size[0]), rng.randrange(480 - size[1])
    piece = _noise_bank()[y : y + size[0], x : x + size[1]]
    return piece[..., :1] if rng.random() < 0.5 else piece


def picture_of(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


@lru_cache(maxsize=2)
def photographs(held_out: bool) -> tuple[Image.Image, ...]:
    """The photographs and their mirror images in two sizes, so that a piece shows much or little of one."""
    pictures = []
    for folder, names in (HELD_OUT_PHOTOGRAPHS if held_out else PHOTOGRAPHS).items():
        package, _, rest = folder.partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"{package} ships photographs for backgrounds: {INSTALL}")
        for name in names:
            with Image.open(Path(spec.submodule_search_locations[0], rest, name)) as opened:
                whole = opened.convert("RGB")
            for side in (240, 480):
                scale = side / min(whole.size)
                width, height = (round(length * scale) for length in whole.size)
                resized = whole.resize((width, height), reducing_gap=2.0)
                pictures += [resized, resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return tuple(pictures)


def photograph(size: Size, rng: random.Random, held_out: bool) -> Image.Image:
    """A piece of a photograph that is large enough."""
    whole = rng.choice([one for one in photographs(held_out) if one.width > size[1] and one.height > size[0]])
    x, y = rng.randrange(whole.width - size[1]), rng.randrange(whole.height - size[0])
    return whole.crop((x, y, x + size[1], y + size[0]))


def any_colour(rng: random.Random) -> Colour:
    """Paper, grey, dark or any colour at all."""
    kind = rng.random()
    if kind < 0.35:
        light = rng.randint(205, 255)
        red, green, blue = (min(255, light + rng.randint(-20, 20)) for _ in range(3))
    elif kind < 0.5:
        red = green = blue = rng.randint(40, 220)
    elif kind < 0.65:
        dark = rng.randint(0, 60)
        red, green, blue = (max(0, dark + rng.randint(-20, 20)) for _ in range(3))
    else:
        red, green, blue = (rng.randint(0, 255) for _ in range(3))
    return red, green, blue


def ground_colour(avoid: Sequence[Colour], rng: random.Random) -> Colour:
    """A colour well apart from all in ``avoid``; the best of a few where none is."""
    best, best_apart = (128, 128, 128), -1.0
    for _ in range(16):
        colour = any_colour(rng)
        apart = min((distance(colour, other) for other in avoid), default=255.0)
        if apart >= CLEAR + 25:
            return colour
        if apart > best_apart:
            best, best_apart = colour, apart
    return best


def graded(size: Size, base: Colour, rng: random.Random, held_out: bool) -> Image.Image:
    """From ``base`` to a neighbouring colour across the picture."""
    angle = rng.uniform(0, 2 * math.pi)
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None] * math.sin(angle)
    x = np.linspace(-1, 1, size[1], dtype=np.float32) * math.cos(angle)
    change = np.array([rng.uniform(-45, 45) for _ in range(3)], dtype=np.float32)
    return picture_of((y + x)[..., None] * change + np.array(base, dtype=np.float32))


def noisy(size: Size, base: Colour, rng: random.Random, held_out: bool) -> Image.Image:
    return picture_of(noise(size, rng) * rng.uniform(4, 20) + np.array(base, dtype=np.float32))


def blotched(size: Size, base: Colour, rng: random.Random, held_out: bool) -> Image.Image:
    """Soft blotches around ``base``."""
    cells = noise((rng.randint(3, 8), rng.randint(3, 8)), rng) * rng.uniform(6, 24)
    small = picture_of(cells + np.array(base, dtype=np.float32))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def plain(size: Size, base: Colour, rng: random.Random, held_out: bool) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), base)


def photographed(size: Size, base: Colour, rng: random.Random, held_out: bool) -> Image.Image:
    """A photograph, paler: blended with ``base``."""
    return Image.blend(
        photograph(size, rng, held_out), plain(size, base, rng, held_out), rng.uniform(0.2, 0.8)
    )


Ground = Callable[[Size, Colour, random.Random, bool], Image.Image]
GROUNDS: tuple[Ground, ...] = (plain, plain, graded, graded, noisy, blotched, photographed, photographed)


def is_clear(picture: Image.Image, avoid: Sequence[Colour]) -> bool:
    """Whether all parts of the picture are well apart from the colours that are to stand on it."""
    cells = np.asarray(picture.resize((7, 7), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 1, 3)
    apart = ((cells - np.array(avoid, dtype=np.float32)) ** 2) @ np.array([2, 4, 3], dtype=np.float32) / 9
    return bool(apart.min() >= CLEAR**2)


def background(
    size: Size, avoid: Sequence[Colour], rng: random.Random, held_out: bool = False
) -> Image.Image:
    """Any background on which things of the colours ``avoid`` are easily seen."""
    for _ in range(4):
        picture = rng.choice(GROUNDS)(size, ground_colour(avoid, rng), rng, held_out)
        if not avoid or is_clear(picture, avoid):
            return picture
    return plain(size, ground_colour(avoid, rng), rng, held_out)


def wear(picture: Image.Image, rng: random.Random, blur: float = 0.7) -> Image.Image:
    """What cameras and files do to some pictures: some noise, a blur of up to ``blur`` pixels, or JPEG."""
    chance = rng.random()
    if chance < 0.12:
        values = np.asarray(picture, dtype=np.float32)
        return picture_of(values + noise((picture.height, picture.width), rng) * rng.uniform(3, 10))
    if chance < 0.22:
        return picture.filter(ImageFilter.BoxBlur(rng.uniform(0.2, blur)))
    if chance < 0.3:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(50, 92))
        return Image.open(file).convert("RGB")
    return picture
