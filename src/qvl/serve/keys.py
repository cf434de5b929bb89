"""API keys as operators give them, and the addresses that need one: checked before anything is loaded."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

from qvl.errors import InputError

SHORTEST_KEY = 8  # characters


def read_keys(key: str | None, file: Path | None) -> tuple[str, ...]:
    """The keys of the option or environment variable and of the file: one a line, # begins a comment.

    Raises InputError for an empty or short key, and for a file that cannot be read or holds none.
    """
    keys = [] if key is None else [_checked(key, "the API key")]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"the key file {file} cannot be read: {reason}") from None
        stripped = [line.strip() for line in lines]
        found = [line for line in stripped if line and not line.startswith("#")]
        if not found:
            raise InputError(f"the key file {file} holds no key; write one key on each line")
        keys += [_checked(line, f"a key in {file}") for line in found]
    return tuple(dict.fromkeys(keys))


def check_binding(host: str, keys: Iterable[str], *, open_to_all: bool) -> None:
    """Raises InputError for an address that others can reach, without a key, unless that was asked for."""
    if not tuple(keys) and not open_to_all and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines; set a key with --api-key-file or "
            "QVL_API_KEY, or say --no-api-key if everybody there may use it"
        )


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _checked(key: str, what: str) -> str:
    key = key.strip()
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{what} must be {SHORTEST_KEY} or more visible ASCII characters without spaces; "
            "openssl rand -hex 32 makes a good one"
        )
    return key
