"""Requests to addresses that strangers name: to public hosts only, and to exactly the address that was looked at.

A name is resolved once for each request. Every address that it has must be one that the public Internet routes, and the
socket is opened to one of these very addresses, so a name that points elsewhere a moment later gains nothing; the Host
header, SNI and the certificate's check stay those of the name. The socket's own address is looked at again before it
connects. No redirect is followed, no proxy or `.netrc` of the environment is read, no cookie kept, no body decompressed.
"""

import asyncio
import functools
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from aiplatform.lib.errors import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

LONGEST_URL = 2000
RESOLVE_SECONDS = 5.0
BODY_SECONDS = 1.0
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")  # a last label that resolvers read as a number: 127.1, 0x7f.1, 2130706433
_CONNECTION_REFUSED = "the address is not public"

# What `is_global` of this Python or another lets pass, though it leads to private hosts or to nobody.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.175.48.0/24", "198.18.0.0/15", "224.0.0.0/3",
        "64:ff9b::/96", "64:ff9b:1::/48",  # NAT64: an IPv4 address inside
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2002::/16",  # 6to4: an IPv4 address inside
        "2001:db8::/32", "3fff::/20", "5f00::/16", "2620:4f:8000::/48",
    )
)  # fmt: skip
_UNICAST = ipaddress.ip_network("2000::/3")  # the only IPv6 that is given out
_ISATAP = 0x5EFE  # an interface identifier with an IPv4 address inside


class BadAddress(ApiError):
    """That URL cannot be used."""

    code = "bad_address"


class AddressRefused(Exception):
    """A host that is no public one."""


