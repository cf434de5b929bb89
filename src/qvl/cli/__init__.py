"""The command line, ``qvl``: asks, chats and tells what a model and its media cost.

Here are the entry point and everything that ends a program: exit codes, one-line errors, Ctrl-C and broken
pipes. Commands only raise. Answers go to stdout, all else to stderr. Heavy imports happen inside commands, so
that ``qvl --help`` is quick.

Exit codes: 0 done; 1 the model could not be loaded or run; 2 wrong usage or unusable input (a missing file, a
broken picture, settings that make no sense); 130 interrupted by Ctrl-C; 141 whoever read stdout went away.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import qvl
import qvl.cli.ask as ask_command
import qvl.cli.chat as chat_command
import qvl.cli.info as info_command
from qvl.cli.options import DebugOption, Session
from qvl.errors import InputError, InputTypeError, QvlError, UnknownNameError, UnsupportedError

__all__ = ["app", "main"]

OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
CALLERS_FAULT = (InputError, InputTypeError, UnknownNameError, UnsupportedError)

EXIT_CODES = (
    "Exit codes: 0 done, 1 the model could not be loaded or run, 2 wrong usage or unusable input, "
    "130 interrupted by Ctrl-C."
)

app = typer.Typer(name="qvl", add_completion=True, pretty_exceptions_enable=False, epilog=EXIT_CODES)
app.command("ask")(ask_command.ask)
app.command("chat")(chat_command.chat)
app.command("info")(info_command.info)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qvl {qvl.__version__}")
        raise typer.Exit()


@app.callback()
def qvl_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Qwen2.5-VL on your machine: pictures, documents, screens and videos in, text and boxes out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's) and returns its exit code. Prints, never raises."""
    session = Session()
    _quiet_logs()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv), session)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _after_broken_pipe()
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # typer leaves the program on one
            return _after_broken_pipe()
        raise
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _report(error, session)


def _run(argv: list[str], session: Session) -> int:
    command = typer.main.get_command(app)
    code = command.main(args=argv or ["--help"], prog_name="qvl", standalone_mode=False, obj=session)
    return code if isinstance(code, int) else OK


def _after_broken_pipe() -> int:
    # Python flushes stdout once more at exit; into nothing, so that no second error appears.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return BROKEN_PIPE


def _report(error: Exception, session: Session) -> int:
    """One line on stderr and the exit code; with --debug the traceback first."""
    if session.debug:
        logging.getLogger("qvl").error("traceback, because of --debug:", exc_info=error)
    message, code = _explained(error)
    print(f"qvl: {' '.join(message.split())}", file=sys.stderr)
    return code


def _explained(error: Exception) -> tuple[str, int]:
    if isinstance(error, QvlError):
        return str(error), USAGE if isinstance(error, CALLERS_FAULT) else FAILED
    if hasattr(error, "format_message"):  # typer's usage errors, from its own click or from the package click
        context: Any = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        return f"{error.format_message().rstrip('.')}{where}", USAGE
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return (
            "not enough memory for this model and these media; try --max-pixels, --fps, --dtype bfloat16 or "
            f"a smaller model ({str(error) or 'out of memory'})",
            FAILED,
        )
    hint = "run again with --debug to see where"
    return f"unexpected {type(error).__name__}: {error} ({hint})", FAILED


def _quiet_logs() -> None:
    """Log lines and warnings as single lines on stderr, in the shape of errors."""
    logging.basicConfig(format="qvl: %(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"qvl: {message}", file=sys.stderr)
