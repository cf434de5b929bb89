"""Pictures of handwritten numbers, composed from real scans, and the questions asked about them.

The scans are scikit-learn's ``load_digits``: 1,797 scans of 8 x 8 grey values in the order of their writers.
The first three quarters train, the last quarter is held out: most of its writers were never seen in training.
This module knows no model: it makes uint8 pictures and plain strings, seeded by the caller's generator.

Legend: N scans, B pictures, K digits per picture (at most 3), H height, W width, S side of a scan,
C colour channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_DIGITS = 3
SCAN_SIDE = 60  # 8 x 8 cells and a margin of one cell on every side, 6 times enlarged
INK_WIDTH, INK_HEIGHT = 0.8, 0.9  # the shares of a scan's 8 x 8 cells that a large digit covers

QUESTIONS = (
    "What number is written here?",
    "What number is this?",
    "What number do you see?",
    "What number is in the picture?",
    "What number is shown in this image?",
    "What does it say?",
    "What is written here?",
    "What is this?",
    "Which number is this?",
    "Which number is written in the picture?",
    "Which digits are in this image?",
    "Which digits do you see?",
    "Read the number.",
    "Read the digits.",
    "Read the handwritten number.",
    "Read this image.",
    "Please read the digits in the picture.",
    "Please tell me the number.",
    "Write down the digits.",
    "Transcribe the handwriting.",
    "Describe this image.",
    "Can you read this number?",
)
SINGLE_DIGIT_QUESTIONS = (
    "Which digit is this?",
    "What digit is written here?",
    "What digit do you see in the picture?",
    "Read the digit.",
)


@dataclass(frozen=True)
class Scans:
    """``ink_NSS``: smoothly enlarged scans, 0 paper to 1 ink. ``labels_N``: the digit each one shows."""

    ink_NSS: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def cells_NC(self) -> Tensor:
        """The 64 cells of each scan, about as they were before they were enlarged."""
        return F.avg_pool2d(self.ink_NSS, SCAN_SIDE // 10)[:, 1:-1, 1:-1].flatten(1)

    def part(self, start: int, stop: int) -> Scans:
        return Scans(self.ink_NSS[start:stop], self.labels_N[start:stop])


@dataclass(frozen=True)
class Distortion:
    """How far the shape of a training digit may stray from its scan. All zero: the scan as it is.

    ``turn`` and ``shear`` in radians, ``stretch`` as the logarithm of a factor, ``elastic`` as a share of the
    digit's side, ``stroke`` as the change of the ink threshold, ``noise`` as a share of full brightness.
    """

    turn: float = 0.0
    shear: float = 0.0
    stretch: float = 0.0
    elastic: float = 0.0
    stroke: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """``pixels``: uint8 (B, 3, H, W). ``x_BK``, ``y_BK``, ``side_B``: middles and size of the digits."""

    pixels: Tensor
    x_BK: Tensor
    y_BK: Tensor
    side_B: Tensor

    def covering(self, counts_B: Tensor, cell: int) -> Tensor:
        """For each ``cell`` x ``cell`` square, row by row: which digit stands there, or -1. (B, squares)."""
        height, width = self.pixels.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(cell / 2, height, cell), torch.arange(cell / 2, width, cell), indexing="ij"
        )
        side = self.side_B[:, None, None]
        across = (x.flatten()[:, None] - self.x_BK[:, None]).abs() / side
        down = (y.flatten()[:, None] - self.y_BK[:, None]).abs() / side
        absent = torch.arange(MAX_DIGITS) >= counts_B[:, None]
        distance, nearest = across.masked_fill(absent[:, None], torch.inf).min(dim=-1)
        return torch.where((distance < 0.42) & (down[..., 0] < 0.5), nearest, -1)


TRAINING = Distortion(turn=0.2, shear=0.22, stretch=0.18, elastic=0.045, stroke=0.12, noise=0.06)
FAITHFUL = Distortion()


def load_scans() -> tuple[Scans, Scans]:
    """The scans that train and those held out: three quarters and the last quarter, in writers' order."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    cells = torch.from_numpy(raw.images).float()[:, None] / 16
    ink = F.interpolate(F.pad(cells, (1, 1, 1, 1)), size=SCAN_SIDE, mode="bicubic", align_corners=False)
    scans = Scans(ink[:, 0].clamp(0, 1), torch.from_numpy(raw.target).long())
    cut = math.ceil(len(scans) * 3 / 4)
    return scans.part(0, cut), scans.part(cut, len(scans))


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def draw_pictures(
    ink_BKSS: Tensor,
    counts_B: Tensor,
    size: tuple[int, int],
    distortion: Distortion,
    generator: torch.Generator,
) -> Drawn:
    """Pictures of ``size`` (height, width), each its first ``counts_B`` scans in a row, and where they stand.

    Place, size, colours and the light on the paper are drawn at random.
    """
    height, width = size
    x_BK, y_BK, side_B = place_digits(counts_B, height, width, generator)
    ink_BHW = torch.zeros(len(counts_B), height, width)
    for k in range(int(counts_B.max())):
        scan_BSS = distort(ink_BKSS[:, k], distortion, generator)
        rows_BHS = resampling(y_BK[:, k], side_B, height)
        columns_BWS = resampling(x_BK[:, k], side_B, width)
        layer_BHW = rows_BHS @ scan_BSS @ columns_BWS.mT
        ink_BHW = torch.maximum(ink_BHW, layer_BHW * (counts_B > k)[:, None, None])
    pixels = colour(thicken(ink_BHW, distortion, generator), distortion, generator)
    return Drawn(pixels, x_BK, y_BK, side_B)


