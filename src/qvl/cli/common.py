"""What ``ask`` and ``chat`` share: loading, generation settings, one streamed answer.

Everything heavy is imported inside the functions; the caller has checked its arguments before.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.cli.collector import started
from qvl.cli.failures import INTERRUPTED
from qvl.cli.progress import Bar
from qvl.cli.streams import say
from qvl.errors import InputError

if TYPE_CHECKING:
    from qvl.cli.options import KvDtype
    from qvl.generation.config import GenerationConfig
    from qvl.modeling import Qwen2_5_VLForConditionalGeneration
    from qvl.processing.features import BatchFeature
    from qvl.processing.processor import Qwen2_5_VLProcessor

DEFAULT_MAX_NEW_TOKENS = 1024
STOPPED_BY_EOS, STOPPED_BY_LENGTH, STOPPED_BY_USER = "stop", "length", "interrupted"


@dataclass(frozen=True)
class Loading:
    """Where a model comes from and how it is loaded: the options of the command line."""

    model: str | None = None
    dtype: str = "auto"
    device: str | None = None
    attention: str = "sdpa"
    min_pixels: int | None = None
    max_pixels: int | None = None
    draft: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for option, name in (("--model", self.model), ("--draft", self.draft)):
            if name is not None and not name.strip():
                raise InputError(f"{option} is empty; give a folder or hub id, or leave the option out")

    @property
    def name(self) -> str:
        from qvl.hub import BUNDLED

        return next(iter(BUNDLED)) if self.model is None else self.model

    def announce(self) -> None:
        if self.model is None:
            say(f"qvl: using the small bundled model {self.name}; --model names another")


@dataclass(frozen=True)
class Assistant:
    """A loaded model with its processor."""

    name: str
    model: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2_5_VLProcessor
    drafts: Mapping[str, Any] = field(default_factory=dict)  # arguments of ``generate``, with a draft model


@dataclass
class Answer:
    """One answer, with what it cost. Times are seconds from the start of ``generate``."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: str = STOPPED_BY_EOS
    first_token: float = 0.0
    seconds: float = 0.0
    output: Any = None


def fetch(name: str, patterns: Sequence[str], base: str | None = None) -> str:
    """The local folder of checkpoint ``name``, downloaded where missing, an adapter's base (or ``base``) too.

    Raises what ``hub.resolve`` and ``hub.base_of`` raise.

    Ctrl-C ends the program here: huggingface_hub's threads would hold it up until their files are complete.
    What they have written already is kept for the next time.
    """
    from qvl.hub import ADAPTER_CONFIG, base_of, resolve

    outcome: list[Path | Exception] = []

    def work() -> None:
        try:
            folder = resolve(name, patterns=(*patterns, ADAPTER_CONFIG))
            base_of(folder, base=base, patterns=patterns)
            outcome.append(folder)
        except Exception as error:
            outcome.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        worker.join()
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            say("\n")  # below the bars
        os._exit(INTERRUPTED)
    (found,) = outcome
    if isinstance(found, Exception):
        raise found
    return str(found)


def load_processor(loading: Loading) -> Qwen2_5_VLProcessor:
    """Tokenizer and image sizes: small files, so media can be checked before the weights are read.

    Raises InputError where the limits asked for and those of the checkpoint leave no size at all.
    """
    from qvl.auto import AutoProcessor
    from qvl.hub import SMALL_FILES

    folder = fetch(loading.name, SMALL_FILES)
    given = {"min_pixels": loading.min_pixels, "max_pixels": loading.max_pixels}
    sizes = {name: value for name, value in given.items() if value is not None}
    processor = AutoProcessor.from_pretrained(folder, **sizes)
    least, most = processor.image_processor.min_pixels, processor.image_processor.max_pixels
    if sizes and least > most:
        lower = "--min-pixels" if loading.min_pixels else "the checkpoint's least size of"
        upper = "--max-pixels" if loading.max_pixels else "the checkpoint's largest size of"
        raise InputError(
            f"{lower} {least} is more than {upper} {most}; give --min-pixels and --max-pixels that fit"
        )
    return processor


def load_assistant(loading: Loading, processor: Qwen2_5_VLProcessor) -> Assistant:
    from qvl.auto import AutoModelForImageTextToText
    from qvl.hub import ALL_FILES
    from qvl.pipelines.device import pick_device

    def load(name: str, **options: Any) -> Any:
        return AutoModelForImageTextToText.from_pretrained(
            fetch(name, ALL_FILES),
            dtype=loading.dtype,
            attn_implementation=loading.attention,
            device_map=pick_device(loading.device),
            **options,
        )

    drafts = {} if loading.draft is None else _drafts(loading.draft, processor)
    model = load(loading.name, **_quantization(loading.weights))
    if loading.draft is not None:
        drafts["assistant_model"] = load(loading.draft)
    started()
    return Assistant(loading.name, model, processor, drafts)


