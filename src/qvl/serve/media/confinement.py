"""What a worker's process gives up first, before it imports what could start a thread."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

# Linux, sched.h: a user namespace, which needs no rights to be made, and a network of one's own in it
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def confine() -> None:
    """Leaves the network, where the system lets a process do that, and is first to go where memory runs out.

    Not every system does (containers often do not), so nothing else rests on it: it is there for the day on
    which a decoder is made to run a stranger's code.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if os.uname().sysname == "Linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
