"""What all requests share: values of their declared type, and a word about every field that is not read.

A field that OpenAI's API has and that changes no answer here is ignored; one that would change the answer is
refused by its name, and so is one that nobody knows, because a slip of the pen must not pass for a setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

MOST_NESTED = 100  # lists and objects inside each other, in a whole body
MOST_VALUES = 1_000_000  # texts, numbers, lists and so on of a body: reading them holds everybody up

# Fields of OpenAI's and vLLM's APIs that change no answer here: who asks, what is kept, what it costs.
IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "request_id",
        "priority",
        "cache_salt",
        "spaces_between_special_tokens",
        "verbosity",
        "reasoning_effort",
        "reasoning",
    }
)


class Wire(BaseModel):
    """A part of a request. Numbers are numbers and texts are texts; further fields of parts are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Body(Wire):
    """A whole request. ``refused``: fields that other servers know, each with the reason."""

    model_config = ConfigDict(extra="allow")

    ignored: ClassVar[frozenset[str]] = IGNORED
    refused: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, data: Any) -> Any:
        check_values(data)
        return data

    @model_validator(mode="after")
    def _no_unread_fields(self) -> Any:
        for name, value in (self.model_extra or {}).items():
            if name in self.ignored or value is None:
                continue
            reason = self.refused.get(name)
            if reason is None:
                raise field_error(name, f"{name:.80} is no field of this request.", "unknown_parameter")
            if value not in (False, [], {}):
                raise field_error(name, f"{name} is not supported: {reason}", "unsupported_parameter")
        return self


def field_error(param: str, message: str, code: str) -> PydanticCustomError:
    """An error about one field, for validators to raise."""
    return PydanticCustomError("request", "{message}", {"message": message, "param": param, "code": code})


def check_values(data: Any) -> None:
    """Refuse what JSON may say and no text or number can hold. Does not recurse, however deep ``data`` is."""
    for count, (value, depth) in enumerate(_walk(data)):
        if count >= MOST_VALUES:
            raise field_error("", f"The request holds more than {MOST_VALUES:,} values.", "too_large")
        if depth > MOST_NESTED:
            raise field_error("", f"The request is nested more than {MOST_NESTED} levels deep.", "too_deep")
        if isinstance(value, float) and not math.isfinite(value):
            raise field_error("", "The request holds a number that is not finite.", "invalid_number")
        if isinstance(value, str) and not _is_text(value):
            raise field_error(
                "", "The request holds half a surrogate pair, which is no text.", "invalid_text"
            )


def _walk(data: Any) -> Iterator[tuple[Any, int]]:
    todo: list[tuple[Any, int]] = [(data, 0)]
    while todo:
        value, depth = todo.pop()
        yield value, depth
        if depth > MOST_NESTED:
            continue
        if isinstance(value, Mapping):
            todo.extend((key, depth + 1) for key in value)
            todo.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            todo.extend((item, depth + 1) for item in value)


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
