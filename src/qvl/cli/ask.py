"""``qvl ask``: one question about any number of pictures, videos and documents."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from qvl.cli.common import (
    Loading,
    check_text,
    generate,
    generation_settings,
    load_assistant,
    load_processor,
    tokenized,
)
from qvl.cli.options import (
    Attention,
    AttentionOption,
    DebugOption,
    DeviceOption,
    DraftOption,
    Dtype,
    DtypeOption,
    FpsOption,
    KvDtypeOption,
    MaxNewTokensOption,
    MaxPixelsOption,
    MinPixelsOption,
    ModelOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    WeightsOption,
)
from qvl.cli.streams import write, write_json
from qvl.errors import InputError

STDIN = "-"

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[MEDIA]... QUESTION",
        help="Pictures, videos, PDF files or URLs, - for a picture from stdin; last, the question.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with answer, tokens, times and boxes.")
]


def ask(
    words: Words,
    model: ModelOption = None,
    draft: DraftOption = None,
    system: SystemOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: FpsOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    dtype: DtypeOption = Dtype.auto,
    kv_dtype: KvDtypeOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = Attention.sdpa,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask about pictures, videos and documents; the answer streams to stdout.

    What a file is, its content decides, not its name. Several media go in the order in which they are named.
    Without media it is a plain question.
    """
    from qvl.cli.media import open_media
    from qvl.cli.report import report

    begin = time.perf_counter()
    *sources, question = words
    _check_question(question)
    check_text("the question", question)
    check_text("--system", system or "")
    settings = generation_settings(max_new_tokens, temperature, seed, kv_dtype)
    media = open_media(sources)
    bits = None if weights is None else weights.value
    loading = Loading(model, dtype.value, device, attention.value, min_pixels, max_pixels, draft, bits)
    loading.announce()
    processor = load_processor(loading)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    content = [*(medium.entry for medium in media), {"type": "text", "text": question}]
    inputs = tokenized(processor, [*messages, {"role": "user", "content": content}], fps)
    prepared = time.perf_counter()
    assistant = load_assistant(loading, processor)
    loaded = time.perf_counter()
    answer = generate(assistant, inputs, settings, show=_keep_quiet if as_json else write)
    if not as_json:
        print(flush=True)
        return
    times = {"prepare": prepared - begin, "load": loaded - prepared, "first_token": answer.first_token}
    times |= {"generate": answer.seconds, "total": time.perf_counter() - begin}
    facts = report(media, inputs, processor, answer, times)
    write_json({"model": loading.name, "question": question, **facts})


def _keep_quiet(text: str) -> None:
    """Shows nothing: the answer comes in one piece, at the end."""


def _check_question(question: str) -> None:
    from qvl.processing.media.sources import is_url

    if question == STDIN or os.path.isfile(question) or (is_url(question) and len(question.split()) == 1):
        raise InputError(
            f"the last argument is the question, but {question!r} is a medium; put the question behind it"
        )
    if not question.strip():
        raise InputError("the question is empty")
