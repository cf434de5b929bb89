"""Chat templates: finds them beside a checkpoint and renders messages with them, in a sandbox.

A template is a program from the internet, so it runs in jinja's immutable sandbox (template.py). Messages are
guarded before rendering (see inert.py), so what comes out is a MarkedText. It knows no tokens and opens no
media.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from qvl.config.base import read_json
from qvl.errors import InputTypeError, PromptError, UnknownNameError
from qvl.processing.text.files import write_json
from qvl.processing.text.inert import Guard, MarkedText, Marks
from qvl.processing.text.tools import tool_schema

Message = Mapping[str, Any]
Templates = str | dict[str, str] | None

PROCESSOR_TEMPLATE = "chat_template.json"  # read as a processor's alone
TEMPLATE_FILES = (PROCESSOR_TEMPLATE, "chat_template.jinja")
# Special tokens that answers hold: in the assistant's messages they are tokens, as the model wrote them.
SPOKEN = frozenset(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end"))


@dataclass(frozen=True)
class RenderOptions:
    """What a template is given besides the messages. ``variables`` are further names for it to use."""

    tools: Sequence[dict[str, Any] | Callable[..., Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.continue_final_message and self.add_generation_prompt:
            raise PromptError(
                "continue_final_message goes on with the last message and add_generation_prompt starts a new "
                "one: give only one of them"
            )
        if not all(isinstance(document, Mapping) for document in self.documents or ()):
            raise InputTypeError("documents must be dicts, with 'title' and 'text'")


def render(
    conversation: Sequence[Message],
    template: str,
    options: RenderOptions | None = None,
    special_tokens: Sequence[str] = (),
) -> MarkedText:
    """One conversation as text. ``special_tokens`` that are typed inside messages stay typed text, but for
    those of ``SPOKEN`` in what the assistant said.

    Raises PromptError for messages of another form, and where the template does.
    """
    from qvl.processing.text.template import run

    options = options or RenderOptions()
    check_conversation(conversation)
    tools = [tool_schema(tool) for tool in options.tools] if options.tools is not None else None
    documents = options.documents
    marks = Marks.absent_from(conversation, tools, documents, template, options.variables)
    guard = Guard(special_tokens, marks.inert)
    spoken = Guard([token for token in special_tokens if token not in SPOKEN], marks.inert)
    messages = [(spoken if m["role"] == "assistant" else guard).protect(m) for m in conversation]
    final = _mark_final_text(messages, marks.final) if options.continue_final_message else None
    text = run(
        template,
        {
            **options.variables,
            "messages": messages,
            "tools": guard.protect(tools),
            "documents": guard.protect(documents),
            "add_generation_prompt": options.add_generation_prompt,
        },
        marks,
    )
    if final is not None:
        text = _cut_after(text, final, marks.final)
    return MarkedText(text, marks)


def check_conversation(conversation: Any) -> None:
    """PromptError unless this is a list of messages with roles and contents that a template can read."""
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise PromptError(
            "A conversation must be a list of messages such as {'role': 'user', 'content': '...'}"
        )
    for index, message in enumerate(conversation):
        if not isinstance(message, Mapping) or "role" not in message:
            raise PromptError(
                f"Message {index} must be a dict with 'role' and 'content', not {message!r:.80}"
            )
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, Sequence) or not all(isinstance(item, Mapping) for item in content):
            raise PromptError(
                f"The content of message {index} must be a string or a list of dicts such as "
                "{'type': 'text', 'text': '...'} and {'type': 'image', 'path': '...'}"
            )


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations rather than one."""
    return (
        isinstance(conversation, list | tuple)
        and bool(conversation)
        and isinstance(conversation[0], list | tuple)
    )


def choose_template(templates: Templates, asked: str | None, *, tools: bool = False) -> str:
    """The template to use: ``asked`` (one of the names, or itself a template) or the default one."""
    if isinstance(templates, dict):
        if asked is None:
            asked = "tool_use" if tools and "tool_use" in templates else "default"
            if asked not in templates:
                raise UnknownNameError(
                    f"There is no template named 'default'; pass chat_template= one of {sorted(templates)}"
                )
        return templates.get(asked, asked)
    template = asked if asked is not None else templates
    if template is None:
        raise PromptError("There is no chat template here: set chat_template or pass chat_template=")
    return template


def read_templates(folder: Path, *, legacy: bool) -> Templates:
    """The templates in files of their own, None where there are none.

    ``legacy``: chat_template.json (of processors; the released checkpoints have it) counts and wins.
    """
    if legacy and (path := folder / PROCESSOR_TEMPLATE).is_file():
        return normal_templates(read_json(path).get("chat_template"))
    found = {
        path.stem: path.read_text(encoding="utf-8")
        for path in folder.glob("additional_chat_templates/*.jinja")
    }
    if (path := folder / "chat_template.jinja").is_file():
        found["default"] = path.read_text(encoding="utf-8")
    return normal_templates(found or None)


def write_templates(folder: Path, templates: Templates) -> list[str]:
    """Writes a processor's templates where the released checkpoints have them; returns the paths.

    One template goes to chat_template.json, which leaves the tokenizer its own (tokenizers read
    chat_template.jinja as theirs). Templates by name have files of their own.
    """
    if templates is None:
        return []
    if isinstance(templates, str):
        write_json(folder / "chat_template.json", {"chat_template": templates})
        return [str(folder / "chat_template.json")]
    paths = {
        name: folder
        / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
        for name in templates
    }
    for name, path in paths.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(templates[name], encoding="utf-8")
    return [str(path) for path in paths.values()]


def normal_templates(value: Any) -> Templates:
    """A template, or templates by name, from any of the forms that config files use."""
    if isinstance(value, list):
        value = {item["name"]: item["template"] for item in value}
    if isinstance(value, dict) and set(value) == {"default"}:
        return cast(str, value["default"])
    return cast(Templates, value)


def _mark_final_text(messages: list[dict[str, Any]], mark: str) -> str:
    """Puts ``mark`` and a space after the last text of the last message, in place; returns that text.

    The space tells whether the template trims what it writes.
    """
    message = messages[-1]
    holder, key = message, "content"
    if isinstance(message.get("content"), list):
        texts = [item for item in message["content"] if "text" in item]
        if not texts:
            raise PromptError("continue_final_message needs a text in the last message")
        holder, key = texts[-1], "text"
    if not isinstance(holder.get(key), str):
        raise PromptError("continue_final_message needs a text in the last message")
    text = holder[key]
    holder[key] = f"{text}{mark} "
    return text


def _cut_after(rendered: str, final: str, mark: str) -> str:
    """What stands before the mark; without trailing space where the template trimmed the message."""
    end = rendered.rfind(mark)
    if end < 0 or final.strip() not in rendered:
        raise PromptError(
            "The chat template changes the last message, so it cannot be continued: "
            "start a new one with add_generation_prompt=True instead"
        )
    kept = rendered[:end] if rendered.startswith(f"{mark} ", end) else rendered[:end].rstrip()
    return kept.replace(mark, "")
