"""What is left at a provider is read from its replies, spent before the limit by all workers together, and fairly."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from aiplatform.lib import redis
from aiplatform.providers.headroom import Headroom, Limits, Pass
from aiplatform.providers.levels import Level, Told, duration, read

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1m", 60), ("0s", 0), ("7", 7), ("1d1s", 86401), ("", None),
     ("soon", None), ("-1", None), ("s", None), ("nan", None)],
)  # fmt: skip
def test_resets_are_read_as_vendors_write_them(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, None),
        (
            {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
             "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s"},
            Told(Level(59, 60, 1), Level(149984, 150000, 360)),
        ),
        (
            {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49",
             "anthropic-ratelimit-requests-reset": "2026-11-28T12:00:02Z",
             "anthropic-ratelimit-input-tokens-remaining": "900", "anthropic-ratelimit-input-tokens-limit": "1000",
             "anthropic-ratelimit-input-tokens-reset": "2026-11-28T12:00:06Z",
             "anthropic-ratelimit-output-tokens-remaining": "100", "anthropic-ratelimit-output-tokens-limit": "200",
             "anthropic-ratelimit-output-tokens-reset": "2026-11-28T12:00:30+00:00"},
            Told(Level(49, 50, 2), Level(100, 200, 30)),
        ),
        ({"x-ratelimit-remaining-requests": "7"}, Told(Level(7, None, 60), None)),
        ({"x-ratelimit-remaining-requests": "7", "x-ratelimit-limit-requests": "-1"}, Told(Level(7, None, 60), None)),
        ({"x-ratelimit-remaining-requests": "-1", "x-ratelimit-remaining-tokens": "many"}, None),
    ],
)  # fmt: skip
def test_what_is_left_is_read_from_each_vendors_headers(headers: dict[str, str], told: Told | None) -> None:
    assert read(headers, NOW) == told


def workers(many: int, work: Callable[[list[Headroom]], Awaitable[Any]]) -> Any:
    """Runs `work` with the headroom of so many workers, which share one Redis."""

    async def run() -> Any:
        made = [
            Headroom(lambda: redis.asynchronous(socket_timeout=2), most_waiting=300, place_seconds=60)
            for _ in range(many)
        ]
        try:
            return await work(made)
        finally:
            for one in made:
                await one.aclose()

    return asyncio.run(run())


def told(remaining: int, limit: int, seconds: float) -> dict[str, str]:
    return {
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-reset-requests": f"{seconds}s",
    }


async def one_call(
    at: Headroom, lane: str, tenant: str, *, seconds: float, limits: Limits | None = None
) -> Pass | None:
    until = asyncio.get_running_loop().time() + seconds
    return await at.enter(at.lane(lane, limits or Limits()), tenant, uuid.uuid4().hex, 10, until)


def test_a_provider_that_tells_nothing_is_never_waited_for() -> None:
    async def work(at: list[Headroom]) -> float:
        began = time.monotonic()
        for _ in range(500):
            entered = await one_call(at[0], f"free-{began}", "a", seconds=1)
            assert entered is not None
            at[0].told(entered, {"content-type": "application/json"}, limited=False, asked_seconds=0)
            at[0].leave(entered)
        return time.monotonic() - began

    assert workers(1, work) < 2


def test_one_tenants_burst_cannot_take_the_share_of_another() -> None:
    """20 requests are left for 8 s: A sends 200 at once to one worker, B one every 0.8 s to another."""
    lane = f"burst-{uuid.uuid4().hex}"

    async def work(at: list[Headroom]) -> tuple[int, list[float]]:
        first = await one_call(at[0], lane, "a", seconds=1)
        assert first is not None
        at[0].told(first, told(20, 100, 8), limited=False, asked_seconds=0)
        await asyncio.sleep(0.2)
        burst = [asyncio.create_task(one_call(at[0], lane, "a", seconds=7)) for _ in range(200)]
        await asyncio.sleep(0.3)
        waits = []
        for _ in range(6):
            began = time.monotonic()
            entered = await one_call(at[1], lane, "b", seconds=5)
            assert entered is not None
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.8)
        served = sum(entered is not None for entered in await asyncio.gather(*burst))
        return served, waits

    served, waits = workers(2, work)
    assert max(waits[1:]) < 2.5, waits
    assert served + len(waits) <= 24, served
    assert served >= 4


def test_what_one_worker_learns_the_other_ones_keep_to() -> None:
    lane = f"shared-{uuid.uuid4().hex}"

    async def work(at: list[Headroom]) -> None:
        mine, other = [await one_call(each, lane, "a", seconds=1) for each in at]
        assert mine
        assert other
        at[0].told(mine, told(0, 10, 30), limited=True, asked_seconds=20)
        await asyncio.sleep(1.2)
        at[1].told(other, {}, limited=False, asked_seconds=0)
        await one_call(at[1], lane, "a", seconds=1)  # looks again, once a second
        await asyncio.sleep(0.3)
        assert await one_call(at[1], lane, "a", seconds=2) is None

    workers(2, work)


def test_a_credentials_own_limits_hold_for_all_workers_together() -> None:
    lane = f"own-{uuid.uuid4().hex}"

    async def work(at: list[Headroom]) -> tuple[int, int]:
        limits = Limits(concurrency=3)
        held = await asyncio.gather(*(one_call(at[n % 2], lane, "a", seconds=1.5, limits=limits) for n in range(8)))
        first = [one for one in held if one]
        for one in first:
            at[0].leave(one)
        await asyncio.sleep(0.3)
        # Who gave up keeps his turn for 2.5 s.
        again = await asyncio.gather(*(one_call(at[1], lane, "b", seconds=5, limits=limits) for _ in range(5)))
        return len(first), sum(one is not None for one in again)

    assert workers(2, work) == (3, 3)


def test_a_lost_redis_leaves_each_worker_to_its_part_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.conf.settings.REDIS_URL", "redis://127.0.0.1:1/0")

    async def work(at: list[Headroom]) -> int:
        first = await one_call(at[0], "lost", "a", seconds=1)
        assert first is not None
        at[0].told(first, told(5, 100, 10), limited=False, asked_seconds=0)
        found = await asyncio.gather(*(one_call(at[0], "lost", "a", seconds=3) for _ in range(20)))
        return sum(one is not None for one in found)

    assert 1 <= workers(1, work) <= 8  # a quarter of the 30 that flow back in 3 s
