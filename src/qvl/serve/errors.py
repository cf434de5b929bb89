"""Errors that only a server has. The tree of all others is in `qvl.errors`; `protocol/failures.py` says which
status each one becomes."""

from __future__ import annotations

from qvl.errors import InputError, QvlError


class QueueFullError(QvlError):
    """More requests wait than the server is willing to hold (429)."""


class DrainingError(QvlError):
    """The server is about to stop and takes no new requests (503)."""


class NoWorkerError(DrainingError):
    """Processes that open media cannot be started at the moment (503)."""


class RefusedError(InputError):
    """Asked for something that this server does not allow (403)."""


class BindError(QvlError):
    """The address cannot be listened on."""


class RequestError(InputError):
    """A request that cannot be answered (400). ``param``: the field that is wrong; ``code``: for programs."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownModelError(RequestError):
    """No model of that name is served here (404)."""


class OutOfTimeError(QvlError):
    """The answer took longer than a request may (408)."""
