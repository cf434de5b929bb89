"""``qvl serve``: one model behind an OpenAI-compatible API and a page, until a signal ends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.common import Assistant, Loading, fetch, load_assistant, load_processor
from qvl.cli.options import (
    Attention,
    AttentionOption,
    DebugOption,
    DeviceOption,
    DraftOption,
    Dtype,
    DtypeOption,
    KvDtype,
    KvDtypeOption,
    MaxPixelsOption,
    MinPixelsOption,
    ModelOption,
    WeightsOption,
)
from qvl.cli.serve_options import ACCESS, make_settings, with_settings
from qvl.cli.streams import say

if TYPE_CHECKING:
    from qvl.serve.jobs import Backend
    from qvl.serve.settings import ServeSettings

ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="QVL_API_KEY",
        help="Key that requests must bring. Others on this machine can read a command line: the environment "
        "variable or a file keeps it safer.",
        rich_help_panel=ACCESS,
        show_default=False,
    ),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="File of keys, one a line.", rich_help_panel=ACCESS),
]
NoApiKeyOption = Annotated[
    bool,
    typer.Option(
        "--no-api-key",
        help="Let everybody who can reach --host use the server.",
        rich_help_panel=ACCESS,
    ),
]


@with_settings
def serve(
    model: ModelOption = None,
    draft: DraftOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    dtype: DtypeOption = Dtype.auto,
    kv_dtype: KvDtypeOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = Attention.sdpa,
    api_key: ApiKeyOption = None,
    api_key_file: ApiKeyFileOption = None,
    no_api_key: NoApiKeyOption = False,
    debug: DebugOption = False,
    *,
    given: Mapping[str, Any],
) -> None:
    """Serve the model to many people: OpenAI's API, and a page to drop pictures on.

    SIGTERM or Ctrl-C lets running requests finish; a second one ends at once.
    """
    bits = None if weights is None else weights.value
    loading = Loading(model, dtype.value, device, attention.value, min_pixels, max_pixels, draft, bits)
    settings = _checked_settings(loading, api_key, api_key_file, no_api_key, given)
    from qvl.serve.server import Server, bind, interrupted, url_of

    with bind(settings.host, settings.port) as listener, TemporaryDirectory(prefix="qvl-") as folder:
        loading.announce()
        if loading.model is not None:
            say(f"qvl: loading {loading.name}")
        backend = _backend(settings, loading, kv_dtype, folder)
        server = Server(backend, lambda: _announce(backend.settings, url_of(listener)), _announce_end)
        server.serve_on(listener)
    if interrupted(server.signals):
        raise KeyboardInterrupt


def _checked_settings(
    loading: Loading,
    api_key: str | None,
    api_key_file: Path | None,
    no_api_key: bool,
    given: Mapping[str, Any],
) -> ServeSettings:
    from qvl.errors import InputError
    from qvl.serve.keys import check_binding, read_keys

    keys = read_keys(api_key, api_key_file)
    if keys and no_api_key:
        raise InputError("--no-api-key contradicts the key that was given; leave one of them out")
    settings = make_settings(loading.name, keys, given)
    check_binding(settings.host, keys, open_to_all=no_api_key)
    root = settings.access.media_root
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--media-root {root} is no folder")
    return settings


def _backend(settings: ServeSettings, loading: Loading, kv_dtype: KvDtype | None, folder: str) -> Backend:
    """``folder``: an empty one, for the files of a processor with sizes of its own."""
    from qvl.hub import SMALL_FILES
    from qvl.serve.building import build_backend

    processor = load_processor(loading)
    if loading.min_pixels is None and loading.max_pixels is None:
        folder = fetch(loading.name, SMALL_FILES)
    else:  # the media workers load a processor for themselves
        processor.save_pretrained(folder)
    assistant = load_assistant(loading, processor)
    return build_backend(
        settings,
        assistant.model,
        processor,
        folder,
        draft=_draft(assistant),
        kv_dtype=_torch_dtype(kv_dtype),
    )


def _draft(assistant: Assistant) -> Any:
    """The draft model. Raises GenerationError for one that cannot help this model."""
    draft = assistant.drafts.get("assistant_model")
    if draft is not None:
        from qvl.generation import speculation
        from qvl.generation.config import GenerationConfig

        tokenizers = (assistant.drafts["assistant_tokenizer"], assistant.drafts["tokenizer"])
        speculation.Assistant(draft, *tokenizers).check(GenerationConfig(), assistant.model)
    return draft


def _torch_dtype(kv_dtype: KvDtype | None) -> Any:
    if kv_dtype is None:
        return None
    import torch

    return getattr(torch, kv_dtype.value)


def _announce(settings: ServeSettings, url: str) -> None:
    keys = len(settings.access.api_keys)
    access = f"{keys} API key{'s' * (keys > 1)}" if keys else "no API key"
    memory = settings.kv_memory or 0
    shown = f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.1f} MiB"
    say(
        f"qvl: serving {settings.name} at {url} ({settings.max_sequences} answers at a time, "
        f"{shown} for keys and values, {access})"
    )


def _announce_end(requests: int) -> None:
    wait = f"{requests} request{'s' * (requests != 1)} under way may finish; a second signal ends at once"
    say(f"qvl: stopping: {wait}" if requests else "qvl: stopping")
