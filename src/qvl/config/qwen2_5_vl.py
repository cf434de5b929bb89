"""The config of the whole model, and the way from a ``config.json`` to the right class.

The file comes in two layouts: the released one (2025-02) has the text settings at the top level and only
``vision_config`` nested; the newer one nests ``text_config`` too. Both are read; the newer one is written,
as transformers 4.57 does.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from qvl.config.base import PretrainedConfig, check_model_type
from qvl.config.text import Qwen2_5_VLTextConfig
from qvl.config.vision import Qwen2_5_VLVisionConfig
from qvl.errors import ConfigError, ConfigKeyError, UnknownNameError

# Settings of PretrainedConfig that the outer config leaves to its text config.
_SHARED = ("output_hidden_states", "output_attentions", "return_dict")
# transformers 5 keeps some of these outside of a nested text_config.
_INHERITED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", *_SHARED)
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_TEXT_KEYS = frozenset(
    {*inspect.signature(Qwen2_5_VLTextConfig).parameters, *_SHARED, "partial_rotary_factor"} - {"kwargs"}
)


class Qwen2_5_VLConfig(PretrainedConfig):
    """The whole model: ``text_config`` and ``vision_config`` (a config, a dict or None), special tokens.

    Text settings are read and set through this one too (``config.hidden_size``). Without ``text_config`` they
    are taken from the keywords, as the released ``config.json`` has them.
    """

    model_type = "qwen2_5_vl"
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "vision_config": Qwen2_5_VLVisionConfig,
        "text_config": Qwen2_5_VLTextConfig,
    }

    text_config: Qwen2_5_VLTextConfig
    vision_config: Qwen2_5_VLVisionConfig

    def __init__(
        self,
        text_config: Qwen2_5_VLTextConfig | Mapping[str, Any] | None = None,
        vision_config: Qwen2_5_VLVisionConfig | Mapping[str, Any] | None = None,
        image_token_id: int = 151655,
        video_token_id: int = 151656,
        vision_start_token_id: int = 151652,
        vision_end_token_id: int = 151653,
        **kwargs: Any,
    ) -> None:
        text_values = {key: kwargs.pop(key) for key in list(kwargs) if key in _TEXT_KEYS}
        super().__init__(**kwargs)
        self.vision_config = _sub_config(
            Qwen2_5_VLVisionConfig, {} if vision_config is None else vision_config
        )
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.vision_start_token_id = vision_start_token_id
        self.vision_end_token_id = vision_end_token_id
        if isinstance(text_config, Mapping):
            # Where the inner and the outer level both say something, the inner one counts.
            text_values = {key: text_values[key] for key in _INHERITED if key in text_values} | dict(
                text_config
            )
            text_config = None
        for key in _SHARED:  # from here on the text config answers for them
            del self.__dict__[key]
        self.text_config = _sub_config(
            Qwen2_5_VLTextConfig, text_values if text_config is None else text_config
        )
        self._validate_tokens()

    def validate(self) -> None:
        self._validate_tokens()
        self.text_config.validate()
        self.vision_config.validate()

    def _validate_tokens(self) -> None:
        for name in _TOKENS:
            if type(getattr(self, name)) is not int:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected the integer id of a token")
        if self.image_token_id == self.video_token_id:
            raise ConfigError(
                f"image_token_id and video_token_id are both {self.image_token_id}; a placeholder must say "
                "which of the two stands there"
            )

    @classmethod
    def _own_part(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        check_model_type(values, cls.model_type)
        return dict(values)

    def __getattr__(self, key: str) -> Any:
        text_config = self.__dict__.get("text_config")
        if text_config is None or key.startswith("_") or not hasattr(text_config, key):
            raise AttributeError(f"{type(self).__name__} has no setting {key!r}")
        return getattr(text_config, key)

    def __setattr__(self, key: str, value: Any) -> None:
        text_config = self.__dict__.get("text_config")
        own = key in self.__dict__ or key.startswith("_") or hasattr(type(self), key)
        if text_config is not None and not own and hasattr(text_config, key):
            setattr(text_config, key, value)
        else:
            super().__setattr__(key, value)


class AutoConfig:
    """Picks the config class by the ``model_type`` that ``config.json`` names."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As :meth:`PretrainedConfig.from_pretrained`; ConfigError for a type that is not Qwen2.5-VL."""
        options = {key: kwargs[key] for key in kwargs if key != "return_unused_kwargs"}
        values, _ = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **options)
        if "model_type" not in values:
            raise ConfigKeyError(f"the config of {pretrained_model_name_or_path} does not name a model_type")
        text_only = values["model_type"] == Qwen2_5_VLTextConfig.model_type
        chosen = Qwen2_5_VLTextConfig if text_only else Qwen2_5_VLConfig
        return chosen.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @staticmethod
    def for_model(model_type: str, **kwargs: Any) -> Qwen2_5_VLConfig | Qwen2_5_VLTextConfig:
        """A config of that type from keywords."""
        for chosen in (Qwen2_5_VLConfig, Qwen2_5_VLTextConfig):
            if model_type == chosen.model_type:
                return chosen(**kwargs)
        raise UnknownNameError(f"no config of type {model_type!r}; qvl knows qwen2_5_vl and qwen2_5_vl_text")


def _sub_config(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        return kind(**value)
    if hasattr(value, "to_dict"):  # another library's config object of the same model
        return kind(**value.to_dict())
    raise ConfigError(f"{kind.__name__}: expected a config or a dict, got {type(value).__name__}")
