"""From the configs and keyword arguments of one call to the settings that hold for it.

What the call says wins over the config it was given, which wins over the model's own, which wins over the
defaults. This module decides lengths and special tokens; it knows shapes of the prompt, not its content.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qvl.errors import GenerationError, InputTypeError, UnsupportedError
from qvl.generation.config import GenerationConfig
from qvl.generation.processors import biases, id_tuple
from qvl.generation.validation import check_supported, unsupported_settings, without_effect
from qvl.types import SamplingParams

DEFAULT_NEW_TOKENS = 20  # as in transformers, when nobody says anything about length

# Arguments of transformers' generate() that ask for something else than this engine does, with the values
# that ask for nothing.
UNSUPPORTED_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "cache_position": (),
    "custom_generate": (),
    "labels": (),
    "logits_to_keep": (),
    "negative_prompt_attention_mask": (),
    "negative_prompt_ids": (),
    "return_dict": (True,),
    "synced_gpus": (False,),
    "trust_remote_code": (False,),
}


@dataclass(frozen=True)
class Settings:
    """The merged config of one call, with lengths and special tokens decided."""

    config: GenerationConfig
    max_new_tokens: int
    min_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int | None

    @property
    def beams(self) -> int:
        return self.config.num_beams


def merge(
    model_defaults: GenerationConfig,
    given: GenerationConfig | None,
    arguments: Mapping[str, Any],
    use_model_defaults: bool | None = None,
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The config that holds for the call, and the arguments that are not settings.

    Raises GenerationError for values that make no sense and UnsupportedError for methods that qvl lacks.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        raise InputTypeError(
            f"generation_config must be a qvl.GenerationConfig, not {type(given).__name__}; "
            "GenerationConfig.from_dict makes one of a dictionary."
        )
    config = _with_model_defaults(model_defaults, given, use_model_defaults)
    settings, rest = _split(arguments)
    for name, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if (
            settings.get(name) is not None
            and other not in settings
            and (given is None or other not in given.explicit)
        ):
            setattr(config, other, None)  # the call's own length wins over one from the model's file
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    check_supported(config)
    idle = sorted(set(without_effect(config)) & settings.keys())
    if idle:
        warnings.warn(
            f"These settings have no effect with do_sample={config.do_sample}, num_beams={config.num_beams}, "
            f"return_dict_in_generate={config.return_dict_in_generate}: {', '.join(idle)}.",
            UserWarning,
            stacklevel=4,
        )
    return config, rest


def _with_model_defaults(
    model_defaults: GenerationConfig, given: GenerationConfig | None, use_model_defaults: bool | None
) -> GenerationConfig:
    if given is None:
        return copy.deepcopy(model_defaults)
    config = copy.deepcopy(given)
    inherited = model_defaults.explicit - given.explicit
    if use_model_defaults is False:
        inherited &= {"pad_token_id", "bos_token_id", "eos_token_id"}
    for name in inherited:
        setattr(config, name, copy.deepcopy(getattr(model_defaults, name)))
    if given.temperature == 0 and "do_sample" not in given.explicit:
        config.do_sample = False
    return config


def _split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings (those of other decoding methods too, so that they can be refused) and everything else."""
    known = {*GenerationConfig.names(), *unsupported_settings()}
    settings = {k: v for k, v in arguments.items() if k in known}
    return settings, {k: v for k, v in arguments.items() if k not in known}


def check_arguments(rest: Mapping[str, Any], understood: set[str]) -> None:
    """Raises for arguments that nobody reads: UnsupportedError for transformers' own."""
    for name, neutral in UNSUPPORTED_ARGUMENTS.items():
        value = rest.get(name)
        if value is not None and not any(value is n for n in neutral):
            raise UnsupportedError(f"generate() does not take {name}; leave it out.")
    unknown = [
        name
        for name, value in rest.items()
        if value is not None and name not in understood and name not in UNSUPPORTED_ARGUMENTS
    ]
    if unknown:
        raise GenerationError(
            f"The following `model_kwargs` are not used by the model: {unknown} (note: typos in the generate "
            "arguments will also show up in this list)."
        )


def decide(
    config: GenerationConfig, columns: int, rows: int, limit: int | None, own_criteria: bool = False
) -> Settings:
    """Lengths and special tokens for a prompt of ``columns`` cells (padding included, as in transformers).

    ``limit``: the model's ``max_position_embeddings``; it caps only the default length.
    ``own_criteria``: whether the caller brings stopping criteria.
    """
    eos_ids = config.eos_token_ids
    most, least = _max_new_tokens(config, columns, limit), _min_new_tokens(config, columns)
    if least > most:
        warnings.warn(
            f"At least {least} new tokens are asked for, but at most {most}: the answer ends after {most}.",
            UserWarning,
            stacklevel=4,
        )
    return Settings(
        config=config,
        max_new_tokens=most,
        min_new_tokens=least,
        eos_ids=eos_ids,
        pad_id=_pad_id(config, eos_ids, rows, own_criteria),
    )


