"""What forward passes and generation return: the documented output classes.

Each is a dataclass that also reads like a mapping and a tuple of the fields that are set, as in transformers:
``out.logits``, ``out["logits"]`` and ``out[0]`` all work, and ``out.to_tuple()`` leaves out every None.

Legend: B batch, L padded length, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class ModelOutput(Mapping[str, Any]):
    """A mapping from the names of the fields that are not None to their values, in order.

    A mapping as the only argument gives the fields: how tools that move outputs between devices rebuild them.
    """

    def __post_init__(self) -> None:
        first, *rest = fields(self)
        given = getattr(self, first.name)
        if isinstance(given, Mapping) and all(getattr(self, f.name) is None for f in rest):
            setattr(self, first.name, None)
            for name, value in given.items():
                setattr(self, name, value)

    def _set(self) -> dict[str, Any]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, without their names."""
        return tuple(self._set().values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._set()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._set())

    def __len__(self) -> int:
        return len(self._set())


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """``last_hidden_state`` (B, L, D); ``hidden_states`` one (B, L, D) per layer and one more;
    ``attentions`` one (B, heads, L, keys) per layer."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(eq=False)
class Qwen2_5_VLModelOutputWithPast(BaseModelOutputWithPast):
    """As the base, and ``rope_deltas`` (B, 1): 1 + largest rotary position - number of real tokens."""

    rope_deltas: torch.Tensor | None = None


@dataclass(eq=False)
class Qwen2_5_VLCausalLMOutputWithPast(ModelOutput):
    """``loss`` scalar; ``logits`` (B, kept columns, V); the rest as in `Qwen2_5_VLModelOutputWithPast`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    rope_deltas: torch.Tensor | None = None


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """``sequences`` (B, L + new); ``scores`` and ``logits``: one (B, V) tensor per generated token, after and
    before the logits processors."""

    sequences: torch.Tensor | None = None
    scores: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[torch.Tensor, ...], ...] | None = None
    past_key_values: Any = None


@dataclass(eq=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """As `GenerateDecoderOnlyOutput`, with ``sequences_scores`` (B,) and ``beam_indices`` (B, new): the beam
    that every token came from."""

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    scores: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    beam_indices: torch.Tensor | None = None
    attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[torch.Tensor, ...], ...] | None = None
    past_key_values: Any = None