def _quantization(weights: str | None) -> dict[str, Any]:
    if weights is None:
        return {}
    from qvl.weights.quantization.config import QuantizationConfig

    return {"quantization_config": QuantizationConfig(weights)}


def _drafts(name: str, processor: Qwen2_5_VLProcessor) -> dict[str, Any]:
    """The tokenizers of both models, for ``generate``. One that differs is told before weights are read."""
    from qvl.auto import AutoTokenizer
    from qvl.hub import SMALL_FILES

    tokenizer = AutoTokenizer.from_pretrained(fetch(name, SMALL_FILES))
    if tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise InputError(f"--draft {name} has another tokenizer than the model; give one with the same")
    return {"assistant_tokenizer": tokenizer, "tokenizer": processor.tokenizer}


def check_text(name: str, text: str) -> None:
    """Raises InputError for bytes of the command line that are no text in its encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds bytes that are not text in this terminal's encoding") from error


def generation_settings(
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    kv_dtype: KvDtype | None = None,
) -> dict[str, Any]:
    """Arguments of ``generate``; only what was given, so that the checkpoint decides the rest.

    Raises GenerationError for values that make no sense, before any model is loaded.
    """
    from qvl.generation.config import GenerationConfig

    settings: dict[str, Any] = {}
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    if seed is not None:
        settings["seed"] = seed
    if kv_dtype is not None:
        settings["kv_dtype"] = kv_dtype.value
    if temperature == 0:
        settings["do_sample"] = False
    elif temperature is not None:
        settings |= {"do_sample": True, "temperature": temperature}
    GenerationConfig(**settings)
    return settings


def tokenized(
    processor: Qwen2_5_VLProcessor, messages: Sequence[Mapping[str, Any]], fps: float | None
) -> BatchFeature:
    """The conversation as input of the model, asking for an answer; special tokens in messages stay text."""
    if fps is not None and not fps > 0:  # also where there is no video that would notice
        raise InputError(f"--fps must be a positive number of frames per second, got {fps:g}")
    options: dict[str, Any] = {} if fps is None else {"fps": fps}
    inputs: BatchFeature = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    return inputs


def generate(
    assistant: Assistant,
    inputs: BatchFeature,
    settings: dict[str, Any],
    show: Callable[[str], None],
    **more: Any,
) -> Answer:
    """Runs ``generate``, handing finished text to ``show`` as it comes. ``more`` goes to ``generate``."""
    inputs = inputs.to(assistant.model.device)
    answer = Answer(prompt_tokens=int(inputs["input_ids"].shape[1]))
    limit = {"max_new_tokens": _longest(assistant.model.generation_config)}
    with Bar(f"reading {answer.prompt_tokens} tokens") as bar:
        streamer = _streamer(assistant.processor, answer, show, bar)
        answer.output = assistant.model.generate(
            **inputs,
            **{**limit, **settings},
            **assistant.drafts,
            streamer=streamer,
            return_dict_in_generate=True,
            **more,
        )
    answer.seconds = time.perf_counter() - streamer.started
    answer.token_ids = answer.output.sequences[0, answer.prompt_tokens :].tolist()
    if len(answer.token_ids) >= {**limit, **settings}["max_new_tokens"]:
        ended = assistant.model.generation_config.eos_token_ids
        answer.finish_reason = STOPPED_BY_EOS if answer.token_ids[-1] in ended else STOPPED_BY_LENGTH
    return answer


def _longest(config: GenerationConfig) -> int:
    return config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS


def _streamer(processor: Any, answer: Answer, show: Callable[[str], None], bar: Bar) -> Any:
    """A streamer that collects the text, tells ``show``, and takes the bar away at the first token."""
    from qvl.generation.streamers import TextStreamer

    class Collector(TextStreamer):
        started = time.perf_counter()

        def progress(self, done: int, total: int) -> None:
            bar.update(done, total)

        def put(self, value: Any) -> None:
            if not self._prompt_is_next and not answer.first_token:
                bar.close()
                answer.first_token = time.perf_counter() - self.started
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            answer.text += text
            if text:
                show(text)

    return Collector(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
