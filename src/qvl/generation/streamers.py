"""Text while it is being generated: printed, or handed to another thread.

A streamer is given token ids and a decoder of ids (a tokenizer or a processor); it knows no model.
``generate()`` calls ``put`` with the prompt, then with every new token, then ``end``. Text is held back
until it can no longer change: up to the last space, or at once after a line break or a CJK character, so no
character is ever cut.

Legend: B batch, L prompt length.
"""

from __future__ import annotations

from queue import Queue
from typing import Any

import torch

from qvl.errors import GenerationError

# The CJK ideograph blocks, first and last code point (Unicode 15, chapter 18).
CJK_BLOCKS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class BaseStreamer:
    """What ``generate(streamer=...)`` calls. Subclass it to receive ids instead of text."""

    def put(self, value: torch.Tensor) -> None:
        """The prompt, (B, L), in the first call; then (B,) or, with prompt lookup, (1, several) new ids."""
        raise NotImplementedError("a streamer must define put(value)")

    def end(self) -> None:
        """No more tokens will come."""
        raise NotImplementedError("a streamer must define end()")


class TextStreamer(BaseStreamer):
    """Prints the text of one sequence to stdout, word by word.

    ``tokenizer``: anything with ``decode(ids, **decode_kwargs)``. ``skip_prompt``: do not print the prompt.
    Raises GenerationError for a batch of more than one row.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._line_ids: list[int] = []  # ids since the last line break
        self._shown = 0  # characters of their text already handed on
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        ids = _one_row(value, type(self).__name__)
        is_prompt, self._prompt_is_next = self._prompt_is_next, False
        if is_prompt and self.skip_prompt:
            return
        self._line_ids.extend(ids)
        text = self._decoded()
        if text.endswith("\n"):
            self.on_finalized_text(text[self._shown :])
            self._new_line()
            return
        settled = len(text) if text and _is_cjk(text[-1]) else text.rfind(" ") + 1
        piece = text[self._shown : settled]
        self._shown += len(piece)
        self.on_finalized_text(piece)

    def end(self) -> None:
        """Hands on what was held back, then a line break."""
        rest = self._decoded()[self._shown :] if self._line_ids else ""
        self._new_line()
        self._prompt_is_next = True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receives text that will not change any more. Override it to send the text elsewhere."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _decoded(self) -> str:
        text: str = self.tokenizer.decode(self._line_ids, **self.decode_kwargs)
        return text

    def _new_line(self) -> None:
        self._line_ids = []
        self._shown = 0


class TextIteratorStreamer(TextStreamer):
    """Hands the text to whoever iterates over it, usually while ``generate()`` runs in another thread.

    ``timeout``: seconds to wait for the next piece before ``queue.Empty`` is raised; None waits for ever. An
    error that ends ``generate()`` is raised again where the text is read, so the reader never waits in vain.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: Queue[str | BaseException | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(None, timeout=self.timeout)

    def fail(self, error: BaseException) -> None:
        """Called by ``generate()`` when it ends with an error."""
        self._new_line()
        self._prompt_is_next = True
        self.text_queue.put(error)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        if isinstance(piece, BaseException):
            raise piece
        return piece


def _one_row(value: torch.Tensor, name: str) -> list[int]:
    if value.ndim > 1 and value.shape[0] > 1:
        raise GenerationError(f"{name} can show one sequence only, but the batch has {value.shape[0]} rows.")
    ids: list[int] = value.flatten().tolist()
    return ids


def _is_cjk(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in CJK_BLOCKS)
