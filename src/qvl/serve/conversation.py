"""From the checked messages of a request to the prompt that the engine continues, or to what it would cost.

The template is the checkpoint's, and what people type stays text: special tokens in it never become control
tokens. Nothing here opens a medium; `MediaService` does. Heavy work runs off the event loop.

Legend: T tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvl.errors import PlaceholderMismatchError, PromptError, PromptTooLongError
from qvl.processing.positions import multimodal_positions
from qvl.processing.text import chat
from qvl.processing.text.inert import strings
from qvl.processing.text.tooltext import openai_calls, reads_tools, with_tools
from qvl.serve.errors import RequestError
from qvl.serve.jobs import Backend
from qvl.serve.media.requests import MediaRequest, MediumCost
from qvl.serve.messages import ReadMessages, read_messages
from qvl.serve.protocol.content import Message, ProcessorOptions
from qvl.serve.sampling import context_length
from qvl.types import Grid, Medium, Modality, Prompt, Span


@dataclass(frozen=True)
class Conversation:
    """What a request says that becomes its prompt. ``tools``: as `qvl.serve.tools.described` gives them."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    options: ProcessorOptions | None = None  # of all media
    start_answer: bool = True
    continue_final: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    places: Sequence[str] = ()  # of the messages in the request, for errors; empty: messages[0] ...


@dataclass(frozen=True)
class Cost:
    """What a prompt takes. ``media``: each request with its costs, one for each page of a file."""

    token_ids: tuple[int, ...]
    media: tuple[tuple[MediaRequest, tuple[MediumCost, ...]], ...] = ()


