"""`POST /v1/responses`: the request, and how its items become messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from qvl.serve.protocol.body import IGNORED, Wire, field_error
from qvl.serve.protocol.chat import REFUSED
from qvl.serve.protocol.content import (
    AssistantMessage,
    AudioPart,
    Detail,
    FileData,
    FilePart,
    FunctionCall,
    ImagePart,
    ImageURL,
    Instructions,
    MediaOptions,
    Message,
    ProcessorOptions,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from qvl.serve.protocol.sampling import (
    JsonObjectFormat,
    JsonSchemaFormat,
    Sampling,
    SchemaFormat,
    TextFormat,
)
from qvl.serve.protocol.tools import TOOL_NAME, Function, FunctionName, NamedTool, Tool, ToolChoice


class InputText(Wire):
    type: Literal["input_text"]
    text: str


class OutputText(Wire):
    """What the model said before."""

    type: Literal["output_text"]
    text: str


class Refusal(Wire):
    type: Literal["refusal"]
    refusal: str


class InputImage(MediaOptions):
    type: Literal["input_image"]
    image_url: str | None = Field(default=None, description="http(s):, data: or file:")
    detail: Detail | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _a_url(self) -> Any:
        if self.file_id is not None or not self.image_url:
            raise field_error(
                "input_image",
                "An input_image needs image_url; files are not kept here.",
                "unsupported_parameter",
            )
        return self


class InputFile(MediaOptions):
    type: Literal["input_file"]
    file_data: str | None = Field(default=None, description="A PDF as base64 or as a data URI")
    file_url: str | None = None
    filename: str | None = None
    file_id: str | None = None
    pages: list[int] | None = None

    @model_validator(mode="after")
    def _some_data(self) -> Any:
        if self.file_id is not None or not (self.file_data or self.file_url):
            raise field_error(
                "input_file",
                "An input_file needs file_data or file_url; files are not kept here.",
                "unsupported_parameter",
            )
        return self


InputPart = Annotated[
    InputText | InputImage | InputFile | OutputText | Refusal | AudioPart, Field(discriminator="type")
]


class InputMessage(Wire):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]


class CallItem(Wire):
    """A call of a tool that the model made before."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Wire):
    """What a tool gave back."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]


class ReasoningItem(Wire):
    """What other models thought; not read."""

    type: Literal["reasoning"]


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Wire):
    type: Literal["function"]
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenTool(Wire):
    type: Literal["function"]
    name: str


class FlatSchemaFormat(SchemaFormat):
    type: Literal["json_schema"]


class TextOptions(Wire):
    format: (
        Annotated[TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type")] | None
    ) = None


LOGPROBS = "message.output_text.logprobs"


class ResponsesRequest(Sampling):
    """One question with all that came before it; nothing is kept between requests."""

    ignored: ClassVar[frozenset[str]] = IGNORED | {"max_tool_calls"}
    refused: ClassVar[Mapping[str, str]] = {
        **REFUSED,
        "previous_response_id": "nothing is kept between requests; send the whole conversation as input.",
        "conversation": "nothing is kept between requests; send the whole conversation as input.",
        "background": "answers are given while the client waits.",
        "prompt": "no prompts are kept here; send instructions and input.",
        "context_management": "the conversation is read as it is sent.",
    }

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    truncation: Literal["disabled"] | None = None
    mm_processor_kwargs: ProcessorOptions | None = None

    @field_validator("include")
    @classmethod
    def _known_extras(cls, value: list[str] | None) -> list[str] | None:
        # What belongs to tools and reasoning that this server does not have would be empty.
        for name in value or ():
            if name not in (LOGPROBS, "reasoning.encrypted_content"):
                raise field_error(
                    "include", f"include={name:.80} is not supported here.", "unsupported_parameter"
                )
        return value

    @model_validator(mode="after")
    def _one_answer(self) -> Any:
        if self.max_tokens is not None:
            raise field_error("max_tokens", "The field is max_output_tokens here.", "unknown_parameter")
        if (self.n or 1) > 1:
            raise field_error(
                "n", "A response has one answer; n is for chat completions.", "unsupported_parameter"
            )
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise field_error("tool_choice", "tool_choice needs tools.", "invalid_value")
        return self

    @property
    def output_limit(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_output_tokens

    @property
    def alternatives(self) -> int | None:
        wanted = LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
        return (self.top_logprobs or 0) if wanted else None

    def function_tools(self) -> list[Tool]:
        """The tools in the form of chat completions."""
        return [
            Tool(
                type="function",
                function=Function(
                    name=tool.name,
                    description=tool.description,
                    parameters=tool.parameters,
                    strict=tool.strict,
                ),
            )
            for tool in self.tools or ()
        ]

    def choice(self) -> ToolChoice | None:
        if isinstance(self.tool_choice, ChosenTool):
            return NamedTool(type="function", function=FunctionName(name=self.tool_choice.name))
        return self.tool_choice

    def answer_format(self) -> TextFormat | JsonObjectFormat | JsonSchemaFormat | None:
        """``text.format`` in the form of chat completions."""
        wanted = None if self.text is None else self.text.format
        if isinstance(wanted, FlatSchemaFormat):
            return JsonSchemaFormat(type="json_schema", json_schema=wanted)
        return wanted


def conversation_messages(request: ResponsesRequest) -> tuple[list[Message], list[str]]:
    """The messages, and the place in the request where each of them came from."""
    messages: list[Message] = []
    places: list[str] = []
    if request.instructions:
        messages.append(Instructions(role="system", content=request.instructions))
        places.append("instructions")
    if isinstance(request.input, str):
        return [*messages, UserMessage(role="user", content=request.input)], [*places, "input"]
    for number, item in enumerate(request.input):
        if isinstance(item, ReasoningItem):
            continue
        if isinstance(item, CallItem) and messages and isinstance(messages[-1], AssistantMessage):
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), _call(item)]
            continue
        messages.append(_message(item))
        places.append(f"input[{number}]")
    return messages, places


def _message(item: InputMessage | CallItem | ResultItem) -> Message:
    if isinstance(item, CallItem):
        return AssistantMessage(role="assistant", tool_calls=[_call(item)])
    if isinstance(item, ResultItem):
        return ToolMessage(role="tool", content=_parts(item.output), tool_call_id=item.call_id)
    content = _parts(item.content)
    if item.role == "assistant":
        return AssistantMessage(role="assistant", content=content)
    if item.role == "user":
        return UserMessage(role="user", content=content)
    return Instructions(role=item.role, content=content)


def _call(item: CallItem) -> ToolCall:
    return ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))


def _parts(content: str | Sequence[Any]) -> Any:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Any) -> TextPart | ImagePart | FilePart:
    if isinstance(part, InputImage):
        url = ImageURL(url=part.image_url or "", detail=part.detail)
        return ImagePart(type="image_url", image_url=url, **part.given())
    if isinstance(part, InputFile):
        data = FileData(file_data=part.file_data or part.file_url, filename=part.filename, pages=part.pages)
        return FilePart(type="file", file=data, **part.given())
    return TextPart(type="text", text=part.refusal if isinstance(part, Refusal) else part.text)
