"""What an answer must look like, from everything that a request says of it: tools, formats, grammars.

One grammar at most holds an answer: a call of a tool where one is required, a call or an answer in a format
where both are asked for, calls as their schema wants them where a tool is strict, or the format alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.processing.text.tooltext import CLOSE, OPEN
from qvl.serve.errors import RequestError
from qvl.serve.grammars import Grammar, Grammars, from_choice, from_regex, from_schema, json_rule
from qvl.serve.protocol.sampling import (
    JsonObjectFormat,
    JsonSchemaFormat,
    Sampling,
    StructuredOutputs,
    TextFormat,
)
from qvl.serve.protocol.tools import NamedTool, Tool, ToolChoice
from qvl.serve.settings import Limits
from qvl.serve.tools import callable_tools, calls_rule

FORMAT_SCHEMA = "response_format.json_schema.schema"
Format = TextFormat | JsonObjectFormat | JsonSchemaFormat


@dataclass(frozen=True)
class AnswerPlan:
    """``tools``: that may be called. ``choice``: None counts as "auto". ``format``: of the answer's text."""

    tools: Sequence[Tool] = ()
    choice: ToolChoice | None = None
    parallel: bool = True
    format: Format | None = None

    @property
    def callable(self) -> list[Tool]:
        return callable_tools(self.tools, self.choice)

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice == "required" or isinstance(self.choice, NamedTool)

    def stops(self) -> tuple[str, ...]:
        """Where only one call is wanted and no grammar sees to it, the answer ends with the first."""
        one = bool(self.callable) and not self.parallel and not self.forced
        return (CLOSE,) if one else ()


def check_plan(plan: AnswerPlan, limits: Limits) -> None:
    """RequestError for tools that cannot be."""
    names = [tool.function.name for tool in plan.tools]
    if len(names) > limits.tools:
        raise RequestError(f"The request has {len(names)} tools, and {limits.tools} may be in one.", "tools")
    if len(set(names)) < len(names):
        raise RequestError("Two tools have the same name.", "tools")
    if isinstance(plan.choice, NamedTool) and plan.choice.function.name not in names:
        raise RequestError(
            f"tool_choice names {plan.choice.function.name!r:.80}, which is none of the tools.", "tool_choice"
        )


def compile_answer(grammars: Grammars, plan: AnswerPlan, request: Sampling) -> Grammar | None:
    """The grammar that the answer is held to; None for free text. Takes milliseconds: not for an event loop.

    Raises RequestError for what cannot be held to, or not together.
    """
    tools = plan.callable
    structured = _structured(grammars, request)
    if structured is not None and plan.format is not None and not isinstance(plan.format, TextFormat):
        raise RequestError("response_format cannot go with structured_outputs.", "structured_outputs")
    if structured is not None and tools:
        raise RequestError("structured_outputs cannot go with tools.", "structured_outputs")
    text, param = structured or (None, FORMAT_SCHEMA)
    if text is None:
        text, param = _answer_grammar(grammars, plan, tools)
    if text is None:
        return None
    if request.ignore_eos or request.min_tokens:
        raise RequestError(
            "ignore_eos and min_tokens cannot go with a grammar, which says itself where the answer ends.",
            "min_tokens",
        )
    return grammars.compile(text, param)


def _answer_grammar(grammars: Grammars, plan: AnswerPlan, tools: Sequence[Tool]) -> tuple[str | None, str]:
    schema = _format_schema(grammars, plan.format)
    strict = any(tool.function.strict for tool in tools)
    if not tools or not (plan.forced or strict or schema is not None):
        return (None if schema is None else from_schema(schema)), FORMAT_SCHEMA
    opening = grammars.token(OPEN)
    closing = grammars.token(CLOSE)
    rules = calls_rule(
        [(tool.function.name, _arguments(grammars, tool)) for tool in tools],
        opening,
        closing,
        several=plan.parallel,
    )
    if plan.forced:
        return f"start: calls\n{rules}", "tools"
    if schema is not None:
        return f"start: calls | answer\nanswer: {json_rule(schema)}\n{rules}", "tools"
    # Free text, in which a tag begins a call that follows its schema.
    text = r"TEXT: /(.|\n)*/"
    if opening.startswith("<["):
        start = "start: TEXT | TEXT calls"
        return f"{start}\n{text}\n{rules}", "tools"
    raise RequestError("strict tools need tool_choice=required with this model.", "tools")


def _format_schema(grammars: Grammars, format: Format | None) -> dict[str, Any] | None:
    if isinstance(format, JsonObjectFormat):
        own = format.own_schema
        return grammars.schema({"type": "object"} if own is None else own, strict=False, param=FORMAT_SCHEMA)
    if isinstance(format, JsonSchemaFormat):
        about = format.json_schema
        if about.schema_ is None:
            raise RequestError("The schema of the response's format is missing.", FORMAT_SCHEMA)
        return grammars.schema(about.schema_, strict=bool(about.strict), param=FORMAT_SCHEMA)
    return None


def _arguments(grammars: Grammars, tool: Tool) -> Mapping[str, Any]:
    """The schema of a tool's arguments: an object; an empty one where the tool declares no parameters."""
    schema = {"type": "object", **(tool.function.parameters or {"additionalProperties": False})}
    return grammars.schema(schema, strict=bool(tool.function.strict), param="tools")


def _structured(grammars: Grammars, request: Sampling) -> tuple[str, str] | None:
    """What vLLM's fields ask for, under either of their names."""
    outputs = request.structured_outputs or StructuredOutputs.model_validate({})
    asked: dict[str, Any] = {
        "json": outputs.json_ if outputs.json_ is not None else request.guided_json,
        "json_object": {"type": "object"} if outputs.json_object else None,
        "regex": outputs.regex if outputs.regex is not None else request.guided_regex,
        "choice": outputs.choice if outputs.choice is not None else request.guided_choice,
        "grammar": outputs.grammar if outputs.grammar is not None else request.guided_grammar,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise RequestError(f"Give only one of {', '.join(given)}.", "structured_outputs")
    param = "structured_outputs"
    for name, value in given.items():
        if name in ("json", "json_object"):
            return from_schema(grammars.schema(value, param=param)), param
        if name == "choice":
            return grammars.bounded(from_choice(value, param), param), param
        grammars.bounded(value, param)
        return (from_regex(value) if name == "regex" else value), param
    return None
