"""``generate()``: the documented call, from its arguments to its answer, on the one engine.

Each step of the way has a file of its own: `settings` (what holds for this call), `inputs` and `prompts`
(what the model is given), `rows` (the caller's callbacks), `run` (the engine) and `answer` (what comes
back).

Legend: B prompts, L columns handed in, R rows of the answer, S cells of a cache, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from qvl.engine.beams import BeamParams
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.kv import SequenceKV
from qvl.errors import GenerationError, InputTypeError
from qvl.generation import answer
from qvl.generation.config import GenerationConfig
from qvl.generation.inputs import ModelInputs, check_inputs, real_cells
from qvl.generation.processors import AllowedTokens, LogitsProcessorList, replaced_settings
from qvl.generation.prompts import CachedRow, build_prompts
from qvl.generation.rows import Callbacks, OutputRow, callables
from qvl.generation.run import Request, Run, Stream
from qvl.generation.settings import Settings, check_arguments, decide, merge, sampling_params
from qvl.generation.speculation import Assistant, assistant_settings, step_times
from qvl.generation.stopping import MaxTimeCriteria, StoppingCriteriaList, StopStringCriteria, merged
from qvl.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from qvl.types import Prompt


@dataclass(eq=False)
class RowCache:
    """What ``past_key_values`` holds, at its barest; the documented caches have the same attributes.

    ``rows``: one `SequenceKV` per row. ``mask_BS``: which cells so far are real tokens. ``rope_deltas``:
    (B, 1).
    """

    rows: list[SequenceKV]
    mask_BS: Tensor | None = None
    rope_deltas: Tensor | None = None

    def __init__(self) -> None:
        self.rows = []


@dataclass(frozen=True, eq=False)
class Call:
    """Everything that is known before the engine starts."""

    settings: Settings
    inputs: ModelInputs
    callbacks: Callbacks
    replaced: set[str]
    prompts: list[Prompt]
    real_BL: Tensor
    cache: Any  # the cache to leave the keys and values in, or None
    assistant: Any = None  # the model that drafts, or None

    @property
    def config(self) -> GenerationConfig:
        return self.settings.config

    @property
    def handed_RL(self) -> Tensor:
        return self.inputs.handed_ids.repeat_interleave(self.config.num_return_sequences, dim=0)


class GenerationMixin(nn.Module):
    """``generate()`` for a class that is also a `CausalLM`; comes first among its bases.

    A new model's ``generation_config`` has the special tokens of its config; loading a checkpoint replaces
    it.
    """

    config: Any
    generation_config: GenerationConfig
    engine_settings: EngineSettings | None = None
    # What a returned ``past_key_values`` is made of; the documented classes put theirs here.
    cache_class: Any = RowCache
    static_cache_class: Any = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.generation_config = GenerationConfig.from_model_config(config)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: list[Any] | None = None,
        stopping_criteria: list[Any] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        use_model_defaults: bool | None = None,
        custom_generate: Any = None,
        *,
        tokenizer: Any = None,
        assistant_tokenizer: Any = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
        """Continue every row of a batch.

        ``inputs`` (or ``input_ids``): (B, L) token ids. ``kwargs``: the model's other inputs, as the
        processor makes them (see `qvl.generation.inputs.ModelInputs`), ``past_key_values`` of an earlier
        call, and any setting of a `GenerationConfig`, which then wins over ``generation_config`` and over
        the model's own. ``tokenizer`` is needed for ``stop_strings``. ``streamer`` gets the prompt and each
        token as it comes. ``synced_gpus``, the negative prompt and ``custom_generate`` stand where
        transformers has them, and are refused.

        ``assistant_model``: a smaller Qwen2.5-VL model with the same tokenizer, which reads the same prompt,
        pictures too, and drafts tokens that this one checks, several in a step: the same answer when greedy,
        the same distribution when sampling. Where the two have different numbers of vocabulary rows,
        ``tokenizer`` and ``assistant_tokenizer`` must show that they number the same tokens.

        Logits processors and stopping criteria are called row by row: ids (1, length), the row as handed in
        (padding included) and the new tokens; scores (1, V). They act after the built-in penalties and
        before temperature, top-k and the like.

        Returns (B * num_return_sequences, L + longest answer) int64, rows that end early filled up with
        ``pad_token_id``; with ``inputs_embeds`` alone only the new tokens. With ``return_dict_in_generate``
        an output object, see `qvl.generation.answer` for the scores of rows that end early.

        Raises GenerationError for settings that make no sense, UnsupportedError for methods that qvl lacks,
        InputError and its kin for inputs that do not fit. Whatever is raised, from a callback too, a cache
        handed in then holds what it held before.
        """
        elsewhere = {
            "synced_gpus": synced_gpus,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "custom_generate": custom_generate,
        }
        try:
            call = prepare(
                self,
                inputs,
                merge(self.generation_config, generation_config, kwargs | elsewhere, use_model_defaults),
                callables("logits_processor", logits_processor),
                callables("stopping_criteria", stopping_criteria),
                prefix_allowed_tokens_fn,
                tokenizer,
                Assistant(assistant_model, assistant_tokenizer, tokenizer),
            )
            with restored_on_error(call.cache), measured(self, call) as engine:
                run = start(engine, call, streamer)
                return _search(call, run) if call.settings.beams > 1 else _decode(call, run)
        except BaseException as error:
            fail = getattr(streamer, "fail", None)
            if fail is not None:  # someone may be waiting for text in another thread
                fail(error)
            raise


def prepare(
    model: GenerationMixin,
    inputs: Tensor | None,
    merged_config: tuple[GenerationConfig, Mapping[str, Any]],
    processors: list[Any],
    criteria: list[Any],
    prefix_allowed_tokens_fn: AllowedTokens | None,
    tokenizer: Any,
    assistant: Assistant,
) -> Call:
    """Check everything, decide everything, compute nothing."""
    config, rest = merged_config
    check_arguments(rest, {*ModelInputs.names(), "past_key_values"})
    assistant.check(config, model)
    model_inputs = read_inputs(inputs, rest, config, cast(Any, model).device)
    check_inputs(model_inputs)
    rows = model_inputs.batch * config.num_return_sequences
    text_config = getattr(model.config, "text_config", model.config)
    settings = decide(config, model_inputs.columns, rows, text_config.max_position_embeddings, bool(criteria))
    real_BL = real_cells(model_inputs, settings.pad_id, settings.eos_ids)
    cache = open_cache(model, rest.get("past_key_values"), settings, model_inputs)
    return Call(
        settings=settings,
        inputs=model_inputs,
        callbacks=Callbacks(
            LogitsProcessorList(processors),
            StoppingCriteriaList(merged(own_criteria(config, tokenizer), criteria)),
            prefix_allowed_tokens_fn,
            keep_scores=config.return_dict_in_generate and bool(config.output_scores),
            keep_logits=config.return_dict_in_generate and bool(config.output_logits),
        ),
        replaced=replaced_settings(processors),
        prompts=build_prompts(model_inputs, real_BL, model.config, cached_rows(cache)),
        real_BL=real_BL,
        cache=cache,
        assistant=assistant.model,
    )


def read_inputs(
    inputs: Tensor | None, rest: Mapping[str, Any], config: GenerationConfig, device: torch.device
) -> ModelInputs:
    """The model's inputs among the arguments; without any ids or embeddings, a beginning-of-sequence id."""
    values = {name: rest[name] for name in ModelInputs.names() if rest.get(name) is not None}
    if inputs is not None and "input_ids" in values:
        raise GenerationError(
            "generate() got inputs and input_ids, which are the same thing; give one of them."
        )
    if inputs is not None:
        values["input_ids"] = inputs
    if "input_ids" not in values and "inputs_embeds" not in values:
        if config.bos_token_id is None:
            raise GenerationError(
                "generate() got neither input_ids nor inputs_embeds, and bos_token_id, with which an "
                "empty prompt would begin, is not set."
            )
        values["input_ids"] = torch.full((1, 1), int(cast(int, config.bos_token_id)), device=device)
    return ModelInputs(**values)


