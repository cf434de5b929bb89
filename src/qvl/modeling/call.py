"""What the documented forward calls have in common: their arguments checked, the cache opened, cells packed.

Legend: B batch, L padded length, T packed tokens, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qvl.errors import CacheError, InputError, InputTypeError
from qvl.modeling.cache import Cache, DynamicCache
from qvl.modeling.inputs import packed_sequences
from qvl.modeling.packing import Packing, read_mask
from qvl.network.text import TextDecoder

# Keywords beyond the documented ones that collators and trainers pass. The first is read; the others say
# nothing that the rest of the call does not say too.
SEQUENCES = "cu_seq_lens_q"
IMPLIED = ("cu_seq_lens_k", "max_length_q", "max_length_k", "mm_token_type_ids", "num_items_in_batch")


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """The arguments that text and multimodal calls share, as the caller gave them.

    ``extras``: what came in through ``**kwargs``.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    past_key_values: Cache | None
    inputs_embeds: torch.Tensor | None
    use_cache: bool | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    cache_position: torch.Tensor | None
    extras: Mapping[str, Any]

    def open(self, decoder: TextDecoder) -> OpenCall:
        """Checks everything that can be checked before anything is computed, and opens the cache."""
        unread = [k for k, v in self.extras.items() if v is not None and k not in (SEQUENCES, *IMPLIED)]
        if unread:
            raise InputTypeError(f"forward does not know the arguments {', '.join(sorted(unread))}")
        self._check_width(decoder)
        batch, columns = self.batch, self.columns
        sequences = packed_sequences(
            self.position_ids if self.attention_mask is None else None,
            self.extras.get(SEQUENCES),
            batch,
            columns,
        )
        cache = self._cache(decoder, batch, packed=sequences is not None)
        past = 0 if cache is None else cache.get_seq_length()
        mask_BL = read_mask(self.attention_mask, batch, past, columns)
        packing = Packing.of(mask_BL, batch, columns)
        if not any(packing.lengths):
            raise InputError("attention_mask hides every token; there is nothing to compute")
        if sequences is not None and packing.cells_T is not None:
            raise InputError("cu_seq_lens_q describes packed rows, which have no padding to mask")
        return OpenCall(cache, mask_BL, packing, sequences, self._first_cell(cache))

    def wants(self, config: Any) -> tuple[bool, bool]:
        """(attentions, hidden states): asked for by the call or else by the config."""
        attentions, states = self.output_attentions, self.output_hidden_states
        return (
            config.output_attentions if attentions is None else attentions,
            config.output_hidden_states if states is None else states,
        )

    def __post_init__(self) -> None:
        ids, embeds = self.input_ids, self.inputs_embeds
        if ids is None and embeds is None:
            raise InputError("give input_ids or inputs_embeds")
        _check_tensor("input_ids", ids, "(batch, length)")
        _check_tensor("inputs_embeds", embeds, "(batch, length, width)")
        if ids is not None and (ids.is_floating_point() or ids.dtype == torch.bool):
            raise InputTypeError(f"input_ids must hold integers, not {ids.dtype}")
        if ids is not None and embeds is not None and ids.shape != embeds.shape[:2]:
            raise InputError(
                f"input_ids {tuple(ids.shape)} and inputs_embeds {tuple(embeds.shape)} are of different calls"
            )

    @property
    def batch(self) -> int:
        return self._cells.shape[0]

    @property
    def columns(self) -> int:
        return self._cells.shape[1]

    @property
    def _cells(self) -> torch.Tensor:
        cells = self.inputs_embeds if self.input_ids is None else self.input_ids
        assert cells is not None  # checked at the start
        return cells

    def _check_width(self, decoder: TextDecoder) -> None:
        embeds, width = self.inputs_embeds, decoder.config.hidden_size
        if embeds is not None and embeds.shape[2] != width:
            raise InputError(f"inputs_embeds are {embeds.shape[2]} wide; the model is {width} wide")

    def _cache(self, decoder: TextDecoder, batch: int, *, packed: bool) -> Cache | None:
        """The cache that the call reads and fills, or None.

        ``use_cache`` None means the config's choice while evaluating and no cache while training, where it
        would only hold memory. A given cache is always used.
        """
        recomputes = decoder.gradient_checkpointing and decoder.training
        given = self.past_key_values
        if given is None:
            chosen = decoder.config.use_cache and not decoder.training and not packed
            if not (chosen if self.use_cache is None else self.use_cache):
                return None
            if recomputes:  # the second run of a layer would write its keys again, behind the first ones
                warnings.warn(
                    "gradient checkpointing keeps no cache: use_cache=True is ignored", stacklevel=4
                )
                return None
            given = DynamicCache()
        if not isinstance(given, Cache):
            raise InputTypeError(
                f"past_key_values must be a DynamicCache or a StaticCache, not {type(given).__name__}; "
                "DynamicCache.from_legacy_cache reads tuples of tensors"
            )
        if recomputes or packed:
            reason = "gradient checkpointing" if recomputes else "a row of several packed sequences"
            raise CacheError(f"{reason} cannot fill past_key_values; call without a cache")
        weight = decoder.embed_tokens.weight
        given.prepare(decoder.config, batch, weight.dtype, weight.device)
        if self.cache_position is not None:
            _rewind(given, int(self.cache_position[0]))
        return given

    def _first_cell(self, cache: Cache | None) -> int:
        """Cells before this call's that are not in a cache: only ``cache_position`` tells of them."""
        return 0 if cache is not None or self.cache_position is None else int(self.cache_position[0])


