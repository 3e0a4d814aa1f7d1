"""Rate limits on real Valkey: exact, all or nothing, and never looser because Redis forgot."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from aiplatform.lib import redis
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.ids import uuid7
from tenants import limits
from tenants.auth import Limit


@pytest.fixture
def remembering() -> Iterator[None]:
    """A Redis that has not just forgotten anything."""
    redis.client().flushdb()
    redis.client().set("limit:born", 0)
    yield
    redis.forget_client()


def take(*asks: limits.Ask, idle: float = 0) -> list[ApiError | None]:
    return limits.take(asks, idle_seconds=lambda: idle)


def ask(*given_limits: Limit, tokens: int = 1) -> limits.Ask:
    return limits.Ask(uuid7(), tokens, given_limits)


def limit(rpm: int | None = None, tpm: int | None = None, concurrency: int | None = None) -> Limit:
    return Limit("key", uuid.uuid4(), rpm, tpm, concurrency)


def test_exactly_as_many_calls_pass_as_the_limit_says_in_batches_or_alone(remembering: None) -> None:
    for batches in ([1] * 100, [7] * 20, [200]):
        ten = limit(rpm=60)
        passed = [
            refusal for batch in batches for refusal in take(*(ask(ten) for _ in range(batch))) if refusal is None
        ]
        assert len(passed) == 60


def test_a_refusal_says_when_to_come_back(remembering: None) -> None:
    one = limit(rpm=2)
    refusal = take(*(ask(one) for _ in range(3)))[2]
    assert isinstance(refusal, limits.RateLimited)
    assert refusal.headers["retry-after"] == "30"


def test_a_call_that_fails_one_limit_takes_nothing_of_the_others(remembering: None) -> None:
    wide, narrow = limit(rpm=10), limit(rpm=1)
    assert [refusal is None for refusal in take(*(ask(wide, narrow) for _ in range(5)))] == [True] + [False] * 4
    assert [refusal is None for refusal in take(*(ask(wide) for _ in range(10)))] == [True] * 9 + [False]


def test_a_call_that_could_never_pass_is_told_so(remembering: None) -> None:
    (refusal,) = take(ask(limit(tpm=100), tokens=101))
    assert isinstance(refusal, limits.TooLargeForLimit)
    assert refusal.status == 400


def test_places_are_taken_and_given_back(remembering: None) -> None:
    three = limit(concurrency=3)
    asks = [ask(three) for _ in range(5)]
    assert [refusal is None for refusal in take(*asks)] == [True] * 3 + [False] * 2
    redis.client().zrem(limits.slot_key(three.scope_id), str(asks[0].call_id))
    assert [refusal is None for refusal in take(ask(three), ask(three))] == [True, False]


def test_a_redis_that_forgot_starts_its_buckets_empty_while_calls_are_fresh(remembering: None) -> None:
    sixty = limit(rpm=60)
    redis.client().flushdb()
    assert [refusal is None for refusal in take(*(ask(sixty) for _ in range(5)), idle=0.5)] == [False] * 5
    redis.client().flushdb()
    assert [refusal is None for refusal in take(*(ask(sixty) for _ in range(70)), idle=30)].count(True) == 30
    redis.client().flushdb()
    assert [refusal is None for refusal in take(*(ask(sixty) for _ in range(70)), idle=61)].count(True) == 60


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_tokens_that_pass_never_exceed_the_limit(remembering: None, costs: list[int]) -> None:
    hundred = limit(tpm=100)
    refusals = take(*(ask(hundred, tokens=cost) for cost in costs))
    # Within the test's own milliseconds at most a token or so drips back in.
    assert sum(cost for cost, refusal in zip(costs, refusals, strict=True) if refusal is None) <= 101


def test_calls_without_limits_pass_and_say_that_redis_is_there(remembering: None) -> None:
    assert take(ask(), ask()) == [None, None]


def test_a_lost_redis_refuses_with_503_and_retry_after(remembering: None, settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    redis.forget_client()
    for asked in (ask(), ask(limit(rpm=5))):
        with pytest.raises(Unavailable) as refusal:
            take(asked)
        assert refusal.value.headers["retry-after"]
