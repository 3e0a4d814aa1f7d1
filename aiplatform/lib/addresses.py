"""Who is at the other end of a connection, where proxies may stand between."""

import functools
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_OF_ONE_HOME = 64  # bits of an IPv6 address; the rest a caller chooses for himself


def client_address(peer: str, forwarded_for: Sequence[str], proxies: Sequence[Network]) -> str:
    """The address of the client, in its shortest form; "" where it has none.

    `peer` is whom we are connected with, `forwarded_for` the lines of X-Forwarded-For in their order. They are believed only as
    far as those are proxies of ours who wrote them: from the right, up to the first address that is none.
    """
    at = _address(peer)
    if at is None:
        return ""
    hops = [hop.strip() for line in forwarded_for for hop in line.split(",")]
    while hops and _is_in(at, proxies):
        before = _address(hops.pop())
        if before is None:
            break  # whatever stands there, it is not an address that a proxy of ours has seen
        at = before
    return str(at)


@functools.lru_cache(maxsize=4096)
def home(address: str) -> str:
    """The address as far as it tells callers apart: of IPv6 the network of one connection, since the rest is free to choose."""
    at = _address(address)
    if isinstance(at, IPv6Address):
        return str(ip_network((at, _OF_ONE_HOME), strict=False))
    return address


def _address(text: str) -> Address | None:
    """Also with a port or in brackets, as some proxies write it; an IPv4 address that is mapped into IPv6 is that address."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        at = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (at.ipv4_mapped or at) if isinstance(at, IPv6Address) else at


def _is_in(at: Address, networks: Sequence[Network]) -> bool:
    return any(at.version == network.version and at in network for network in networks)
