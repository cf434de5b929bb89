"""`POST /v1/chat/completions`: the request, and the objects of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from qvl.serve.protocol.body import field_error
from qvl.serve.protocol.content import Message, ProcessorOptions
from qvl.serve.protocol.sampling import ResponseFormat, Sampling
from qvl.serve.protocol.tools import Tool, ToolChoice

REFUSED: Mapping[str, str] = {
    "audio": "this model does not speak.",
    "prediction": "answers are not predicted by the client.",
    "web_search_options": "this server searches nothing.",
    "functions": "use tools.",
    "function_call": "use tool_choice.",
    "moderation": "this server moderates nothing.",
    "chat_template": "the template is the checkpoint's.",
    "documents": "put them into the messages.",
    "media_io_kwargs": "put num_frames or fps beside the video.",
    "best_of": "ask for n answers.",
    "use_beam_search": "answers are sampled.",
    "length_penalty": "it belongs to beam search.",
    "prompt_logprobs": "only the answer's tokens have log probabilities.",
    "echo": "only /v1/completions has it.",
    "truncate_prompt_tokens": "shorten the messages.",
    "include_stop_str_in_output": "stop texts are never part of the answer.",
    "allowed_token_ids": "use structured_outputs.",
    "bad_words": "use logit_bias.",
    "logits_processors": "the server runs no code of its clients.",
    "return_token_ids": "/tokenize gives the ids of a text.",
}


class ChatRequest(Sampling):
    """A conversation to answer."""

    refused: ClassVar[Mapping[str, str]] = REFUSED

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    add_generation_prompt: bool | None = None  # as True
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, bool | int | float | None] | None = Field(
        None, description="Switches of the checkpoint's template, such as add_vision_id"
    )

    @field_validator("modalities")
    @classmethod
    def _text_only(cls, value: list[str] | None) -> list[str] | None:
        if value and value != ["text"]:
            raise field_error("modalities", "modalities can only be ['text'] here.", "unsupported_parameter")
        return value

    @model_validator(mode="after")
    def _together(self) -> Any:
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "top_logprobs needs logprobs=true.", "invalid_value")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise field_error("tool_choice", "tool_choice needs tools.", "invalid_value")
        if self.continue_final_message and self.tools:
            raise field_error(
                "continue_final_message", "continue_final_message cannot go with tools.", "invalid_value"
            )
        return self

    @property
    def output_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().output_limit

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens to report beside each token; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
