"""What a checkpoint says about its architecture: the three configs of Qwen2.5-VL, without torch.

Two layouts of ``config.json`` are read: the released one (2025-02: text settings at the top level, only
``vision_config`` nested) and the newer one (``text_config`` nested too), which is also what is written, because
transformers 4.57 writes it. Unknown keys are kept as attributes and saved back. Names and defaults are those of
the documentation page.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from qvl import hub
from qvl.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError, ConfigKeyError
from qvl.rope_scaling import normalize_rope_scaling

CONFIG_FILE = "config.json"
LAYER_TYPES = ("full_attention", "sliding_attention")

AnyConfig = TypeVar("AnyConfig", bound="PretrainedConfig")


class PretrainedConfig:
    """What all three configs share: common settings, reading and writing.

    ``dtype``: a torch dtype or its name; ``torch_dtype`` is its older spelling. Every other keyword that no
    class knows becomes an attribute.
    """

    model_type: ClassVar[str] = ""
    base_config_key: ClassVar[str] = ""

    def __init__(
        self,
        *,
        architectures: list[str] | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
        attn_implementation: str | None = None,
        name_or_path: str = "",
        **extras: Any,
    ) -> None:
        self.architectures = architectures
        self.dtype = torch_dtype if dtype is None else dtype
        self.output_hidden_states = output_hidden_states
        self.output_attentions = output_attentions
        self.return_dict = return_dict
        self.name_or_path = str(name_or_path)
        self._attn_implementation = attn_implementation
        for ignored in ("model_type", "_name_or_path", "_commit_hash"):
            extras.pop(ignored, None)
        for key, value in extras.items():
            setattr(self, key, value)

    @property
    def dtype(self) -> Any:
        """The torch dtype of the weights, or None. torch is imported here, for those who ask."""
        return None if self._dtype is None else getattr(import_module("torch"), self._dtype)

    @dtype.setter
    def dtype(self, value: Any) -> None:
        self._dtype = None if value is None else str(value).removeprefix("torch.")

    torch_dtype = dtype

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    def get_text_config(self, **_: Any) -> PretrainedConfig:
        """The config of the text decoder: ``text_config`` where there is one, else this one."""
        return getattr(self, "text_config", self)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set every attribute that ``values`` names."""
        for key, value in values.items():
            setattr(self, key, value)

    def validate(self) -> None:
        """Raise ConfigError if the values cannot describe a model."""

    # -- writing ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Every setting as plain data that ``json`` can write."""
        hidden = ("_attn_implementation", "_dtype", "name_or_path")
        values = {key: _plain(value) for key, value in self.__dict__.items() if key not in hidden}
        return {"model_type": self.model_type, **values, "dtype": self._dtype}

    def to_diff_dict(self) -> dict[str, Any]:
        """``to_dict()`` without the common settings that are at their defaults."""
        common = _parameters(PretrainedConfig)
        values = {key: value for key, value in self.to_dict().items() if common.get(key, value) != value or key not in common}
        for key in ("text_config", "vision_config"):
            if key in values:
                values[key] = getattr(self, key).to_diff_dict()
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into the folder ``save_directory``, which is made if it is not there."""
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError(f"{folder} is a file; a config is saved into a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_FILE)

    # -- reading ------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls: type[AnyConfig], config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """A config from ``config_dict``; ``kwargs`` that name its attributes win over it.

        With ``return_unused_kwargs=True`` the answer is ``(config, the other kwargs)``.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        values = dict(copy.deepcopy(dict(config_dict)))
        if "attn_implementation" in kwargs:
            values["attn_implementation"] = kwargs.pop("attn_implementation")
        config = cls(**values)
        used = {key for key in kwargs if hasattr(config, key)}
        config.update({key: _merged(getattr(config, key), kwargs[key]) for key in used})
        config.validate()
        return (config, {key: kwargs[key] for key in kwargs.keys() - used}) if return_unused else config

    @classmethod
    def from_json_file(cls: type[AnyConfig], json_file: str | os.PathLike[str]) -> AnyConfig:
        return cls(**_read_json(Path(json_file)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of ``config.json`` as it is, and the ``kwargs`` that were not about finding it."""
        options = hub.pop_options(kwargs)
        if Path(pretrained_model_name_or_path).is_file():
            return _read_json(Path(pretrained_model_name_or_path)), kwargs
        folder = hub.resolve(pretrained_model_name_or_path, **options, patterns=hub.SMALL_FILES)
        return _read_json(folder / CONFIG_FILE), kwargs

    @classmethod
    def from_pretrained(
        cls: type[AnyConfig], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """The config of a checkpoint: a folder, a ``config.json``, a bundled name or a repository id.

        ``kwargs``: the arguments of :func:`qvl.hub.resolve`, ``return_unused_kwargs``, and attributes to
        override. Raises ConfigError if the checkpoint is of another model type, naming that type.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        config = cls.from_dict(cls._own_part(values), **kwargs)
        (config[0] if isinstance(config, tuple) else config).name_or_path = str(pretrained_model_name_or_path)
        return config

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The part of a checkpoint's config.json that describes this class."""
        outer = Qwen2_5_VLConfig.model_type
        found = values.get("model_type")
        if found not in (outer, cls.model_type):
            raise _wrong_model_type(found, cls.model_type or outer)
        return values.get(cls.base_config_key, values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # settable, so not a key

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class Qwen2_5_VLVisionConfig(PretrainedConfig):
    """The vision tower. ``window_size`` in pixels; ``fullatt_block_indexes``: blocks that see a whole frame.

    The released files also say ``in_chans`` and ``spatial_patch_size``: kept and saved back, but not read, as in
    transformers.
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
        self.fullatt_block_indexes = list(fullatt_block_indexes)
        self.initializer_range = initializer_range
        self.validate()

    def validate(self) -> None:
        _check_counts(self, "depth hidden_size intermediate_size num_heads in_channels patch_size")
        _check_counts(self, "spatial_merge_size temporal_patch_size window_size out_hidden_size")
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"vision_config: hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a multiple "
                "of 4 (two axes of rotated pairs)"
            )
        if self.window_size < self.patch_size * self.spatial_merge_size:
            raise ConfigError(
                f"vision_config: window_size {self.window_size} is smaller than one merged patch "
                f"({self.patch_size} x {self.spatial_merge_size} pixels)"
            )


class Qwen2_5_VLTextConfig(PretrainedConfig):
    """The text decoder. ``sliding_window`` is None unless ``use_sliding_window``."""

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
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
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
        self.layer_types = layer_types
        self.attention_dropout = attention_dropout
        self.rope_scaling = rope_scaling
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)
        self.validate()
