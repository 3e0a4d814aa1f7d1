"""A breaker opens on failures, lets one call look whether it is over, and closes again."""

from hypothesis import given
from hypothesis import strategies as st

from aiplatform.providers.breaker import Breaker, Breakers, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(5):
        assert breaker.begin()
        breaker.failed()
    return breaker, clock


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    breaker, _ = opened()
    assert (breaker.state, breaker.begin()) == (State.OPEN, False)
    assert 5 <= breaker.reopens_in() <= 6
    other = Breaker()
    for _ in range(4):
        other.failed()
    other.succeeded()
    other.failed()
    assert other.state is State.CLOSED


def test_half_of_the_last_twenty_failing_opens_it_though_never_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.succeeded()
        assert breaker.state is State.CLOSED
        breaker.failed()
    assert breaker.state is State.OPEN


def test_one_call_looks_and_two_successes_close_it() -> None:
    breaker, clock = opened()
    clock.now += 6.1
    assert breaker.begin()
    assert (breaker.state, breaker.begin()) == (State.HALF_OPEN, False)
    breaker.succeeded()
    assert (breaker.state, breaker.begin()) == (State.HALF_OPEN, True)
    breaker.succeeded()
    assert (breaker.state, breaker.begin(), breaker.begin()) == (State.CLOSED, True, True)


def test_a_probe_that_fails_opens_it_for_longer_up_to_a_minute() -> None:
    breaker, clock = opened()
    seconds = []
    for _ in range(6):
        seconds.append(breaker.reopens_in())
        clock.now += breaker.reopens_in()
        assert breaker.begin()
        breaker.failed()
        assert breaker.state is State.OPEN
    for wait, least in zip(seconds, (5, 10, 20, 40, 60, 60), strict=True):
        assert least <= wait <= least * 1.2 + 1e-6


def test_a_probe_that_tells_nothing_or_is_lost_does_not_shut_the_door_for_ever() -> None:
    breaker, clock = opened()
    clock.now += 6.1
    assert breaker.begin()
    breaker.neither()
    assert breaker.begin()
    assert not breaker.begin()
    clock.now += 31
    assert breaker.begin()


def test_breakers_are_apart_by_lane_and_tell_those_that_are_not_closed() -> None:
    breakers = Breakers(Clock())
    for _ in range(5):
        breakers.get("1:a").failed()
    assert breakers.get("1:b").begin()
    assert set(breakers.states()) == {"1:a"}


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["failed", "succeeded", "neither"])), max_size=60))
def test_whatever_happens_it_lets_a_call_through_within_its_longest_time(steps: list[tuple[float, str]]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for passed, how in steps:
        clock.now += passed
        if breaker.begin():
            getattr(breaker, how)()
    clock.now += 72.1
    assert breaker.begin()
