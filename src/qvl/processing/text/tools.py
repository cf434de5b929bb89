"""Python functions described as JSON schemas, so that a chat template can offer them to the model.

The form is the one that transformers' ``get_json_schema`` gives: name and description from the docstring,
types from the annotations, descriptions of arguments from a Google-style ``Args:`` section.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qvl.errors import InputError, InputTypeError

PRIMITIVES: Mapping[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    Any: {},
}
SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises):\s*$", re.MULTILINE)
ARGUMENT = re.compile(r"^(\s*)(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schema(tool: Mapping[str, Any] | Callable[..., Any]) -> Mapping[str, Any]:
    """The schema of a tool: a dict is one already, a function is described by its signature and docstring."""
    if isinstance(tool, Mapping):
        return tool
    if not callable(tool):
        raise InputTypeError(f"A tool must be a JSON schema or a function, not {type(tool).__name__}")
    return function_schema(tool)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """``{"type": "function", "function": {name, description, parameters[, return]}}``.

    Raises InputError where the docstring, an annotation or the description of an argument is missing.
    """
    name = getattr(function, "__name__", type(function).__name__)
    documentation = inspect.getdoc(function)
    if not documentation:
        raise InputError(f"The tool {name} needs a docstring that says what it does")
    description, arguments, returned = _sections(documentation)
    hints = get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints:
            raise InputError(f"The argument {parameter.name} of the tool {name} needs a type annotation")
        if parameter.name not in arguments:
            raise InputError(f"The docstring of the tool {name} must describe the argument {parameter.name}")
        properties[parameter.name] = _property(hints[parameter.name], arguments[parameter.name])
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    schema: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    if "return" in hints:
        schema["return"] = type_schema(hints["return"]) | ({"description": returned} if returned else {})
    return {"type": "function", "function": schema}


def type_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        return dict(PRIMITIVES.get(hint, {"type": "object"}))
    if origin is Union or origin is types.UnionType:
        return _union_schema(arguments)
    if origin is Literal:
        kinds = list(dict.fromkeys(type_schema(type(value))["type"] for value in arguments))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": type_schema(arguments[0])}
    if origin is tuple:
        if ... in arguments or len(arguments) == 1:
            raise InputTypeError(f"The annotation {hint} has no JSON schema here: use list[...] instead")
        return {"type": "array", "prefixItems": [type_schema(argument) for argument in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": type_schema(arguments[1])}
    raise InputTypeError(
        f"The annotation {hint} has no JSON schema: use int, float, str, bool, list, dict or Literal"
    )


def _union_schema(arguments: tuple[Any, ...]) -> dict[str, Any]:
    members = [type_schema(argument) for argument in arguments if argument is not type(None)]
    if len(members) == 1:
        schema = members[0]
    elif all(isinstance(member.get("type"), str) for member in members):
        schema = {"type": sorted(member["type"] for member in members)}
    else:
        schema = {"anyOf": members}
    return schema | ({"nullable": True} if type(None) in arguments else {})


def _property(hint: Any, description: str) -> dict[str, Any]:
    schema = type_schema(hint)
    if choices := CHOICES.search(description):
        schema["enum"] = [choice.strip() for choice in json.loads(choices[1])]
        description = description[: choices.start()].strip()
    return schema | {"description": description}


def _sections(documentation: str) -> tuple[str, dict[str, str], str | None]:
    """(description, description of each argument, description of the result)."""
    head, *rest = SECTION.split(documentation)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    listed = next((sections[name] for name in ("Args", "Arguments", "Parameters") if name in sections), "")
    returned = sections.get("Returns")
    return head.strip(), _arguments(listed), returned.strip() if returned else None


def _arguments(listed: str) -> dict[str, str]:
    """``name: text`` entries; lines indented deeper than the first entry continue the one before."""
    found: dict[str, str] = {}
    name, depth = "", None
    for line in filter(str.strip, listed.splitlines()):
        entry = ARGUMENT.match(line)
        if entry and (depth is None or len(entry[1]) <= depth):
            depth, name = len(entry[1]), entry[2]
            found[name] = entry[3].strip()
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
