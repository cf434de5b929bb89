"""Packed training batches: pictures, conversations about them as tokens, and what to learn from both.

A conversation has one or two turns; each turn shows a picture and asks for its number. Conversations lie end
to end, as the network takes them. The tower is also taught alone, by what stands in each of its tokens.

Legend: T tokens, B pictures, P patches, N merged vision tokens, K digits per picture,
R conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.digits.data import (
    MAX_DIGITS,
    QUESTIONS,
    SINGLE_DIGIT_QUESTIONS,
    Distortion,
    Scans,
    draw_pictures,
)
from qvl.processing.positions import find_spans, multimodal_positions
from qvl.types import Grid

PATCH, MERGE = 14, 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
NOTHING = 10  # the class of a vision token with no digit in it
IGNORED = -100  # where cross entropy looks away
SECOND_TURN = 0.15  # how often a conversation goes on with another picture
TEXT_FIRST = 0.15  # how often the question stands before the picture

# Sizes (height, width) that the processor makes of people's pictures: 6 to 12 tokens, one window or two.
SIZES = (
    (56, 84),
    (56, 112),
    (56, 140),
    (56, 168),
    (84, 56),
    (84, 84),
    (84, 112),
    (112, 56),
    (112, 84),
)
# The most digits for the least work: what the tower sees while it learns alone.
DENSE_SIZES = ((56, 56), (56, 84), (56, 112), (84, 84))


@dataclass(frozen=True)
class Pictures:
    """``pixels``: uint8 (B, 3, H, W). ``counts_B`` and ``labels_BK``: the digits that they show.

    ``seen_N``: the digit that stands in each merged token, or NOTHING. ``scans_NC``: the 64 cells of its
    scan, undistorted, 0 paper to 1 ink.
    """

    pixels: Tensor
    seen_N: Tensor
    scans_NC: Tensor
    counts_B: Tensor
    labels_BK: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def grid(self) -> Grid:
        """Of each one of them: all have one size."""
        return Grid(1, self.pixels.shape[-2] // PATCH, self.pixels.shape[-1] // PATCH)

    def number(self, i: int) -> str:
        """What picture ``i`` says."""
        return "".join(map(str, self.labels_BK[i, : self.counts_B[i]].tolist()))


@dataclass(frozen=True)
class Conversations:
    """``targets_T``: the token to come where the assistant speaks, else IGNORED. ``lengths``: one per row."""

    ids_T: Tensor
    positions_3T: Tensor
    targets_T: Tensor
    lengths: tuple[int, ...]


def draw_lesson(
    scans: Scans,
    batch: int,
    size: tuple[int, int],
    distortion: Distortion,
    generator: torch.Generator,
    *,
    dense: bool = False,
) -> Pictures:
    """Pictures of random numbers: of one digit to as many as can be read in that size, or (``dense``) always
    of as many as stand there with room to spare.
    """
    most = min(MAX_DIGITS, size[1] // 28 - (1 if dense else 0))
    counts_B = torch.randint(most if dense else 1, most + 1, (batch,), generator=generator)
    chosen_BK = torch.randint(len(scans), (batch, MAX_DIGITS), generator=generator)
    return show(scans, chosen_BK, counts_B, size, distortion, generator)


def show(
    scans: Scans,
    chosen_BK: Tensor,
    counts_B: Tensor,
    size: tuple[int, int],
    distortion: Distortion,
    generator: torch.Generator,
) -> Pictures:
    """Pictures of the chosen scans."""
    drawn = draw_pictures(scans.ink_NSS[chosen_BK], counts_B, size, distortion, generator)
    labels_BK = scans.labels_N[chosen_BK]
    which_BN = drawn.covering(counts_B, PATCH * MERGE)
    scan_BN = chosen_BK.gather(1, which_BN.clamp(min=0))
    seen_BN = scans.labels_N[scan_BN].masked_fill(which_BN < 0, NOTHING)
    return Pictures(drawn.pixels, seen_BN.flatten(), scans.cells_NC[scan_BN.flatten()], counts_B, labels_BK)


def patchify(pixels: Tensor) -> Tensor:
    """Patches (P, 3, 14, 14) in merge order of uint8 pictures (B, 3, H, W).

    What the image processor makes of each, but for the second frame, which repeats the first; a test holds it
    against the processor. Done here for a whole batch at once.
    """
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    batch, _, height, width = pixels.shape
    block = PATCH * MERGE
    x = ((pixels.float() / 255 - mean) / deviation).view(
        batch, 3, height // block, MERGE, PATCH, width // block, MERGE, PATCH
    )
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 3, PATCH, PATCH)


class Writer:
    """Puts conversations about pictures into tokens, through the chat template of the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.template = jinja2.Template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
        start, self.end, self.image, self.video = (
            self.tokenizer.token_to_id(token)
            for token in ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>")
        )
        self.speaks = [start, *self.tokenizer.encode("assistant\n").ids]

    def write(self, pictures: Pictures, generator: torch.Generator) -> Conversations:
        """Conversations about all pictures in order, with random wording."""
        rows, first = [], 0
        while first < len(pictures):
            second = torch.rand(1, generator=generator) < SECOND_TURN and first + 1 < len(pictures)
            turns = range(first, first + 2 if second else first + 1)
            rows.append(self._row(pictures, turns, generator))
            first = turns.stop
        ids, positions, targets = zip(*rows, strict=True)
        return Conversations(
            torch.cat(ids), torch.cat(positions, 1), torch.cat(targets), tuple(len(row) for row in ids)
        )

    def _row(
        self, pictures: Pictures, turns: range, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        messages = [message for i in turns for message in self._turn(pictures.number(i), generator)]
        grid, ids = pictures.grid, list[int]()
        for token in self.tokenizer.encode(self.template.render(messages=messages)).ids:
            ids += [token] * (grid.tokens(MERGE) if token == self.image else 1)
        shown = [grid] * len(turns)
        spans = find_spans(ids, shown, image_token_id=self.image, video_token_id=self.video)
        positions_3T, _ = multimodal_positions(len(ids), spans, shown)
        return torch.tensor(ids), positions_3T, torch.tensor(self._targets(ids))

    def _turn(self, number: str, generator: torch.Generator) -> list[dict[str, object]]:
        wordings = QUESTIONS + SINGLE_DIGIT_QUESTIONS if len(number) == 1 else QUESTIONS
        question = wordings[int(torch.randint(len(wordings), (1,), generator=generator))]
        content = [{"type": "image"}, {"type": "text", "text": question}]
        if torch.rand(1, generator=generator) < TEXT_FIRST:
            content.reverse()
        return [{"role": "user", "content": content}, {"role": "assistant", "content": number}]

    def _targets(self, ids: list[int]) -> list[int]:
        """The next token at every place inside an answer, its end included."""
        targets, speaking, opening = [IGNORED] * len(ids), False, len(self.speaks)
        for i in range(opening, len(ids)):
            speaking = speaking or ids[i - opening : i] == self.speaks
            if speaking:
                targets[i - 1] = ids[i]
                speaking = ids[i] != self.end
        return targets
