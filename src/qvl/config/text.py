"""Settings of the text decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.config.base import (
    PretrainedConfig,
    check_counts,
    check_model_type,
    check_numbers,
    check_switches,
    is_number,
)
from qvl.config.rope_scaling import normalize_rope_scaling
from qvl.errors import ConfigError

LAYER_TYPES = ("full_attention", "sliding_attention")
# Said once for the whole checkpoint, and true of its decoder alone.
_OF_THE_WEIGHTS = ("dtype", "torch_dtype", "quantization_config")


class Qwen2_5_VLTextConfig(PretrainedConfig):
    """The text decoder.

    ``layer_types``: "full_attention" or "sliding_attention" per layer; derived from ``use_sliding_window``
    and ``max_window_layers`` unless given. ``sliding_window``: tokens, None unless ``use_sliding_window``.
    ``head_dim``: hidden_size / num_attention_heads unless given. ``rope_parameters``: how transformers 5
    writes ``rope_theta`` and ``rope_scaling``.
    """

    model_type = "qwen2_5_vl_text"
    base_config_key = "text_config"

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 8192,
        intermediate_size: int = 29568,
        num_hidden_layers: int = 80,
        num_attention_heads: int = 64,
        num_key_value_heads: int | None = 8,
        hidden_act: str = "silu",
        max_position_embeddings: int = 32768,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-05,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        rope_theta: float = 1000000.0,
        use_sliding_window: bool = False,
        sliding_window: int | None = 4096,
        max_window_layers: int = 80,
        layer_types: Sequence[str] | None = None,
        attention_dropout: float = 0.0,
        rope_scaling: dict[str, Any] | None = None,
        *,
        head_dim: int | None = None,
        original_max_position_embeddings: int | None = None,
        rope_parameters: dict[str, Any] | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if rope_parameters is not None and rope_scaling is None:
            rope_scaling = dict(rope_parameters)
            rope_theta = rope_scaling.pop("rope_theta", rope_theta)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.rope_theta = rope_theta
        self.use_sliding_window = use_sliding_window
        self.sliding_window = sliding_window if use_sliding_window else None
        self.max_window_layers = max_window_layers
        self.attention_dropout = attention_dropout
        self.rope_scaling = rope_scaling
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        if original_max_position_embeddings is not None:  # absent otherwise: transformers asks hasattr
            self.original_max_position_embeddings = original_max_position_embeddings
        self.head_dim = head_dim
        self.layer_types = layer_types
        self.validate()

    @property
    def head_dim(self) -> int:
        if self._head_dim is None:
            return self.hidden_size // self.num_attention_heads
        return self._head_dim

    @head_dim.setter
    def head_dim(self, value: int | None) -> None:
        self._head_dim = value

    @property
    def layer_types(self) -> list[str]:
        return self._derived_layer_types() if self._layer_types is None else self._layer_types

    @layer_types.setter
    def layer_types(self, value: Sequence[str] | None) -> None:
        self._layer_types = None if value is None else list(value)

    def _derived_layer_types(self) -> list[str]:
        full = self.num_hidden_layers if self.sliding_window is None else self.max_window_layers
        return [LAYER_TYPES[layer >= full] for layer in range(self.num_hidden_layers)]

    @property
    def most_positions(self) -> int:
        """``max_position_embeddings``, or what a scaled rotary embedding stretches it to."""
        scaling, origin = self.rope_scaling or {}, self.max_position_embeddings
        if scaling.get("rope_type") in ("yarn", "llama3"):  # the only types that read an origin there
            origin = scaling.get("original_max_position_embeddings") or origin
        return max(self.max_position_embeddings, int(origin * (scaling.get("factor") or 1)))

    @property
    def mrope_section(self) -> list[int]:
        """Rotary frequencies that turn with time, height and width; sums to head_dim / 2.

        Without ``rope_scaling`` (the page's default): split as 2 : 3 : 3, as every released checkpoint does.
        """
        if self.rope_scaling is not None:
            return list(self.rope_scaling["mrope_section"])
        spatial = 3 * (self.head_dim // 2) // 8
        return [self.head_dim // 2 - 2 * spatial, spatial, spatial]

    def validate(self) -> None:
        check_counts(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        check_counts(self, "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
        check_switches(self, "use_cache", "tie_word_embeddings", "use_sliding_window")
        check_numbers(self, rms_norm_eps=(0, math.inf), initializer_range=(0, math.inf))
        check_numbers(self, attention_dropout=(0, 1), max_window_layers=(0, math.inf))
        self._validate_heads()
        self._validate_layer_types()
        self._validate_padding()
        if not is_number(self.rope_theta) or self.rope_theta <= 1:
            raise ConfigError(f"text_config: rope_theta is {self.rope_theta!r}; expected a number above 1")
        if getattr(self, "partial_rotary_factor", 1.0) != 1.0:
            raise ConfigError(
                "text_config: partial_rotary_factor must be 1.0: the sections fill the whole head"
            )
        self.rope_scaling = normalize_rope_scaling(
            self.rope_scaling,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            original_max_position_embeddings=getattr(self, "original_max_position_embeddings", None),
        )

    def _validate_padding(self) -> None:
        pad, rows = self.pad_token_id, self.vocab_size
        if pad is not None and (type(pad) is not int or not -rows <= pad < rows):
            raise ConfigError(
                f"text_config: pad_token_id is {pad!r}; expected None or a row of the vocabulary, "
                f"0 to {rows - 1}"
            )

    def _validate_heads(self) -> None:
        heads = self.num_attention_heads
        if self._head_dim is not None:
            check_counts(self, "_head_dim")
        if self._head_dim is None and self.hidden_size % heads:
            raise ConfigError(
                f"text_config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"text_config: head_dim {self.head_dim} must be even: it is rotated in pairs")
        if heads % self.num_key_value_heads:
            raise ConfigError(
                f"text_config: num_attention_heads {heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )

    def _validate_layer_types(self) -> None:
        if self.sliding_window is not None:
            check_counts(self, "sliding_window")
        if self._layer_types == self._derived_layer_types():
            self._layer_types = None  # so that it follows a later change of num_hidden_layers
        types = self.layer_types
        unknown = [kind for kind in types if kind not in LAYER_TYPES]
        if unknown:
            raise ConfigError(
                f"text_config: layer_types holds {unknown[0]!r}; expected {' or '.join(LAYER_TYPES)}"
            )
        if len(types) != self.num_hidden_layers:
            raise ConfigError(
                f"text_config: layer_types has {len(types)} entries for num_hidden_layers "
                f"{self.num_hidden_layers}"
            )
        if "sliding_attention" in types and self.sliding_window is None:
            raise ConfigError("text_config: layer_types has sliding_attention, but use_sliding_window is off")

    def to_dict(self) -> dict[str, Any]:
        given = {} if self._head_dim is None else {"head_dim": self._head_dim}
        return {**super().to_dict(), "layer_types": self.layer_types, **given}

    @classmethod
    def _own_part(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        check_model_type(values, cls.model_type, "qwen2_5_vl")
        if cls.base_config_key in values:
            outside = {key: values[key] for key in _OF_THE_WEIGHTS if key in values}
            return {**outside, **values[cls.base_config_key]}
        return {key: value for key, value in values.items() if key != "vision_config"}
