"""The options that commands share, each written once."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from qvl.cli.failures import Session

LARGEST_SEED = 2**63 - 1  # of torch's generators


class Dtype(str, Enum):
    """Number formats that weights can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class KvDtype(str, Enum):
    """Number formats that keys and values can be kept in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Attention(str, Enum):
    """Back-ends of the attention."""

    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class Weights(str, Enum):
    """Bits that weights can be rounded to."""

    int8 = "int8"
    int4 = "int4"


def _remember_debug(context: typer.Context, wanted: bool) -> bool:
    session = context.find_root().obj
    if wanted and isinstance(session, Session):
        session.debug = True
    return wanted


DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, help="Show the traceback of an error.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder or hub id of a checkpoint. Default: the bundled digit reader."
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option("--draft", help="Folder or hub id of a smaller checkpoint that guesses ahead."),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Number format of the weights; auto: as stored.")]
WeightsOption = Annotated[
    Weights | None,
    typer.Option(
        "--weights", help="Round the decoder's weights to int8 or int4 while loading. Default: as stored."
    ),
]
KvDtypeOption = Annotated[
    KvDtype | None,
    typer.Option(
        "--kv-dtype", help="Number format of the cache; int8 takes about a quarter of float32's memory."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, mps. Default: the first accelerator, or cpu."),
]
AttentionOption = Annotated[Attention, typer.Option("--attention", help="Attention back-end.")]
MinPixelsOption = Annotated[
    int | None, typer.Option("--min-pixels", min=1, help="Enlarge pictures to at least this many pixels.")
]
MaxPixelsOption = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Shrink pictures to at most this many pixels.")
]
FpsOption = Annotated[float | None, typer.Option("--fps", help="Frames per second taken from a video.")]
MaxNewTokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", help="Longest answer. Default: the checkpoint's, or 1024.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", help="0: always the likeliest token. Default: the checkpoint's."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Makes sampled answers repeatable.")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System prompt. Default: that of the chat template.")
]