class Conversations:
    """Makes prompts for one model."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._limits = backend.settings.limits
        self._processor = backend.processor
        self._template = chat.choose_template(self._processor.chat_template, None)
        self._tools_template = chat.choose_template(self._processor.chat_template, None, tools=True)
        self._reads_tools = reads_tools(self._tools_template)
        config = backend.config
        self._ids: dict[Modality, int] = {"image": config.image_token_id, "video": config.video_token_id}
        self.context = context_length(config, self._limits, backend.service.capacity)
        # No token stands for more bytes, so a text of more than so many for each token cannot fit.
        self._longest_token = max(map(len, self._processor.tokenizer.get_vocab()))

    async def prompt(self, conversation: Conversation) -> Prompt:
        """The prompt, with its media decoded. Raises PromptTooLongError before anything is decoded where the
        text alone is too long, and MediaErrors with the place of the medium."""
        read, ids = await asyncio.to_thread(self._read_and_tokenize, conversation)
        if not read.requests:
            return await asyncio.to_thread(self._prompt, ids, ())
        prepared = await self._media().prepare(read.requests, most_tokens=self.context - len(ids))
        pages = [len(one.media) for one in prepared]
        media = tuple(medium for one in prepared for medium in one.media)
        return await asyncio.to_thread(self._prompt_with_media, conversation, read, ids, pages, media)

    async def cost(self, conversation: Conversation) -> Cost:
        """What the prompt takes, without decoding a picture."""
        read, ids = await asyncio.to_thread(self._read_and_tokenize, conversation)
        if not read.requests:
            return Cost(tuple(ids))
        costs = await self._media().measure(read.requests)
        pages = [len(each) for each in costs]
        grids = [(cost.kind, cost.grid) for each in costs for cost in each]
        ids = await asyncio.to_thread(self._with_pages, conversation, read, ids, pages)
        whole, _ = self._expand(ids, grids)
        each = ((request, tuple(cost)) for request, cost in zip(read.requests, costs, strict=True))
        return Cost(tuple(whole), tuple(each))

    async def text_prompt(self, prompt: str | Sequence[int]) -> Prompt:
        """A prompt of text or token ids as they are. Raises PromptError for ids that no token has."""
        ids = await asyncio.to_thread(self.text_ids, prompt)
        return await asyncio.to_thread(self._prompt, ids, ())

    def text_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a text in which special tokens count as such; given ids checked."""
        if isinstance(prompt, str):
            self._check_characters(prompt)
        ids = self._encode(prompt) if isinstance(prompt, str) else list(prompt)
        size = self._backend.config.text_config.vocab_size
        if not ids:
            raise RequestError("The prompt is empty: give at least one token to continue.", "prompt")
        if max(ids) >= size:
            raise RequestError(f"Token id {max(ids)} is not in the vocabulary of {size:,}.", "prompt")
        if set(self._ids.values()) & set(ids):
            raise RequestError(
                "The prompt holds the placeholder of a picture or video: send media with "
                "/v1/chat/completions.",
                "prompt",
            )
        return self._fitting(ids)

    # From messages to ids

    def _read_and_tokenize(self, conversation: Conversation) -> tuple[ReadMessages, list[int]]:
        if len(conversation.messages) > self._limits.messages:
            raise RequestError(
                f"The request has {len(conversation.messages):,} messages, and at most "
                f"{self._limits.messages:,} may be in one.",
                "messages",
                "too_large",
            )
        read = read_messages(conversation.messages, conversation.options, conversation.places)
        if len(read.requests) > self._limits.media:
            raise RequestError(
                f"The request holds {len(read.requests):,} pictures, videos and files, and "
                f"{self._limits.media:,} may be in one.",
                "messages",
                "too_large",
            )
        return read, self._tokenize(conversation, read.messages, [1] * len(read.requests))

    def _with_pages(
        self, conversation: Conversation, read: ReadMessages, ids: list[int], pages: Sequence[int]
    ) -> list[int]:
        if all(count == 1 for count in pages):
            return ids
        if sum(pages) > self._limits.media:
            raise RequestError(
                f"The request holds {sum(pages):,} pictures, videos and pages, and at most "
                f"{self._limits.media:,} may be in one; name fewer in pages.",
                "messages",
                "too_large",
            )
        return self._tokenize(conversation, read.messages, pages)

    def _tokenize(
        self, conversation: Conversation, messages: list[dict[str, Any]], pages: Sequence[int]
    ) -> list[int]:
        """The ids, one placeholder for each medium: typed ones are plain text, so all of them are real."""
        paged = _paged(messages, pages)
        told = self._reads_tools and bool(conversation.tools or _speaks_of_tools(paged))
        options = chat.RenderOptions(
            tools=list(map(dict, conversation.tools)) if told and conversation.tools else None,
            add_generation_prompt=conversation.start_answer and not conversation.continue_final,
            continue_final_message=conversation.continue_final,
            variables={**self._processor.tokenizer.special_tokens_map, **conversation.variables},
        )
        self._check_characters(paged)
        text = chat.render(
            openai_calls(paged) if told else with_tools(paged, conversation.tools),
            self._tools_template if told else self._template,
            options,
            self._processor.tokenizer.control_tokens(),
        )
        return self._fitting(self._encode(text))

    def _check_characters(self, value: Any) -> None:
        """PromptTooLongError for what need not be read to know that it is too long."""
        characters = sum(map(len, strings(value)))
        if characters > self.context * self._longest_token:
            raise PromptTooLongError(
                f"The prompt has {characters:,} characters, far more than fit into the context of "
                f"{self.context:,} tokens; shorten the text."
            )

    def _encode(self, text: Any) -> list[int]:
        return list(self._processor.tokenizer.encode(text, add_special_tokens=False))

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) > self.context:
            raise PromptTooLongError(
                f"The prompt has {len(ids):,} tokens, but the context is {self.context:,}; shorten "
                "the text, or use fewer or smaller pictures."
            )
        return ids

    # From ids to a prompt

    def _prompt_with_media(
        self,
        conversation: Conversation,
        read: ReadMessages,
        ids: list[int],
        pages: Sequence[int],
        media: tuple[Medium, ...],
    ) -> Prompt:
        return self._prompt(self._with_pages(conversation, read, ids, pages), media)

    def _prompt(self, ids: Sequence[int], media: tuple[Medium, ...]) -> Prompt:
        vision = self._backend.config.vision_config
        whole, spans = self._expand(ids, [(medium.kind, medium.grid) for medium in media])
        positions_3T, delta = multimodal_positions(
            len(whole),
            spans,
            [medium.grid for medium in media],
            [medium.seconds_per_grid for medium in media],
            merge_size=vision.spatial_merge_size,
            tokens_per_second=vision.tokens_per_second,
        )
        return Prompt(tuple(self._fitting(whole)), positions_3T, delta, spans, media)

    def _expand(
        self, ids: Sequence[int], grids: Sequence[tuple[Modality, Grid]]
    ) -> tuple[list[int], tuple[Span, ...]]:
        """Each placeholder as often as its medium has tokens, and where the media then stand."""
        kinds: dict[int, Modality] = {number: kind for kind, number in self._ids.items()}
        merge = self._backend.config.vision_config.spatial_merge_size
        waiting = iter(grids)
        whole: list[int] = []
        spans: list[Span] = []
        for token in ids:
            if token not in kinds:
                whole.append(token)
                continue
            kind, grid = next(waiting, (None, None))
            if grid is None or kind != kinds[token]:
                raise PlaceholderMismatchError("The chat template does not place the media of this request.")
            spans.append(Span(kinds[token], len(whole), grid.tokens(merge)))
            whole.extend([token] * spans[-1].length)
        if next(waiting, None) is not None:
            raise PlaceholderMismatchError("The chat template does not place the media of this request.")
        return whole, tuple(spans)

    def _media(self) -> Any:
        if self._backend.media is None:
            raise PromptError("This server reads no pictures, videos or files.")
        return self._backend.media


def _paged(messages: Sequence[Mapping[str, Any]], pages: Sequence[int]) -> list[dict[str, Any]]:
    """Every file as so many pictures, the other media once; each with the key that templates look for."""
    counts = iter(pages)
    found = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [copy for item in content for copy in _copies(item, counts)]
        found.append({**message, "content": content})
    return found


def _copies(item: dict[str, Any], counts: Any) -> list[dict[str, Any]]:
    if item["type"] == "text":
        return [item]
    kind = "image" if item["type"] == "file" else item["type"]
    return [{"type": kind, kind: ""}] * next(counts)


def _speaks_of_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
