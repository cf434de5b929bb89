"""One pass of the packed decoder on behalf of a documented forward call, and what came out, still packed.

Legend: B batch, L padded length, S padded keys, T packed tokens, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from qvl.engine.attends import cached_attends
from qvl.errors import UnsupportedError
from qvl.modeling.cache import Cache
from qvl.modeling.call import OpenCall
from qvl.modeling.packing import Packing
from qvl.network.finite import require_finite
from qvl.network.text import TextDecoder
from qvl.ops.attention import Attend, Backend, get_backend, recording_backend


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


def run_decoder(
    decoder: TextDecoder,
    x_TD: torch.Tensor,
    positions_3T: torch.Tensor,
    call: OpenCall,
    *,
    output_attentions: bool,
    output_hidden_states: bool,
) -> PackedRun:
    """Runs the decoder over the packed rows and moves the cache forward, if what came out is finite."""
    packing, cache = call.packing, call.cache
    if output_attentions and call.sequences is not None:
        raise UnsupportedError("output_attentions is not offered for rows of several packed sequences")
    recorded: list[list[torch.Tensor]] | None = [] if output_attentions else None
    hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None
    attends = _attends(decoder, call, recorded)
    hidden_TD = decoder.packed(
        x_TD, positions_3T.to(x_TD.device), attends, lengths=_lengths(call), hidden_states=hidden_states
    )
    require_finite(hidden_TD, decoder, "text decoder")
    ends = _row_ends(positions_3T.cpu(), packing)
    deltas = _deltas(ends, call)
    if cache is not None:
        cache.advance(packing.lengths, call.mask_BL, packing.columns, ends)
        cache.rope_deltas = deltas
    keys_BS = cache.mask_BS if cache is not None else packing.rows_at(torch.arange(packing.columns)) >= 0
    return PackedRun(hidden_TD, packing, cache, deltas.to(x_TD.device), hidden_states, recorded, keys_BS)


def _lengths(call: OpenCall) -> tuple[int, ...]:
    """Of the sequences that the decoder sees: rows without a token are none."""
    return call.sequences or tuple(length for length in call.packing.lengths if length)


def _row_ends(positions_3T: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """Per row, the position that would follow each of its new tokens: 1 + the largest so far on any axis."""
    return [ends.cummax(0).values for ends in packing.split(positions_3T.amax(0) + 1)]


def _deltas(ends: Sequence[torch.Tensor], call: OpenCall) -> torch.Tensor:
    """(B, 1): position of the next token minus the number of tokens so far, those in the cache included."""
    starts = call.starts()
    following = [int(end[-1]) if len(end) else starts[b] for b, end in enumerate(ends)]
    counts = [past + len(end) for past, end in zip(call.past_lengths, ends, strict=True)]
    return (torch.tensor(following) - torch.tensor(counts)).unsqueeze(1)


def _attends(decoder: TextDecoder, call: OpenCall, recorded: list[list[torch.Tensor]] | None) -> list[Attend]:
    """One attend per layer: with or without a cache, with or without keeping the weights."""
    if recorded is not None:
        recorded.extend([] for _ in decoder.windows)
        return [
            _layer_attends(decoder, call, recording_backend(store))[layer]
            for layer, store in enumerate(recorded)
        ]
    return _layer_attends(decoder, call, get_backend(decoder.attention_backend))


def _layer_attends(decoder: TextDecoder, call: OpenCall, backend: Backend) -> list[Attend]:
    dropout, lengths = decoder.dropout, _lengths(call)
    if call.cache is None:
        return decoder.packed_attends(lengths, backend)
    rows = [row for row, length in zip(call.cache.rows, call.packing.lengths, strict=True) if length]
    backend = partial(backend, dropout=dropout) if dropout else backend
    return cached_attends(backend, rows, lengths, decoder.windows)