def own_criteria(config: GenerationConfig, tokenizer: Any) -> list[Any]:
    """Criteria that settings ask for. The engine itself knows end-of-sequence ids and length."""
    criteria: list[Any] = []
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time, time.time()))
    if config.stop_strings:
        if tokenizer is None:
            raise GenerationError(
                "stop_strings needs to read text: pass the model's tokenizer, "
                "generate(..., tokenizer=tokenizer)."
            )
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
    return criteria


@contextmanager
def restored_on_error(cache: Any) -> Iterator[None]:
    """If anything raises, the rows of ``cache`` are cut to the tokens that they hold now."""
    lengths = [] if cache is None else [(row, row.length) for row in cache.rows]
    try:
        yield
    except BaseException:
        for row, length in lengths:
            row.truncate(length)
        raise


def open_cache(model: GenerationMixin, given: Any, settings: Settings, inputs: ModelInputs) -> Any:
    """The cache that the call continues or fills; None if nobody will see one."""
    config = settings.config
    if given is not None:
        if not hasattr(given, "rows"):
            raise InputTypeError(
                f"past_key_values must be a cache object such as DynamicCache, not {type(given).__name__}."
            )
        for name in ("cache_implementation", "kv_dtype"):
            if getattr(config, name) is not None:
                raise GenerationError(f"Give either past_key_values or {name}, not both.")
        cache = given
    elif config.cache_implementation == "static" and model.static_cache_class is not None:
        cache = model.static_cache_class(model.config.text_config, inputs.columns + settings.max_new_tokens)
    elif config.use_cache and config.return_dict_in_generate:
        cache = model.cache_class()
    else:
        return None
    if given is None:
        cache.stored = kv_dtype(config)
    if not cache.rows and getattr(cache, "get_max_cache_shape", lambda: -1)() > 0:  # allocated at once
        network = cast(Any, model)
        cache.prepare(model.config.text_config, inputs.batch, network.dtype, network.device)
    return cache


