"""Tells systemd that the server is ready, that it lives, and that it stops (the protocol of sd_notify(3)).

Does nothing where no supervisor asked: the socket and the interval come in the environment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic


class Supervisor:
    """The service manager that started this process, if there is one that listens."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        # Twice within the time that it waits for.
        self._interval = int(microseconds) / 2e6 if microseconds.isdigit() else None
        self._last = 0.0

    def ready(self) -> None:
        """Requests are taken."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Requests are no longer taken."""
        self._send("STOPPING=1")

    def lives(self) -> None:
        """To be called now and then while all is well: without it the service is started again."""
        if self._interval is not None and monotonic() - self._last >= self._interval:
            self._last = monotonic()
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto(message.encode(), address)
