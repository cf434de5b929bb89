"""`POST /v1/completions` and `POST /tokenize`: the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from qvl.serve.protocol.body import Body, field_error
from qvl.serve.protocol.chat import REFUSED
from qvl.serve.protocol.content import Message, ProcessorOptions
from qvl.serve.protocol.sampling import ResponseFormat, Sampling
from qvl.serve.protocol.tools import Tool, ToolChoice

TokenId = Annotated[int, Field(ge=0, le=2**31)]
PromptInput = str | list[str] | list[TokenId] | list[list[TokenId]]


class CompletionRequest(Sampling):
    """A text, or token ids, to continue as they are: no template, and special tokens count as such."""

    refused: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in REFUSED.items() if name != "echo"},
        "suffix": "the model continues texts, it does not fill gaps.",
    }

    model: str | None = None
    prompt: PromptInput
    echo: bool | None = Field(default=None, description="Repeat the prompt before the answer")
    logprobs: int | None = Field(default=None, ge=0)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _together(self) -> Any:
        if self.echo and self.logprobs is not None:
            raise field_error(
                "echo",
                "echo cannot go with logprobs: the prompt has no log probabilities.",
                "unsupported_parameter",
            )
        return self


class TokenizeRequest(Body):
    """What a prompt, or a conversation, costs: nothing is run, and no picture is decoded."""

    # A body of chat completions is welcome as it is: what only concerns the answer is not read.
    ignored: ClassVar[frozenset[str]] = (
        Body.ignored
        | frozenset(Sampling.model_fields)
        | {
            "max_completion_tokens",
            "logprobs",
            "top_logprobs",
            "response_format",
            "parallel_tool_calls",
            "modalities",
            "add_special_tokens",
        }
    )
    refused: ClassVar[Mapping[str, str]] = REFUSED

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    add_generation_prompt: bool | None = None  # as True
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | None] | None = None
    return_tokens: bool | None = None  # as True
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Any:
        if (self.prompt is None) == (self.messages is None):
            raise field_error("messages", "Give either messages or a prompt.", "invalid_value")
        return self
