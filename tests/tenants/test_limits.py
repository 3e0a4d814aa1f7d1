"""Rate limits on real Valkey: exact, all or nothing, and never looser because Redis forgot."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

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
from tenants.limits import scripts


@pytest.fixture
def remembering() -> Iterator[None]:
    """A Redis that has not just forgotten anything."""
    redis.client().flushdb()
    redis.client().set("limit:born", 0)
    yield
    redis.forget_client()


def take(*asks: limits.Ask) -> list[ApiError | None]:
    return [passage.refusal for passage in limits.take(asks)]


def ask(*given_limits: Limit, tokens: int = 1, subject: str = "") -> limits.Ask:
    return limits.Ask(uuid7(), tokens, given_limits, subject)


def limit(rpm: int | None = None, tpm: int | None = None, concurrency: int | None = None, **more: Any) -> Limit:
    return Limit("key", uuid.uuid4(), rpm, tpm, concurrency, **more)


def taken_by(one: limits.Ask) -> list[Any]:
    """What a call took that passed, as it is written down with it."""
    tokens = [[rate.key, rate.refill, rate.burst] for rate in one.rates() if rate.name == limits.TOKENS]
    return [one.tokens, tokens, [place.key for place in one.places()]]


def passed(*asks: limits.Ask) -> int:
    return sum(refusal is None for refusal in take(*asks))


def test_exactly_as_many_calls_pass_as_the_limit_says_in_batches_or_alone(remembering: None) -> None:
    for batches in ([1] * 100, [7] * 20, [200]):
        ten = limit(rpm=60)
        assert sum(passed(*(ask(ten) for _ in range(batch))) for batch in batches) == 60


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
    limits.give_back([(asks[0].call_id, taken_by(asks[0]), 0)] * 2)
    assert [refusal is None for refusal in take(ask(three), ask(three))] == [True, False]


def test_a_redis_that_forgot_starts_its_buckets_empty(remembering: None) -> None:
    sixty = limit(rpm=60)
    assert passed(*(ask(sixty) for _ in range(50))) == 50
    redis.client().flushdb()
    assert passed(*(ask(sixty) for _ in range(5))) == 0
    limits.begin(3600)  # what is known already is not put right by whoever comes later
    assert passed(*(ask(sixty) for _ in range(5))) == 0


@pytest.mark.parametrize(("idle", "expected"), [(0.5, 0), (30, 30), (61, 60)])
def test_a_system_that_begins_has_what_has_flowed_back_since_its_last_call(
    remembering: None, idle: float, expected: int
) -> None:
    redis.client().flushdb()
    limits.begin(idle)
    sixty = limit(rpm=60)
    assert passed(*(ask(sixty) for _ in range(70))) == expected


def test_burst_and_refill_are_set_apart(remembering: None) -> None:
    narrow, wide = limit(rpm=600, rpm_burst=5), limit(rpm=60, rpm_burst=100)
    assert passed(*(ask(narrow) for _ in range(20))) == 5
    assert passed(*(ask(wide) for _ in range(200))) == 100
    time.sleep(0.35)  # in which three flow back at 600 a minute, and none at 60
    assert passed(*(ask(narrow) for _ in range(20))) == 3
    assert passed(*(ask(wide) for _ in range(20))) == 0
    (refusal,) = take(ask(limit(tpm=100_000, tpm_burst=50), tokens=51))
    assert isinstance(refusal, limits.TooLargeForLimit)
    assert "50" in refusal.message


def test_each_end_user_has_a_bucket_of_his_own_and_one_that_is_named_another(remembering: None) -> None:
    each, adas = limit(rpm=3, end_user="*"), limit(rpm=1, end_user="ada")
    everybody = limit(rpm=100)
    for subject, expected in (("bob", 3), ("eve", 3), ("ada", 1), ("ip:192.0.2.1", 3)):
        assert passed(*(ask(each, adas, everybody, subject=subject) for _ in range(5))) == expected
    assert passed(*(ask(everybody) for _ in range(200))) == 90


def test_an_estimate_is_corrected_once_by_what_was_used(remembering: None) -> None:
    thousand = limit(tpm=1000)
    first = ask(thousand, tokens=1000)
    assert passed(first, ask(thousand, tokens=100)) == 1
    for _ in range(3):
        limits.give_back([(first.call_id, taken_by(first), 300)])
    assert passed(*(ask(thousand, tokens=100) for _ in range(12))) == 7
    more = ask(limit(tpm=1000), tokens=10)
    assert passed(more) == 1
    limits.give_back([(more.call_id, taken_by(more), 950)])
    assert passed(limits.Ask(uuid7(), 60, more.limits)) == 0


def test_what_nobody_knows_stays_as_it_was_estimated(remembering: None) -> None:
    hundred = limit(tpm=100, concurrency=5)
    one = ask(hundred, tokens=100)
    assert passed(one) == 1
    limits.give_back([(one.call_id, taken_by(one), None)])
    assert passed(ask(hundred, tokens=10)) == 0


def test_what_a_redis_that_forgot_does_not_know_is_not_given_back_to_it(remembering: None) -> None:
    hundred = limit(tpm=100)
    one = ask(hundred, tokens=100)
    assert passed(one) == 1
    redis.client().flushdb()
    assert passed(ask(hundred)) == 0
    limits.give_back([(one.call_id, taken_by(one), 0)])
    assert passed(ask(hundred, tokens=50)) == 0


def test_a_limit_in_shadow_counts_and_lets_pass(remembering: None) -> None:
    strict, real = limit(rpm=2, concurrency=1, is_shadow=True, id=7), limit(rpm=10)
    passages = limits.take([ask(strict, real) for _ in range(12)])
    assert [passage.refusal is None for passage in passages] == [True] * 10 + [False] * 2
    assert {left.limit for passage in passages for left in passage.left} == {10}


def test_what_is_left_is_told_with_every_call(remembering: None) -> None:
    both = limit(rpm=10, tpm=1000)
    first, second = limits.take([ask(both, tokens=100), ask(both, tokens=200)])
    assert [(left.name, left.limit, left.remaining) for left in first.left] == [
        (limits.REQUESTS, 10, 9),
        (limits.TOKENS, 1000, 900),
    ]
    assert [left.remaining for left in second.left] == [8, 700]
    assert second.left[0].resets_in_seconds == pytest.approx(12, abs=0.5)
    assert second.left[1].resets_in_seconds == pytest.approx(18, abs=0.5)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_tokens_that_pass_never_exceed_the_limit(remembering: None, costs: list[int]) -> None:
    hundred = limit(tpm=100)
    refusals = take(*(ask(hundred, tokens=cost) for cost in costs))
    # Within the test's own milliseconds at most a token or so drips back in.
    assert sum(cost for cost, refusal in zip(costs, refusals, strict=True) if refusal is None) <= 101


def test_calls_without_limits_pass_and_say_that_redis_is_there(remembering: None) -> None:
    assert take(ask(), ask()) == [None, None]


@pytest.fixture
def lost(remembering: None, settings: Settings) -> Iterator[None]:
    """Redis is away."""
    settings.REDIS_URL = settings.LIMITS_REDIS_URL = "redis://127.0.0.1:9/0"
    redis.forget_client()
    yield
    limits._share.repaid()
    limits._share._rests_until = 0


def test_without_redis_a_process_lets_pass_no_more_than_its_share_and_only_what_has_flowed_since(
    lost: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    sixty = limit(rpm=60)

    def let_pass(number: int) -> int:
        passages = limits.take([ask(sixty) for _ in range(number)], processes=lambda: 4)
        assert all(passage.by_share for passage in passages)
        return sum(passage.refusal is None for passage in passages)

    assert let_pass(10) == 0  # nobody knows what was left
    clock.now += 8
    assert let_pass(10) == 2  # a quarter of eight
    clock.now += 21.9
    assert let_pass(100) == 5
    clock.now += 0.2
    limited, unlimited = limits.take([ask(sixty), ask()])
    assert isinstance(limited.refusal, Unavailable)
    assert limited.refusal.headers["retry-after"]
    assert unlimited.refusal is None  # whom nothing limits needs no limiter


def test_without_redis_places_are_shared_too(lost: None) -> None:
    nine = limit(concurrency=9)
    asks = [ask(nine) for _ in range(6)]
    assert [one.refusal is None for one in limits.take(asks, processes=lambda: 2)] == [True] * 4 + [False] * 2
    limits.give_back([(asks[0].call_id, taken_by(asks[0]), 0)])
    assert [one.refusal is None for one in limits.take([ask(nine), ask(nine)], processes=lambda: 2)] == [True, False]


def test_what_was_let_pass_without_redis_is_charged_to_it_when_it_is_back(
    lost: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    sixty = limit(rpm=60)
    assert [one.refusal is None for one in limits.take([ask(sixty)])] == [False]
    clock.now += 29
    assert sum(one.refusal is None for one in limits.take([ask(sixty) for _ in range(40)])) == 29
    settings.REDIS_URL = settings.LIMITS_REDIS_URL = os.environ["REDIS_URL"]
    redis.forget_client()
    clock.now += 1.1  # for which it is not asked again
    assert passed(*(ask(sixty) for _ in range(60))) == 31


def back_again(settings: Settings, clock: "Clock") -> None:
    settings.REDIS_URL = settings.LIMITS_REDIS_URL = os.environ["REDIS_URL"]
    redis.forget_client()
    clock.now += 1.1  # for which it is not asked again


def test_a_repayment_that_fails_midway_is_not_forgotten_and_charged_once(
    lost: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    sixty = limit(rpm=60)
    limits.take([ask(sixty)])
    clock.now += 20
    assert sum(one.refusal is None for one in limits.take([ask(sixty) for _ in range(40)])) == 20
    back_again(settings, clock)
    script, asked = redis.script, []

    def loses_the_answer(source: str) -> Any:
        def sent(**arguments: Any) -> Any:
            answer = script(source)(**arguments)
            asked.append(source)
            if source == scripts.GIVE_BACK and asked.count(source) == 1:
                raise redis.LOST[0]("lost after it was done")
            return answer

        return sent

    monkeypatch.setattr("aiplatform.lib.redis.script", loses_the_answer)
    limits.take([ask(sixty)])  # by the share again
    clock.now += 1.1
    assert 38 <= passed(*(ask(sixty) for _ in range(60))) <= 40
    assert asked.count(scripts.GIVE_BACK) >= 2


def test_places_that_were_granted_without_redis_are_taken_when_it_is_back(
    lost: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    five = limit(concurrency=5)
    asks = [ask(five) for _ in range(3)]
    assert [one.refusal is None for one in limits.take(asks)] == [True] * 3
    back_again(settings, clock)
    assert passed(*(ask(five) for _ in range(5))) == 2
    limits.give_back([(one.call_id, taken_by(one), 0) for one in asks])
    assert passed(*(ask(five) for _ in range(5))) == 3


def test_what_a_shadow_did_not_take_is_not_given_back_to_it(remembering: None) -> None:
    shadow = limit(tpm=100, is_shadow=True, id=9)
    first, second, third = limits.take([ask(shadow, tokens=90), ask(shadow, tokens=90), ask(shadow, tokens=10)])
    assert (first.taken is not None, second.taken, third.taken is not None) == (True, None, True)


class Clock:
    """The share's clock, which stands until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("tenants.limits.share.time", self)

    def monotonic(self) -> float:
        return self.now


