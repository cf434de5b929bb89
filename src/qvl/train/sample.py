"""One conversation, ready to be learned from: plain data between the readers of files and the trainer.

Legend: T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from qvl.types import Prompt

IGNORED = -100  # a target where nothing is learned; the number that torch's cross entropy passes over


@dataclass(frozen=True, eq=False)
class Sample:
    """A whole conversation: what the model sees, and what it is to say.

    ``targets_T``: int64; at place i the id of token i + 1 where that is to be learned, else ``IGNORED``.
    ``name``: where it came from, for messages ("train.jsonl:12").
    """

    prompt: Prompt
    targets_T: Tensor
    name: str = ""

    def __len__(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def patches(self) -> int:
        """Vision patches of all its media."""
        return sum(medium.grid.patches for medium in self.prompt.media)


class Source(Protocol):
    """Samples by number, the same one for the same number in every process and every run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
