"""The pipeline itself: requests in, records out, one ``generate`` per batch.

It knows nothing of tokens or tensors beyond cutting the prompt off a generated row.
"""

from __future__ import annotations

import copy
import difflib
import enum
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qvl.errors import GenerationError, InputError, InputTypeError
from qvl.generation.config import GenerationConfig
from qvl.generation.generate import GenerationMixin
from qvl.generation.validation import unsupported_settings
from qvl.pipelines.device import pick_device
from qvl.pipelines.requests import Chat, Messages, Plain, Request, loaded, requests_of
from qvl.processing.call_options import parameters

if TYPE_CHECKING:
    from qvl.modeling import Qwen2_5_VLForConditionalGeneration
    from qvl.processing.processor import Qwen2_5_VLProcessor

TASK = "image-text-to-text"
DEFAULT_MAX_NEW_TOKENS = 256
UNSET_MAX_LENGTH = (None, 20)  # what a GenerationConfig says when nobody chose a length

# Arguments of generate() that may stand among the settings of a call; the inputs come from the processor.
GENERATE_NAMES = (
    frozenset(GenerationConfig.names())
    | parameters(GenerationMixin.generate, "inputs", "tokenizer")
    | frozenset(unsupported_settings())
)
DECIDED_HERE = ("conversation", "tokenize", "return_dict", "add_generation_prompt")

Records = list[dict[str, Any]]


class ReturnType(enum.Enum):
    """What a record holds: all token ids, the new text, or the text with what it continues."""

    TENSORS = 0
    NEW_TEXT = 1
    FULL_TEXT = 2


@dataclass(frozen=True)
class Options:
    """One call's settings, sorted by who reads them."""

    style: ReturnType = ReturnType.FULL_TEXT
    continue_final: bool | None = None
    timeout: float | None = None
    processing: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)


