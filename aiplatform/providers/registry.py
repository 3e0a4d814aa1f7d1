"""The wires we speak, and one client per place and credential, kept with its connections."""

from typing import Any, NamedTuple

import anthropic
import openai

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
            self._clients[name] = _through(door, secret, adapter.client(url, secret, http_client(url)))
        return self._clients[name]

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()


def _through(door: Door, secret: str, client: Any) -> Any:
    """The same client with the place's own query and headers. One header carries the secret, never two."""
    if door == USUAL:
        return client
    headers: dict[str, Any] = dict(door.headers)
    if door.key_header:
        none: Any = anthropic.Omit() if isinstance(client, anthropic.AsyncAnthropic) else openai.Omit()
        headers |= {"Authorization": none, "X-Api-Key": none, door.key_header: secret}
    query = {"api-version": door.api_version} if door.api_version else {}
    return client.with_options(default_headers=headers, default_query=query)
