"""Who may ask: the key, the Host header, and whose share of the engine a request takes.

Knows headers and addresses only. A key never leaves this file: what others see of it is a digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from qvl.serve.settings import ServeSettings

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health", "/ready")  # for supervisors and load balancers, which have no key
_BASIC = 'Basic realm="qvl", charset="UTF-8"'  # a browser asks for a name and a password, the key


class Gate:
    """Checks requests against the settings: the Host header, then the key."""

    def __init__(self, settings: ServeSettings) -> None:
        access = settings.access
        self._digests = [_digest(key) for key in access.api_keys]
        bound = [settings.host] if settings.host not in ("0.0.0.0", "::", "") else []
        self._hosts = {_host_name(name) for name in (*LOCAL_NAMES, *bound, *access.allowed_hosts)}
        # With a key, a page that a browser was lured to under a name of its own cannot ask anything.
        self._check_host = not access.api_keys or bool(access.allowed_hosts)

    def check(self, path: str, method: str, headers: Headers, peer: str) -> str:
        """The client that a request counts for: a digest of its key, or else its address (never a header).

        Raises HTTPException: 421 for a Host that is not this server's, 401 without one of its keys.
        """
        if self._check_host and _host_name(headers.get("host", "")) not in self._hosts:
            raise HTTPException(
                421,
                "The Host header does not name this server; start it with --server-name to let it answer to "
                "other names.",
            )
        if not self._digests or path in OPEN_PATHS:
            return peer
        digest = _digest(_key(headers))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all: time tells nothing
        if not any(matches):
            raise HTTPException(
                401,
                "This server needs an API key: send it as 'Authorization: Bearer KEY'.",
                headers={"WWW-Authenticate": _BASIC if _is_browser(method, headers) else "Bearer"},
            )
        return digest.hex()[:12]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _key(headers: Headers) -> str:
    """The key of a request: a bearer token, or the password of HTTP Basic; empty without one."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _is_browser(method: str, headers: Headers) -> bool:
    """Whether a person opens a page, who can be asked for the key."""
    return method == "GET" and "text/html" in headers.get("accept", "")


def _host_name(host: str) -> str:
    """The name in a Host header: without its port, brackets and the dot at its end."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    return name.rstrip(".")
