"""The wires we speak, and one client per place and credential, kept with its connections."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx2

from aiplatform.providers.anthropic import Anthropic
from aiplatform.providers.base import SANDBOX, SANDBOX_ORIGIN, Adapter, http_client
from aiplatform.providers.openai import OpenAI

ADAPTERS: dict[str, Adapter] = {adapter.wire: adapter for adapter in (OpenAI(), Anthropic())}


class Door(NamedTuple):
    """How a place is entered, where it is not as its wire does: Azure's query, another header for the secret, more headers."""

    api_version: str = ""
    key_header: str = ""
    headers: tuple[tuple[str, str], ...] = ()


USUAL = Door()


class Clients:
    """SDK clients of one event loop."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str, str, int, Door], Any] = {}

    def get(self, wire: str, base_url: str, secret: str, *, credential: int = 0, door: Door = USUAL) -> Any:
        """The client for this wire, place and credential; made once, and again where the secret has changed."""
        name = (wire, base_url, secret, credential, door)
        if name not in self._clients:
            adapter = ADAPTERS[wire]
            url = SANDBOX_ORIGIN + adapter.root if base_url == SANDBOX else base_url
            client = http_client(url)
            if door.key_header:
                client.event_hooks = {"request": [_by_header(door.key_header, secret)]}
            self._clients[name] = _through(door, adapter.client(url, secret, client))
        return self._clients[name]

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()


def _through(door: Door, client: Any) -> Any:
    """The same client with the place's own query and headers."""
    if not (door.headers or door.api_version):
        return client
    query = {"api-version": door.api_version} if door.api_version else {}
    return client.with_options(default_headers=dict(door.headers), default_query=query)


def _by_header(name: str, secret: str) -> Callable[[httpx2.Request], Awaitable[None]]:
    """One header carries the secret, never two; beneath the SDKs, which will not send a request without their own."""

    async def enter(request: httpx2.Request) -> None:
        for usual in ("authorization", "x-api-key"):
            if usual in request.headers:
                del request.headers[usual]
        request.headers[name] = secret

    return enter
