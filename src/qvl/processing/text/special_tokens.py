"""Special tokens by role (``eos_token``, ``pad_token`` ...): attributes of a tokenizer, as text and as id.

Knows the roles and nothing of encoding. A class that uses these descriptors keeps the texts in
``_special: dict[str, str]`` and offers ``convert_tokens_to_ids`` and ``convert_ids_to_tokens``.
"""

from __future__ import annotations

from typing import Any

from qvl.errors import InputTypeError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def token_text(token: Any) -> str | None:
    """The text of a token given as text, as an AddedToken or as the table that config files have."""
    if token is None or isinstance(token, str):
        return token
    content = token.get("content") if isinstance(token, dict) else getattr(token, "content", None)
    if not isinstance(content, str):
        raise InputTypeError(f"A special token must be a string or an AddedToken, not {type(token).__name__}")
    return content


class SpecialToken:
    """The text of one role; None where the tokenizer has no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, tokenizer: Any, owner: type | None = None) -> str | None:
        return tokenizer._special.get(self.role) if tokenizer is not None else None

    def __set__(self, tokenizer: Any, token: Any) -> None:
        text = token_text(token)
        if text is None:
            tokenizer._special.pop(self.role, None)
        else:
            tokenizer._special[self.role] = text


class SpecialTokenId:
    """The id of one role; setting it chooses the token that has this id."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, tokenizer: Any, owner: type | None = None) -> int | None:
        text = tokenizer._special.get(self.role) if tokenizer is not None else None
        return None if text is None else tokenizer.convert_tokens_to_ids(text)

    def __set__(self, tokenizer: Any, index: int | None) -> None:
        setattr(tokenizer, self.role, None if index is None else tokenizer.convert_ids_to_tokens(index))