class ImageTextToTextPipeline:
    """Answers about pictures, videos and text. Made by ``pipeline("image-text-to-text", ...)``.

    ``defaults`` are settings of ``__call__`` that hold for every call that does not give its own.
    Without a length in the call or in the checkpoint's generation_config.json, at most 256 new tokens.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2_5_VLProcessor,
        *,
        task: str = TASK,
        device: int | str | torch.device | None = None,
        batch_size: int | None = None,
        **defaults: Any,
    ) -> None:
        self.task = task
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.model = model if device is None else model.to(pick_device(device))
        self.generation_config = copy.deepcopy(model.generation_config)
        chosen = self.generation_config
        if chosen.max_new_tokens is None and chosen.max_length in UNSET_MAX_LENGTH:
            chosen.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        self._batch_size = _checked_size(batch_size)
        self._defaults = defaults
        self._options(**defaults)  # settings that make no sense fail here, not at the first call

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(
        self, images: Any = None, text: Any = None, *, batch_size: int | None = None, **settings: Any
    ) -> Any:
        """Continue one or many prompts.

        ``text``: a conversation (list of messages with ``role`` and ``content``), a list of conversations, a
        prompt string or a list of strings. ``images``: the pictures that messages or placeholders without
        their own stand for, as paths, URLs, data URIs, bytes, PIL images or arrays. Both may come as one
        ``{"images": ..., "text": ...}``, as a list of such dicts, or as an iterator, which makes the
        result an iterator too.

        Settings: ``max_new_tokens``, ``generate_kwargs``, ``stop_sequence``, ``return_full_text``,
        ``return_tensors``, ``return_type``, ``continue_final_message`` (by default: when the last message is
        the assistant's), ``clean_up_tokenization_spaces``, ``skip_special_tokens``, ``timeout`` (seconds for
        a picture's URL). Other names that ``generate`` knows go there, the rest to the processor and the chat
        template; a name that nobody reads is an InputTypeError. ``batch_size``: how many prompts of a list
        run together (1).

        Returns, for one prompt, a list of records ``{"input_text": ..., "generated_text": ...}``, one per
        returned sequence; for a list of prompts a list of such lists. ``generated_text`` of a conversation
        is the conversation with the answer, or the answer alone with ``return_full_text=False``. With
        ``return_tensors=True`` a record has ``generated_token_ids`` (prompt and answer) instead.
        """
        options = self._options(**{**self._defaults, **settings})
        size = _checked_size(batch_size, self._batch_size)
        requests = requests_of(images, text)
        if isinstance(requests, (Chat, Plain)):
            return self._run([requests], options)[0]
        answers = self._stream(requests, options, size)
        return answers if isinstance(requests, Iterator) else list(answers)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model and processor into ``folder``."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _stream(self, requests: Iterable[Request], options: Options, size: int) -> Iterator[Records]:
        """Runs of requests that can share a batch, at most ``size`` of them at a time, in order."""
        for _, alike in itertools.groupby(requests, key=lambda one: (type(one), _continues(one, options))):
            while batch := list(itertools.islice(alike, size)):
                yield from self._run(batch, options)

    def _run(self, batch: Sequence[Request], options: Options) -> list[Records]:
        inputs = self._inputs(batch, options).to(self.model.device)
        config = copy.deepcopy(self.generation_config)
        if "max_length" in options.generate:
            config.max_new_tokens = None
        sequences = self.model.generate(**inputs, **{"generation_config": config, **options.generate})
        sequences = getattr(sequences, "sequences", sequences)
        prompts = [prompt for one in batch for prompt in _prompts(one)]
        per_prompt = len(sequences) // len(prompts)
        prompt_length = inputs["input_ids"].shape[1]
        rows = [sequences[i : i + per_prompt] for i in range(0, len(sequences), per_prompt)]
        records = iter(
            [self._records(p, r, prompt_length, options) for p, r in zip(prompts, rows, strict=True)]
        )
        return [list(itertools.chain(*itertools.islice(records, len(_prompts(one))))) for one in batch]

    def _inputs(self, batch: Sequence[Request], options: Options) -> Any:
        first = batch[0]
        if isinstance(first, Chat):
            chats = [one.messages for one in batch if isinstance(one, Chat)]
            continues = _continues(first, options)
            return self.processor.apply_chat_template(
                chats,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **{"padding": len(chats) > 1, **options.processing},
            )
        plain = [one for one in batch if isinstance(one, Plain)]
        texts = [text for one in plain for text in one.texts]
        images = [image for one in plain for image in loaded(one.images, options.timeout)]
        settings = {"padding": len(texts) > 1, "return_tensors": "pt", **options.processing}
        return self.processor(images=images or None, text=texts, **settings)

    def _records(
        self, prompt: Messages | str, sequences: torch.Tensor, prompt_length: int, options: Options
    ) -> Records:
        if options.style is ReturnType.TENSORS:
            return [{"input_text": prompt, "generated_token_ids": row} for row in sequences]
        answers = self.processor.post_process_image_text_to_text(
            sequences[:, prompt_length:], **{"skip_special_tokens": True, **options.decoding}
        )
        if options.style is ReturnType.NEW_TEXT:
            return [{"input_text": prompt, "generated_text": answer} for answer in answers]
        return [{"input_text": prompt, "generated_text": _full(prompt, a, options)} for a in answers]

    def _options(
        self,
        *,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        stop_sequence: str | None = None,
        timeout: float | None = None,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        return_type: ReturnType | None = None,
        continue_final_message: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        skip_special_tokens: bool | None = None,
        **rest: Any,
    ) -> Options:
        direct = {name: value for name, value in rest.items() if name in GENERATE_NAMES}
        processing = {name: value for name, value in rest.items() if name not in direct}
        self._refuse_unknown(processing)
        if generate_kwargs is not None and not isinstance(generate_kwargs, Mapping):
            raise InputTypeError(
                f"generate_kwargs must be a dictionary of generate()'s arguments, not {generate_kwargs!r:.80}"
            )
        if max_new_tokens is not None:
            direct["max_new_tokens"] = max_new_tokens
        generate = dict(generate_kwargs or {})
        if twice := sorted(direct.keys() & generate.keys()):
            raise GenerationError(
                f"{', '.join(twice)}: given both directly and in generate_kwargs; give it once"
            )
        if stop_sequence is not None:
            direct |= {"stop_strings": [stop_sequence], "tokenizer": self.tokenizer}
        if "assistant_model" in direct or "assistant_model" in generate:
            direct.setdefault("tokenizer", self.tokenizer)
        spaces = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        decoding = {**spaces, "skip_special_tokens": skip_special_tokens}
        return Options(
            style=_style(return_type, return_full_text, return_tensors),
            continue_final=continue_final_message,
            timeout=timeout,
            processing=processing,
            decoding={name: value for name, value in decoding.items() if value is not None},
            generate=generate | direct,
        )

    def _refuse_unknown(self, settings: Mapping[str, Any]) -> None:
        """A name that neither the processor nor the chat template reads is a mistake."""
        processor = self.processor
        read = processor.option_names | parameters(processor.apply_chat_template, *DECIDED_HERE)
        template = str(processor.chat_template)
        for name in settings:
            if name in DECIDED_HERE or not (name in read or re.search(rf"\b{re.escape(name)}\b", template)):
                own = parameters(self._options) | parameters(self.__call__)
                near = difflib.get_close_matches(name, own | read | GENERATE_NAMES, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InputTypeError(f"the pipeline has no setting {name}{hint}")


def _checked_size(*sizes: int | None) -> int:
    """The first size that was given, 1 if none was."""
    size = next((size for size in sizes if size is not None), 1)
    if not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size must be an integer of at least 1, got {size!r}")
    return size


def _style(return_type: ReturnType | None, full_text: bool | None, tensors: bool | None) -> ReturnType:
    if tensors and full_text is not None:
        raise InputError("return_full_text and return_tensors exclude each other; give one of them")
    if return_type is not None:
        if not isinstance(return_type, ReturnType):
            raise InputTypeError(f"return_type must be a ReturnType, not {return_type!r}")
        return return_type
    if tensors:
        return ReturnType.TENSORS
    return ReturnType.NEW_TEXT if full_text is False else ReturnType.FULL_TEXT


def _prompts(request: Request) -> Sequence[Messages | str]:
    return [request.messages] if isinstance(request, Chat) else request.texts


def _continues(request: Request, options: Options) -> bool:
    if not isinstance(request, Chat):
        return False
    if options.continue_final is not None:
        return options.continue_final
    return request.messages[-1]["role"] == "assistant"


def _full(prompt: Messages | str, answer: str, options: Options) -> Messages | str:
    """The prompt with its answer: text joined to text, a new message, or the last message grown longer."""
    if isinstance(prompt, str):
        return prompt + answer
    if not _continues(Chat(prompt), options):
        return [*prompt, {"role": "assistant", "content": answer}]
    last = prompt[-1]
    return [*prompt[:-1], {**last, "content": _grown(last["content"], answer)}]


def _grown(content: Any, answer: str) -> Any:
    if isinstance(content, str):
        return content + answer
    at = max(i for i, entry in enumerate(content) if "text" in entry)
    return [*content[:at], {**content[at], "text": content[at]["text"] + answer}, *content[at + 1 :]]
