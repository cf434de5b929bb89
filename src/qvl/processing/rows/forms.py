"""The forms in which people keep conversations, each as messages with roles; media are not looked at here.

Known are the chat format of the model's documentation page (``messages``), ShareGPT's and LLaVA's
(``conversations`` of ``from`` and ``value``; ``conversation`` of ``human`` and ``assistant``), and the
question-and-answer forms ``query``/``response`` and ``instruction``/``input``/``output``, both with
``history``. They are what the data pages of LLaMA-Factory and ms-swift describe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qvl.errors import PromptError

Message = dict[str, Any]
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "system": "system",
        "user": "user",
        "human": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        "bot": "assistant",
        "model": "assistant",
        "tool": "tool",
        "tool_response": "tool",
        "observation": "tool",
        "function_call": "call",
        "tool_call": "call",
    }
)
PART_KEYS = frozenset({"text", "image", "video", "image_url", "video_url"})  # of parts that say no type
PAIRS = (("query", "response"), ("instruction", "output"))
KEYS = ("messages", "conversations", "conversation", *(name for pair in PAIRS for name in pair))


def messages_of(row: Mapping[str, Any]) -> tuple[list[Message], frozenset[str]]:
    """The conversation of a row, and which of the row's keys it was made of.

    Contents are left as they are: texts or lists of parts. Raises PromptError, in words about the row.
    """
    if "messages" in row and "conversations" in row:
        raise PromptError("it has both 'messages' and 'conversations'; leave one of them")
    if "messages" in row or "conversations" in row:
        key = "messages" if "messages" in row else "conversations"
        messages, used = _turns(row[key], key), {key}
    elif "conversation" in row:
        messages, used = _exchanges(row["conversation"]), {"conversation"}
    elif "query" in row or "instruction" in row:
        messages, used = _asked(row)
    else:
        known = ", ".join(f"'{name}'" for name in sorted(row)[:8]) or "none"
        raise PromptError(
            "it has no conversation: expected 'messages' (or 'conversations', 'query' and 'response', "
            f"'instruction' and 'output'), found the keys {known}"
        )
    system = row.get("system")
    if system not in (None, ""):
        messages = _with_system(messages, system)
    return merged_calls(messages), frozenset(used | {"system"})


def _turns(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise PromptError(f"'{key}' must be a list with at least one message")
    return [_turn(message, number) for number, message in enumerate(value, start=1)]


def _turn(message: Any, number: int) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"message {number} is no object with a role and a content")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role is None or ("content" not in message and "value" not in message and "tool_calls" not in message):
        raise PromptError(
            f"message {number} needs 'role' and 'content' (or 'from' and 'value'); "
            f"it has {', '.join(sorted(map(str, message))) or 'nothing'}"
        )
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise PromptError(f"message {number} has the role {role!r}; expected one of {', '.join(ROLES)}")
    if content is None and not message.get("tool_calls"):
        raise PromptError(f"the content of message {number} is null")
    if known in ("tool", "call") and isinstance(content, dict | list) and not _is_parts(content):
        content = json.dumps(content, ensure_ascii=False)
    if content is not None and not isinstance(content, str) and not _is_parts(content):
        raise PromptError(f"the content of message {number} must be a text or a list of parts with 'type'")
    if known == "call":
        return {"role": "assistant", "content": "", "tool_calls": _called(content, number)}
    own = {name: message[name] for name in ("tool_calls",) if message.get(name)}
    if own:
        own["tool_calls"] = [_call(call, number) for call in _list(own["tool_calls"], number)]
    return {"role": known, "content": "" if content is None else content, **own}


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and ("type" in part or not PART_KEYS.isdisjoint(part)) for part in content
    )


def _list(value: Any, number: int) -> list[Any]:
    if not isinstance(value, list):
        raise PromptError(f"'tool_calls' of message {number} must be a list")
    return value


def _called(content: Any, number: int) -> list[dict[str, Any]]:
    """The calls of a message whose role is ``function_call`` or ``tool_call``: JSON of one, or of a list."""
    try:
        value = json.loads(content)
    except (TypeError, ValueError):
        raise PromptError(f"message {number} calls a tool, but its content is no JSON") from None
    return [_call(call, number) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any, number: int) -> dict[str, Any]:
    """``{"name", "arguments"}`` with the arguments as JSON values, however the call was written."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise PromptError(f"a tool call of message {number} has no name")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise PromptError(f"the arguments of a tool call of message {number} are no JSON") from None
    return {"name": call["name"], "arguments": arguments}


def merged_calls(messages: Sequence[Message]) -> list[Message]:
    """Calls join what the assistant said just before: one turn, as the model writes it."""
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        if message.get("tool_calls") and message["content"] == "" and last and last["role"] == "assistant":
            found[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), *message["tool_calls"]]}
        else:
            found.append(message)
    return found


def _exchanges(value: Any) -> list[Message]:
    """``[{"human": ..., "assistant": ...}]``."""
    if not isinstance(value, list) or not value:
        raise PromptError("'conversation' must be a list of objects with 'human' and 'assistant'")
    found: list[Message] = []
    for number, exchange in enumerate(value, start=1):
        if not isinstance(exchange, Mapping) or not all(
            isinstance(exchange.get(key), str) for key in ("human", "assistant")
        ):
            raise PromptError(f"exchange {number} of 'conversation' needs the texts 'human' and 'assistant'")
        found += _pair(exchange["human"], exchange["assistant"])
    return found


def _asked(row: Mapping[str, Any]) -> tuple[list[Message], set[str]]:
    question, answer = next(pair for pair in PAIRS if pair[0] in row)
    for key in (question, answer):
        if not isinstance(row.get(key), str):
            raise PromptError(f"a row with '{question}' needs the text '{answer}' too, both as texts")
    asked, used = row[question], {question, answer, "history"}
    if question == "instruction":
        used.add("input")
        if row.get("input"):
            asked = f"{asked}\n{row['input']}"
    found: list[Message] = []
    for number, exchange in enumerate(row.get("history") or (), start=1):
        pair = isinstance(exchange, list | tuple) and len(exchange) == 2
        if not pair or not all(isinstance(text, str) for text in exchange):
            raise PromptError(f"entry {number} of 'history' must be a question and its answer")
        found += _pair(*exchange)
    return [*found, *_pair(asked, row[answer])], used


def _pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _with_system(messages: list[Message], system: Any) -> list[Message]:
    if not isinstance(system, str):
        raise PromptError("'system' must be a text")
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"] != system:
        raise PromptError("it says two different system prompts: in 'system' and in its first message")
    return messages