_TAKER = """
import sys, uuid, django
django.setup()
from tenants import limits
from tenants.limits import scripts
from tenants.auth import Limit
from aiplatform.lib.ids import uuid7
one = Limit("key", uuid.UUID(sys.argv[1]), 60, None, None)
sys.stdin.readline()
print(sum(limits.take([limits.Ask(uuid7(), 1, (one,))])[0].refusal is None for _ in range(int(sys.argv[2]))), flush=True)
"""


def of_processes(scope: uuid.UUID, *, processes: int, tries: int, forgetting: int = 0) -> int:
    """How many of `tries` calls of so many processes pass a limit of 60 a minute, while Redis forgets so many times."""
    command = [sys.executable, "-c", _TAKER, str(scope), str(tries // processes)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    time.sleep(0.5)
    for one in running:
        one.stdin.write("go\n")  # type: ignore[union-attr]
        one.stdin.flush()  # type: ignore[union-attr]
    for _ in range(forgetting):
        time.sleep(0.05)
        redis.client().flushdb()
    return sum(int(one.communicate(timeout=60)[0]) for one in running)


def test_of_four_hundred_tries_by_eight_processes_exactly_sixty_pass(remembering: None) -> None:
    began = time.monotonic()
    number = of_processes(uuid.uuid4(), processes=8, tries=400)
    assert 60 <= number <= 60 + int(time.monotonic() - began)  # one flows back each second


def test_a_redis_that_forgets_in_the_middle_lets_no_more_pass(remembering: None) -> None:
    began = time.monotonic()
    assert of_processes(uuid.uuid4(), processes=8, tries=400, forgetting=3) <= 60 + int(time.monotonic() - began)


@pytest.mark.campaign("limits")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("forgetting", [0, 1, 4, 10])
def test_many_processes_never_pass_more(remembering: None, forgetting: int) -> None:
    for _ in range(3):
        began = time.monotonic()
        number = of_processes(uuid.uuid4(), processes=16, tries=1600, forgetting=forgetting)
        assert number <= 60 + int(time.monotonic() - began)
        assert forgetting or number >= 60
