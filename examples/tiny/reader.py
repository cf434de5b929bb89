"""A reader of vision tokens that helps tower and decoder learn, and is thrown away.

Long before a language model can tell what stands in a picture, a linear map can say of every vision token
what stands in its square, in which colour, and where the thing begins and ends. That gets past the long start
in which a language model learns nothing from pictures. It sees still pictures only.

A second linear map reads where a vision token stands, and when, off the decoder's states half way up. Rotary
positions say only how far two tokens are apart; what is told of places and times has to be worked out.

Legend: N merged vision tokens of a batch, M those of one picture, S slots of a token (strips of its square),
D width, K kinds of marks.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.tiny.lesson import COLOURS, SHAPES, Lesson, Mark
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.train.objective import Loss, encoded, hidden_loss, hidden_states
from qvl.train.packing import PackedBatch, pack
from qvl.train.sample import Sample
from qvl.types import Grid

CELL = 28  # pixels across a vision token
SLOTS = 4  # strips of a square, as several narrow letters share one
KINDS = ("", *string.digits, *string.ascii_letters, *SHAPES, *(f"hand:{n}" for n in range(10)))
TINTS = ("", *COLOURS)
KIND_OF = {name: i for i, name in enumerate(KINDS)}
TINT_OF = {name: i for i, name in enumerate(TINTS)}
EMPTY = 0.3  # how much seeing nothing counts beside seeing something
HALF_WAY = 2  # the decoder's layer before which places are read
NEAR = 0.4  # of the smaller of a square and a mark: so much of their heights must overlap


@dataclass(frozen=True, eq=False)
class Squares:
    """What stands in each vision token. ``kinds_NS``, ``tints_N``: int64; ``edges_N4``: x1, y1, x2, y2 of the
    mark from the square's middle, in squares. ``taught_N``: bool, tokens of which all this is known.
    """

    kinds_NS: Tensor
    tints_N: Tensor
    edges_N4: Tensor
    taught_N: Tensor


@dataclass(frozen=True, eq=False)
class MarkedSample(Sample):
    """``squares``: of all its media, in order."""

    squares: Squares | None = None


@dataclass(frozen=True, eq=False)
class MarkedBatch(PackedBatch):
    squares: Squares | None = None


def marked(sample: Sample, lesson: Lesson) -> MarkedSample:
    """The sample with what its vision tokens show."""
    pictures = [
        part["image"]
        for message in lesson.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]
    parts = []
    for medium in sample.prompt.media:
        if medium.kind == "image" and lesson.marks:
            i = len(parts)
            parts.append(picture_squares(lesson.marks[i], pictures[i].size, medium.grid))
        else:
            parts.append(unknown_squares(medium.grid))
    return MarkedSample(**vars(sample), squares=together(parts) if parts else None)


def marked_pack(samples: Sequence[Sample]) -> MarkedBatch:
    """`pack`, and the squares in the same order."""
    in_order = sorted(samples, key=len)  # as `pack` has them
    found = [sample.squares for sample in in_order if isinstance(sample, MarkedSample) and sample.squares]
    return MarkedBatch(**vars(pack(in_order)), squares=together(found) if found else None)


def together(parts: Sequence[Squares]) -> Squares:
    return Squares(
        *(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True))
    )


def unknown_squares(grid: Grid) -> Squares:
    count = grid.tokens(2)
    kinds = torch.zeros(count, SLOTS, dtype=torch.int64)
    return Squares(kinds, kinds[:, 0].clone(), torch.zeros(count, 4), torch.zeros(count, dtype=torch.bool))


def picture_squares(marks: Sequence[Mark], size: tuple[int, int], grid: Grid) -> Squares:
    """``size``: width and height of the picture before it was resized to ``grid``."""
    rows, columns = grid.h // 2, grid.w // 2
    found = unknown_squares(grid)
    found.taught_N[:] = True
    if not marks:
        return found
    scale = torch.tensor([grid.w * 14 / size[0], grid.h * 14 / size[1]] * 2) / CELL
    boxes_K4 = torch.tensor([mark.box for mark in marks]) * scale
    kinds_K = torch.tensor([KIND_OF[mark.what] for mark in marks])
    tints_K = torch.tensor([TINT_OF.get(mark.colour, 0) for mark in marks])
    slots_X = (torch.arange(columns * SLOTS) + 0.5) / SLOTS
    x1_K, y1_K, x2_K, y2_K = boxes_K4.T
    inside_KX = (slots_X >= x1_K[:, None]) & (slots_X <= x2_K[:, None])
    row_R = torch.arange(rows)
    shared_KR = (torch.minimum(y2_K[:, None], row_R + 1) - torch.maximum(y1_K[:, None], row_R)).clamp(min=0)
    near_KR = shared_KR >= NEAR * (y2_K - y1_K).clamp(max=1.0)[:, None]
    there_KRX = near_KR[:, :, None] & inside_KX[:, None]
    # Of marks that overlap, the last one lies on top.
    order_K = torch.arange(1, len(marks) + 1)
    top_RX = (there_KRX * order_K[:, None, None]).amax(0)
    kinds_RX = torch.where(top_RX > 0, kinds_K[(top_RX - 1).clamp(min=0)], 0)
    found.kinds_NS[:] = kinds_RX.view(rows * columns, SLOTS)
    # Colour and edges are those of the mark that fills most of the square.
    width_KC = inside_KX.view(len(marks), columns, SLOTS).sum(-1)
    filled_KN = (shared_KR[:, :, None] * width_KC[:, None]).flatten(1)
    most_N, which_N = filled_KN.max(0)
    found.tints_N[:] = torch.where(most_N > 0, tints_K[which_N], 0)
    middle_N2 = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1
    ).flatten(0, 1)
    middle_N2 = middle_N2.flip(-1) + 0.5
    found.edges_N4[:] = boxes_K4[which_N] - middle_N2.repeat(1, 2)
    found.edges_N4[most_N == 0] = torch.nan
    return found


def _mean(values: Tensor) -> Tensor:
    """0 of none."""
    return values.sum() / max(1, len(values))


def places(batch: PackedBatch) -> Tensor:
    """Time (half seconds), row and column of each vision token, from its medium's first: float32 (N, 3)."""
    media_3N = batch.positions_3T[:, batch.vision_T].split([grid.tokens(2) for grid in batch.grids], dim=1)
    return torch.cat([(one - one[:, :1]).T for one in media_3N]).float()


