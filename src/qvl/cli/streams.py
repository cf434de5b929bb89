"""The three standard streams: made safe at the start, and everything that the program prints.

Answers come from a model that may have read anything, so on a terminal control characters are shown as
U+FFFD: an escape sequence in a picture must not reach the terminal. In a file or pipe they stay.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from typing import Any, TextIO

CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_HARMLESS = {code: "\N{REPLACEMENT CHARACTER}" for code in CONTROLS if chr(code) not in "\n\t"}


def prepare() -> None:
    """Streams that exist and take every character; log lines and warnings as single lines on stderr."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # as long as the process
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    logging.basicConfig(format="qvl: %(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
    warnings.showwarning = lambda message, *_args, **_kwargs: say(f"qvl: {' '.join(str(message).split())}")


def say(text: str) -> None:
    """A remark to the person at the terminal: on stderr, as everything that is not an answer."""
    print(_for(sys.stderr, text), file=sys.stderr, flush=True)


def write(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(_for(sys.stdout, text))
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """One line of JSON; in ASCII where stdout cannot hold its characters (file names need not be text)."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(_for(sys.stdout, text), flush=True)


def harmless(text: str) -> str:
    """``text`` without control characters other than line breaks and tabs."""
    return text.translate(_HARMLESS)


def _for(stream: TextIO, text: str) -> str:
    return harmless(text) if stream.isatty() else text
