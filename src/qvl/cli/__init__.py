"""The command line, ``qvl``: asks, chats and tells what a model and its media cost.

Here is the entry point and everything that ends the program: exit codes, one-line errors, Ctrl-C and broken
pipes. Commands (``app``) only raise. Answers go to stdout, all else to stderr. ``app`` is imported inside
``main``, so that Ctrl-C during the imports ends the program like any other; what is heavy is imported inside
the commands, so that ``qvl --help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qvl.cli.collector import paused
from qvl.cli.failures import BROKEN_PIPE, FAILED, INTERRUPTED, OK, USAGE, Session, report_error
from qvl.cli.streams import prepare

__all__ = ["BROKEN_PIPE", "FAILED", "INTERRUPTED", "OK", "USAGE", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's) and returns its exit code. Prints, never raises."""
    with paused(until_started=argv is None):
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    session = Session()
    prepare()
    try:
        from qvl.cli.app import run

        code = run(argv, session)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _after_broken_pipe()
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # typer leaves the program on one
            return _after_broken_pipe()
        raise
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # what the shell says next begins a line of its own
        return INTERRUPTED
    except Exception as error:
        return report_error(error, session)


def _after_broken_pipe() -> int:
    # Python flushes stdout once more at exit; into nothing, so that no second error appears.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return BROKEN_PIPE