@dataclass(frozen=True, eq=False)
class OpenCall:
    """What a call reads and fills.

    ``mask_BL``: of the new cells, None if all are real. ``sequences``: the lengths of several sequences that
    share the rows, None where a row is a sequence. ``first_cell``: cells before a call without a cache.
    """

    cache: Cache | None
    mask_BL: torch.Tensor | None
    packing: Packing
    sequences: tuple[int, ...] | None
    first_cell: int

    @property
    def past_lengths(self) -> list[int]:
        """Tokens before this call's, row by row."""
        if self.cache is None:
            return [self.first_cell] * self.packing.batch
        return [row.length for row in self.cache.rows]

    def starts(self, rope_deltas: torch.Tensor | None = None) -> Sequence[int]:
        """The rotary position at which every row's new tokens begin.

        ``rope_deltas`` replaces what the cache knows of the tokens before; without any it says nothing.
        """
        if rope_deltas is not None and rope_deltas.numel() != self.packing.batch:
            raise InputError(
                f"rope_deltas has {rope_deltas.numel()} values for {self.packing.batch} rows; "
                "give one for each"
            )
        past = self.past_lengths
        if rope_deltas is None:
            return past if self.cache is None else self.cache.next_positions()
        deltas = rope_deltas.flatten().tolist()
        return [length + int(delta) if length else 0 for length, delta in zip(past, deltas, strict=True)]


def embedded(decoder: TextDecoder, ids_T: torch.Tensor) -> torch.Tensor:
    """Embeddings (T, D) of ids (T,); InputError for an id that is not in the vocabulary."""
    rows = decoder.embed_tokens.weight.shape[0]  # an adapter around the embedding has a weight too
    low, high = (int(n) for n in ids_T.aminmax())
    if low < 0 or high >= rows:
        raise InputError(
            f"input_ids holds {low if low < 0 else high}; the vocabulary goes from 0 to {rows - 1}"
        )
    return decoder.embed_tokens(ids_T)


def wants_dict(config: Any, return_dict: bool | None) -> bool:
    """Whether the answer is an output object rather than a tuple."""
    return config.use_return_dict if return_dict is None else return_dict


def _rewind(cache: Cache, start: int) -> None:
    """Makes ``start`` the next cell to fill."""
    if not 0 <= start <= cache.get_seq_length():
        raise CacheError(
            f"cache_position begins at cell {start} but past_key_values holds {cache.get_seq_length()} cells"
        )
    cache.crop(start)


def _check_tensor(name: str, value: Any, shape: str) -> None:
    if value is None:
        return
    if not isinstance(value, torch.Tensor):
        raise InputTypeError(f"{name} must be a tensor, not {type(value).__name__}")
    if value.ndim != shape.count(",") + 1 or 0 in value.shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}; expected {shape} with at least one token")
