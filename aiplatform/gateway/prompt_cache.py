"""Prompt caching: marks the long, stable beginning of a request to Anthropic where it has come before and marking it pays.

A marked beginning (tools, then system) costs more when it is written and far less when it is read again within the provider's
five minutes. So a beginning is marked once it has come back often enough that the price says: on the whole this is cheaper. How
often each comes back is counted in Redis, per environment; what is forgotten there costs a few unmarked calls.

Source: platform.claude.com/docs/en/build-with-claude/prompt-caching (order tools, system, messages; lifetime of 5 minutes,
renewed by each read; shortest beginning by model; a marker on too short a one is ignored and costs nothing).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jiter
import orjson

from aiplatform.gateway.wires.base import BYTES_PER_TOKEN, with_fields
from aiplatform.lib import redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.logs import log
from usage.pricing import Rates

OFF, AUTO = "off", "auto"
HEADER = "x-prompt-cache"
LIFETIME_SECONDS = 300
REMEMBERED_SECONDS = 3600
SHORTEST_TOKENS = 1024
_MARKER = {"type": "ephemeral"}
_LONG = re.compile(r"haiku-4-5|opus-4-[56]")
_MIDDLE = re.compile(r"claude-3(-5)?-haiku|sonnet-4-6")
# How often a beginning came, and how often within the lifetime of the one before, by Redis's own clock.
_SEEN = """
local now = tonumber(redis.call('TIME')[1])
local out = {}
for i, key in ipairs(KEYS) do
  local last = tonumber(redis.call('HGET', key, 'last'))
  local seen = redis.call('HINCRBY', key, 'seen', 1)
  local again = tonumber(redis.call('HGET', key, 'again') or '0')
  if last and now - last <= tonumber(ARGV[1]) then again = redis.call('HINCRBY', key, 'again', 1) end
  redis.call('HSET', key, 'last', now)
  redis.call('EXPIRE', key, ARGV[2])
  out[i] = {seen, again}
end
return out
"""


@dataclass(frozen=True, slots=True)
class Beginning:
    """The stable part of a request: what it is known by, the field whose last block ends it, and its likely tokens."""

    digest: bytes
    field: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """How often a beginning has come in the last hour, and how often of these within the lifetime of the one before."""

    seen: int
    again: int

    @property
    def reuse(self) -> float:
        """The share of its calls that would have read it from the cache."""
        return self.again / self.seen if self.seen else 0.0


class Marker:
    """One worker's; counts the beginnings of calls that come together in one round trip."""

    def __init__(self) -> None:
        self._looks: Batcher[tuple[UUID, Beginning], Sighting] = Batcher("prompt_cache", look)

    async def mark(self, environment: UUID, body: bytes, rates: Rates) -> tuple[bytes, str]:
        """The body for Anthropic, with its beginning marked where that pays, and what to tell of it; '' where there is none."""
        if len(body) < SHORTEST_TOKENS * BYTES_PER_TOKEN:
            return body, ""
        request = jiter.from_json(body)
        found = beginning(request)
        if found is None:
            return body, ""
        sighting = await self._looks.submit((environment, found))
        needed = break_even(rates, found.tokens)
        pays = needed is not None and sighting.again > 0 and sighting.reuse > needed
        marked_body = with_fields(body, marked(request, found)) if pays else body
        return marked_body, told(found, sighting, needed, is_marked=pays)


def seed(body: bytes) -> bytes | None:
    """What calls with the same long beginning have in common, on either wire: a provider's cache belongs to one account.

    None for a short request, or one that is no JSON object.
    """
    if len(body) < SHORTEST_TOKENS * BYTES_PER_TOKEN:
        return None
    try:
        request = jiter.from_json(body)
    except ValueError:
        return None
    if not isinstance(request, dict):
        return None
    messages = request.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    instructed = first if isinstance(first, dict) and first.get("role") in {"system", "developer"} else None
    stable = orjson.dumps([*(request.get(name) for name in ("model", "tools", "system", "instructions")), instructed])
    return hashlib.sha256(stable).digest() if len(stable) >= SHORTEST_TOKENS * BYTES_PER_TOKEN else None


def beginning(request: dict[str, Any]) -> Beginning | None:
    """The beginning that could be marked; None where it is too short to be cached, or the caller marks for himself."""
    tools, system = request.get("tools"), request.get("system")
    if not (_is_filled(tools) or _is_filled(system)) or _marks_himself(request):
        return None
    stable = orjson.dumps([request.get("model"), tools, system])
    tokens = len(stable) // BYTES_PER_TOKEN
    if tokens < shortest_tokens(str(request.get("model"))):
        return None
    field = "system" if _is_filled(system) else "tools"
    return Beginning(hashlib.sha256(stable).digest()[:16], field, tokens)


def shortest_tokens(model: str) -> int:
    """Below so many tokens the provider caches nothing."""
    if _LONG.search(model):
        return 4096
    return 2048 if _MIDDLE.search(model) else SHORTEST_TOKENS


def marked(request: dict[str, Any], found: Beginning) -> dict[str, Any]:
    """The field to set so that the beginning is marked; its last block carries the marker."""
    value = request[found.field]
    blocks = [{"type": "text", "text": value}] if isinstance(value, str) else list(value)
    blocks[-1] = {**blocks[-1], "cache_control": _MARKER}
    return {found.field: blocks}


def break_even(rates: Rates, tokens: int) -> float | None:
    """The share of calls that must read the beginning for caching to cost less; None where it never does.

    Of n calls with a share p that read: n (p read + (1 - p) write) < n input, so p > (write - input) / (write - read).
    """
    plain, write, read = (rates.token_rate(meter, tokens) for meter in ("input", "cache_write_5m", "cache_read"))
    if read >= plain:
        return None
    return max((write - plain) / (write - read), 0.0)


def told(found: Beginning, sighting: Sighting, needed: float | None, *, is_marked: bool) -> str:
    """What was decided and why, in one header's value."""
    limit = "never" if needed is None else f"{needed:.3f}"
    return (
        f"{'marked' if is_marked else 'not-marked'}; tokens={found.tokens}; seen={sighting.seen}; reuse={sighting.reuse:.3f}; "
        f"break-even={limit}"
    )


def look(asked: Sequence[tuple[UUID, Beginning]]) -> list[Sighting]:
    """Counts one more coming of each environment's beginnings, in one round trip; nothing is known where Redis is lost."""
    keys = [f"prefix:{environment}:{found.digest.hex()}" for environment, found in asked]
    try:
        counts = redis.script(_SEEN)(keys=keys, args=[LIFETIME_SECONDS, REMEMBERED_SECONDS], client=redis.client())
    except redis.LOST as error:
        log.warning("prompt_cache.lost", error=type(error).__name__)
        return [Sighting(0, 0)] * len(asked)
    return [Sighting(int(seen), int(again)) for seen, again in counts]


def _is_filled(value: Any) -> bool:
    """Whether the last block of a system prompt or of tools is there and can carry a marker."""
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and isinstance(value[-1], dict)


def _marks_himself(request: dict[str, Any]) -> bool:
    return "cache_control" in request or any(
        _has_marker(request.get(field)) for field in ("tools", "system", "messages")
    )


def _has_marker(value: Any) -> bool:
    """Looks as deep as blocks go: a tool's result within a message."""
    if isinstance(value, list):
        return any(_has_marker(one) for one in value)
    if isinstance(value, dict):
        return value.get("cache_control") is not None or _has_marker(value.get("content"))
    return False
