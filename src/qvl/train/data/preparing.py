"""One row made ready for the encoder: its tools in words, its boxes in place, its length known before pixels.

A pure function of the row, the encoder and the settings, so that every process prepares the same sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.errors import PromptError, PromptTooLongError
from qvl.processing.measuring import Measure, Measured
from qvl.processing.rows import Row
from qvl.processing.text import chat
from qvl.processing.text.messages import find_media, without_sources
from qvl.processing.text.tooltext import openai_calls, reads_tools, with_tools
from qvl.train.data.boxes import has_boxes, with_boxes
from qvl.train.data.settings import DataSettings
from qvl.train.encode import Encoder
from qvl.train.sample import IGNORED
from qvl.types import Modality

Messages = list[dict[str, Any]]
ATTEMPTS = 4  # at shrinking: smaller pictures have shorter numbers in their boxes, or longer ones


@dataclass(frozen=True)
class Prepared:
    """A row as the encoder takes it. ``tokens``: of the whole; ``vision``: of media; ``learned``: that count
    in the loss; ``shrunk``: whether media were made smaller to fit."""

    messages: Messages
    tools: list[Any] | None
    media: tuple[Measured, ...]
    tokens: int
    vision: int
    learned: int
    shrunk: bool = False


class Preparer:
    """Prepares rows for one encoder. Safe to use from several threads."""

    def __init__(self, encoder: Encoder, settings: DataSettings) -> None:
        self.encoder, self.settings = encoder, settings
        processor = encoder.processor
        self._measure = Measure(processor, encoder.options)
        self._reads_tools = reads_tools(chat.choose_template(processor.chat_template, None, tools=True))
        self._control = processor.tokenizer.control_tokens()
        self._ids: Mapping[int, Modality] = {
            processor.image_token_id: "image",
            processor.video_token_id: "video",
        }
        positions = encoder.config.text_config.max_position_embeddings
        self.most: int = positions if settings.max_tokens is None else settings.max_tokens

    def messages(self, row: Row) -> tuple[Messages, list[Any] | None]:
        """What the encoder takes; lengths are only found where the row's content depends on them."""
        if self.settings.too_long == "shrink" or has_boxes(row):
            prepared = self(row)
            return prepared.messages, prepared.tools
        return self._told(row.messages, row.tools)

    def __call__(self, row: Row) -> Prepared:
        """Raises PromptTooLongError for a row that is too long and may not or cannot be shrunk, PromptError
        for one that cannot be learned from, MediaError and its kinds for its media.
        """
        usual = [self._measure(item) for item in find_media(row.messages)]
        prepared = self._prepared(row, row.messages, usual, usual)
        if prepared.tokens <= self.most:
            return prepared
        if self.settings.too_long != "shrink" or not usual:
            raise PromptTooLongError(self._too_long(prepared))
        return self._shrunk(row, usual, prepared)

    def _shrunk(self, row: Row, usual: Sequence[Measured], prepared: Prepared) -> Prepared:
        """The row with the largest media smaller, until it fits."""
        room = self.most - (prepared.tokens - prepared.vision)
        for _ in range(ATTEMPTS):
            capped = self._capped(row, usual, room)
            if capped is None:
                break
            messages, media = capped
            found = self._prepared(row, messages, media, usual)
            if found.tokens <= self.most:
                return found
            room -= found.tokens - self.most
        raise PromptTooLongError(
            f"{self._too_long(prepared)}, and its pictures at the least size that the processor makes are "
            "still too many for that"
        )

    def _too_long(self, prepared: Prepared) -> str:
        text = prepared.tokens - prepared.vision
        return f"it has {prepared.tokens:,} tokens ({text:,} of text), more than {self.most:,}"

    def _capped(
        self, row: Row, usual: Sequence[Measured], room: int
    ) -> tuple[Messages, list[Measured]] | None:
        """The row's messages with one limit on the pixels of all media, the largest under which they have at
        most ``room`` tokens; None where there is none.
        """
        items = find_media(row.messages)
        least = [self._measure.least_pixels(item.kind) for item in items]

        def at(pixels: int) -> list[Measured]:
            return [
                self._measure.at_most(item, one, max(pixels, fewest))
                if _area(one) > max(pixels, fewest)
                else one
                for item, one, fewest in zip(items, usual, least, strict=True)
            ]

        def fits(pixels: int) -> bool:
            return sum(one.tokens for one in at(pixels)) <= room

        low, high = 1, max(map(_area, usual))
        if not fits(low):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        limits = [
            max(low, fewest) if _area(one) > max(low, fewest) else None
            for one, fewest in zip(usual, least, strict=True)
        ]
        return _with_limits(row.messages, limits), at(low)

    def _prepared(
        self, row: Row, messages: Messages, media: Sequence[Measured], usual: Sequence[Measured]
    ) -> Prepared:
        if has_boxes(row):
            messages = with_boxes(_with(row, messages), media, usual, self.settings)
        messages, tools = self._told(messages, row.tools)
        ids = self._expanded(self._tokens(messages, tools), media)
        learned = sum(target != IGNORED for target in self.encoder.targets(ids))
        if not learned:
            raise PromptError("it has no turn of the assistant, so there is nothing to learn")
        vision = sum(one.tokens for one in media)
        return Prepared(
            messages, tools, tuple(media), len(ids), vision, learned, shrunk=list(media) != list(usual)
        )

    def _told(self, messages: Messages, tools: list[Any] | None) -> tuple[Messages, list[Any] | None]:
        """Tools in the words that the template lacks, as the server does it."""
        speaks = any(m["role"] == "tool" or m.get("tool_calls") for m in messages)
        if not tools and not speaks:
            return messages, None
        if self._reads_tools:
            return openai_calls(messages), tools
        return with_tools(messages, tools or []), None

    def _tokens(self, messages: Messages, tools: list[Any] | None) -> list[int]:
        """The ids, one placeholder for each medium: typed ones are plain text, so all of them are real."""
        processor, options = self.encoder.processor, self.encoder.options
        template = chat.choose_template(
            processor.chat_template, options.get("chat_template"), tools=tools is not None
        )
        variables = {**processor.tokenizer.special_tokens_map, **options}
        text = chat.render(
            without_sources(messages),
            template,
            chat.RenderOptions(tools=tools, variables=variables),
            self._control,
        )
        return list(processor.tokenizer.encode(text, add_special_tokens=False))

    def _expanded(self, ids: Sequence[int], media: Sequence[Measured]) -> list[int]:
        waiting = {
            kind: iter([one.tokens for one in media if one.kind == kind]) for kind in ("image", "video")
        }
        found: list[int] = []
        for token in ids:
            kind = self._ids.get(token)
            found += [token] if kind is None else [token] * next(waiting[kind], 1)
        if any(next(rest, None) is not None for rest in waiting.values()):
            raise PromptError("the chat template leaves out one of its pictures or videos")
        return found


def _area(measured: Measured) -> int:
    width, height = measured.resized
    return width * height


def _with(row: Row, messages: Messages) -> Row:
    return Row(row.line, messages, row.extras, row.tools, row.objects)


def _with_limits(messages: Messages, limits: Sequence[int | None]) -> Messages:
    """The messages with ``max_pixels`` beside each medium that has a limit."""
    waiting = iter(limits)

    def limited(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        limit = next(waiting)
        return part if limit is None else {**part, "max_pixels": limit}

    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [limited(part) for part in message["content"]]}
        for message in messages
    ]
