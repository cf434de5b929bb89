"""Tools as a request declares them, and which of them its answer may or must call."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from qvl.serve.protocol.body import Wire

TOOL_NAME = r"^[a-zA-Z0-9_.:-]{1,128}$"  # OpenAI's letters, and those that tool servers use beside them


class Function(Wire):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of the arguments")
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class FunctionName(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
