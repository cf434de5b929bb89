"""Fetches a medium by URL from the public internet, and never from the network that the server stands in.

A host is resolved here, all its addresses are checked, and the connection goes to the very address that was
checked, so that a name which resolves differently a moment later changes nothing. Every redirect is a new
address and goes the same way. Neither proxies nor credentials nor cookies of the environment are used.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from qvl.errors import InputError, MediaFetchError
from qvl.serve.errors import RefusedError
from qvl.serve.media.addresses import is_public
from qvl.serve.media.held import HeldFile
from qvl.serve.settings import Access, Limits

if TYPE_CHECKING:
    import httpx

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to all addresses of the host; OSError where there are none."""

MOST_LETTERS = 8192  # of a URL
MOST_ADDRESSES = 4  # of one host that are tried
PORTS = {"http": 80, "https": 443}
FIRST_OPEN_PORT = (
    1024  # below, only the two of the web: the others belong to services that are no web servers
)
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {
    "Accept": "image/*, video/*, application/pdf, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "qvl",
}
RESOLVERS = 8  # threads, apart from all others: a name server that never answers holds up names only


class Fetcher:
    """Downloads under one server's rules. ``resolve`` stands in for the system's resolver in tests.

    Raises InputError for an exempt host that is none.
    """

    def __init__(self, access: Access, limits: Limits, resolve: Resolve | None = None) -> None:
        self._access = access
        self._limits = limits
        self._exempt = frozenset(exemption(host) for host in access.fetch_hosts)
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="qvl-resolve")
        self._resolve = resolve or self._by_the_system
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str, into: HeldFile) -> None:
        """The body of ``url``.

        Raises RefusedError for what this server never fetches, MediaFetchError for what cannot be had,
        MediaTooLargeError as soon as more comes than a medium may have.
        """
        if not self._access.fetch:
            raise RefusedError("this server fetches no media: send them as data URIs")
        seconds = self._limits.fetch_seconds
        try:
            await asyncio.wait_for(self._follow(url, into), seconds)
        except asyncio.TimeoutError:
            raise MediaFetchError(f"it could not be downloaded within {seconds:g} seconds") from None

    async def _follow(self, url: str, into: HeldFile) -> None:
        import httpx

        target = parsed(url)
        for _ in range(self._limits.redirects + 1):
            addresses = await self._addresses(target)
            async with AsyncExitStack() as stack:
                try:
                    response = await self._respond(target, addresses, stack)
                    if response.status_code in REDIRECTS and "location" in response.headers:
                        target = redirected(target, response.headers["location"])
                        continue
                    await self._download(response, into)
                    return
                except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
                    raise MediaFetchError(f"the host {target.host} could not be read from") from None
        raise MediaFetchError(f"it redirects more than {self._limits.redirects} times")

    async def _addresses(self, target: httpx.URL) -> list[str]:
        """Where to connect to: all checked. One message for all that fails, which tells nothing of names that
        only the server's own network knows."""
        host, port = host_of(target), port_of(target)
        exempt = host in self._exempt or f"{bracketed(host)}:{port}" in self._exempt
        if not exempt and port not in PORTS.values() and port < FIRST_OPEN_PORT:
            raise RefusedError(
                f"media are fetched from ports 80, 443 and {FIRST_OPEN_PORT} up, not from {port}"
            )
        try:
            found = list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError):
            found = []
        if not found or not (exempt or all(is_public(address) for address in found)):
            raise MediaFetchError(f"the host {host} has no public address that this server may fetch from")
        return found[:MOST_ADDRESSES]

    async def _by_the_system(self, host: str, port: int) -> Sequence[str]:
        def look_up() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [str(address[0]) for *_, address in found]

        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)

    async def _respond(
        self, target: httpx.URL, addresses: Sequence[str], stack: AsyncExitStack
    ) -> httpx.Response:
        """The answer's headers, from the first of ``addresses`` that takes a connection."""
        import httpx

        for address in addresses[:-1]:
            try:
                return await self._ask(target, address, stack)
            except httpx.ConnectError:
                continue
        return await self._ask(target, addresses[-1], stack)

    async def _ask(self, target: httpx.URL, address: str, stack: AsyncExitStack) -> httpx.Response:
        """Connects to ``address`` and speaks to the host of ``target``: its name goes into the Host header
        and into TLS, where the certificate must be for it."""
        import httpx

        host = host_of(target)
        request = httpx.Request(
            "GET",
            target.copy_with(host=address, fragment=None),
            headers={"Host": target.netloc.decode("ascii"), **HEADERS},
            extensions={
                "sni_hostname": host,
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._limits.fetch_seconds),
            },
        )
        # One transport for one request: a connection that is kept could serve another host of that address.
        transport = await stack.enter_async_context(
            httpx.AsyncHTTPTransport(
                verify=self._tls_context(), trust_env=False, limits=httpx.Limits(max_connections=1)
            )
        )
        response = await transport.handle_async_request(request)
        stack.push_async_callback(response.aclose)
        return response

    def _tls_context(self) -> ssl.SSLContext:
        import httpx

        if self._tls is None:
            self._tls = (
                httpx.create_ssl_context()
            )  # SSL_CERT_FILE counts: whose certificates to trust is the operator's say
        return self._tls

    async def _download(self, response: httpx.Response, into: HeldFile) -> None:
        if not response.is_success:
            raise MediaFetchError(f"its server answered {response.status_code}")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise MediaFetchError("its server compressed it, though it was asked not to")
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and len(announced) < 20:
            into.expect(int(announced))
        async for chunk in response.aiter_raw():
            into.write(chunk)


