"""Options that are settings: one row of a table for each, from which a command's signature is made.

So a setting has its option, its help and its check in one place. Which settings there are is the business of
the tables.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Annotated, Any

import typer

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 1.5GiB or 4096. Raises BadParameter for anything else."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is no size; write bytes, or a number with K, M, G or T, as in 4G")
    return size


def shown_size(size: int) -> str:
    """A size as `parse_size` reads it."""
    for unit in ("T", "G", "M", "K"):
        if size % _UNITS[unit.lower()] == 0:
            return f"{size // _UNITS[unit.lower()]}{unit}"
    return str(size)


@dataclass(frozen=True)
class SettingOption:
    """One option. ``kind``: int, float, str, bool, Path, an Enum, "size" (bytes) or "list" (may be given
    several times). ``least``, ``most``: what numbers may be; ``unset``: what the help says for None.
    """

    field: str
    names: str
    help: str
    panel: str
    kind: Any = int
    least: float | None = 1
    most: float | None = None
    unset: str | None = None

    def parameter(self, default: Any) -> inspect.Parameter:
        """A parameter of the command; None unless someone gives it."""
        extra: dict[str, Any] = {"rich_help_panel": self.panel, "show_default": False}
        shown = self._shown(default)
        extra["help"] = f"{self.help} Default: {shown}." if shown else self.help
        kind: Any = self.kind
        if kind == "size":
            kind, extra["parser"], extra["metavar"] = int, parse_size, "SIZE"
        elif kind == "list":
            kind = list[str]
        elif kind in (int, float):
            extra |= {"min": self.least, "max": self.most}
        option = Annotated[kind | None, typer.Option(*self.names.split(), **extra)]
        return inspect.Parameter(self.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)

    def _shown(self, default: Any) -> str:
        if default is None or default == ():
            return self.unset or ""
        if self.kind == "size":
            return shown_size(default)
        if isinstance(default, bool):
            return self.names.split("/")[0 if default else 1]
        return f"{default:g}" if isinstance(default, float) else str(default)


def with_options(
    command: Callable[..., None], options: Sequence[SettingOption], defaults: Mapping[str, Any]
) -> Callable[..., None]:
    """``command`` with all ``options`` beside its own; it gets them as ``given``: those that the command line
    says. ``defaults``: by field, for the help.
    """
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "given"]
    added = [option.parameter(defaults[option.field]) for option in options]

    @wraps(command)
    def called(**values: Any) -> None:
        given = {option.field: values.pop(option.field) for option in options}
        command(**values, given={name: _plain(v) for name, v in given.items() if v not in (None, [])})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*kept, *added)]
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
