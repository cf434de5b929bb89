"""Python's collector of reference cycles, which stands still while the program starts and ends.

Importing torch makes some 400,000 objects that live as long as the process. Looking through them again and
again for cycles takes a fifth of the time of the import, and once more as long at the exit.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused(*, until_started: bool) -> Iterator[None]:
    """No collection until ``started`` is called, and a quick end; without ``until_started`` all as ever.

    Whoever runs the command line inside a program of their own keeps their collector as it is.
    """
    if not until_started:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # the interpreter collects at its end whatever is not frozen


def started() -> None:
    """The model is there: what exists stays, and collecting goes on with what comes."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
