"""The text decoder as a documented class.

Legend: B batch, L padded length, T packed tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch

from qvl.config import Qwen2_5_VLTextConfig
from qvl.errors import InputError
from qvl.modeling.base import PreTrainedModel
from qvl.modeling.cache import Cache
from qvl.modeling.call import ForwardCall, embedded, wants_dict
from qvl.modeling.inputs import caller_positions, text_positions
from qvl.modeling.run import run_decoder
from qvl.network.text import TextDecoder
from qvl.outputs import BaseModelOutputWithPast


class Qwen2_5_VLTextModel(PreTrainedModel, TextDecoder):
    """The text decoder alone, without a head."""

    config_class = Qwen2_5_VLTextConfig
    checkpoint_prefix = "model.language_model."

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states (B, L, D) of exactly one of ``input_ids`` (B, L) and ``inputs_embeds`` (B, L, D).

        ``attention_mask`` (B, L), or over the cached cells too, is 1 at real tokens; padded cells come back
        as zeros. ``position_ids`` (B, L) or (3, B, L); by default tokens are numbered within their row.
        ``kwargs``: ``cu_seq_lens_q`` of rows that hold several sequences, and what collators pass along with
        it; another name is an InputTypeError. Raises InputError for arguments that do not fit each other,
        CacheError for such a cache and NonFiniteError, naming the weights, for NaN or infinity in the result.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        asked = ForwardCall(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            cache_position,
            kwargs,
        )
        call = asked.open(self)
        if inputs_embeds is not None:
            x_TD = call.packing.pack(inputs_embeds)
        else:
            assert input_ids is not None
            x_TD = embedded(self, call.packing.pack(input_ids))
        if position_ids is not None:
            positions_3T = caller_positions(position_ids, call.packing)
        else:
            positions_3T = text_positions(call.packing.lengths, call.starts())
        attentions, states = asked.wants(self.config)
        run = run_decoder(
            self, x_TD, positions_3T, call, output_attentions=attentions, output_hidden_states=states
        )
        output = BaseModelOutputWithPast(
            run.last_hidden_state, run.cache, run.unpacked_hidden_states, run.unpacked_attentions
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()
