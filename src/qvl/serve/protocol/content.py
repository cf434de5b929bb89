"""Messages and their parts as requests hold them: text, pictures, videos and files, tool calls, results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from qvl.serve.protocol.body import Wire, field_error

Detail = Literal["low", "high", "auto"]


class MediaOptions(Wire):
    """How large a picture or a frame becomes, and which frames of a video are taken. Beside a part's ``type``
    or inside its ``image_url`` / ``video_url``."""

    min_pixels: int | None = Field(default=None, ge=1, description="Pixels of the resized picture, at least")
    max_pixels: int | None = Field(default=None, ge=1, description="Pixels of the resized picture, at most")
    resized_height: int | None = Field(default=None, ge=1)
    resized_width: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0, description="Frames a second that are taken of a video")
    num_frames: int | None = Field(default=None, ge=1)
    nframes: int | None = Field(default=None, ge=1)
    min_frames: int | None = Field(default=None, ge=1)
    max_frames: int | None = Field(default=None, ge=1)
    total_pixels: int | None = Field(default=None, ge=1, description="Pixels of all frames together, at most")
    video_start: float | None = Field(default=None, ge=0, description="Seconds")
    video_end: float | None = Field(default=None, ge=0, description="Seconds")

    def given(self) -> dict[str, Any]:
        """The options that are set."""
        values = ((name, getattr(self, name)) for name in MediaOptions.model_fields)
        return {name: value for name, value in values if value is not None}


class ProcessorOptions(MediaOptions):
    """``mm_processor_kwargs``: for all media of a request that do not say otherwise."""

    model_config = ConfigDict(extra="forbid")


class ImageURL(MediaOptions):
    url: str = Field(description="http(s):, data: or file:")
    detail: Detail | None = None


class VideoURL(MediaOptions):
    url: str = Field(description="http(s):, data: or file:")


class FileData(Wire):
    file_data: str | None = Field(default=None, description="A PDF as base64 or as a data URI")
    filename: str | None = None
    file_id: str | None = None
    pages: list[int] | None = Field(default=None, description="Pages to read, from 1; all where it is silent")

    @field_validator("file_id")
    @classmethod
    def _no_ids(cls, value: str | None) -> None:
        if value is not None:
            raise field_error("file_id", "Files are not kept here: send file_data.", "unsupported_parameter")


class TextPart(Wire):
    type: Literal["text"]
    text: str


class RefusalPart(Wire):
    """What an assistant of OpenAI's may have said; read as text."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(MediaOptions):
    type: Literal["image_url"]
    image_url: ImageURL | str


class VideoPart(MediaOptions):
    type: Literal["video_url"]
    video_url: VideoURL | str


class FilePart(MediaOptions):
    type: Literal["file"]
    file: FileData
    pages: list[int] | None = None


class AudioPart(Wire):
    """Refused: the model hears nothing."""

    type: Literal["input_audio"]

    @field_validator("type")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise field_error(
            "input_audio", "input_audio is not supported: this model hears nothing.", "unsupported_content"
        )


UserPart = Annotated[
    TextPart | ImagePart | VideoPart | FilePart | AudioPart | RefusalPart, Field(discriminator="type")
]


class FunctionCall(Wire):
    name: str
    arguments: str = Field(description="A JSON object as text")


class ToolCall(Wire):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Instructions(Wire):
    """What the system, or the developer, lays down. Both are the model's ``system``."""

    role: Literal["system", "developer"]
    content: str | list[UserPart]
    name: str | None = None


class UserMessage(Wire):
    role: Literal["user"]
    content: str | list[UserPart]
    name: str | None = None


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: str | list[UserPart] | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None


class ToolMessage(Wire):
    role: Literal["tool"]
    content: str | list[UserPart]
    tool_call_id: str | None = None


Message = Annotated[Instructions | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
