"""The wires we speak, and one client per place and secret, kept with its connections."""

from typing import Any

from aiplatform.providers.anthropic import Anthropic
from aiplatform.providers.base import SANDBOX, SANDBOX_ORIGIN, Adapter, http_client
from aiplatform.providers.openai import OpenAI

ADAPTERS: dict[str, Adapter] = {adapter.wire: adapter for adapter in (OpenAI(), Anthropic())}


class Clients:
    """SDK clients of one event loop."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str, str], Any] = {}

    def get(self, wire: str, base_url: str, secret: str) -> Any:
        """The client for this wire, place and secret; made once."""
        name = (wire, base_url, secret)
        if name not in self._clients:
            adapter = ADAPTERS[wire]
            url = SANDBOX_ORIGIN + adapter.root if base_url == SANDBOX else base_url
            self._clients[name] = adapter.client(url, secret, http_client(url))
        return self._clients[name]

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
