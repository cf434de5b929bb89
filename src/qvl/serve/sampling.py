"""From what a request says of sampling, and the checkpoint where it is silent, to the engine's terms.

The checkpoint speaks through its generation_config.json, as with vLLM: temperature, top_p, top_k, min_p and
repetition_penalty. Where it says ``do_sample: false``, the temperature is 0; where it says nothing, 1.
"""

from __future__ import annotations

import secrets
from typing import Any

from qvl.errors import PromptTooLongError
from qvl.serve.errors import RequestError
from qvl.serve.protocol.sampling import LARGEST, Sampling
from qvl.serve.settings import Limits, ServeSettings
from qvl.types import SamplingParams

GREEDY_BELOW = 1e-5  # vLLM's: a smaller temperature draws the likeliest token


def sampling_params(
    request: Sampling, generation: Any, vocab_size: int, max_new_tokens: int, choice: int = 0
) -> SamplingParams:
    """How answer number ``choice`` of a request is drawn: its seed is the request's + ``choice``."""
    temperature = _temperature(request, generation)
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(request.min_tokens or 0, max_new_tokens),
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=max(0, min(_of(request, generation, "top_k", 0), vocab_size)),
        top_p=_of(request, generation, "top_p", 1.0),
        min_p=_of(request, generation, "min_p", 0.0),
        repetition_penalty=_of(request, generation, "repetition_penalty", 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        sequence_bias=_biases(request, vocab_size),
        eos_token_ids=_ends(request, generation, vocab_size),
        seed=_seed(request.seed, choice),
    )


def output_tokens(request: Sampling, settings: ServeSettings, prompt_tokens: int, context: int) -> int:
    """How many tokens an answer may have. What a request says must fit; what it leaves open is made to fit.

    Raises RequestError with the numbers, PromptTooLongError where nothing is left.
    """
    left, limits = context - prompt_tokens, settings.limits
    if left < 1:
        raise PromptTooLongError(
            f"The prompt has {prompt_tokens:,} tokens, and the context of {context:,} leaves no room "
            "for an answer; shorten the text, or use fewer or smaller pictures."
        )
    name, asked = request.output_limit
    if asked is None:
        return min(settings.max_tokens, limits.output_tokens, left)
    if asked > limits.output_tokens:
        raise RequestError(
            f"{name} is {asked:,}, but an answer may have {limits.output_tokens:,} tokens here.",
            name,
            "too_large",
        )
    if asked > left:
        raise RequestError(
            f"{name} is {asked:,}, but the prompt has {prompt_tokens:,} tokens and the context is "
            f"{context:,}: {left:,} are left.",
            name,
            "context_length_exceeded",
        )
    return asked


def context_length(config: Any, limits: Limits, capacity: int | None = None) -> int:
    """Tokens that a prompt and its answer may have together: what the model was made for, and no more than
    ``capacity``, which there is memory for."""
    bounds = (config.text_config.most_positions, limits.prompt_tokens, capacity)
    return min(bound for bound in bounds if bound is not None)


def check_limits(request: Sampling, limits: Limits) -> None:
    """RequestError for more answers, or more or longer stop texts, than the server allows."""
    if (request.n or 1) > limits.choices:
        raise RequestError(
            f"n is {request.n}, but at most {limits.choices} are given here.", "n", "too_large"
        )
    if len(request.stops) > limits.stops:
        raise RequestError(f"stop may hold {limits.stops} texts here.", "stop", "too_large")
    if any(len(text) > 1000 for text in request.stops):
        raise RequestError("A stop text may have 1000 characters.", "stop", "too_large")


def _of(request: Sampling, generation: Any, name: str, neutral: Any) -> Any:
    """The request's value, else the one that the checkpoint gives, else the one that does nothing."""
    value = getattr(request, name)
    if value is None and name in generation.explicit:
        value = getattr(generation, name)
    return neutral if value is None else value


def _temperature(request: Sampling, generation: Any) -> float:
    samples = generation.do_sample if "do_sample" in generation.explicit else True
    if request.temperature is None and not samples:
        return 0.0
    return float(_of(request, generation, "temperature", 1.0))


def _biases(request: Sampling, vocab_size: int) -> tuple[tuple[tuple[int, ...], float], ...]:
    biases = {int(key): value for key, value in (request.logit_bias or {}).items()}
    if wrong := [token for token in biases if token >= vocab_size]:
        raise RequestError(
            f"logit_bias names token {wrong[0]}, but the vocabulary has {vocab_size:,}.", "logit_bias"
        )
    return tuple(((token,), value) for token, value in biases.items() if value)


def _ends(request: Sampling, generation: Any, vocab_size: int) -> tuple[int, ...]:
    own = tuple(request.stop_token_ids or ())
    if wrong := [token for token in own if not 0 <= token < vocab_size]:
        raise RequestError(
            f"stop_token_ids names token {wrong[0]}, but the vocabulary has {vocab_size:,}.", "stop_token_ids"
        )
    ends = () if request.ignore_eos else generation.eos_token_ids
    return tuple(dict.fromkeys((*ends, *own)))


def _seed(seed: int | None, choice: int) -> int:
    """One for each answer; a fresh one where the request names none, so that no two requests share a
    generator."""
    if seed is None:
        return secrets.randbits(62)
    return (seed + choice) % LARGEST
