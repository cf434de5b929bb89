"""A tokenizer's vocabulary, special tokens and files: everything about Qwen2TokenizerFast but encoding.

Holds the backend of the ``tokenizers`` package and the settings of tokenizer_config.json. It knows no
batches, no padding and no messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import AddedToken, Tokenizer

from qvl import hub
from qvl.errors import InputError
from qvl.processing.text import chat, files
from qvl.processing.text.special_tokens import ROLES, SpecialToken, SpecialTokenId, token_text

Self = TypeVar("Self", bound="Vocabulary")


class Vocabulary:
    """Tokens, their ids and their roles.

    Made from a ``tokenizer_file`` (tokenizer.json), from ``vocab_file`` and ``merges_file``, or from a
    ``tokenizer_object`` of the ``tokenizers`` package. Other keyword arguments are those of
    tokenizer_config.json: special tokens, ``additional_special_tokens``, ``added_tokens_decoder``,
    ``model_max_length`` (tokens), ``padding_side``, ``truncation_side``, ``clean_up_tokenization_spaces``,
    ``chat_template``; unknown ones are kept in ``init_kwargs`` and saved again.
    """

    vocab_files_names = {  # noqa: RUF012 (read by people who know transformers)
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    is_fast = True

    bos_token, bos_token_id = SpecialToken(), SpecialTokenId()
    eos_token, eos_token_id = SpecialToken(), SpecialTokenId()
    unk_token, unk_token_id = SpecialToken(), SpecialTokenId()
    sep_token, sep_token_id = SpecialToken(), SpecialTokenId()
    pad_token, pad_token_id = SpecialToken(), SpecialTokenId()
    cls_token, cls_token_id = SpecialToken(), SpecialTokenId()
    mask_token, mask_token_id = SpecialToken(), SpecialTokenId()

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        unk_token: Any = "<|endoftext|>",
        bos_token: Any = None,
        eos_token: Any = "<|endoftext|>",
        pad_token: Any = "<|endoftext|>",
        tokenizer_object: Tokenizer | None = None,
        **kwargs: Any,
    ):
        if tokenizer_object is None:
            self._backend = files.read_backend(tokenizer_file, vocab_file, merges_file)
        else:
            self._backend = Tokenizer.from_str(tokenizer_object.to_str())
        self._backend.no_padding()  # calls lay rows out themselves
        self._backend.no_truncation()
        self._blind_backend: Tokenizer | None = None
        self.init_kwargs: dict[str, Any] = kwargs
        self.model_input_names = list(kwargs.get("model_input_names", ["input_ids", "attention_mask"]))
        self.model_max_length = int(kwargs.get("model_max_length") or 10**30)
        self.padding_side: str = kwargs.get("padding_side", "right")
        self.truncation_side: str = kwargs.get("truncation_side", "right")
        self.clean_up_tokenization_spaces = bool(kwargs.get("clean_up_tokenization_spaces", False))
        self.chat_template = chat.normal_templates(kwargs.get("chat_template"))
        self.name_or_path = str(kwargs.get("name_or_path", ""))
        self._take_special_tokens(
            kwargs
            | {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        )

    def _take_special_tokens(self, settings: Mapping[str, Any]) -> None:
        """Notes the roles, and adds to the vocabulary what the config knows and tokenizer.json does not."""
        self._special: dict[str, str] = {}
        for role in ROLES:
            setattr(self, role, settings.get(role))
        listed = settings.get("additional_special_tokens") or []
        self.additional_special_tokens = [text for text in map(token_text, listed) if text is not None]
        self.extra_special_tokens = dict(settings.get("extra_special_tokens") or {})
        for name, token in self.extra_special_tokens.items():
            setattr(self, name, token_text(token))
        known = self._backend.get_added_tokens_decoder().values()
        known_texts = {token.content for token in known}
        special = set(self.all_special_tokens)
        for token in files.parse_added_tokens(settings.get("added_tokens_decoder") or {}):
            if token.content not in known_texts:
                self._add(token, special=token.special or token.content in special)
                known_texts.add(token.content)
        for text in self.all_special_tokens:
            if text not in known_texts:
                self._add(AddedToken(text, special=True, normalized=False), special=True)
        for name, token in self.extra_special_tokens.items():
            setattr(self, f"{name}_id", self.convert_tokens_to_ids(token_text(token)))

    @classmethod
    def from_pretrained(
        cls: type[Self], pretrained_model_name_or_path: str | Path, *inputs: Any, **kwargs: Any
    ) -> Self:
        """Loads from a folder or a hub id; other keyword arguments win over tokenizer_config.json."""
        kwargs.pop("use_fast", None)
        folder = hub.holding(pretrained_model_name_or_path, files.VOCABULARY_FILES, **hub.pop_options(kwargs))
        settings = files.read_settings(folder)
        if (templates := chat.read_templates(folder, legacy=False)) is not None:
            settings["chat_template"] = templates
        return cls(*inputs, **{**settings, "name_or_path": str(pretrained_model_name_or_path), **kwargs})

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Writes all files that any loader of this tokenizer reads; returns their paths."""
        left_out = {"name_or_path", *self.vocab_files_names}
        config = {name: value for name, value in self.init_kwargs.items() if name not in left_out}
        roles: dict[str, Any] = {role: getattr(self, role) for role in ROLES}
        shared = {
            "additional_special_tokens": self.additional_special_tokens,
            **{name: token_text(token) for name, token in self.extra_special_tokens.items()},
        }
        templates: Any = self.chat_template
        if isinstance(templates, dict):
            templates = [{"name": name, "template": text} for name, text in templates.items()]
        config |= roles | shared
        config |= {
            "extra_special_tokens": self.extra_special_tokens,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "tokenizer_class": "Qwen2Tokenizer",
        } | ({"chat_template": templates} if templates is not None else {})
        given = {role: token for role, token in roles.items() if token is not None}
        return tuple(files.write(Path(save_directory), self._backend, config, given | shared))

    # Vocabulary

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The object of the ``tokenizers`` package that does the work."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """The size of the vocabulary with added tokens (asking the backend would rebuild the table)."""
        model = self._backend.model
        added = self._backend.get_added_tokens_decoder().values()
        return self.vocab_size + sum(model.token_to_id(token.content) is None for token in added)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return dict(sorted(self._backend.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The special tokens by role, as chat templates get them."""
        found: dict[str, Any] = {role: self._special[role] for role in ROLES if role in self._special}
        if self.additional_special_tokens:
            found["additional_special_tokens"] = list(self.additional_special_tokens)
        return found | {name: token_text(token) for name, token in self.extra_special_tokens.items()}

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: the roles, then the additional ones."""
        named = [self._special[role] for role in ROLES if role in self._special]
        extra = [text for text in map(token_text, self.extra_special_tokens.values()) if text is not None]
        return list(dict.fromkeys([*named, *self.additional_special_tokens, *extra]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def control_tokens(self) -> list[str]:
        """The tokens that no message may type: those that the vocabulary declares special."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values() if token.special]

    def add_tokens(self, new_tokens: str | AddedToken | Sequence[Any], special_tokens: bool = False) -> int:
        """Adds tokens to the vocabulary; returns how many were new."""
        tokens = new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens]
        return sum(self._add(token, special=special_tokens) for token in tokens)

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Gives tokens their roles and adds those that are new; returns how many were."""
        added = 0
        for role, value in special_tokens_dict.items():
            if role == "additional_special_tokens":
                texts = [text for text in map(token_text, value) if text is not None]
                kept = [] if replace_additional_special_tokens else self.additional_special_tokens
                self.additional_special_tokens = list(dict.fromkeys([*kept, *texts]))
                added += sum(self._add(token, special=True) for token in value)
            elif role in ROLES:
                setattr(self, role, value)
                added += self._add(value, special=True)
            else:
                raise InputError(f"{role!r} is no role of a special token; roles: {', '.join(ROLES)}")
        return added

    def __getstate__(self) -> dict[str, Any]:
        """Without the blind copy of the backend: a copied or unpickled one would see special tokens again."""
        return {**self.__dict__, "_blind_backend": None}

    def _add(self, token: str | AddedToken | Mapping[str, Any], *, special: bool) -> int:
        self._blind_backend = None
        if isinstance(token, Mapping):
            (token,) = files.parse_added_tokens({0: token})
        new = self._backend.token_to_id(str(token_text(token))) is None
        if special:
            self._backend.add_special_tokens([token])
        else:
            self._backend.add_tokens([token])
        return int(new)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the ids of several; the unknown token's id (or None) for others."""
        if isinstance(tokens, str):
            index = self._backend.token_to_id(tokens)
            if index is None and tokens != self.unk_token:
                return self.unk_token_id
            return index
        return None if tokens is None else [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several (byte-level text, None for unknown ids)."""
        if isinstance(ids, int | np.integer):
            return self._backend.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.id_to_token(int(index)) for index in ids if int(index) not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._backend.decoder.decode(tokens)
