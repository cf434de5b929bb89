"""One pass of the packed decoder on behalf of a documented forward call, and what came out, still packed.

Legend: B batch, L padded length, S padded keys, T packed tokens, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from qvl.engine.kv import cached_attends
from qvl.errors import CacheError, InputTypeError
from qvl.modeling.cache import Cache, DynamicCache
from qvl.modeling.inputs import RowPositions
from qvl.modeling.packing import Packing
from qvl.network.text import TextDecoder
from qvl.ops.attention import Attend, get_backend, packed_attend
from qvl.ops.attention.eager import eager_attention


@dataclass(frozen=True, eq=False)
class PackedRun:
    """What a pass left behind; the documented, padded forms are made when asked for.

    ``attentions``: per layer, one (H, T, S) tensor per row that has tokens. ``keys_BS``: which padded cells
    those keys are.
    """

    hidden_TD: torch.Tensor
    packing: Packing
    cache: Cache | None
    rope_deltas: torch.Tensor
    hidden_states: list[torch.Tensor] | None = None
    attentions: list[list[torch.Tensor]] | None = None
    keys_BS: torch.Tensor | None = None

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self.packing.unpack(self.hidden_TD)

    @property
    def unpacked_hidden_states(self) -> tuple[torch.Tensor, ...] | None:
        if self.hidden_states is None:
            return None
        return tuple(self.packing.unpack(h_TD) for h_TD in self.hidden_states)

    @property
    def unpacked_attentions(self) -> tuple[torch.Tensor, ...] | None:
        """Per layer (B, H, L, S); cells of padding, and keys outside a layer's window, are zeros."""
        if self.attentions is None or self.keys_BS is None:
            return None
        return tuple(self._pad_weights(layer, self.keys_BS) for layer in self.attentions)

    def _pad_weights(self, weights: list[torch.Tensor], keys_BS: torch.Tensor) -> torch.Tensor:
        packing = self.packing
        cells = packing.rows_at(torch.arange(packing.columns)) >= 0  # (B, L)
        out = weights[0].new_zeros(packing.batch, weights[0].shape[0], packing.columns, keys_BS.shape[1])
        filled = iter(weights)
        for b, length in enumerate(packing.lengths):
            if length:
                weights_HTS = next(filled)
                # a cached layer with a window hands over only the newest keys
                columns = keys_BS[b].nonzero().squeeze(1)[-weights_HTS.shape[-1] :].to(out.device)
                rows = cells[b].nonzero().to(out.device)
                out[b, :, rows, columns] = weights_HTS
        return out


def open_cache(
    decoder: TextDecoder,
    given: Cache | None,
    use_cache: bool | None,
    batch: int,
    cache_position: torch.Tensor | None,
) -> Cache | None:
    """The cache that a call reads and fills, or None.

    ``use_cache`` None means the config's choice while evaluating and no cache while training, where it would
    only hold memory. A given cache is always used.
    """
    if given is None:
        wanted = decoder.config.use_cache and not decoder.training if use_cache is None else use_cache
        if not wanted:
            return None
        given = DynamicCache()
    if not isinstance(given, Cache):
        raise InputTypeError(
            f"past_key_values must be a DynamicCache or a StaticCache, not {type(given).__name__}; "
            "DynamicCache.from_legacy_cache reads tuples of tensors"
        )
    weight = decoder.embed_tokens.weight
    given.prepare(decoder.config, batch, weight.dtype, weight.device)
    if cache_position is not None:
        _rewind(given, int(cache_position[0]))
    return given


def _rewind(cache: Cache, start: int) -> None:
    """Makes ``start`` the next cell to fill."""
    if start > cache.get_seq_length():
        raise CacheError(
            f"cache_position begins at cell {start} but past_key_values holds {cache.get_seq_length()} cells"
        )
    if start < cache.get_seq_length():
        cache.crop(start)


def run_decoder(
    decoder: TextDecoder,
    x_TD: torch.Tensor,
    rows: RowPositions,
    packing: Packing,
    cache: Cache | None,
    mask_BL: torch.Tensor | None,
    output_attentions: bool,
    output_hidden_states: bool,
) -> PackedRun:
    """Runs the decoder over the packed rows and moves the cache forward."""
    recorded: list[list[torch.Tensor]] | None = [] if output_attentions else None
    hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None
    keep = [b for b, length in enumerate(packing.lengths) if length]
    lengths = tuple(packing.lengths[b] for b in keep)
    attends = _attends(decoder, cache, keep, lengths, recorded)
    hidden_TD = decoder.packed(
        x_TD, rows.positions_3T.to(x_TD.device), attends, lengths=lengths, hidden_states=hidden_states
    )
    deltas = torch.tensor(rows.deltas).unsqueeze(1)
    if cache is not None:
        for b in keep:
            cache.rows[b].advance(packing.lengths[b])
        cache.extend_mask(mask_BL, packing.columns)
        deltas = deltas if cache.rope_deltas is None else cache.rope_deltas + deltas
        cache.rope_deltas = deltas
    keys_BS = cache.mask_BS if cache is not None else packing.rows_at(torch.arange(packing.columns)) >= 0
    return PackedRun(hidden_TD, packing, cache, deltas.to(x_TD.device), hidden_states, recorded, keys_BS)


def _attends(
    decoder: TextDecoder,
    cache: Cache | None,
    keep: Sequence[int],
    lengths: tuple[int, ...],
    recorded: list[list[torch.Tensor]] | None,
) -> list[Attend]:
    """One attend per layer: with or without a cache, with or without keeping the weights."""
    if recorded is None and cache is None:
        return decoder.packed_attends(lengths)
    if recorded is None:
        assert cache is not None
        backend = get_backend(decoder.attention_backend)
        return cached_attends(backend, [cache.rows[b] for b in keep], lengths, decoder.windows)
    return [
        _recording(decoder, layer, cache, keep, lengths, _new_store(recorded))
        for layer in range(len(decoder.windows))
    ]


def _new_store(recorded: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    recorded.append([])
    return recorded[-1]


def _recording(
    decoder: TextDecoder,
    layer: int,
    cache: Cache | None,
    keep: Sequence[int],
    lengths: tuple[int, ...],
    store: list[torch.Tensor],
) -> Attend:
    backend = partial(eager_attention, store=store)
    if cache is None:
        return packed_attend(backend, lengths, causal=True, window=decoder.windows[layer])
    return cached_attends(backend, [cache.rows[b] for b in keep], lengths, decoder.windows)[layer]