def cached_rows(cache: Any) -> list[CachedRow]:
    """What the cache holds of each prompt; nothing if it is new."""
    if cache is None or not cache.rows:
        return []
    deltas = [0] * len(cache.rows) if cache.rope_deltas is None else cache.rope_deltas.flatten().tolist()
    return [CachedRow(kv.length, kv.length + int(d)) for kv, d in zip(cache.rows, deltas, strict=True)]


def kv_dtype(config: GenerationConfig) -> torch.dtype | None:
    """What the setting of that name asks for."""
    return None if config.kv_dtype is None else getattr(torch, config.kv_dtype)


@contextmanager
def measured(model: GenerationMixin, call: Call) -> Iterator[Engine]:
    """An engine for the call, which starts from what earlier calls measured of the models' steps."""
    draft = call.assistant
    with ExitStack() as stack:
        times = stack.enter_context(step_times(model))
        drafts = None if draft is None or draft is model else stack.enter_context(step_times(draft))
        settings = replace(model.engine_settings or EngineSettings(), kv_dtype=kv_dtype(call.config))
        yield Engine(cast(Any, model), settings, draft=draft, times=times, draft_times=drafts)


def start(engine: Engine, call: Call, streamer: Any) -> Run:
    """The call's requests, ready to be put into the engine."""
    assistant = None if call.assistant is None else assistant_settings(call.config, call.assistant)
    handed_RL, count, beams = call.handed_RL, call.config.num_return_sequences, call.settings.beams > 1
    if streamer is not None and beams:
        raise GenerationError(
            "A streamer cannot follow a beam search, whose best answer is known at the end only."
        )
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise InputTypeError(
            f"streamer needs the methods put and end, which {type(streamer).__name__} lacks."
        )
    requests = []
    for b, prompt in enumerate(call.prompts):
        own = range(b * count, (b + 1) * count)
        requests.append(
            Request(
                prompt,
                [OutputRow(b, handed_RL[r], call.callbacks, beams=beams) for r in own],
                [sampling_params(call.settings, r, call.replaced, assistant) for r in own],
                call.cache.rows[b] if call.cache is not None and call.cache.rows else None,
            )
        )
    stream = None if streamer is None else Stream(streamer, handed_RL, call.settings.pad_id)
    if stream is not None:  # nobody asked for guesses: the streamer is not to notice them
        stream.singly = call.config.prompt_lookup_num_tokens is None and call.assistant is None
    return Run(engine, requests, keep_kv=call.cache is not None, stream=stream)


def _decode(call: Call, run: Run) -> Tensor | GenerateDecoderOnlyOutput:
    run.decode()
    rows = [row for request in run.requests for row in request.rows]
    pad_id = call.settings.pad_id
    if call.cache is not None:
        answer.fill_cache(call.cache, run.kvs, call.prompts, call.real_BL, call.config.num_return_sequences)
    sequences = answer.joined_ids(call.handed_RL, rows, pad_id)
    if not call.config.return_dict_in_generate:
        return sequences
    keep = call.callbacks
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=answer.joined_steps([r.scores for r in rows], pad_id) if keep.keep_scores else None,
        logits=answer.joined_steps([r.logits for r in rows], pad_id) if keep.keep_logits else None,
        past_key_values=call.cache if call.config.use_cache else None,
    )


def _search(call: Call, run: Run) -> Tensor | GenerateBeamDecoderOnlyOutput:
    config, keep = call.config, call.callbacks
    run.search(
        BeamParams(
            num_beams=config.num_beams,
            num_return_sequences=config.num_return_sequences,
            length_penalty=1.0 if config.length_penalty is None else float(config.length_penalty),
            early_stopping=cast(Any, config.early_stopping),
            keep_scores=keep.keep_scores,
            keep_logits=keep.keep_logits,
        )
    )
    rows = [row for request in run.requests for row in request.rows]
    pad_id = call.settings.pad_id
    if call.cache is not None:
        answer.fill_cache(call.cache, run.kvs, call.prompts, call.real_BL, config.num_beams)
    sequences = answer.joined_ids(call.handed_RL, rows, pad_id)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,
        sequences_scores=torch.cat([b.scores_R for b in run.beams]) if keep.keep_scores else None,
        scores=answer.joined_steps([b.step_scores for b in run.beams], pad_id) if keep.keep_scores else None,
        logits=answer.joined_steps([b.step_logits for b in run.beams], pad_id) if keep.keep_logits else None,
        beam_indices=answer.joined_beam_indices(run.beams, config.num_beams, sequences),
        past_key_values=call.cache if config.use_cache else None,
    )
