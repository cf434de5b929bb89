"""The parts of the model: which of them are trained, how fast, and the table that says so before the start.

A part is known by the names of its parameters, whatever is put around their modules (adapters, shards).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from qvl.errors import InputError, UnsupportedError
from qvl.weights.quantization.linear import QuantizedLinear
from qvl.weights.quantized_files import is_quantized

PARTS = ("tower", "merger", "layers", "embeddings", "head")
DECODER = "decoder"
_OF_DECODER = ("layers", "embeddings", "head")
TITLES = MappingProxyType(
    {
        "tower": "vision tower",
        "merger": "merger",
        "layers": "decoder layers",
        "embeddings": "embeddings",
        "head": "head",
    }
)
# The first that is found in a name counts.
_FOUND_BY = (
    (re.compile(r"(^|\.)visual\.merger\."), "merger"),
    (re.compile(r"(^|\.)visual\."), "tower"),
    (re.compile(r"(^|\.)embed_tokens\."), "embeddings"),
    (re.compile(r"(^|\.)lm_head\."), "head"),
    (re.compile(r"(^|\.)language_model\."), "layers"),
)
# Parameters that adapters add or copy; they are no part of the model itself.
_ADDED = re.compile(r"\.lora_|\.modules_to_save\.")


def part_of(name: str) -> str | None:
    """The part that a parameter of the whole model belongs to; None for one of something else.

    A head that is tied to the embeddings goes by their name.
    """
    return next((part for pattern, part in _FOUND_BY if pattern.search(name)), None)


@dataclass(frozen=True)
class PartSettings:
    """``train``: the parts that are trained: "tower", "merger", "layers" (of the decoder, with its last
    norm), "embeddings", "head", or "decoder" for the last three; None: all, or with LoRA the decoder's
    layers. ``rates``: learning rate by part, where it is not the run's own.

    Raises InputError for names that are none and rates that are not above 0.
    """

    train: tuple[str, ...] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*(self.train or ()), *self.rates):
            if name not in (*PARTS, DECODER):
                raise InputError(f"a part is one of {', '.join((*PARTS, DECODER))}, not {name!r}")
        if self.train is not None and not self.train:
            raise InputError("train names no part, so there is nothing to train")
        for name, rate in self.rates.items():
            if not rate > 0:
                raise InputError(f"the learning rate of {name} must be more than 0, not {rate!r}")

    def trained(self) -> frozenset[str]:
        """The trained parts of full training, each by its own name."""
        return frozenset(PARTS) if self.train is None else frozenset().union(*map(_parts, self.train))

    def adapted(self) -> frozenset[str]:
        """The parts that get adapters. Those of the decoder are on its layers unless others are named."""
        named = ("layers",) if self.train is None else self.train
        return frozenset("layers" if name == DECODER else name for name in named)

    def rate(self, part: str | None, default: float) -> float:
        """The full learning rate of a part: its own, else its decoder's, else ``default``."""
        above = self.rates.get(DECODER, default) if part in _OF_DECODER else default
        return above if part is None else self.rates.get(part, above)

    def rate_of(self, default: float) -> Callable[[str], float]:
        """Name of a parameter -> its full learning rate."""
        return lambda name: self.rate(part_of(name), default)


def _parts(name: str) -> frozenset[str]:
    return frozenset(_OF_DECODER) if name == DECODER else frozenset((name,))


def freeze(model: nn.Module, settings: PartSettings) -> None:
    """Full training: what is to be trained requires a gradient, nothing else does.

    Raises InputError where a tied head is treated apart from its embeddings or a frozen part has a rate,
    UnsupportedError where a part to be trained is quantized.
    """
    check_tied(model, settings, settings.trained())
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) and part_of(f"{name}.") in settings.trained():
            raise _quantized(part_of(f"{name}."))
    for name, parameter in model.named_parameters():
        trained = part_of(name) in settings.trained()
        if trained and is_quantized(parameter):
            raise _quantized(part_of(name))
        parameter.requires_grad_(trained)
    check_rates(model, settings)


def check_rates(model: nn.Module, settings: PartSettings) -> None:
    """InputError for a learning rate of a part in which nothing is trained."""
    found = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in settings.rates:
        if not _parts(name) & found:
            raise InputError(f"{name} has a learning rate of its own, but nothing in it is trained")


def _quantized(part: str | None) -> UnsupportedError:
    return UnsupportedError(
        f"the {TITLES[part or '']} has weights in 8 or 4 bits, which are not trained: load the model without "
        "quantization, freeze that part, or train a LoRA"
    )


def check_tied(model: nn.Module, settings: PartSettings, trained: frozenset[str]) -> None:
    """InputError where settings part a head from the embeddings that it is tied to."""
    if not tied(model):
        return
    if "head" in trained and "embeddings" not in trained:
        raise InputError("the head is tied to the embeddings: name embeddings, which trains both")
    if "head" in settings.rates:
        raise InputError("the head is tied to the embeddings: give the learning rate to embeddings")


def tied(model: nn.Module) -> bool:
    """Whether head and embeddings are one parameter."""
    weights = [
        getattr(module, "weight", None)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("embed_tokens", "lm_head")
    ]
    return len(weights) == 2 and weights[0] is weights[1] is not None


# -- the table --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartRow:
    """One part of the model. ``parameters``: its own, without adapters. ``trainable``: those that are
    trained, of adapters or its own. ``rate``: their full learning rate; None where nothing is trained."""

    part: str
    parameters: int
    trainable: int
    rate: float | None


def parts_table(model: nn.Module, settings: PartSettings, learning_rate: float) -> list[PartRow]:
    """The parts of ``model`` as they are now, frozen or with adapters: after `freeze` or `attach`.

    A tied head has no row. ``learning_rate``: of the parts that have none of their own.
    """
    own, trainable = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, size, trained in _counted(model):
        part = part_of(name)
        if part is not None:
            own[part] += 0 if _ADDED.search(name) else size
            trainable[part] += size if trained else 0
    return [
        PartRow(
            part, own[part], trainable[part], settings.rate(part, learning_rate) if trainable[part] else None
        )
        for part in PARTS
        if own[part]
    ]


def _counted(model: nn.Module) -> Iterator[tuple[str, int, bool]]:
    """(name, values, whether trained) of everything, packed weights by the values that they stand for."""
    parameters: Iterator[tuple[str, Tensor]] = model.named_parameters()
    for name, parameter in parameters:
        yield name, parameter.numel(), parameter.requires_grad
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield f"{name}.weight", module.in_features * module.out_features, False


def format_table(rows: Sequence[PartRow]) -> str:
    """The table as lines of text, with a last line that adds up; no line end behind it."""
    total, trainable = (sum(getattr(row, name) for row in rows) for name in ("parameters", "trainable"))
    cells = [("part", "parameters", "trained", "learning rate")]
    cells += [
        (
            TITLES[r.part],
            f"{r.parameters:,}",
            f"{r.trainable:,}",
            "frozen" if r.rate is None else f"{r.rate:g}",
        )
        for r in rows
    ]
    cells.append(("in all", f"{total:,}", f"{trainable:,}", f"{trainable / total:.2%} trained"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )
