"""Which generation settings make sense, alone and together, and which belong to methods that qvl lacks.

A table of rules instead of a ladder of ifs: a rule names its settings, tests a value that is not None, and
says what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from qvl.errors import GenerationError, UnsupportedError

if TYPE_CHECKING:
    from qvl.generation.config import GenerationConfig

SCHEDULES = ("constant", "heuristic", "heuristic_transient")
CACHES = (None, "dynamic", "dynamic_full", "static")
KV_DTYPES = ("float32", "bfloat16", "int8")

# Arguments of generate() that people put into a config by mistake.
CALL_ARGUMENTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "tokenizer",
)

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS_ONLY = ("early_stopping", "length_penalty")

_SWITCHES = (
    "do_sample",
    "use_cache",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
_NGRAMS = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
_REPETITION = ("repetition_penalty", "encoder_repetition_penalty")


@dataclass(frozen=True)
class Rule:
    names: tuple[str, ...]
    holds: Callable[[Any], bool]
    expected: str


def check_values(config: GenerationConfig) -> None:
    """Raises GenerationError at the first setting, or pair of settings, that makes no sense."""
    for rule in _rules():
        for name in rule.names:
            value = getattr(config, name)
            if value is not None and not rule.holds(value):
                raise GenerationError(f"{name} is {value!r}; expected {rule.expected}.")
    _check_pairs(config)
    for name in CALL_ARGUMENTS:
        if name in vars(config):
            raise GenerationError(
                f"{name} is an argument of generate(), not a setting of a GenerationConfig."
            )


def _rules() -> Iterator[Rule]:
    yield Rule(("kv_dtype",), lambda v: v in KV_DTYPES, f"None or one of {', '.join(KV_DTYPES)}")
    yield Rule(
        (
            "max_new_tokens",
            "num_beams",
            "num_return_sequences",
            "max_matching_ngram_size",
            "num_assistant_tokens",
        ),
        _integer_from(1),
        "an integer of at least 1",
    )
    yield Rule(
        ("max_length", "min_length", "min_new_tokens", "top_k", "prompt_lookup_num_tokens", *_NGRAMS),
        _integer_from(0),
        "an integer of at least 0",
    )
    # Rows count on from the seed, and torch takes 64 bits.
    yield Rule(("seed",), lambda v: _integer_from(0)(v) and v < 2**63, "an integer from 0 to 2**63 - 1")
    yield Rule(_SWITCHES, lambda v: v in (True, False), "True or False")
    yield Rule(("max_time", *_REPETITION), lambda v: _real(v) and v > 0, "a number above 0")
    yield Rule(("temperature",), lambda v: _real(v) and v >= 0, "a number of at least 0")
    yield Rule(("length_penalty",), _real, "a number")
    yield Rule(
        ("top_p", "min_p", "assistant_confidence_threshold"),
        lambda v: _real(v) and 0 <= v <= 1,
        "a number from 0 to 1",
    )
    yield Rule(("num_assistant_tokens_schedule",), lambda v: v in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
    yield Rule(("typical_p",), lambda v: _real(v) and 0 < v <= 1, "a number above 0 and at most 1")
    yield Rule(
        ("epsilon_cutoff", "eta_cutoff"), lambda v: _real(v) and 0 <= v < 1, "a number from 0 to below 1"
    )
    yield Rule(("early_stopping",), lambda v: v in (True, False, "never"), "True, False or 'never'")
    yield Rule(("stop_strings",), _strings, "a string or a list of strings, none of them empty")
    yield Rule(("bad_words_ids",), _lists_of_ids, "a list of non-empty lists of token ids")
    yield Rule(("suppress_tokens", "begin_suppress_tokens"), _ids, "a list of token ids")
    yield Rule(("pad_token_id", "forced_bos_token_id"), _integer_from(-1), "a token id")
    yield Rule(
        ("eos_token_id", "bos_token_id", "forced_eos_token_id"),
        _one_or_more_ids,
        "a token id or a list of them",
    )
    yield Rule(("exponential_decay_length_penalty",), _start_and_factor, "a pair (start, factor)")


def _check_pairs(config: GenerationConfig) -> None:
    sequences, beams = config.num_return_sequences, config.num_beams
    if config.do_sample and config.temperature is not None and config.temperature <= 0:
        raise GenerationError(
            f"temperature is {config.temperature!r} with do_sample=True; expected a number above 0. "
            "For greedy decoding set do_sample=False."
        )
    if sequences > beams > 1:
        raise GenerationError(
            f"num_return_sequences ({sequences}) cannot be larger than num_beams ({beams}): there are "
            "no more beams."
        )
    if sequences > 1 and beams == 1 and not config.do_sample:
        raise GenerationError(
            f"num_return_sequences is {sequences}, but greedy decoding has one answer only; "
            "set do_sample=True or num_beams."
        )
    if config.prompt_lookup_num_tokens and (beams > 1 or sequences > 1):
        raise GenerationError(
            "prompt_lookup_num_tokens works with num_beams=1 and num_return_sequences=1, "
            f"not with {beams} and {sequences}."
        )


def check_supported(config: GenerationConfig) -> None:
    """Raises UnsupportedError for a setting of a decoding method that qvl does not have."""
    for name, neutral in unsupported_settings().items():
        value = vars(config).get(name)
        if value is not None and value not in neutral:
            raise UnsupportedError(
                f"{name}={value!r} asks for a way of generating that qvl does not have; leave {name} out."
            )
    if config.cache_implementation not in CACHES:
        raise UnsupportedError(
            f"cache_implementation={config.cache_implementation!r} is not one of qvl's caches: "
            "'dynamic', 'static'. For keys and values in 8 bits give kv_dtype='int8'."
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            raise UnsupportedError(
                f"generate() does not return {name.removeprefix('output_')}: the engine runs many "
                "sequences in one step and keeps none. Call the model on the generated sequences with "
                f"{name}=True instead."
            )


def unsupported_settings() -> dict[str, tuple[Any, ...]]:
    """Settings of transformers that belong to other methods, and their neutral values beside None."""
    return {
        "assistant_early_exit": (),
        "assistant_lookbehind": (10,),
        "cache_config": (),
        "compile_config": (),
        "constraints": (),
        "decoder_start_token_id": (),
        "disable_compile": (True, False),  # nothing is ever compiled
        "diversity_penalty": (0.0,),
        "dola_layers": (),
        "force_words_ids": (),
        "guidance_scale": (1,),
        "is_assistant": (False,),
        "low_memory": (False,),
        "num_beam_groups": (1,),
        "penalty_alpha": (0,),
        "prefill_chunk_size": (),
        "return_legacy_cache": (False,),
        "target_lookbehind": (10,),
        "token_healing": (False,),
        "watermarking_config": (),
    }


def without_effect(config: GenerationConfig) -> list[str]:
    """Settings that differ from their default and that the chosen strategy does not read."""
    idle: list[str] = []
    if not config.do_sample:
        idle += [name for name in SAMPLING_ONLY if _changed(config, name)]
    if config.num_beams == 1:
        idle += [name for name in BEAMS_ONLY if _changed(config, name)]
    if not config.return_dict_in_generate:
        idle += [name for name in ("output_scores", "output_logits") if getattr(config, name)]
    return idle


def _changed(config: GenerationConfig, name: str) -> bool:
    value = getattr(config, name)
    return value is not None and value != getattr(type(config), name)


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == value  # not NaN


def _integer_from(lowest: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest


def _strings(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, (list, tuple)) and all(isinstance(t, str) and t for t in texts)


def _ids(value: Any) -> bool:
    return (
        all(_integer_from(0)(i) for i in value)
        if isinstance(value, (list, tuple))
        else hasattr(value, "tolist")
    )


def _one_or_more_ids(value: Any) -> bool:
    listed = value if isinstance(value, (list, tuple)) else [value]
    return hasattr(value, "tolist") or all(_integer_from(-1)(i) for i in listed)


def _start_and_factor(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _integer_from(0)(value[0])
        and _real(value[1])
        and value[1] > 0
    )


def _lists_of_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(w, (list, tuple)) and w and _ids(w) for w in value
    )
