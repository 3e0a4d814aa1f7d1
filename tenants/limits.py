"""Requests per minute, tokens per minute and concurrent calls: one Lua script decides a whole batch, by Redis's clock.

Rates are GCRA (one theoretical arrival time a bucket: exact, no window's edge). All buckets of a call are checked before any
is charged. A Redis that comes back empty starts its buckets empty, never full, unless no call has passed for a minute.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings

from aiplatform.lib import redis
from aiplatform.lib.errors import ApiError
from tenants.auth import Limit

MINUTE_US = 60_000_000
CONCURRENT = "concurrent_calls"
_KEYS = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm"}

# `born` is until when calls are known to have passed that this Redis has forgotten: a bucket it does not know starts empty
# then. Without `born` the script decides nothing.
# ARGV: calls, then for each: id, its milliseconds to live, rates, slots; per rate: limit, cost; per slot: limit.
# KEYS: born, then the buckets in the same order. Answers per call: {0} or {what, which bucket, wait in microseconds}.
_TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local period = 60000000
local born = tonumber(redis.call('GET', KEYS[1]))
if not born then return false end
local k, a, out = 2, 2, {}
for call = 1, tonumber(ARGV[1]) do
  local id, ttl, rates, slots = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  a = a + 4
  local tats, verdict, wait = {}, {0}, 0
  for i = 1, rates do
    local limit, cost = tonumber(ARGV[a]), tonumber(ARGV[a + 1])
    a = a + 2
    local tat = tonumber(redis.call('GET', KEYS[k + i - 1]))
    if not tat then tat = (now - born < period) and (born + period) or now end
    if tat < now then tat = now end
    tats[i] = tat + cost * period / limit
    if cost > limit then
      verdict, wait = {2, i, 0}, math.huge
    elseif tats[i] - period - now > wait then
      wait = tats[i] - period - now
      verdict = {1, i, math.ceil(wait)}
    end
  end
  for i = 1, slots do
    local limit, key = tonumber(ARGV[a]), KEYS[k + rates + i - 1]
    a = a + 1
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    if verdict[1] == 0 and redis.call('ZCARD', key) >= limit then verdict = {3, rates + i, 1000000} end
  end
  if verdict[1] == 0 then
    for i = 1, rates do
      redis.call('SET', KEYS[k + i - 1], string.format('%.0f', tats[i]), 'PX', math.ceil((tats[i] - now) / 1000) + 1000)
    end
    for i = 1, slots do
      redis.call('ZADD', KEYS[k + rates + i - 1], string.format('%.0f', now + ttl * 1000), id)
      redis.call('PEXPIRE', KEYS[k + rates + i - 1], ttl)
    end
  end
  out[call] = verdict
  k = k + rates + slots
end
return out
"""


class RateLimited(ApiError):
    """A rate limit of this tenant is reached."""

    status = 429
    code = "rate_limit_exceeded"


class TooLargeForLimit(ApiError):
    """This one call needs more tokens than its limit allows in a minute; it would never pass."""

    status = 400
    code = "exceeds_token_limit"


@dataclass(slots=True)
class Ask:
    """One call's wish to pass its limits; `tokens` is the estimate that counts against tokens per minute."""

    call_id: uuid.UUID
    tokens: int
    limits: tuple[Limit, ...]


_BEAR = """
local t = redis.call('TIME')
redis.call('SET', KEYS[1], string.format('%.0f', t[1] * 1000000 + t[2] - tonumber(ARGV[1]) * 1000000), 'NX')
"""


def take(asks: Sequence[Ask], *, idle_seconds: Callable[[], float]) -> list[ApiError | None]:
    """None for each call that passed, in order, else the refusal. Raises Unavailable where Redis is lost, also for calls
    without limits: their answers need it, so they are better refused now than held in vain.

    `idle_seconds` tells how long ago the last call was admitted; it is asked only of a Redis that has forgotten everything.
    """
    limited = [ask for ask in asks if ask.limits]
    keys, arguments = ["limit:born"], [str(len(limited))]
    for ask in limited:
        rates, slots = _buckets(ask)
        arguments += [str(ask.call_id), str(settings.CALL_DEADLINE_SECONDS * 1000), str(len(rates)), str(len(slots))]
        for key, limit, cost in rates:
            keys.append(key)
            arguments += [str(limit), str(cost)]
        for key, limit in slots:
            keys.append(key)
            arguments.append(str(limit))
    try:
        verdicts = redis.script(_TAKE)(keys=keys, args=arguments, client=redis.client())
        while verdicts is None:
            redis.script(_BEAR)(keys=keys[:1], args=[idle_seconds()], client=redis.client())
            verdicts = redis.script(_TAKE)(keys=keys, args=arguments, client=redis.client())
    except redis.LOST as error:
        raise redis.unavailable() from error
    refusals = {ask.call_id: _refusal(ask, verdict) for ask, verdict in zip(limited, verdicts, strict=True)}
    return [refusals.get(ask.call_id) for ask in asks]


