"""The options of ``qvl serve`` that are settings of the server: one row for each field of the settings.

The command's signature is made from the table, so that a setting has its option, its default and its check in
one place; a test holds the table against the dataclasses.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from qvl.serve.settings import Access, Limits, ServeSettings

SERVER, SHARING, ACCESS, COSTS = "Server", "Sharing the model", "Access", "Limits of a request"
MEDIA, TIMES = "Limits of media", "Limits of time and of the queue"
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 1.5GiB or 4096. Raises BadParameter for anything else."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is no size; write bytes, or a number with K, M, G or T, as in 4G")
    return size


def shown_size(size: int) -> str:
    """A size as `parse_size` reads it."""
    for unit in ("T", "G", "M", "K"):
        if size % _UNITS[unit.lower()] == 0:
            return f"{size // _UNITS[unit.lower()]}{unit}"
    return str(size)


@dataclass(frozen=True)
class SettingOption:
    """One option. ``kind``: int, float, str, bool, Path, "size" (bytes) or "list" (may be given several
    times). ``least``, ``most``: what numbers may be; ``unset``: what the help says of a default of None.
    """

    field: str
    names: str
    help: str
    panel: str
    kind: Any = int
    least: float | None = 1
    most: float | None = None
    unset: str | None = None

    def parameter(self, default: Any) -> inspect.Parameter:
        """A parameter of the command; None unless someone gives it."""
        extra: dict[str, Any] = {"rich_help_panel": self.panel, "show_default": False}
        shown = self._shown(default)
        extra["help"] = f"{self.help} Default: {shown}." if shown else self.help
        kind: Any = self.kind
        if kind == "size":
            kind, extra["parser"], extra["metavar"] = int, parse_size, "SIZE"
        elif kind == "list":
            kind = list[str]
        elif kind in (int, float):
            extra |= {"min": self.least, "max": self.most}
        option = Annotated[kind | None, typer.Option(*self.names.split(), **extra)]
        return inspect.Parameter(self.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)

    def _shown(self, default: Any) -> str:
        if default is None or default == ():
            return self.unset or ""
        if self.kind == "size":
            return shown_size(default)
        if isinstance(default, bool):
            return self.names.split("/")[0 if default else 1]
        return f"{default:g}" if isinstance(default, float) else str(default)


OPTIONS = (
    SettingOption("host", "--host", "Address to listen on; others than loopback need a key.", SERVER, str),
    SettingOption("port", "--port", "Port to listen on; 0: any free one.", SERVER, least=0, most=65_535),
    SettingOption(
        "served_name", "--served-name", "What clients call the model.", SERVER, str, unset="what --model says"
    ),
    SettingOption("media_workers", "--media-workers", "Processes that open pictures and videos.", SERVER),
    SettingOption(
        "drain_seconds",
        "--drain-seconds",
        "Seconds for running requests to finish after SIGTERM or Ctrl-C.",
        SERVER,
        float,
        0,
    ),
    SettingOption(
        "log_requests", "--log-requests/--no-log-requests", "A JSON line for each request.", SERVER, bool
    ),
    SettingOption("max_sequences", "--max-sequences", "Answers that are generated together.", SHARING),
    SettingOption(
        "kv_memory",
        "--kv-memory",
        "Memory for keys and values.",
        SHARING,
        "size",
        unset="half of what is free after loading",
    ),
    SettingOption("vision_memory", "--vision-memory", "Memory for embeddings of pictures.", SHARING, "size"),
    SettingOption(
        "prefix_reuse",
        "--prefix-reuse/--no-prefix-reuse",
        "Compute what the beginnings of prompts share only once.",
        SHARING,
        bool,
    ),
    SettingOption(
        "client_share",
        "--client-share",
        "What one client may take of the running answers while others wait.",
        SHARING,
        float,
        0.01,
        1,
    ),
    SettingOption(
        "step_seconds",
        "--step-seconds",
        "Seconds of a step while others wait for their next token: prompts are cut to it.",
        SHARING,
        float,
        0.01,
    ),
    SettingOption("max_tokens", "--max-tokens", "Length of an answer where a request does not say.", SHARING),
    SettingOption(
        "repetition_tokens",
        "--repetition-tokens",
        "End an answer that repeats one block for so many tokens; 0: never.",
        SHARING,
        least=0,
    ),
    SettingOption(
        "allowed_origins",
        "--allow-origin",
        "Web page that may call from a browser (CORS), such as https://example.org.",
        ACCESS,
        "list",
    ),
    SettingOption(
        "allowed_hosts", "--server-name", "Name of this server that a Host header may say.", ACCESS, "list"
    ),
    SettingOption(
        "fetch", "--fetch/--no-fetch", "Whether media are fetched from http(s) addresses.", ACCESS, bool
    ),
    SettingOption(
        "fetch_hosts",
        "--allow-host",
        "Host that media may be fetched from though its address is private.",
        ACCESS,
        "list",
    ),
    SettingOption(
        "media_root", "--media-root", "Folder of files that file: addresses may name.", ACCESS, Path
    ),
    SettingOption("body", "--max-body", "Size of a request.", COSTS, "size"),
    SettingOption("messages", "--max-messages", "Messages.", COSTS),
    SettingOption(
        "prompt_tokens",
        "--max-prompt-tokens",
        "Tokens of prompt and answer together, pictures included.",
        COSTS,
        unset="what the model was made for",
    ),
    SettingOption("output_tokens", "--max-output-tokens", "Tokens that may be asked for.", COSTS),
    SettingOption("choices", "--max-choices", "Answers to one request (n).", COSTS),
    SettingOption("stops", "--max-stops", "Stop texts.", COSTS),
    SettingOption("top_logprobs", "--max-top-logprobs", "Alternatives beside a token.", COSTS, least=0),
    SettingOption("tools", "--max-tools", "Tools.", COSTS, least=0),
    SettingOption("schema_bytes", "--max-schema-bytes", "Bytes of a JSON schema.", COSTS),
    SettingOption("schema_depth", "--max-schema-depth", "Depth of a JSON schema.", COSTS),
    SettingOption("media", "--max-media", "Pictures, videos and pages in a request.", MEDIA, least=0),
    SettingOption("medium", "--max-medium", "Size of one file, however it arrives.", MEDIA, "size"),
    SettingOption("image_pixels", "--max-image-pixels", "Pixels of a picture as stored.", MEDIA),
    SettingOption("video_pixels", "--max-frame-pixels", "Pixels of a video's frame as stored.", MEDIA),
    SettingOption("video_frames", "--max-video-frames", "Frames that a video may hold.", MEDIA),
    SettingOption("sampled_frames", "--max-sampled-frames", "Frames taken from a video.", MEDIA),
    SettingOption("pdf_pages", "--max-pdf-pages", "Pages of a PDF.", MEDIA),
    SettingOption("decode_memory", "--decode-memory", "Memory to open one medium.", MEDIA, "size"),
    SettingOption("redirects", "--max-redirects", "Redirects followed by a download.", MEDIA, least=0),
    SettingOption(
        "request_seconds",
        "--request-seconds",
        "Seconds from a request's arrival to its last token.",
        TIMES,
        float,
        0.1,
    ),
    SettingOption(
        "body_seconds", "--body-seconds", "Seconds for a request's body to arrive.", TIMES, float, 0.1
    ),
    SettingOption("fetch_seconds", "--fetch-seconds", "Seconds for one download.", TIMES, float, 0.1),
    SettingOption("decode_seconds", "--decode-seconds", "Seconds to open one medium.", TIMES, float, 0.1),
    SettingOption("waiting", "--max-waiting", "Requests in the queue; more get 429.", TIMES, least=0),
    SettingOption(
        "waiting_memory",
        "--max-waiting-memory",
        "Media of all requests under way, and as much for their bodies; more get 429.",
        TIMES,
        "size",
    ),
)
# Given in other ways: as --model, and as keys that are read from a file or the environment.
NOT_HERE = frozenset({"model", "api_keys", "access", "limits"})
_DEFAULTS = {
    field.name: field.default
    for kind in (ServeSettings, Limits, Access)
    for field in fields(kind)
    if field.default is not MISSING
}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with all options of the table beside its own; it gets them as ``given``: those that the
    command line says.
    """
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "given"]
    added = [option.parameter(_DEFAULTS[option.field]) for option in OPTIONS]

    @wraps(command)
    def serve(**values: Any) -> None:
        given = {option.field: values.pop(option.field) for option in OPTIONS}
        command(**values, given={name: value for name, value in given.items() if value not in (None, [])})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*kept, *added)]
    serve.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {p.name: p.annotation for p in parameters}
    return serve


def make_settings(model: str, api_keys: tuple[str, ...], given: Mapping[str, Any]) -> ServeSettings:
    """Settings of what was given, and defaults."""

    def of(kind: type) -> dict[str, Any]:
        names = {field.name for field in fields(kind)}
        return {name: _plain(value) for name, value in given.items() if name in names}

    access = Access(api_keys=api_keys, **of(Access))
    return ServeSettings(model=model, access=access, limits=Limits(**of(Limits)), **of(ServeSettings))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return str(value) if isinstance(value, Path) else value
