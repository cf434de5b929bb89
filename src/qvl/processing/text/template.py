"""Runs a chat template: jinja's immutable sandbox with what templates on the hub rely on.

That is trimmed blocks, ``tojson`` without HTML escapes, ``raise_exception``, ``strftime_now``, loop controls
and ``{% generation %}`` blocks. It knows strings and marks, no messages. ``chat`` imports it with the first
template that is rendered, so that loading a tokenizer does not wait for jinja.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qvl.errors import PromptError
from qvl.processing.text.inert import Marks

# Names by which {% generation %} finds its marks in the render context.
OPENING, CLOSING = "_generation_opening", "_generation_closing"


def run(template: str, context: dict[str, Any], marks: Marks) -> str:
    """What ``template`` makes of ``context``, with ``marks`` in it. Raises PromptError where it cannot."""

    def to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        text = json.dumps(value, ensure_ascii=ensure_ascii, **layout)
        for mark in (marks.inert, marks.final):  # ASCII escapes would hide the marks
            text = text.replace(json.dumps(mark)[1:-1], mark) if ensure_ascii else text
        return text

    compiled = _compile(template)
    names = {OPENING: marks.opening, CLOSING: marks.closing, "_to_json": to_json}
    try:
        return compiled.render(context, **names)
    except Exception as error:  # whatever a foreign program may raise
        raise PromptError(
            f"The chat template refused the messages: {type(error).__name__}: {error}"
        ) from error


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    """Compiling takes milliseconds and servers render one template again and again. Holds no state."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _tojson_filter
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise PromptError(f"The chat template cannot be read: {error}") from error


class GenerationBlocks(Extension):
    """``{% generation %}...{% endgeneration %}`` around what the assistant writes: puts marks around it."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own form)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        first, last = (
            nodes.Output([nodes.Name(name, "load")]).set_lineno(line) for name in (OPENING, CLOSING)
        )
        return [first, *body, last]


@jinja2.pass_context
def _tojson_filter(context: jinja2.runtime.Context, value: Any, **options: Any) -> str:
    return context["_to_json"](value, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