@dataclass(frozen=True, slots=True)
class Standing:
    """One figure of a limit, and how much of it is free now."""

    scope: str
    name: str
    limit: int
    remaining: int


def standing(given: Sequence[Limit]) -> list[Standing]:
    """How each figure of these limits stands, by Redis's clock; raises Unavailable where Redis is lost. Takes nothing."""
    named = _named(given)
    pipeline = redis.client().pipeline(transaction=False)
    pipeline.time()
    pipeline.get("limit:born")
    for limit, name, _ in named:
        if name == CONCURRENT:
            pipeline.zrange(slot_key(limit.scope_id), 0, -1, withscores=True)
        else:
            pipeline.get(f"limit:{limit.scope_id}:{_KEYS[name]}")
    try:
        (seconds, microseconds), born, *found = pipeline.execute()
    except redis.LOST as error:
        raise redis.unavailable() from error
    now = seconds * 1_000_000 + microseconds
    return [
        Standing(limit.scope, name, figure, max(figure - _taken(name, figure, value, now, int(born or 0)), 0))
        for (limit, name, figure), value in zip(named, found, strict=True)
    ]


def _taken(name: str, figure: int, value: Any, now: int, born: int) -> int:
    if name == CONCURRENT:
        return sum(expires > now for _, expires in value)
    arrival = int(value) if value else (born + MINUTE_US if now - born < MINUTE_US else now)
    return -(-max(arrival - now, 0) * figure // MINUTE_US)


def slot_keys(limits: Sequence[Limit]) -> list[str]:
    """The Redis keys in which a call occupies a place until it ends."""
    return [slot_key(limit.scope_id) for limit in limits if limit.concurrency]


def slot_key(scope_id: uuid.UUID) -> str:
    return f"limit:{scope_id}:slots"


def _buckets(ask: Ask) -> tuple[list[tuple[str, int, int]], list[tuple[str, int]]]:
    rates = []
    for limit in ask.limits:
        if limit.rpm:
            rates.append((f"limit:{limit.scope_id}:rpm", limit.rpm, 1))
        if limit.tpm:
            rates.append((f"limit:{limit.scope_id}:tpm", limit.tpm, ask.tokens))
    slots = [(slot_key(limit.scope_id), limit.concurrency) for limit in ask.limits if limit.concurrency]
    return rates, slots


def _named(given: Sequence[Limit]) -> list[tuple[Limit, str, int]]:
    """Every figure of these limits in the script's order: rates of each, then the concurrent ones."""
    rates = [
        (limit, name, figure)
        for limit in given
        for name, figure in (("requests_per_minute", limit.rpm), ("tokens_per_minute", limit.tpm))
        if figure
    ]
    return rates + [(limit, CONCURRENT, limit.concurrency) for limit in given if limit.concurrency]


def _refusal(ask: Ask, verdict: list[int]) -> ApiError | None:
    if verdict[0] == 0:
        return None
    limit, name, figure = _named(ask.limits)[verdict[1] - 1]
    what, scope = name.replace("_", " "), limit.scope
    details: dict[str, Any] = {"scope": scope, "limit_name": name, "limit": figure}
    if verdict[0] == 2:  # noqa: PLR2004 - the script's own code
        return TooLargeForLimit(
            f"This call counts as {ask.tokens} tokens (input estimate plus max_tokens), more than the {scope}'s limit of "
            f"{figure} tokens per minute: lower max_tokens or shorten the input.",
            **details,
        )
    seconds = -(-verdict[2] // 1_000_000)
    # What is free now is what the call would have taken, less what flows back while it waits.
    cost = {"requests_per_minute": 1, "tokens_per_minute": ask.tokens}.get(name, 0)
    remaining = max(cost - -(-verdict[2] * figure // MINUTE_US), 0)
    resets_at = datetime.now(UTC) + timedelta(microseconds=verdict[2])
    return RateLimited(
        f"The {scope}'s limit of {figure} {what} is reached; try again in {seconds} s.",
        headers={"retry-after": str(seconds)},
        **details,
        remaining=remaining,
        resets_at=resets_at.isoformat(),
        resets_in_seconds=seconds,
    )
