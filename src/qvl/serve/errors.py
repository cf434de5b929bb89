"""Errors that only a server has. The tree of all others is in `qvl.errors`; `protocol/failures.py` says which
status each one becomes."""

from __future__ import annotations

from qvl.errors import InputError, QvlError


class QueueFullError(QvlError):
    """More requests wait than the server is willing to hold (429)."""


class DrainingError(QvlError):
    """The server is about to stop and takes no new requests (503)."""


class RefusedError(InputError):
    """Asked for something that this server does not allow (403)."""
