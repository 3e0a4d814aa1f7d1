"""When a try may be repeated, after how long, and how many repeats a provider's traffic can bear."""

import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.lib import redis
from aiplatform.providers import backoff
from aiplatform.providers.backoff import RESERVE, Bucket, RetryBudget

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "100000"}, 120),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "what", "retry-after": "2"}, 2),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=30), usegmt=True)}, 30),
        ({"retry-after": format_datetime(NOW - timedelta(days=1), usegmt=True)}, 0),
        ({"retry-after": format_datetime(NOW + timedelta(days=1), usegmt=True)}, 120),
    ],
)
def test_what_a_reply_asks_for_is_read_in_all_its_forms_and_clamped(headers: dict[str, str], seconds: float) -> None:
    assert backoff.asked(headers, NOW) == seconds


@given(st.integers(1, 40), st.floats(0, 120), st.sampled_from([None, 429, 503]))
def test_a_wait_is_never_less_than_what_was_asked_nor_nothing_after_a_429(
    tries: int, asked: float, status: int | None
) -> None:
    wait = backoff.delay(tries, asked, status=status)
    assert wait >= asked
    assert wait - max(asked, 0.25) <= min(2**tries, 30)
    if status == 429:
        assert wait >= 0.25


@pytest.mark.parametrize(
    ("status", "headers", "may"),
    [(429, {}, True), (503, {}, True), (529, {}, True), (500, {}, False), (502, {}, False), (504, {}, False), (408, {}, False),
     (429, {"x-should-retry": "false"}, False)],
)  # fmt: skip
def test_only_what_was_surely_not_processed_may_be_repeated(status: int, headers: dict[str, str], may: bool) -> None:
    assert backoff.may_repeat(status, headers) is may


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=200))
def test_a_bucket_never_gives_more_than_its_reserve_a_tenth_of_the_traffic_and_what_time_adds(
    steps: list[tuple[float, bool]],
) -> None:
    now, firsts, given_ = 0.0, 0, 0
    bucket = Bucket(now)
    for passed, is_repeat in steps:
        now += passed
        if is_repeat:
            given_ += bucket.take(now)
        else:
            bucket.put(1, now)
            firsts += 1
    assert given_ <= RESERVE + 0.1 * firsts + backoff.RESERVE_PER_SECOND * now + 1e-6


def test_workers_share_one_budget_and_first_tries_add_a_tenth() -> None:
    name = f"budget-{uuid.uuid4().hex}"
    one, other = RetryBudget(), RetryBudget()
    taken = sum(budget.take([name] * 8).count(True) for budget in (one, other))
    assert taken == RESERVE
    for _ in range(30):
        one.count(name)
    assert one.take([name] * 9).count(True) == 3
    assert other.take([name, f"{name}-else"]) == [False, True]


def test_a_lost_redis_leaves_a_worker_a_part_of_the_budget(monkeypatch: pytest.MonkeyPatch, settings: object) -> None:
    redis.forget_client()
    monkeypatch.setattr("django.conf.settings.REDIS_URL", "redis://127.0.0.1:1/0")
    try:
        given_ = RetryBudget(clock=lambda: 0.0).take(["gone"] * 10)
    finally:
        redis.forget_client()
    assert given_.count(True) == 2
