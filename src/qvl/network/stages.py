"""The vision tower's work cut into short stages, so that whoever runs it can do something else in between.

A large picture takes a tower seconds, and others may be waiting for their next token. Run to the end it is
what `VisionTower.forward` does, to the bit: that runs the same stages. It also keeps memory flat: nothing
wider than a patch's hidden state is ever there for all patches, but queries, keys and values where a frame is
attended to as a whole.

Legend: P patches, C values in one patch, D width, H heads, E head dim, F = E / 2, N merged tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from qvl.network.layers import run_block
from qvl.ops.attention import Attend, Backend, packed_attend
from qvl.types import Grid

if TYPE_CHECKING:
    from qvl.network.vision import VisionBlock, VisionTower

# Windows go through a block in parts of about so many patches, on a CPU and where nothing is trained: what
# lies between the layers (three times as wide as a patch) is then small enough for memory to be used again.
# Fresh memory costs a page fault every 4 kB, and for a large picture it would be most of the memory needed.
PART_ROWS = 1024

# Keys that such a part of a frame's queries may see in one stage: about as much work as the rest of a block.
PART_KEYS = 8192

Stage = Callable[[], None]


@dataclass(frozen=True)
class Part:
    """Patches that lie side by side and do not attend to others. ``lengths``: of its windows or frames."""

    lengths: tuple[int, ...]
    backend: Backend

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def long(self) -> bool:
        """Whether it is too much for one stage or two."""
        return self.rows >= 2 * PART_ROWS

    @property
    def attend(self) -> Attend:
        """Attention of all of it at once."""
        return packed_attend(self.backend, self.lengths, causal=False)

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Queries, and the keys that they see, in pieces of about equal work."""
        start = 0
        for length in self.lengths:
            end = start + length
            count = -(-length * length // (PART_ROWS * PART_KEYS))
            size = -(-length // count)
            for low in range(start, end, size):
                yield slice(low, min(low + size, end)), slice(start, end)
            start = end


class Encoding:
    """One call of the tower on its way. Every `advance` runs one stage, in the grad mode of its caller, which
    is the one that the object was made in."""

    def __init__(
        self,
        tower: VisionTower,
        patches_PC: Tensor,
        grid_thw: Tensor | Iterable[Grid] | Iterable[Sequence[int]],
    ) -> None:
        """Raises InputError if patches and grids do not fit."""
        self.embeds_ND: Tensor | None = None
        self._tower, self._patches_PC = tower, patches_PC
        self._plan, (self._cos_PF, self._sin_PF), parts = tower.plan(patches_PC, grid_thw)
        self._x_PD = patches_PC[:0]
        self._todo: deque[Stage] = deque()
        pairs = zip(tower.blocks, parts, strict=True)
        blocks = [partial(self._block, cast("VisionBlock", block), own) for block, own in pairs]
        self._phases: deque[Callable[[], Iterable[Stage]]] = deque([self._embed, *blocks, self._merge])

    @property
    def done(self) -> bool:
        return self.embeds_ND is not None

    def advance(self) -> None:
        """Run the next stage."""
        if not self._todo:
            self._todo.extend(self._phases.popleft()())
        self._todo.popleft()()

    def run(self) -> Tensor:
        """The embeddings (N, out_hidden_size), after all stages that are left."""
        while self.embeds_ND is None:
            self.advance()
        return self.embeds_ND

    def _embed(self) -> list[Stage]:
        tower, order_N = self._tower, self._plan.order_N.to(self._patches_PC.device)
        if not in_parts(order_N.device):
            return [lambda: self._set(tower.regroup(tower.patch_embed(self._patches_PC), order_N))]
        merged_NXC = self._patches_PC.unflatten(0, (len(order_N), -1))
        unit = merged_NXC.shape[1]

        def embed(rows: slice) -> None:
            x_PD = tower.patch_embed(merged_NXC[order_N[rows]].flatten(0, 1))
            if not rows.start:
                self._x_PD = x_PD.new_empty(len(self._patches_PC), x_PD.shape[1])
            self._x_PD[rows.start * unit : rows.start * unit + len(x_PD)] = x_PD

        return [partial(embed, rows) for rows in sliced(len(order_N), unit)]

    def _block(self, block: VisionBlock, parts: Sequence[Part]) -> list[Stage]:
        recompute = self._tower.gradient_checkpointing and self._tower.training
        watched = any(is_watched(module) for module in (block, block.attn, block.mlp))
        if watched or not in_parts(self._x_PD.device):
            call = partial(run_block, block, recompute=recompute)
            return [lambda: self._set(call(self._x_PD, self._cos_PF, self._sin_PF, parts))]
        out_PD, stages = block.stages(self._x_PD, self._cos_PF, self._sin_PF, parts)
        return [*stages, lambda: self._set(out_PD)]

    def _merge(self) -> list[Stage]:
        merger, inverse_N = self._tower.merger, self._plan.inverse_N.to(self._x_PD.device)
        if not in_parts(inverse_N.device):
            return [lambda: self._finish(merger(self._x_PD)[inverse_N])]
        unit, merged = len(self._x_PD) // len(inverse_N), list[Tensor]()

        def merge(rows: slice) -> None:
            merged.append(merger(self._x_PD[rows.start * unit : rows.stop * unit]))
            if rows.stop == len(inverse_N):
                self._finish((merged[0] if len(merged) == 1 else torch.cat(merged))[inverse_N])

        return [partial(merge, rows) for rows in sliced(len(inverse_N), unit)]

    def _set(self, x_PD: Tensor) -> None:
        self._x_PD = x_PD

    def _finish(self, embeds_ND: Tensor) -> None:
        self.embeds_ND = embeds_ND
        self._x_PD = self._patches_PC = embeds_ND[:0]


class Whole:
    """As `Encoding`, in one stage: for a tower that somebody hooked into, which is called as a whole."""

    def __init__(self, tower: VisionTower, patches_PC: Tensor, grids: Iterable[Grid]) -> None:
        self.embeds_ND: Tensor | None = None
        self._call = partial(tower, patches_PC, grids)

    def advance(self) -> None:
        self.embeds_ND = self._call()


def encoding(tower: VisionTower, patches_PC: Tensor, grids: Iterable[Grid]) -> Encoding | Whole:
    """A call of the tower that can be made in stages. Raises InputError if patches and grids do not fit."""
    return (Whole if is_watched(tower) else Encoding)(tower, patches_PC, grids)


def in_parts(device: torch.device) -> bool:
    """Whether blocks are taken apart here: on a processor, and where nothing is trained or compiled."""
    return device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def sliced(total: int, unit: int = 1) -> list[slice]:
    """``total`` rows of ``unit`` patches each, in pieces of about `PART_ROWS` patches, none much smaller."""
    count = max(1, -(-total * unit // PART_ROWS))
    size = max(1, -(-total // count))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def grouped(lengths: Sequence[int]) -> list[list[int]]:
    """Neighbours together until they are `PART_ROWS` or more."""
    groups: list[list[int]] = [[]]
    total = 0
    for length in lengths:
        if total >= PART_ROWS:
            groups.append([])
            total = 0
        groups[-1].append(length)
        total += length
    return groups


def is_watched(module: nn.Module) -> bool:
    """Whether somebody hooked into the module or replaced its forward: then it must be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
