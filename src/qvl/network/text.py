"""The text decoder: a stack of pre-norm transformer layers over packed tokens.

Grouped-query attention, multimodal rotary embedding, SwiGLU (the Qwen2.5 decoder). It is handed one attend
per layer and knows no cache, no mask and no padding. Module names are those of the released checkpoints.

Legend: T tokens of all packed sequences, D width, H heads, G key/value heads, E head dim, F = E / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qvl.errors import InputError
from qvl.network.layers import RMSNorm, SwiGLU, initialise, run_block
from qvl.ops.attention import Attend, Backend, get_backend, packed_attend
from qvl.ops.frequencies import RopeSettings
from qvl.ops.linear import Linear
from qvl.ops.rope import Rotary, apply_rotary

if TYPE_CHECKING:
    from qvl.config import Qwen2_5_VLTextConfig


class TextDecoder(nn.Module):
    """Embeddings in, normed hidden states out.

    ``attention_backend``: a name that ``get_backend`` knows. ``gradient_checkpointing``: recompute the layers
    in the backward pass (in training mode) instead of keeping their activations.
    """

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend = "sdpa"
        self.gradient_checkpointing = False
        self.rotary = Rotary(rope_settings(config))
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer in tokens; None where it sees everything before it."""
        size = self.config.sliding_window
        return [size if kind == "sliding_attention" else None for kind in self.config.layer_types]

    @property
    def dropout(self) -> float:
        """Of attention weights; none while evaluating."""
        return self.config.attention_dropout if self.training else 0.0

    def init_weights(self) -> None:
        """Random weights for training from nothing, as the config's ``initializer_range`` says."""
        initialise(self, self.config.initializer_range)

    def packed_attends(self, lengths: Sequence[int], backend: Backend | None = None) -> list[Attend]:
        """One ``attend`` per layer for whole sequences that lie end to end, nothing cached."""
        backend = backend or get_backend(self.attention_backend)
        return [
            packed_attend(backend, lengths, causal=True, window=w, dropout=self.dropout) for w in self.windows
        ]

    def packed(
        self,
        x_TD: Tensor,
        positions_3T: Tensor,
        attends: Sequence[Attend],
        *,
        lengths: Sequence[int],
        extents: Sequence[int] | None = None,
        hidden_states: list[Tensor] | None = None,
        rows_N: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm: (T, D), or (N, D) where ``rows_N`` names those that are wanted.

        x_TD: embeddings of packed sequences. positions_3T: integer positions (time, height, width).
        attends: one per layer. lengths: tokens of each sequence. extents: see ``Rotary``. hidden_states:
        receives the input of every layer and then the output, in transformers' order. rows_N: indices; for
        all other rows the last layer computes nothing but keys and values, and its attend gets no queries.
        Raises InputError if the arguments do not fit each other.
        """
        self._check(x_TD, positions_3T, attends, lengths)
        cos_TF, sin_TF = self.rotary(positions_3T, lengths, extents, x_TD.dtype)
        recompute = self.gradient_checkpointing and self.training
        last = len(self.layers) - 1
        for i, (layer, attend) in enumerate(zip(self.layers, attends, strict=True)):
            if hidden_states is not None:
                hidden_states.append(x_TD)
            rows = (rows_N,) if rows_N is not None and i == last else ()
            x_TD = run_block(layer, x_TD, cos_TF, sin_TF, attend, *rows, recompute=recompute)
        x_TD = self.norm(x_TD)
        if hidden_states is not None:
            hidden_states.append(x_TD)
        return x_TD

    def _check(
        self, x_TD: Tensor, positions_3T: Tensor, attends: Sequence[Attend], lengths: Sequence[int]
    ) -> None:
        T = x_TD.shape[0]
        if positions_3T.shape != (3, T):
            raise InputError(f"{T} tokens need positions of shape (3, {T}), got {tuple(positions_3T.shape)}.")
        if sum(lengths) != T:
            raise InputError(f"The sequence lengths add up to {sum(lengths)}, but there are {T} tokens.")
        if len(attends) != len(self.layers):
            raise InputError(f"{len(self.layers)} layers need as many attends, got {len(attends)}.")


class DecoderLayer(nn.Module):
    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.self_attn = TextAttention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, config.hidden_act, bias=False)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_TD: Tensor, cos_TF: Tensor, sin_TF: Tensor, attend: Attend, rows_N: Tensor | None = None
    ) -> Tensor:
        """``rows_N``: the rows that are wanted; the others leave only their keys and values."""
        mixed_TD = self.self_attn(self.input_layernorm(x_TD), cos_TF, sin_TF, attend, rows_N)
        x_TD = (x_TD if rows_N is None else x_TD[rows_N]) + mixed_TD
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class TextAttention(nn.Module):
    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_width, kv_width = (
            heads * self.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = Linear(config.hidden_size, q_width)
        self.k_proj = Linear(config.hidden_size, kv_width)
        self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_proj = Linear(q_width, config.hidden_size, bias=False)

    def forward(
        self, x_TD: Tensor, cos_TF: Tensor, sin_TF: Tensor, attend: Attend, rows_N: Tensor | None = None
    ) -> Tensor:
        asking_TD = x_TD if rows_N is None else x_TD[rows_N]
        projections = ((self.q_proj, asking_TD), (self.k_proj, x_TD), (self.v_proj, x_TD))
        # The number of heads is read from the width: a projection may hold only a share of them.
        q_THE, k_TGE, v_TGE = (p(x).unflatten(-1, (-1, self.head_dim)) for p, x in projections)
        k_TGE = apply_rotary(k_TGE, cos_TF, sin_TF)
        if rows_N is not None:
            cos_TF, sin_TF = cos_TF[rows_N], sin_TF[rows_N]
        q_THE = apply_rotary(q_THE, cos_TF, sin_TF)
        return self.o_proj(attend(q_THE, k_TGE, v_TGE).flatten(1))


def rope_settings(config: Qwen2_5_VLTextConfig) -> RopeSettings:
    """What the rotary embedding reads of a text config."""
    time, height, width = config.mrope_section
    return RopeSettings(
        head_dim=config.head_dim,
        theta=config.rope_theta,
        sections=(time, height, width),
        max_position_embeddings=config.max_position_embeddings,
        original_max_position_embeddings=getattr(config, "original_max_position_embeddings", None),
        scaling=config.rope_scaling or {},
    )
