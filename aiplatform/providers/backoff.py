"""When a try may be repeated, after how long, and how many repeats a provider's traffic can bear."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aiplatform.lib import redis

# The provider says itself that it did not process the request.
UNPROCESSED = frozenset({429, 503, 529})
RATE_LIMITED = 429
LONGEST_SECONDS = 120.0
LONGEST_JITTER_SECONDS = 30.0
SHORTEST_AFTER_RATE_LIMIT_SECONDS = 0.25

# Repeats at one provider: a tenth of its first tries, and a little in any case, so that a quiet system repeats too.
SHARE = 0.1
RESERVE = 10.0
RESERVE_PER_SECOND = 0.2


def delay(tries: int, asked_seconds: float = 0.0, *, status: int | None = None) -> float:
    """Seconds to wait after `tries` failed ones: full jitter under 2**tries, never less than what the provider asked for, and
    never nothing after a 429.

    Milliseconds, as the SDKs read them, go before seconds.

    Source of full jitter: aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter.
    """
    jittered = random.uniform(0, min(2.0**tries, LONGEST_JITTER_SECONDS))  # noqa: S311 - spreads load, hides nothing
    least = SHORTEST_AFTER_RATE_LIMIT_SECONDS if status == RATE_LIMITED else 0.0
    return jittered + max(asked_seconds, least)


def asked(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """The seconds that a reply asks to wait, clamped to 0 to 120; 0 where it asks for nothing, or makes no sense.

    `retry-after-ms` (Azure, OpenAI) is the finer one; `retry-after` is seconds or an HTTP date (RFC 9110, 10.2.3).
    """
    found = _number(headers.get("retry-after-ms"))
    if found is not None:
        return _clamped(found / 1000)
    given = headers.get("retry-after")
    found = _number(given)
    if found is None and given:
        found = _until(given, now or datetime.now(UTC))
    return _clamped(found or 0.0)


def may_repeat(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the provider says that it did not process this, and does not say that it is no use to ask again."""
    return status in UNPROCESSED and headers.get("x-should-retry") != "false"


def _number(text: str | None) -> float | None:
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if abs(found) < float("inf") else None  # nor NaN, which is less than nothing


def _until(text: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()


def _clamped(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_SECONDS)


# Takes `wanted` repeats out of a provider's bucket, after what `firsts` first tries and time have put in. Answers how many it
# gave, and what is left in thousandths.
_TAKE = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local was = redis.call('HMGET', KEYS[1], 'left', 'at')
local left, at = tonumber(was[1]) or tonumber(ARGV[3]), tonumber(was[2]) or now
left = math.min(tonumber(ARGV[3]), left + math.max(now - at, 0) * tonumber(ARGV[4]) + tonumber(ARGV[1]) * tonumber(ARGV[5]))
local given = math.min(math.floor(left), tonumber(ARGV[2]))
left = left - given
redis.call('HSET', KEYS[1], 'left', string.format('%.6f', left), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], 3600)
return {given, math.floor(left * 1000)}
"""


class Bucket:
    """Repeats that one provider's traffic can bear, in this process: what it falls back to when Redis is lost."""

    def __init__(self, now: float, share: float = 1.0, reserve: float = RESERVE) -> None:
        self._share, self._reserve, self.left, self._at = share, reserve, reserve * share, now

    def put(self, firsts: float, now: float) -> None:
        grown = max(now - self._at, 0.0) * RESERVE_PER_SECOND * self._share + firsts * SHARE
        self.left, self._at = min(self.left + grown, self._reserve), now

    def take(self, now: float) -> bool:
        self.put(0, now)
        if self.left < 1:
            return False
        self.left -= 1
        return True


class RetryBudget:
    """Ten percent of each provider's traffic, shared by all workers: first tries are counted here and handed in with the next
    repeat, so that a call which is not repeated costs no round trip.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, reserve: float = RESERVE) -> None:
        self._clock, self._reserve = clock, reserve
        self._firsts: dict[str, int] = {}
        self._local: dict[str, Bucket] = {}

    def count(self, provider: str) -> None:
        """A first try went to this provider."""
        self._firsts[provider] = self._firsts.get(provider, 0) + 1

    def take(self, providers: Sequence[str]) -> list[bool]:
        """Whether each of these repeats may go, in order; one round trip. Where Redis is lost, a part of the share."""
        wanted: dict[str, int] = {}
        for provider in providers:
            wanted[provider] = wanted.get(provider, 0) + 1
        given = self._taken(wanted)
        answers = []
        for provider in providers:
            answers.append(given[provider] > 0)
            given[provider] -= 1
        return answers

    def _taken(self, wanted: Mapping[str, int]) -> dict[str, int]:
        firsts = {provider: self._firsts.pop(provider, 0) for provider in wanted}
        pipeline = redis.client().pipeline(transaction=False)
        for provider, repeats in wanted.items():
            figures = [firsts[provider], repeats, self._reserve, RESERVE_PER_SECOND, SHARE]
            pipeline.eval(_TAKE, 1, key(provider), *figures)
        try:
            return {provider: int(found[0]) for provider, found in zip(wanted, pipeline.execute(), strict=True)}
        except redis.LOST:
            return {provider: self._by_itself(provider, firsts[provider], many) for provider, many in wanted.items()}

    def _by_itself(self, provider: str, firsts: int, wanted: int) -> int:
        now = self._clock()
        bucket = self._local.setdefault(provider, Bucket(now, 0.25, self._reserve))
        bucket.put(firsts, now)
        return sum(bucket.take(now) for _ in range(wanted))


def key(provider: str) -> str:
    """Where a provider's bucket is in Redis."""
    return f"retries:{provider}"
