"""The server's process: a socket, signals, and a stop that lets running requests finish.

Knows uvicorn and a `Backend`. The first SIGTERM or SIGINT begins to drain: new requests get 503, those under
way go on for a while. The second one ends at once.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from time import monotonic
from types import FrameType

from qvl.errors import InputError, missing_dependency
from qvl.serve.app import create_app
from qvl.serve.errors import BindError
from qvl.serve.jobs import Backend
from qvl.serve.supervision import Supervisor

try:
    import uvicorn
except ImportError:
    raise missing_dependency("uvicorn", "serve", "qvl serve") from None

LAST_WORDS = 5  # seconds for connections to end after their answers were ended
KEEP_ALIVE = 30  # seconds that a connection may rest between requests
BACKLOG = 1024  # connections that wait to be accepted


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises BindError where it cannot, InputError for no address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise InputError(f"--host {host} is no address and no name of this machine") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BindError(
                f"port {port} of {host} is in use; choose another with --port, or --port 0"
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise BindError(f"port {port} of {host} cannot be listened on: {reason}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a socket as people type it."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


class Server(uvicorn.Server):
    """Serves one backend until a signal comes; ``signals``: those that came. ``started`` is called once
    requests are taken, ``stopping`` with the number of those under way once no new ones are.
    """

    def __init__(
        self,
        backend: Backend,
        started: Callable[[], None] = lambda: None,
        stopping: Callable[[int], None] = lambda requests: None,
    ) -> None:
        self.app = create_app(backend)
        self.signals: list[int] = []
        self._backend = backend
        self._tell_started, self._tell_stopping = started, stopping
        self._supervisor = Supervisor()
        self._draining_since: float | None = None
        self._told_stopping = False
        super().__init__(
            uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # a client's address is the one that it connects from
                ws="none",
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_WORDS,
            )
        )

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until a signal ends it. Raises what the start of the application raised."""
        log = logging.getLogger("uvicorn.error")
        log.setLevel(logging.CRITICAL)  # what goes wrong at the start is told by the command
        try:
            self.run(sockets=[listener])
        except SystemExit:
            failure: BaseException | None = getattr(self.app.state, "failure", None)
            if failure is not None:
                raise failure from None
            raise
        if self.force_exit:
            os._exit(128 + self.signals[-1])  # whatever still runs is of no use to anybody

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._supervisor.ready()
        self._tell_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGINT and SIGTERM."""
        self.signals.append(sig)
        if len(self.signals) > 1:
            self.should_exit = self.force_exit = True
            return
        self._backend.service.drain()
        self._draining_since = monotonic()
        self._supervisor.stopping()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._backend.service.alive:
            self._supervisor.lives()
        if self._draining_since is not None and not self.should_exit:
            if (
                not self._told_stopping
            ):  # not where the signal came: it may have come into a line being written
                self._told_stopping = True
                self._tell_stopping(len(self._backend.requests))
            waited = monotonic() - self._draining_since
            if not self._backend.requests:
                self.should_exit = True
            elif waited >= self._backend.settings.drain_seconds:
                self._backend.service.abort_all()
                self.should_exit = True
        return await super().on_tick(counter)


def interrupted(signals: list[int]) -> bool:
    """Whether Ctrl-C ended the server."""
    return bool(signals) and signals[0] == signal.SIGINT