def parsed(url: str) -> httpx.URL:
    """``url`` taken apart by the same code that connects, so that nothing is read two ways.

    Raises RefusedError for other schemes than http and https, for names and passwords and for addresses of
    one network interface; MediaFetchError for what is no URL.
    """
    import httpx

    if len(url) > MOST_LETTERS:
        raise MediaFetchError(f"its URL has more than {MOST_LETTERS:,} characters")
    if not url.isascii() or any(letter in url for letter in "\\ \t\r\n"):
        raise MediaFetchError("its URL has characters that must be percent-encoded")
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise MediaFetchError("its URL cannot be read") from None
    return _checked(target)


def redirected(base: httpx.URL, location: str) -> httpx.URL:
    """Where ``base`` sends to. Raises as :func:`parsed`, and RefusedError for a way from https to http."""
    import httpx

    try:
        target = base.join(location[:MOST_LETTERS])
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise MediaFetchError("it redirects to something that is no URL") from None
    if base.scheme == "https" and target.scheme == "http":
        raise RefusedError("it redirects from https to http, which is not followed")
    return _checked(target)


def _checked(target: httpx.URL) -> httpx.URL:
    if target.scheme not in PORTS:
        raise RefusedError(
            f"media are fetched by http and https only, not by {target.scheme[:20] or 'no scheme'}"
        )
    if target.userinfo:
        raise RefusedError("a URL with a name or password in it is not fetched")
    if not target.host:
        raise MediaFetchError("its URL names no host")
    if not 0 < port_of(target) < 2**16:
        raise MediaFetchError("its URL names a port that does not exist")
    if "%" in target.host:
        raise RefusedError("a URL with an address of one network interface is not fetched")
    return target


def exemption(entry: str) -> str:
    """An entry of `Access.fetch_hosts`, a host or host:port, as hosts are compared."""
    import httpx

    with suppress(ValueError):
        entry = bracketed(str(ip_address(entry)))
    try:
        target = httpx.URL(f"any://{entry}/")  # a scheme without a usual port, which would be left out
        if "/" in entry or target.userinfo or not target.host:
            raise ValueError(entry)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise InputError(
            f"{entry!r} is no host that media may be fetched from: give a host or host:port"
        ) from None
    host = host_of(target)
    return host if target.port is None else f"{bracketed(host)}:{target.port}"


def host_of(target: httpx.URL) -> str:
    """The host as name servers are asked for it: ASCII, lower case, no dot at the end, no brackets."""
    return target.raw_host.decode("ascii").lower().rstrip(".")


def port_of(target: httpx.URL) -> int:
    return PORTS[target.scheme] if target.port is None else target.port


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
