"""Sorts the keyword arguments of a processor's call to the parts that read them.

Arguments may come flat (each part gets those that it has) or nested (``text_kwargs=``, ``images_kwargs=``,
``videos_kwargs=``, ``common_kwargs=``), as in transformers. What the parts know is read off their signatures.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qvl.errors import InputError, InputTypeError

SECTIONS = ("text_kwargs", "images_kwargs", "videos_kwargs")
COMMON = frozenset({"return_tensors"})
# An example on the model's documentation page passes this name; no version of the processor reads it.
UNREAD = frozenset({"vision_infos"})


@dataclass(frozen=True)
class CallOptions:
    """The arguments of one call, by the part that reads them."""

    text: dict[str, Any]
    images: dict[str, Any]
    videos: dict[str, Any]
    return_tensors: str | None = None


def parameters(function: Callable[..., Any], *left_out: str) -> frozenset[str]:
    """The names of a function's arguments that can be given by name, without ``left_out`` and ``**``."""
    # A method's function, as the method would keep its object alive.
    return _named(getattr(function, "__func__", function)) - {"self", *left_out}


@lru_cache(maxsize=64)
def _named(function: Callable[..., Any]) -> frozenset[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in inspect.signature(function).parameters.values() if p.kind in named)


def sort_options(given: Mapping[str, Any], known: Mapping[str, frozenset[str]]) -> CallOptions:
    """``given`` sorted. ``known`` says for each of SECTIONS which names it has.

    Raises InputTypeError for a name that no part has, InputError for one given both flat and nested.
    """
    sections = {name: dict(given.get(name) or {}) for name in (*SECTIONS, "common_kwargs")}
    flat = {name: value for name, value in given.items() if name not in sections}
    if unread := UNREAD & flat.keys():
        warnings.warn(f"{', '.join(unread)}: not read; pass images= and videos=", stacklevel=4)
    _refuse_unknown(flat.keys() - UNREAD, frozenset().union(COMMON, *known.values()), "This processor")
    for section, names in known.items():
        _refuse_unknown(sections[section].keys(), names | COMMON, section)
        if twice := sections[section].keys() & flat.keys():
            raise InputError(f"{', '.join(sorted(twice))}: given twice, by itself and in {section}")
        sections[section] |= {name: value for name, value in flat.items() if name in names}
    _refuse_unknown(sections["common_kwargs"].keys(), COMMON, "common_kwargs")
    asked = [flat, *sections.values()]
    tensors = next((part["return_tensors"] for part in asked if part.get("return_tensors")), None)
    text, images, videos = (
        {name: value for name, value in sections[section].items() if name not in COMMON}
        for section in SECTIONS
    )
    return CallOptions(text, images, videos, tensors)


def _refuse_unknown(names: Any, known: frozenset[str], where: str) -> None:
    if unknown := sorted(set(names) - known):
        raise InputTypeError(
            f"{where} has no argument {', '.join(unknown)}; it has: {', '.join(sorted(known))}"
        )
