"""What a request says of how its answer is drawn and where it ends: OpenAI's names, and vLLM's beyond."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from qvl.serve.protocol.body import Body, Wire, field_error

MOST_BIASES = 1024
MOST_STOP_TOKENS = 128
LARGEST = 2**63 - 1

Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(Wire):
    include_usage: bool | None = None


class StructuredOutputs(Wire):
    """vLLM's: one of them."""

    model_config = ConfigDict(extra="forbid")

    json_: dict[str, Any] | str | None = Field(default=None, alias="json", description="A JSON schema")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = Field(default=None, description="A grammar in Lark's form")


class Sampling(Body):
    """Settings of an answer that chat, completions and responses share. What is left out, the checkpoint's
    generation_config.json decides."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=LARGEST, description="0 or -1: all tokens")
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-LARGEST, le=LARGEST)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=MOST_STOP_TOKENS)
    ignore_eos: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=LARGEST)
    min_tokens: int | None = Field(default=None, ge=0, le=LARGEST)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=MOST_BIASES)
    n: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise field_error(
                    "logit_bias", "The keys of logit_bias must be token ids, such as '1234'.", "invalid_value"
                )
        return value

    @model_validator(mode="after")
    def _options_of_streams(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "stream_options is only for stream=true.", "invalid_value")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)

    @property
    def output_limit(self) -> tuple[str, int | None]:
        """The name of the field that bounds the answer's tokens, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class SchemaFormat(Wire):
    name: str = "schema"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    """Any object, or one of a schema, in llama-server's form or in that of TGI and its client."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    value: dict[str, Any] | None = Field(default=None, description="The same as schema")

    @property
    def own_schema(self) -> dict[str, Any] | None:
        return self.value if self.schema_ is None else self.schema_


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
