"""Anthropic's wire, and that of every server compatible with it."""

import json
from typing import Any

import anthropic
import httpx2

from aiplatform.providers.base import FREE, Reader, Reading, Reply, Usage, parsed, raw_send, tokens, variant
from aiplatform.providers.endpoints import ENDPOINTS


class Anthropic:
    wire = "anthropic"
    root = ""  # of the API below a provider's origin, by the SDK's custom

    def client(self, base_url: str, secret: str, http_client: httpx2.AsyncClient) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            api_key=secret or "none", base_url=base_url, max_retries=0, http_client=http_client
        )

    async def send(
        self, client: Any, endpoint: str, target: str, body: bytes, headers: dict[str, str], *, silence: float
    ) -> Reply:
        one = ENDPOINTS[self.wire, endpoint]
        path = target or one.path
        return await raw_send(client, one.method, path, body, headers, silence=silence, api_error=anthropic.APIError)

    def reader(self, endpoint: str) -> Reader:
        return FREE if ENDPOINTS[self.wire, endpoint].is_free else _READERS[endpoint]

    def read_whole(self, body: bytes) -> Reading:
        reply = parsed(body)
        if reply is None:
            return Reading()
        reading = Reading(complete=True)
        _learn(reading, reply)
        content = reply.get("content")
        for block in content if isinstance(content, list) else []:
            reading.text_bytes += _text_bytes(block)
        return reading

    def read_event(self, reading: Reading, event: bytes) -> None:
        data = parsed(event)
        if data is None:
            return
        kind = data.get("type")
        if kind == "message_start" and isinstance(data.get("message"), dict):
            _learn(reading, data["message"])
            reading.is_partial = True
        elif kind == "message_delta":
            _learn(reading, data)
            reading.is_partial = reading.is_partial and not isinstance(data.get("usage"), dict)
            delta = data.get("delta")
            reading.has_stopped = isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str)
        elif kind == "content_block_start":
            reading.text_bytes += _text_bytes(data.get("content_block"))
        elif kind == "content_block_delta":
            reading.text_bytes += _text_bytes(data.get("delta"))
        elif kind == "message_stop":
            reading.complete = True
        elif kind == "error" and isinstance(data.get("error"), dict):
            reading.error = str(data["error"].get("type") or "error")[:200]


def _learn(reading: Reading, message: dict[str, Any]) -> None:
    if isinstance(message.get("model"), str):
        reading.model = message["model"][:200]
    usage = message.get("usage")
    if isinstance(usage, dict):
        # The figures of message_delta are cumulative and may leave out what message_start said.
        known = {name: value for name, value in usage.items() if value is not None}
        reading.raw_usage = reading.raw_usage | known
        reading.usage, reading.variant = _usage(reading.raw_usage), _served(reading.raw_usage)


def _usage(usage: dict[str, Any]) -> Usage | None:
    """Anthropic's `input_tokens` leave out what was read from or written to the cache, and hold what images cost.

    Source: platform.claude.com/docs/en/api/messages (usage, cache_creation, server_tool_use, service_tier, speed).
    """
    uncached, output = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
    if uncached is None or output is None:
        return None
    split = _details(usage, "cache_creation")
    short, hour = tokens(split, "ephemeral_5m_input_tokens"), tokens(split, "ephemeral_1h_input_tokens")
    written = tokens(usage, "cache_creation_input_tokens")
    if written is None:
        written = (short or 0) + (hour or 0)
    hour = min(hour or 0, written)
    searches = tokens(_details(usage, "server_tool_use"), "web_search_requests")
    thought = tokens(_details(usage, "output_tokens_details"), "thinking_tokens")
    return Usage(
        uncached,
        tokens(usage, "cache_read_input_tokens") or 0,
        written - hour,
        hour,
        output,
        min(thought or 0, output),
        {"web_search": searches} if searches else {},
        _served(usage),
    )


def _served(usage: dict[str, Any]) -> str:
    """Tokens of the Priority Tier are bought beforehand and have no price of their own; fast mode and batches have."""
    if usage.get("speed") == "fast":
        return "fast"
    tier = usage.get("service_tier")
    return variant(tier, {"priority": "standard"}) if isinstance(tier, str) else "standard"


def _details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}


def _text_bytes(block: Any) -> int:
    if not isinstance(block, dict):
        return 0
    given = block["input"] if isinstance(block.get("input"), dict) and block["input"] else None
    return len(json.dumps(given)) * (given is not None) + sum(
        len(block[name].encode(errors="replace"))
        for name in ("text", "thinking", "partial_json", "name")
        if isinstance(block.get(name), str)
    )


_READERS: dict[str, Reader] = {"messages": Anthropic()}