def _max_new_tokens(config: GenerationConfig, columns: int, limit: int | None) -> int:
    given_length = "max_length" in config.explicit and config.max_length is not None
    if config.max_new_tokens is not None:
        if given_length:
            _warn_both("max_new_tokens", config.max_new_tokens, "max_length", config.max_length)
        return config.max_new_tokens
    if not given_length:
        warnings.warn(
            f"Neither max_new_tokens nor max_length is set, so at most {DEFAULT_NEW_TOKENS} tokens are "
            "generated; set max_new_tokens to choose the length.",
            UserWarning,
            stacklevel=5,
        )
        room = DEFAULT_NEW_TOKENS if limit is None else limit - columns
        return max(1, min(DEFAULT_NEW_TOKENS, room))
    assert config.max_length is not None
    if config.max_length <= columns:
        raise GenerationError(
            f"The prompt has {columns} tokens, but max_length, which counts them too, is "
            f"{config.max_length}; raise max_length or, better, set max_new_tokens."
        )
    return config.max_length - columns


def _min_new_tokens(config: GenerationConfig, columns: int) -> int:
    if config.min_new_tokens is not None:
        if config.min_length:
            _warn_both("min_new_tokens", config.min_new_tokens, "min_length", config.min_length)
        return config.min_new_tokens
    return max(0, (config.min_length or 0) - columns)


def _warn_both(winner: str, value: int | None, loser: str, other: int | None) -> None:
    warnings.warn(
        f"Both `{winner}` (={value}) and `{loser}` (={other}) seem to have been set. "
        f"`{winner}` will take precedence.",
        UserWarning,
        stacklevel=6,
    )


def _pad_id(config: GenerationConfig, eos_ids: tuple[int, ...], rows: int, own_criteria: bool) -> int | None:
    pad = config.pad_token_id
    if pad is not None and pad >= 0:
        return pad
    if eos_ids:
        if rows > 1:
            warnings.warn(
                f"pad_token_id is not set; finished rows are filled up with eos_token_id ({eos_ids[0]}).",
                UserWarning,
                stacklevel=5,
            )
        return eos_ids[0]
    if rows > 1 and (own_criteria or config.stop_strings or config.max_time):
        raise GenerationError(
            "Rows of this batch may end at different lengths, and there is neither pad_token_id nor "
            "eos_token_id to fill them up with; set pad_token_id."
        )
    return None


def sampling_params(
    settings: Settings, row: int, replaced: Collection[str] = (), assistant: Mapping[str, Any] | None = None
) -> SamplingParams:
    """The engine's parameters for output row ``row``.

    ``replaced``: settings that the caller's own processors stand in for. ``assistant``: those that a draft
    model reads.
    """
    config = settings.config
    seed = None if config.seed is None else config.seed + row
    truncation = _truncation(config) if config.do_sample else {}
    params = SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        eos_token_ids=settings.eos_ids,
        seed=seed,
        prompt_lookup_num_tokens=config.prompt_lookup_num_tokens,
        max_matching_ngram_size=config.max_matching_ngram_size or 2,
        **truncation,
        **_penalties(config),
        **(assistant or {}),
    )
    neutral = SamplingParams()
    names = {"forced_eos_token_id": "forced_eos_token_ids"}
    return replace(params, **{names.get(n, n): getattr(neutral, names.get(n, n)) for n in replaced})


def _truncation(config: GenerationConfig) -> dict[str, Any]:
    """What only sampling reads. None means off, except for temperature, where it means 1."""
    return {
        "temperature": 1.0 if config.temperature is None else float(config.temperature),
        "top_k": int(config.top_k or 0),
        "top_p": 1.0 if config.top_p is None else float(config.top_p),
        "min_p": float(config.min_p or 0.0),
        "typical_p": float(config.typical_p or 1.0),
        "epsilon_cutoff": float(config.epsilon_cutoff or 0.0),
        "eta_cutoff": float(config.eta_cutoff or 0.0),
    }


def _penalties(config: GenerationConfig) -> dict[str, Any]:
    decay = config.exponential_decay_length_penalty
    return {
        "repetition_penalty": float(config.repetition_penalty or 1.0),
        "encoder_repetition_penalty": float(config.encoder_repetition_penalty or 1.0),
        "no_repeat_ngram_size": int(config.no_repeat_ngram_size or 0),
        "encoder_no_repeat_ngram_size": int(config.encoder_no_repeat_ngram_size or 0),
        "bad_words_ids": tuple(id_tuple(word) for word in config.bad_words_ids or ()),
        "sequence_bias": biases(config.sequence_bias),
        "suppress_tokens": _ids(config.suppress_tokens),
        "begin_suppress_tokens": _ids(config.begin_suppress_tokens),
        "forced_bos_token_id": config.forced_bos_token_id,
        "forced_eos_token_ids": _ids(config.forced_eos_token_id),
        "exponential_decay_length_penalty": None if decay is None else (int(decay[0]), float(decay[1])),
        "remove_invalid_values": config.remove_invalid_values,
        "renormalize_logits": config.renormalize_logits,
    }


def _ids(ids: Any) -> tuple[int, ...]:
    return () if ids is None else id_tuple(ids)
