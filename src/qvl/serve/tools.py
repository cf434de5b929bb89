"""Tools of a request: as the model is told of them, which of them it may call, and calls as a grammar.

How tools stand in messages is in `qvl.processing.text.tooltext`; `qvl.serve.toolcalls` reads the calls of an
answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.serve.grammars import json_rule, literal
from qvl.serve.protocol.tools import NamedTool, Tool, ToolChoice


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as the model is told of them: what only the server acts on (``strict``) is left out."""
    found = []
    for tool in tools:
        about = {"name": tool.function.name}
        for key in ("description", "parameters"):
            if (value := getattr(tool.function, key)) is not None:
                about[key] = value
        found.append({"type": "function", "function": about})
    return found


def calls_rule(
    tools: Sequence[tuple[str, Mapping[str, Any]]], opening: str, closing: str, *, several: bool
) -> str:
    """Rules of Lark's for ``calls``: one, or one or more, of ``tools`` (name, schema of the arguments).

    ``opening``, ``closing``: the tags in Lark's form, as tokens where the vocabulary has them.
    """
    one = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = ['calls: call ("\\n" call)*' if several else "calls: call", f"call: {one}"]
    for number, (name, schema) in enumerate(tools):
        head = literal(f'\n{{"name": {json.dumps(name)}, "arguments": ')
        lines.append(
            f"call_{number}: {opening} {head} {json_rule(schema)} {literal('}' + chr(10))} {closing}"
        )
    return "\n".join(lines) + "\n"


def callable_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> list[Tool]:
    """Those that the answer may call."""
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        return [tool for tool in tools if tool.function.name == choice.function.name]
    return list(tools)
