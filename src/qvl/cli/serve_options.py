"""The options of ``qvl serve`` that are settings of the server: one row for each field of the settings.

A test holds the table against the dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from qvl.cli.setting_options import SettingOption, with_options
from qvl.serve.settings import Access, Limits, ServeSettings

SERVER, SHARING, ACCESS, COSTS = "Server", "Sharing the model", "Access", "Limits of a request"
MEDIA, TIMES = "Limits of media", "Limits of time and of the queue"
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
    """``command`` with all options of the table; see `with_options`."""
    return with_options(command, OPTIONS, _DEFAULTS)


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
