"""What a caller may ask of ``generate()``: the settings, their defaults, their file.

Names and defaults are those of transformers 4.57, cut to a decoder-only model. This module knows no tensors
and no model; `qvl.generation.validation` says which values make sense, `qvl.generation.settings` merges
several configs into one call.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qvl import hub
from qvl.config.base import read_json
from qvl.generation.validation import check_values

FILE_NAME = "generation_config.json"

TokenIds = int | list[int] | None


@dataclass(init=False, repr=False, eq=False)
class GenerationConfig:
    """The settings of one ``generate()`` call, or a model's defaults for it.

    Every field may be given by name; names that are not fields are kept, and saved back. A config remembers
    which settings were given (``explicit``), so that a value equal to the default can still win over a
    model's ``generation_config.json``. Settings that only other decoding methods read (contrastive search,
    group beams ...) are kept too, and refused by ``generate()`` unless they are neutral.

    Raises GenerationError for values that make no sense.
    """

    # Length
    max_length: int | None = 20  # prompt and answer together; overridden by max_new_tokens
    max_new_tokens: int | None = None
    min_length: int | None = 0
    min_new_tokens: int | None = None
    early_stopping: bool | str = False  # beams: True, False or "never"
    max_time: float | None = None  # seconds
    stop_strings: str | list[str] | None = None  # needs tokenizer= in the call
    # Strategy
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    prompt_lookup_num_tokens: int | None = None  # None: where it measures faster; 0: never
    max_matching_ngram_size: int | None = None  # None: 2
    # Where nobody gives these, neither here nor in the assistant's own file, the number follows what measures
    # faster; given, 20 means 20. "heuristic" makes it 2 more when all hold, else 1 less.
    num_assistant_tokens: int | None = 20
    num_assistant_tokens_schedule: str | None = "constant"
    assistant_confidence_threshold: float | None = 0.4  # a draft less sure than this is the last of its step
    seed: int | None = None  # row i draws from a generator seeded with seed + i; None: torch's own generator
    # Scores, in the order in which they act
    sequence_bias: Any = None  # {(ids): bias} or [[ids, bias], ...]
    encoder_repetition_penalty: float | None = 1.0  # of the prompt's tokens; above 1 encourages them
    repetition_penalty: float | None = 1.0
    no_repeat_ngram_size: int | None = 0
    encoder_no_repeat_ngram_size: int | None = 0
    bad_words_ids: list[list[int]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: TokenIds = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    renormalize_logits: bool = False
    length_penalty: float | None = 1.0  # beams
    # Cache
    use_cache: bool = True  # False: the cache is not returned (the engine always keeps one)
    cache_implementation: str | None = None  # None or "dynamic" grows; "static" is allocated at once
    # Numbers that the cache keeps: "float32", "bfloat16" or "int8"; None: as the model computes. qvl's own
    kv_dtype: str | None = None
    # What comes back
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    # Special tokens
    pad_token_id: int | None = None
    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None

    def __init__(self, **settings: Any) -> None:
        self._assign(settings)
        check_values(self)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        self.__dict__.setdefault("_explicit", set()).add(name)

    @property
    def explicit(self) -> frozenset[str]:
        """Names of the settings that someone gave."""
        return frozenset(self.__dict__.get("_explicit", ()))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end an answer. Negative ids never come out of a model and are left away."""
        given: Any = self.eos_token_id
        if given is None:
            return ()
        plain = given.tolist() if hasattr(given, "tolist") else given
        listed = plain if isinstance(plain, (list, tuple)) else [plain]
        return tuple(int(i) for i in listed if int(i) >= 0)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The settings that qvl reads."""
        return tuple(f.name for f in fields(cls))

    def update(self, **settings: Any) -> dict[str, Any]:
        """Sets what this config has a field (or a kept key) for, and returns the rest."""
        known = {k: v for k, v in settings.items() if k in self.names() or k in self.__dict__}
        self._assign(known)
        check_values(self)
        return {k: v for k, v in settings.items() if k not in known}

    def validate(self) -> None:
        """Raises GenerationError for a value, or values together, that make no sense."""
        check_values(self)

    # -- dictionaries and files -------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """From plain values; keyword arguments win. With ``return_unused_kwargs=True`` a pair comes back:
        the config, and the keyword arguments that name no setting.

        Values of the dictionary are checked when ``generate()`` uses them, so that a checkpoint with one odd
        setting still loads.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config = cls()
        config._assign(config_dict)
        config.__dict__["_explicit"] = {k for k in config_dict if not k.startswith("_")}
        unused = config.update(**kwargs) if kwargs else {}
        return (config, unused) if return_unused else config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: str | os.PathLike[str], config_file_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Reads ``generation_config.json`` from a folder or a hub id.

        ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``subfolder`` say where; any other
        keyword is a setting that wins over the file. Raises CheckpointNotFoundError or
        CheckpointCorruptError.
        """
        name = config_file_name or FILE_NAME
        folder = hub.holding(pretrained_model_name, (name,), patterns=(name,), **hub.pop_options(kwargs))
        return cls.from_dict(read_json(folder / name), **kwargs)

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """What a model's ``config.json`` says about generation: its special tokens, mostly."""
        values: dict[str, Any] = {}
        for part in (getattr(model_config, "text_config", None), model_config):
            for name, value in (part.to_dict() if part is not None else {}).items():
                if name in cls.names() and value is not None and value != getattr(cls, name):
                    values[name] = value
        config: GenerationConfig = cls.from_dict(values)
        if any(getattr(config, name) for name in ("output_scores", "output_logits")):
            config.return_dict_in_generate = True
        return config

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], config_file_name: str | None = None
    ) -> None:
        """Writes the settings that differ from the defaults, and the kept ones, to
        ``generation_config.json``.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (config_file_name or FILE_NAME)).write_text(self.to_json_string(), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Every setting, and every kept key."""
        kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        return copy.deepcopy({name: getattr(self, name) for name in self.names()} | kept)

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`, without the settings that have their default value."""
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in self.to_dict().items() if k not in defaults or v != defaults[k]}

    def to_json_string(self, use_diff: bool = True) -> str:
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(_jsonable(values), indent=2, sort_keys=True) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string()}"

    def _assign(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if not name.startswith("_"):
                setattr(self, name, value)


def _jsonable(value: Any) -> Any:
    """Tuple keys (of ``sequence_bias``) become text, tensors and tuples become lists."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value
