"""Settings of the vision tower."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.config.base import PretrainedConfig, check_counts, check_model_type, check_numbers
from qvl.errors import ConfigError


class Qwen2_5_VLVisionConfig(PretrainedConfig):
    """The vision tower. ``window_size`` in pixels; ``fullatt_block_indexes``: blocks that see a whole frame.

    The released files also say ``in_chans`` and ``spatial_patch_size``: kept and saved back, but not read,
    as in transformers.
    """

    model_type = "qwen2_5_vl"
    base_config_key = "vision_config"

    def __init__(
        self,
        depth: int = 32,
        hidden_size: int = 3584,
        hidden_act: str = "silu",
        intermediate_size: int = 3420,
        num_heads: int = 16,
        in_channels: int = 3,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        temporal_patch_size: int = 2,
        tokens_per_second: float = 4,
        window_size: int = 112,
        out_hidden_size: int = 3584,
        fullatt_block_indexes: Sequence[int] = (7, 15, 23, 31),
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.depth = depth
        self.hidden_size = hidden_size
        self.hidden_act = hidden_act
        self.intermediate_size = intermediate_size
        self.num_heads = num_heads
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.temporal_patch_size = temporal_patch_size
        self.tokens_per_second = tokens_per_second
        self.window_size = window_size
        self.out_hidden_size = out_hidden_size
        self.fullatt_block_indexes = _indexes(fullatt_block_indexes)
        self.initializer_range = initializer_range
        self.validate()

    def validate(self) -> None:
        check_counts(
            self, "depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "patch_size"
        )
        check_counts(self, "spatial_merge_size", "temporal_patch_size", "window_size", "out_hidden_size")
        check_numbers(self, initializer_range=(0, math.inf), tokens_per_second=(0, math.inf))
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"vision_config: hidden_size {self.hidden_size} must be a multiple of 4 x num_heads "
                f"({self.num_heads}): the rotary embedding turns pairs along two axes"
            )
        if self.window_size < self.patch_size * self.spatial_merge_size:
            raise ConfigError(
                f"vision_config: window_size {self.window_size} is smaller than one merged token "
                f"({self.spatial_merge_size} patches of {self.patch_size} pixels)"
            )

    @classmethod
    def _own_part(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        check_model_type(values, cls.model_type)
        return dict(values.get(cls.base_config_key, values))


def _indexes(values: Any) -> list[int]:
    """Block numbers; those of blocks that a shallow tower lacks do no harm, as in transformers."""
    whole = isinstance(values, list | tuple) and all(type(index) is int and index >= 0 for index in values)
    if not whole:
        raise ConfigError(f"vision_config: fullatt_block_indexes is {values!r}; expected a list of integers")
    return list(values)
