"""Tools in the words that Qwen2.5 was trained on: told in the system message, called in ``<tool_call>``.

The released Qwen2.5-VL template knows no tools. So where a checkpoint's template does not read ``tools``,
their description, earlier calls and their results become texts of messages, word for word as the published
template of Qwen2.5 writes them. Serving and training both speak so; knows messages as dicts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import loopcontrols

from qvl.processing.text.template import GenerationBlocks

# What Qwen2.5-VL's template says where the messages do not begin with a system message.
DEFAULT_SYSTEM = "You are a helpful assistant."
BEFORE_TOOLS = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
OPEN, CLOSE = "<tool_call>", "</tool_call>"
RESULT_OPEN, RESULT_CLOSE = "<tool_response>\n", "\n</tool_response>"

Content = str | list[dict[str, Any]]


def reads_tools(template: str) -> bool:
    """Whether a chat template makes something of ``tools`` itself."""
    environment = Environment(extensions=[GenerationBlocks, loopcontrols])
    try:
        return "tools" in meta.find_undeclared_variables(environment.parse(template))
    except TemplateError:
        return False


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The same conversation without a word that only a template with tools understands.

    ``messages``: dicts with ``role`` and ``content``, those of assistants perhaps with ``tool_calls``
    (``{"name", "arguments"}``). ``tools``: as dicts, without anything that only a server acts on.
    """
    told = _results(_calls(messages))
    if not tools:
        return told
    text = BEFORE_TOOLS + "".join("\n" + to_json(tool) for tool in tools) + AFTER_TOOLS
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": joined(told[0]["content"], text)}, *told[1:]]
    return [{"role": "system", "content": DEFAULT_SYSTEM + text}, *told]


def to_json(value: Any) -> str:
    """As the template's ``tojson`` writes it."""
    return json.dumps(value, ensure_ascii=False)


def joined(*contents: Content) -> Content:
    """Contents behind each other: a text as long as all of them are."""
    if all(isinstance(content, str) for content in contents):
        return "".join(map(str, contents))
    items: list[dict[str, Any]] = []
    for content in contents:
        items += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return items


def _calls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls of the assistant, behind what it said."""
    found = []
    for message in messages:
        calls = message.get("tool_calls")
        plain = {key: value for key, value in message.items() if key != "tool_calls"}
        if calls:
            text = "".join(
                f'\n{OPEN}\n{{"name": "{call["name"]}", "arguments": {to_json(call["arguments"])}}}\n{CLOSE}'
                for call in calls
            )
            content = plain.get("content") or ""
            plain["content"] = joined(content, text) if content else text.removeprefix("\n")
        found.append(plain)
    return found


def _results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of tools: those that follow each other are one message of the user."""
    found: list[dict[str, Any]] = []
    open_results = False
    for message in messages:
        if message["role"] != "tool":
            found.append(message)
            open_results = False
            continue
        content = joined(RESULT_OPEN, message["content"], RESULT_CLOSE)
        if open_results:
            found[-1]["content"] = joined(found[-1]["content"], "\n", content)
        else:
            found.append({"role": "user", "content": content})
        open_results = True
    return found


def openai_calls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls in the form that templates with tools read."""
    found = []
    for message in messages:
        calls = [{"type": "function", "function": call} for call in message.get("tool_calls", ())]
        found.append({**message, "tool_calls": calls} if calls else dict(message))
    return found
