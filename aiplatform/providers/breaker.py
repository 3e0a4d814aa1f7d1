"""Circuit breakers: what fails again and again is left alone for a while, and then asked by one call first.

There is one for each credential and model of a provider, in each worker process by itself: it costs no round trip, a worker
with a bad network of its own shuts no door for others, and each learns from at most five failures.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

CONSECUTIVE = 5
WINDOW = 20
LEAST_OF_WINDOW = 10
SHARE_OF_WINDOW = 0.5
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 60.0
PROBES_TO_CLOSE = 2
# A probe that was let through and never told its end is forgotten after so long.
PROBE_SECONDS = 30.0
KEPT_SECONDS = 120  # of what a worker told of a breaker that is not closed


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after 5 failures in a row, or where half of the last 20 (at least 10) failed; for 5 s, then 10, 20 … 60, with up to
    a fifth more. Then one call at a time is let through; two that succeed close it, one that fails opens it for longer.
    """

    __slots__ = ("_clock", "_failures", "_in_a_row", "_opened", "_passed", "_probe_at", "_until", "_window", "state")

    def __init__(self, clock: Callable[[], float] = time.monotonic, failures: int = CONSECUTIVE) -> None:
        """`failures` in a row open it; where that is more than the window holds, nothing else does either."""
        self._clock, self._failures = clock, failures
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._in_a_row = self._opened = self._passed = 0
        self._until = 0.0
        self._probe_at: float | None = None
        self.state = State.CLOSED

    def reopens_in(self) -> float:
        """Seconds until a call may be let through; 0 where one may now."""
        if self.state is State.CLOSED:
            return 0.0
        now = self._clock()
        if self.state is State.OPEN:
            return max(self._until - now, 0.0)
        if self._probe_at is None:
            return 0.0
        return max(self._probe_at + PROBE_SECONDS - now, 0.0)

    def begin(self) -> bool:
        """Lets a call through, or not; one that is let through must tell its end."""
        if self.state is State.CLOSED:
            return True
        if self.reopens_in() > 0:
            return False
        self.state, self._probe_at = State.HALF_OPEN, self._clock()
        return True

    def succeeded(self) -> None:
        self._window.append(True)
        self._in_a_row = 0
        if self.state is State.HALF_OPEN:
            self._probe_at = None
            self._passed += 1
            if self._passed >= PROBES_TO_CLOSE:
                self._close()

    def failed(self) -> None:
        self._window.append(False)
        self._in_a_row += 1
        if self.state is State.HALF_OPEN or (self.state is State.CLOSED and self._is_bad()):
            self._open()

    def neither(self) -> None:
        """The call told nothing about the provider's health: it was refused for its rate, or never sent."""
        if self.state is State.HALF_OPEN:
            self._probe_at = None

    def _is_bad(self) -> bool:
        failures = self._window.count(False)
        enough = (
            len(self._window) >= max(LEAST_OF_WINDOW, self._failures)
            and failures >= len(self._window) * SHARE_OF_WINDOW
        )
        return self._in_a_row >= self._failures or enough

    def _open(self) -> None:
        seconds = min(FIRST_SECONDS * 2**self._opened, LONGEST_SECONDS)
        self.state, self._probe_at, self._passed = State.OPEN, None, 0
        self._until = self._clock() + seconds * random.uniform(1, 1.2)  # noqa: S311 - so that workers do not probe together
        self._opened += 1

    def _close(self) -> None:
        self.state, self._opened, self._passed, self._in_a_row = State.CLOSED, 0, 0, 0
        self._window.clear()


class Breakers:
    """Those of one worker process, by credential and model."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, failures: int = CONSECUTIVE) -> None:
        self._clock, self._failures = clock, failures
        self._found: dict[str, Breaker] = {}

    def get(self, lane: str) -> Breaker:
        found = self._found.get(lane)
        if found is None:
            found = self._found[lane] = Breaker(self._clock, self._failures)
        return found

    def states(self) -> dict[str, tuple[str, float]]:
        """(state, seconds until a probe) of those that are not closed."""
        return {
            lane: (one.state.value, one.reopens_in())
            for lane, one in self._found.items()
            if one.state is not State.CLOSED
        }


def key(lane: str) -> str:
    """Where workers tell of a lane's breaker in Redis, each in a field of its own: its state, and when it lets a probe through
    (Unix milliseconds).
    """
    return f"breaker:{lane}"