def resampling(centre_B: Tensor, side_B: Tensor, length: int) -> Tensor:
    """Matrices (B, length, S) that place a scan of ``side_B`` pixels around ``centre_B`` along one axis.

    Row i holds the weights of linear interpolation at picture pixel i; pixels off the scan have none.
    """
    offset_BL = (torch.arange(length) + 0.5 - centre_B[:, None]) / side_B[:, None]
    where_BL = offset_BL * (SCAN_SIDE * 0.8) + (SCAN_SIDE - 1) / 2  # a scan's margins are a fifth of it
    return (1 - (where_BL[:, :, None] - torch.arange(SCAN_SIDE)).abs()).clamp(min=0)


def place_digits(
    counts_B: Tensor, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres x and y (B, K) and sides (B,), in pixels, of rows of digits that fit the picture."""
    batch = len(counts_B)
    pitch_B = uniform((batch,), 0.68, 0.95, generator)
    row_B = (counts_B - 1) * pitch_B + INK_WIDTH  # width of the row for digits of side 1
    largest_B = torch.minimum(torch.full((batch,), height / INK_HEIGHT), width / row_B)
    side_B = largest_B * uniform((batch,), 0.5, 0.97, generator)
    left_B = (width - row_B * side_B) * torch.rand(batch, generator=generator)
    top_B = (height - INK_HEIGHT * side_B) * torch.rand(batch, generator=generator)
    x_BK = (left_B + side_B * INK_WIDTH / 2)[:, None] + torch.arange(MAX_DIGITS) * (pitch_B * side_B)[:, None]
    y_BK = (top_B + side_B * INK_HEIGHT / 2)[:, None] + uniform(
        (batch, MAX_DIGITS), -0.04, 0.04, generator
    ) * side_B[:, None]
    return x_BK, y_BK, side_B


def distort(ink_BSS: Tensor, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """The scans turned, sheared, stretched and bent at random, each in its own way."""
    if distortion == FAITHFUL:
        return ink_BSS
    batch = len(ink_BSS)
    shape_B23 = F.pad(shape_matrices(batch, distortion, generator), (0, 1))
    grid = F.affine_grid(shape_B23, [batch, 1, SCAN_SIDE, SCAN_SIDE], align_corners=False)
    bend = torch.randn(batch, 2, 5, 5, generator=generator) * distortion.elastic
    grid = grid + F.interpolate(bend, size=SCAN_SIDE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(ink_BSS[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def shape_matrices(batch: int, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """Random turn, shear and stretch of each digit: (B, 2, 2)."""
    turn = uniform((batch,), -distortion.turn, distortion.turn, generator)
    shear = uniform((batch,), -distortion.shear, distortion.shear, generator)
    stretch = uniform((batch, 2), -distortion.stretch, distortion.stretch, generator).exp()
    cos, sin, zero, one = turn.cos(), turn.sin(), torch.zeros(batch), torch.ones(batch)
    turned = torch.stack([cos, sin, -sin, cos], dim=-1).view(batch, 2, 2)
    sheared = torch.stack([one, zero, shear, one], dim=-1).view(batch, 2, 2)
    return turned @ sheared @ torch.diag_embed(stretch)


def thicken(ink_BHW: Tensor, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """Firmer edges, as a pen leaves them, and for training thinner or thicker strokes."""
    batch = len(ink_BHW)
    firmness = uniform((batch, 1, 1), 1.0, 2.2, generator)
    threshold = 0.48 + uniform((batch, 1, 1), -distortion.stroke, distortion.stroke, generator)
    return ((ink_BHW - threshold) * firmness + 0.5).clamp(0, 1)


def colour(ink_BHW: Tensor, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """Ink and paper of random, well contrasting colours, the light falling off to one side."""
    batch, height, width = ink_BHW.shape
    bright = uniform((batch, 1), 0.7, 1.0, generator) + uniform((batch, 3), -0.12, 0.12, generator)
    dark = uniform((batch, 1), 0.0, 0.3, generator) + uniform((batch, 3), -0.12, 0.12, generator)
    inverted = (torch.rand(batch, 1, generator=generator) < 0.25).float()
    paper = (bright * (1 - inverted) + dark * inverted)[:, :, None, None]
    ink = (dark * (1 - inverted) + bright * inverted)[:, :, None, None]
    slope = uniform((batch, 2, 1, 1), -0.06, 0.06, generator)
    light = slope[:, :1] * torch.linspace(-1, 1, height)[:, None] + slope[:, 1:] * torch.linspace(
        -1, 1, width
    )
    picture = paper + (ink - paper) * ink_BHW[:, None] + light
    if distortion.noise:
        strength = uniform((batch, 1, 1, 1), 0, distortion.noise, generator)
        picture = picture + torch.randn(picture.shape, generator=generator) * strength
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)
