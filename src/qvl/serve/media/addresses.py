"""Which addresses of the internet media may be fetched from: public ones, whatever form they come in.

The tables are IANA's registries of special-purpose addresses (RFC 6890 and its successors) and the addresses
at which clouds answer questions about the machine that asks. They are written out, since what `ipaddress`
calls global differs between versions of Python; both must agree before an address is let through.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network, unspecified
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; the metadata address of one cloud
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the platform address of one cloud, public by its number
        "169.254.0.0/16",  # link-local, and with it 169.254.169.254
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
OPEN_V6 = IPv6Network("2000::/3")  # all that is handed out; loopback, private, link-local ... lie outside
CLOSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, whose routers are long gone
        "3fff::/20",  # documentation
    )
)
TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64: how networks without IPv4 reach a public IPv4 address
MAPPED = IPv6Network("::ffff:0:0/96")


def is_public(address: str) -> bool:
    """Whether ``address``, as a resolver gives it, may be connected to. What is no plain address is not."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.scope_id is not None:
        return False
    return all(_is_open(form) for form in _forms(parsed))


def _forms(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The address that packets go to in the end: the one inside, where there is one."""
    if isinstance(address, IPv6Address) and (address in TRANSLATED or address in MAPPED):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    else:
        yield address


def _is_open(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        closed = any(address in network for network in CLOSED_V4)
    else:
        closed = address not in OPEN_V6 or any(address in network for network in CLOSED_V6)
    return address.is_global and not address.is_multicast and not closed
