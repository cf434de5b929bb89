"""The tokenizer of Qwen2 and Qwen2.5-VL: byte-level BPE, run by the ``tokenizers`` package.

Same names and results as transformers' Qwen2TokenizerFast. Beyond it, a MarkedText (what chat.render makes)
is encoded so that special tokens typed by people stay plain text. It knows nothing of pictures.

No call changes the backend's settings, so one tokenizer can serve many threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer

from qvl.errors import InputError, InputTypeError, PromptError
from qvl.processing.features import BatchFeature
from qvl.processing.text import chat
from qvl.processing.text.assistant import add_assistant_masks
from qvl.processing.text.inert import MarkedText, token_pattern
from qvl.processing.text.padding import RowLayout, lengths_kept
from qvl.processing.text.vocabulary import Vocabulary

# What `clean_up_tokenization_spaces` joins again (the rule is for English and comes from BERT's vocabulary).
SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
# Where the names of results differ from those of the tokenizers package.
COLUMNS = MappingProxyType({"ids": "input_ids", "type_ids": "token_type_ids", "offsets": "offset_mapping"})
Text = str | MarkedText | Sequence[str]


class Qwen2TokenizerFast(Vocabulary):
    """Text to token ids and back. For what it is made from, see Vocabulary."""

    def __call__(
        self,
        text: Text | Sequence[Text],
        text_pair: Text | Sequence[Text] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool = False,
    ) -> BatchFeature:
        """Token ids of one text or a batch, as lists or (``return_tensors``) int64 tensors (B, L).

        ``text``: a string, a list of strings, or lists of words with ``is_split_into_words``. ``padding``:
        True or "longest", "max_length", False. ``truncation``: True or "longest_first", "only_first",
        "only_second", False. ``max_length`` in tokens. ``offset_mapping`` counts characters.
        ``return_overflowing_tokens``: what was cut off follows in rows of its own, each beginning with the
        last ``stride`` tokens of the row before; ``overflow_to_sample_mapping`` says whose they are.
        ``split_special_tokens`` reads special tokens as plain text.
        """
        texts, pairs, batched = _as_batch(text, text_pair, is_split_into_words)
        layout = RowLayout.of(
            padding,
            truncation,
            max_length,
            pad_to_multiple_of,
            padding_side or self.padding_side,
            self.model_max_length,
        )
        split = (is_split_into_words, split_special_tokens)
        firsts = self._encodings(texts, *split)
        seconds = self._encodings(pairs, *split) if pairs else [None] * len(texts)
        encodings = [
            self._joined(first, second, add_special_tokens, layout, stride)
            for first, second in zip(firsts, seconds, strict=True)
        ]
        samples = list(range(len(encodings)))
        if return_overflowing_tokens:
            samples = [index for index in samples for _ in range(1 + len(encodings[index].overflowing))]
            encodings = [part for encoding in encodings for part in (encoding, *encoding.overflowing)]
        wanted = {
            "ids": True,
            "type_ids": self._wants("token_type_ids", return_token_type_ids),
            "attention_mask": self._wants("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offsets": return_offsets_mapping,
        }
        rows = {
            COLUMNS.get(name, name): [getattr(encoding, name) for encoding in encodings]
            for name, want in wanted.items()
            if want
        }
        rows = layout.pad(rows, self._fillers(layout))
        if return_length:
            rows["length"] = [len(row) for row in rows["input_ids"]]
        if return_overflowing_tokens:
            rows["overflow_to_sample_mapping"] = samples
            batched = True
        if not batched and return_tensors is None:
            return BatchFeature({name: values[0] for name, values in rows.items()})
        return BatchFeature(rows, return_tensors)

    def encode(
        self, text: Text, text_pair: Text | None = None, add_special_tokens: bool = True, **kwargs: Any
    ) -> Any:
        """The token ids alone: a list, or a tensor (1, L) with ``return_tensors``."""
        return self(text, text_pair, add_special_tokens, **kwargs)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens as byte-level text."""
        return self.convert_ids_to_tokens(self.encode(text, pair, add_special_tokens=add_special_tokens))

    def _wants(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _fillers(self, layout: RowLayout) -> dict[str, Any]:
        if layout.padding and self.pad_token_id is None:
            raise InputError(
                "Padding needs a padding token: set tokenizer.pad_token, for example to its eos_token"
            )
        return {
            "input_ids": self.pad_token_id,
            "token_type_ids": 0,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }

    def _encodings(self, texts: Sequence[Text], words: bool, blind: bool) -> list[Encoding]:
        """One encoding for each text, without what a template of the vocabulary would add."""
        if any(isinstance(text, MarkedText) for text in texts):
            return [
                self._encode_marked(t) if isinstance(t, MarkedText) else self._encode(t, blind) for t in texts
            ]
        backend = self._blind() if blind else self._backend
        return backend.encode_batch(list(texts), is_pretokenized=words, add_special_tokens=False)

    def _encode(self, text: Any, blind: bool) -> Encoding:
        backend = self._blind() if blind else self._backend
        return backend.encode(text, add_special_tokens=False)

    def _encode_marked(self, text: MarkedText) -> Encoding:
        """Pieces with typed special tokens are encoded as plain text, all others as always."""
        pattern = re.compile(f"({token_pattern(self.control_tokens())})")
        pieces = [self._encode(piece, blind) for piece, blind in text.pieces(pattern)]
        return pieces[0] if len(pieces) == 1 else Encoding.merge(pieces, growing_offsets=True)

    def _blind(self) -> Tokenizer:
        """A copy of the backend that reads special tokens as plain text; made when first needed (under 1 s).

        A copy, since switching the one backend back and forth would be seen by other threads.
        """
        if self._blind_backend is None:
            blind = Tokenizer.from_str(self._backend.to_str())
            blind.encode_special_tokens = True
            self._blind_backend = blind
        return self._blind_backend

    def _joined(
        self, first: Encoding, second: Encoding | None, add_special: bool, layout: RowLayout, stride: int
    ) -> Encoding:
        """Both sequences cut to the layout's length and joined as the vocabulary's post-processor does it."""
        if layout.truncation and layout.max_length is not None:
            added = self._backend.num_special_tokens_to_add(second is not None) if add_special else 0
            room = layout.max_length - added
            kept = lengths_kept(len(first), None if second is None else len(second), room, layout.truncation)
            for encoding, length in zip((first, second), kept, strict=True):
                if encoding is not None and length < len(encoding):
                    _check_stride(stride, length)
                    encoding.truncate(length, stride=stride, direction=self.truncation_side)
        return self._backend.post_process(first, second, add_special)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pads what was encoded before: a mapping of rows, or a list of mappings from a data loader."""
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {name: [item[name] for item in encoded_inputs] for name in encoded_inputs[0]}
        if "input_ids" not in encoded_inputs:
            raise InputError(f"pad needs input_ids, but got only {', '.join(encoded_inputs) or 'nothing'}")
        rows = {name: _as_lists(value) for name, value in encoded_inputs.items()}
        single = bool(rows["input_ids"]) and not isinstance(rows["input_ids"][0], list)
        if single:
            rows = {name: [value] for name, value in rows.items()}
        if self._wants("attention_mask", return_attention_mask) and "attention_mask" not in rows:
            rows["attention_mask"] = [[1] * len(row) for row in rows["input_ids"]]
        side = padding_side or self.padding_side
        layout = RowLayout.of(padding, False, max_length, pad_to_multiple_of, side, self.model_max_length)
        rows = layout.pad(rows, self._fillers(layout))
        return BatchFeature({name: v[0] for name, v in rows.items()} if single else rows, return_tensors)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of token ids (int, list, NumPy array or tensor). Ids that no token has are left out."""
        ids = _as_lists(token_ids)
        text = self._backend.decode(
            ids if isinstance(ids, list) else [ids], skip_special_tokens=skip_special_tokens
        )
        cleans = (
            self.clean_up_tokenization_spaces
            if clean_up_tokenization_spaces is None
            else clean_up_tokenization_spaces
        )
        if cleans:
            for spaced in SPACED:
                text = text.replace(spaced, spaced.strip())
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """``decode`` for every row."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The template that ``apply_chat_template`` would use."""
        return chat.choose_template(self.chat_template, chat_template, tools=tools is not None)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """One conversation or a batch as text or, by default, as token ids; ``kwargs`` go to the template.

        Special tokens inside messages stay text when tokenizing. ``return_dict`` gives a BatchFeature, with
        ``assistant_masks`` if asked (1 for tokens inside the template's generation blocks).
        """
        if return_assistant_tokens_mask and not (return_dict and tokenize and not continue_final_message):
            raise PromptError(
                "return_assistant_tokens_mask needs tokenize=True and return_dict=True, and no "
                "continue_final_message"
            )
        if return_dict and not tokenize:
            raise PromptError(
                "return_dict=True needs tokenize=True: without token ids there is nothing to name"
            )
        options = chat.RenderOptions(
            tools,
            documents,
            add_generation_prompt,
            continue_final_message,
            {**self.special_tokens_map, **kwargs},
        )
        template, control = self.get_chat_template(chat_template, tools), self.control_tokens()
        batched = chat.is_batch(conversation)
        texts = [
            chat.render(one, template, options, control)
            for one in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return [str(text) for text in texts] if batched else str(texts[0])
        given = dict(tokenizer_kwargs or {})
        if return_assistant_tokens_mask:
            given["return_offsets_mapping"] = True
        encoded = self(
            texts,
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            **given,
        )
        if return_assistant_tokens_mask:
            add_assistant_masks(
                encoded, texts, keep_offsets=bool((tokenizer_kwargs or {}).get("return_offsets_mapping"))
            )
        if not batched and return_tensors is None:
            encoded = BatchFeature({name: rows[0] for name, rows in encoded.items()})
        encoded.convert_to_tensors(return_tensors)
        return encoded if return_dict else encoded["input_ids"]


def _check_stride(stride: int, length: int) -> None:
    if not 0 <= stride < max(length, 1):
        raise InputError(
            f"stride must be at least 0 and less than the {length} tokens of a row, got {stride}"
        )


def _as_batch(text: Any, pair: Any, words: bool) -> tuple[list[Any], list[Any] | None, bool]:
    """(texts, pairs or None, whether the caller gave a batch)."""
    if isinstance(text, str | MarkedText) or (words and text and isinstance(text[0], str)):
        return [text], None if pair is None else [pair], False
    if not isinstance(text, list | tuple):
        raise InputTypeError(
            f"text must be a string, a list of strings or lists of words, not {type(text).__name__}"
        )
    texts = list(text)
    if pair is not None and (not isinstance(pair, list | tuple) or len(pair) != len(texts)):
        raise InputError(f"text_pair must be a list of as many texts as text has ({len(texts)})")
    if not words and pair is None and texts and all(_is_pair(item) for item in texts):
        return [item[0] for item in texts], [item[1] for item in texts], True
    for item in texts:
        if not (isinstance(item, str | MarkedText) or words):
            raise InputTypeError(
                f"text must hold strings, but there is a {type(item).__name__}; for lists of words pass "
                "is_split_into_words=True"
            )
    return texts, None if pair is None else list(pair), True


def _is_pair(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)


def _as_lists(value: Any) -> Any:
    """Plain Python numbers and lists of tensors, arrays and lists of them."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_as_lists(item) for item in value] if value and not isinstance(value[0], int) else list(value)
    return value