class NameUnknown(Exception):
    """A host that has no address."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator lets strangers name. `networks` are the private ones that he admits."""

    networks: tuple[Network, ...] = ()
    ports: tuple[range, ...] = (range(443, 444), range(8443, 8444))
    plain_http: bool = False

    def allows(self, text: str) -> bool:
        """Whether this address may be connected to."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:  # with a scope: link-local
            return False
        admitted = any(address.version == it.version and address in it for it in self.networks)
        return admitted or is_public(address)


def rules(*, networks: Sequence[str], ports: Sequence[str], plain_http: bool) -> Rules:
    """Rules from CIDRs and ports, `443` or `8000-8999`; raises ValueError for anything else."""
    spans = (port.partition("-") for port in ports)
    return Rules(
        tuple(ipaddress.ip_network(network) for network in networks),
        tuple(range(int(first), int(last or first) + 1) for first, _, last in spans),
        plain_http,
    )


def is_public(address: Address) -> bool:
    """Whether the public Internet routes to this address, and to no other by way of it."""
    if any(address.version == it.version and address in it for it in _NEVER):
        return False
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _UNICAST or (int(address) >> 32) & 0xFFFF == _ISATAP
    ):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def check(text: str, allowed: Rules) -> yarl.URL:
    """The URL, if its form and, where it names an address, that address may be used; raises BadAddress."""
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text or len(text) > LONGEST_URL:
        raise BadAddress(
            f"The URL must be at most {LONGEST_URL} ASCII characters without blanks; write a name of other letters as xn--…"
        )
    try:
        parts = urlsplit(text)
        port = {"https": 443, "http": 80}.get(parts.scheme, 0) if parts.port is None else parts.port
        url = yarl.URL(text, encoded=True)
    except ValueError:
        raise BadAddress("That is no URL.") from None
    if parts.scheme not in ({"https", "http"} if allowed.plain_http else {"https"}):
        raise BadAddress("The URL must begin with https://.")
    if "@" in parts.netloc or parts.fragment or "#" in text:
        raise BadAddress("The URL may hold no user, password or fragment.")
    if not any(port in span for span in allowed.ports):
        raise BadAddress(f"The port {port} may not be used.")
    _check_host(parts.hostname or "", allowed)
    if ((url.raw_host or "").lower(), url.port) != (parts.hostname, port):  # two readers of one URL must not differ
        raise BadAddress("That is no URL.")
    return url


def check_name(url: yarl.URL, allowed: Rules) -> None:
    """Looks a host up, as whoever saves a URL does; raises BadAddress. It is looked at again before each connection."""
    looked_up = _lookups.submit(socket.getaddrinfo, url.host, url.port, type=socket.SOCK_STREAM)
    try:
        found = [str(info[4][0]) for info in looked_up.result(RESOLVE_SECONDS)]
    except (OSError, TimeoutError, UnicodeError):
        found = []
    if not found or not all(map(allowed.allows, found)):  # one answer for both: a name inside is nobody's business
        raise BadAddress("The host of the URL has no public address.")


_lookups = ThreadPoolExecutor(8, "lookups")


def _check_host(host: str, allowed: Rules) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        if not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]) or len(host) > 253:  # noqa: PLR2004
            raise BadAddress("The URL names no host.") from None
        return
    if not allowed.allows(str(address)):
        raise BadAddress("The host of the URL has no public address.")


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver; raises OSError."""
    # In the loop's executor: uvloop's own lookups share four threads, which a few slow names would fill.
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(None, look_up)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended: a status with the beginning of its body, or a word for why there is none."""

    status: int | None = None
    error: str = ""  # bad_url, address_refused, name_unknown, connect_failed, tls_failed, timeout, broken
    retry_after: str = ""
    body: bytes = b""
    milliseconds: int = 0


@dataclass
class Client:
    """Posts to strangers' URLs; belongs to the loop in which it is first used. `resolve` and `tls` are for tests."""

    rules: Rules
    resolve: Resolve = resolve
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    _session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, seconds: float, most_bytes: int
    ) -> Answer:
        """Never raises for what the far end does; the answer must begin within `seconds`, and of it at most `most_bytes` are
        read, for a second.
        """
        began = time.monotonic()
        answer = await self._posted(url, headers, body, seconds, most_bytes)
        return Answer(
            answer.status, answer.error, answer.retry_after, answer.body, round((time.monotonic() - began) * 1000)
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _posted(
        self, url: str, headers: Mapping[str, str], body: bytes, seconds: float, most_bytes: int
    ) -> Answer:
        try:
            target = check(url, self.rules)
            async with asyncio.timeout(seconds):
                reply = await self._opened().post(target, headers=headers, data=body, allow_redirects=False)
            async with reply:
                return Answer(
                    reply.status, "", reply.headers.get("retry-after", "")[:40], await _beginning(reply, most_bytes)
                )
        except (
            BadAddress,
            AddressRefused,
            NameUnknown,
            TimeoutError,
            aiohttp.ClientError,
            OSError,
            ValueError,
        ) as error:
            return Answer(error=_word_for(error))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_Checking(self),
                use_dns_cache=False,
                force_close=True,  # each request looks its address up anew
                limit=0,
                ssl=self.tls,
                socket_factory=self._socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("accept", "accept-encoding", "user-agent"),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=RESOLVE_SECONDS),
            )
        return self._session

    def _socket(self, info: Any) -> socket.socket:
        """The last look at where it goes, whichever way the address came."""
        family, kind, protocol, _, place = info
        if not self.rules.allows(str(place[0])):
            raise PermissionError(_CONNECTION_REFUSED)
        return socket.socket(family, kind, protocol)


async def _beginning(reply: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The first bytes of a body, as far as they come soon: the status has been given, and what else is said is no matter."""
    said = bytearray()
    with suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while len(said) < most_bytes and (chunk := await reply.content.read(most_bytes - len(said))):
                said += chunk
    return bytes(said)


def _word_for(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError) and _CONNECTION_REFUSED in str(error):
        return "address_refused"
    return next(word for kinds, word in _WORDS if isinstance(error, kinds))


_WORDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (BadAddress, "bad_url"),
    (AddressRefused, "address_refused"),
    ((NameUnknown, aiohttp.ClientConnectorDNSError), "name_unknown"),
    (TimeoutError, "timeout"),
    ((aiohttp.ClientSSLError, ssl.SSLError), "tls_failed"),
    (aiohttp.ClientConnectorError, "connect_failed"),
    (Exception, "broken"),
)


class _Checking(AbstractResolver):
    """Gives aiohttp the addresses of a name, all of which must be allowed."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - both are wanted
    ) -> list[ResolveResult]:
        try:
            addresses = await self._client.resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise NameUnknown(host)
        if not all(map(self._client.rules.allows, addresses)):
            raise AddressRefused(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is kept."""
