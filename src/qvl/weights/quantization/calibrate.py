"""Walks a model block by block with real prompts, to see what reaches each of its linear layers.

Nothing of a block's own computation is repeated here: the stacks are run once to see what they are called
with, and then one block after the other, each with what the quantized ones before it made of the prompts.

Legend: T rows, K inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Prompt = Mapping[str, Any]  # keyword arguments of the model's forward
ROWS = 64  # inputs of a layer that its error is measured with


@dataclass(eq=False)
class Seen:
    """What reached one or more layers that get the same input: ``names``, X^T X (None: not asked for), and
    some rows of X."""

    names: list[str]
    moments_KK: Tensor | None
    rows: list[Tensor] = field(default_factory=list)

    @property
    def rows_TK(self) -> Tensor:
        return torch.cat(self.rows)

    def take(self, x_TK: Tensor, share: int) -> None:
        x_TK = x_TK.reshape(-1, x_TK.shape[-1])
        if self.moments_KK is not None:
            wide_TK = x_TK.float()
            self.moments_KK.addmm_(wide_TK.T, wide_TK)
        self.rows.append(x_TK[:: max(1, -(-len(x_TK) // share))].clone())


@dataclass(eq=False)
class _Call:
    """One pass through a stack: the hidden states now, and what else each block was called with."""

    x: Tensor
    others: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def through(self, i: int, block: nn.Module) -> Tensor:
        args, kwargs = self.others[i]
        with torch.no_grad():
            found: Tensor = block(self.x, *args, **kwargs)
        return found


def sampled(model: Any, prompts: Sequence[Prompt], wanted: Sequence[str]) -> list[Seen]:
    """Rows of what reaches the ``wanted`` layers of the model as it is."""
    with _watched(model, wanted, len(prompts), moments=False) as seen, torch.no_grad():
        for prompt in prompts:
            model.model(**prompt, use_cache=False)
    return seen


def walk(model: Any, prompts: Sequence[Prompt], wanted: Sequence[str]) -> Iterator[list[Seen]]:
    """Block by block what reaches those of its layers that are ``wanted``.

    They are to be replaced before the next block is asked for, which then gets what they make of the prompts.
    """
    for blocks in _stacks(model):
        names = [[name for name in below if name in wanted] for below in _linear_names(model, blocks)]
        last = max((i for i, below in enumerate(names) if below), default=-1)
        calls = _calls(model, blocks, prompts) if last >= 0 else []
        for i in range(last + 1):
            if names[i]:
                with _watched(model, names[i], len(calls), moments=True) as seen:
                    for call in calls:
                        call.through(i, blocks[i])
                yield seen
            if i < last:
                for call in calls:
                    call.x = call.through(i, blocks[i])


def _stacks(model: Any) -> list[list[nn.Module]]:
    """The blocks that hidden states go through one after the other: tower and merger; decoder, norm, head."""
    tower, decoder = model.model.visual, model.model.language_model
    return [[*tower.blocks, tower.merger], [*decoder.layers, decoder.norm, model.lm_head]]


def _linear_names(model: nn.Module, blocks: Sequence[nn.Module]) -> list[list[str]]:
    names = {id(module): name for name, module in model.named_modules()}
    return [[names[id(m)] for m in block.modules() if isinstance(m, nn.Linear)] for block in blocks]


def _calls(model: Any, blocks: Sequence[nn.Module], prompts: Sequence[Prompt]) -> list[_Call]:
    """Every pass through the stack that the prompts lead to: none through the tower without a picture."""
    calls: list[_Call] = []

    def begin(_: Any, args: Any, kwargs: Any) -> None:
        calls.append(_Call(args[0].clone(), [((), {})] * len(blocks)))

    def note(i: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            calls[-1].others[i] = (args[1:], kwargs)

        return hook

    hooks = [blocks[0].register_forward_pre_hook(begin, with_kwargs=True)]
    hooks += [b.register_forward_pre_hook(note(i), with_kwargs=True) for i, b in enumerate(blocks)]
    try:
        with torch.no_grad():
            for prompt in prompts:  # without the head, which would score every token
                model.model(**prompt, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextmanager
def _watched(model: nn.Module, names: Sequence[str], passes: int, *, moments: bool) -> Iterator[list[Seen]]:
    """What reaches the layers while the context is open; layers that get the same tensor share an entry."""
    seen: list[Seen] = []
    entry_of: dict[str, Seen] = {}
    latest: list[Any] = [None, None]  # the last input, and its entry
    share = max(1, ROWS // max(1, passes))

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            x_TK = args[0]
            again = x_TK is latest[0]
            if name not in entry_of:
                if again:
                    latest[1].names.append(name)
                else:
                    K = x_TK.shape[-1]
                    seen.append(Seen([name], torch.zeros(K, K) if moments else None))
                entry_of[name] = latest[1] if again else seen[-1]
            if not again:
                entry_of[name].take(x_TK, share)
            latest[:] = x_TK, entry_of[name]

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
