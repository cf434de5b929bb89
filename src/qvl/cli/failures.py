"""What becomes of an error: an exit code and one line on stderr. Knows no command.

Exit codes: 0 done; 1 the model could not be loaded or run; 2 wrong usage or unusable input (a missing file, a
broken picture, settings that make no sense); 130 interrupted by Ctrl-C; 141 whoever read stdout went away.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from qvl.cli.streams import say
from qvl.errors import InputError, InputTypeError, QvlError, UnknownNameError, UnsupportedError

OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
CALLERS_FAULT = (InputError, InputTypeError, UnknownNameError, UnsupportedError)


@dataclass
class Session:
    """What the program must still know after a command has raised."""

    debug: bool = False


def report_error(error: Exception, session: Session) -> int:
    """One line on stderr and the exit code; with --debug the traceback first."""
    if session.debug:
        logging.getLogger("qvl").error("traceback, because of --debug:", exc_info=error)
    message, code = explained(error)
    say(f"qvl: {' '.join(message.split())}")
    return code


def explained(error: Exception) -> tuple[str, int]:
    """What to say of ``error`` and the exit code that goes with it."""
    if isinstance(error, QvlError):
        return str(error), USAGE if isinstance(error, CALLERS_FAULT) else FAILED
    if hasattr(error, "format_message"):  # typer's usage errors, from its own click or from the package click
        context: Any = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        return f"{error.format_message().rstrip('.')}{where}", USAGE
    if ran_out_of_memory(error):
        return (
            "not enough memory for this model and these media; try --max-pixels, --fps, --dtype bfloat16 or "
            f"a smaller model ({str(error) or 'out of memory'})",
            FAILED,
        )
    if isinstance(error, OSError) and error.strerror:  # a full disk, a file that may not be read
        about = f"{error.filename}: " if error.filename else ""
        return f"{about}{error.strerror}", FAILED
    hint = "run again with --debug to see where"
    return f"unexpected {type(error).__name__}: {error} ({hint})", FAILED


def ran_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch found no memory; torch's class is known by name, as torch may not be there.

    Its CPU allocator raises a plain RuntimeError.
    """
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