class ReadingObjective(nn.Module):
    """The loss of the answers, and ``weight`` times that of reading the vision tokens and their places."""

    def __init__(self, width: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.reader = nn.Linear(width, SLOTS * len(KINDS) + len(TINTS) + 4)
        self.places = nn.Linear(width, 3)

    def forward(self, model: Qwen2_5_VLForConditionalGeneration, batch: PackedBatch) -> Loss:
        vision_ND, layers = encoded(model.model, batch), list[Tensor]()
        answers = hidden_loss(model, hidden_states(model, batch, vision_ND, layers), batch)
        squares = getattr(batch, "squares", None)
        reading = placing = answers.total.new_zeros(())
        if vision_ND is not None:
            placing = self.placing_loss(layers[HALF_WAY][batch.vision_T], places(batch))
        if vision_ND is not None and squares is not None and bool(squares.taught_N.any()):
            reading = self.reading_loss(vision_ND[squares.taught_N], squares)
        parts = {
            "answers": answers.total.detach() / max(1, batch.learned),
            "reading": reading.detach(),
            "placing": placing.detach(),
        }
        return Loss(answers.total + self.weight * (reading + placing) * batch.learned, answers.right, parts)

    def placing_loss(self, states_ND: Tensor, places_N3: Tensor) -> Tensor:
        """Of places in squares and half seconds, a quarter of one being small."""
        found_N3 = self.places(F.rms_norm(states_ND, states_ND.shape[-1:]))
        return F.smooth_l1_loss(found_N3, places_N3, beta=0.25)

    def reading_loss(self, vision_ND: Tensor, squares: Squares) -> Tensor:
        known = squares.taught_N
        kinds, tints, edges_N4 = self.reader(vision_ND).split([SLOTS * len(KINDS), len(TINTS), 4], dim=-1)
        edges = squares.edges_N4[known]
        there_N = ~edges.isnan().any(-1)
        right = squares.kinds_NS[known].flatten()
        found = F.cross_entropy(kinds.unflatten(-1, (SLOTS, -1)).flatten(0, 1), right, reduction="none")
        # Apart, as nearly all of a picture is empty, and letters are the smallest part of what is not.
        loss = EMPTY * _mean(found[right == 0]) + _mean(found[right != 0])
        loss = loss + 0.5 * F.cross_entropy(tints, squares.tints_N[known])
        if bool(there_N.any()):
            loss = loss + F.smooth_l1_loss(edges_N4[there_N], edges[there_N])
        return loss
