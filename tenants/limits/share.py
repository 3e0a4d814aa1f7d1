"""Without Redis: for half a minute each process lets pass its share, never looser than all together were with it."""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from tenants.limits.buckets import Ask, Place, Rate

SECONDS = 30.0
REST_SECONDS = 1.0  # for which a Redis that was away is not asked again: whoever asks waits
MINUTE_US = 60_000_000
PASSES, LATER, NEVER, NO_PLACE = range(4)


@dataclass(slots=True)
class Verdict:
    """As the script's: what, which of rates and places (from 1), microseconds to wait; and what each rate has left, with the
    microseconds until it is full.
    """

    what: int
    which: int = 0
    wait_us: int = 0
    shadows: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


class Outage(Exception):
    """Redis has been away for longer than shares may be taken."""


class Share:
    """One process's, while Redis is away. Buckets begin empty, since nobody knows what was left, and fill at its rate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost_at: float | None = None
        self._rests_until = 0.0
        self._tats: dict[str, float] = {}
        self._places: dict[str, set[uuid.UUID]] = {}
        self._owed: dict[str, Rate] = {}
        self._sealed: dict[uuid.UUID, list[Rate]] = {}

    def take(self, asks: Sequence[Ask], *, processes: int, now: float | None = None) -> list[Verdict]:
        """A verdict for each; `now` is of a monotonic clock in seconds. Raises Outage after SECONDS."""
        with self._lock:
            moment = time.monotonic() if now is None else now
            if self._lost_at is None:
                self._lost_at = moment
            if moment - self._lost_at > SECONDS:
                raise Outage
            return [self._taken(ask, max(processes, 1), moment * 1_000_000) for ask in asks]

    def free(self, call_id: uuid.UUID, keys: Sequence[str]) -> None:
        """Gives back the places that a call took here."""
        with self._lock:
            for key in keys:
                self._places.get(key, set()).discard(call_id)

    def lost(self) -> None:
        """Redis was asked, and is away."""
        self._rests_until = time.monotonic() + REST_SECONDS

    @property
    def is_resting(self) -> bool:
        """Whether Redis is not to be asked yet."""
        return time.monotonic() < self._rests_until

    @property
    def is_taken(self) -> bool:
        """Whether Redis was away when it was last asked."""
        return self._lost_at is not None

    def owed(self) -> tuple[dict[uuid.UUID, list[Rate]], dict[str, set[uuid.UUID]]]:
        """What was taken here and Redis does not know of: rates by the name under which they are charged, once however often
        it is tried; and who has places.
        """
        with self._lock:
            if self._owed:
                self._sealed[uuid.uuid4()] = list(self._owed.values())
                self._owed = {}
            return dict(self._sealed), {key: set(calls) for key, calls in self._places.items()}

    def repaid(self) -> None:
        """Redis knows of all of it; from now on nothing is taken here."""
        with self._lock:
            self._lost_at = None
            self._tats, self._places, self._owed, self._sealed = {}, {}, {}, {}

    def _taken(self, ask: Ask, processes: int, now: float) -> Verdict:
        rates = [rate for rate in ask.rates() if not rate.limit.is_shadow]
        places = [place for place in ask.places() if not place.limit.is_shadow]
        verdict, tats = self._look(rates, places, processes, now)
        if verdict.what == PASSES:
            self._tats |= tats
            for rate in rates:
                known = self._owed.get(rate.key, rate._replace(cost=0))
                self._owed[rate.key] = rate._replace(cost=known.cost + rate.cost)
            for place in places:
                self._places.setdefault(place.key, set()).add(ask.call_id)
        return verdict

    def _look(
        self, rates: Sequence[Rate], places: Sequence[Place], processes: int, now: float
    ) -> tuple[Verdict, dict[str, float]]:
        worst, tats = Verdict(PASSES), {}
        for at, rate in enumerate(rates, 1):
            if rate.cost > rate.burst:
                return Verdict(NEVER, at), {}
            room = rate.burst * MINUTE_US / rate.refill
            tat = max(self._tats.get(rate.key, (self._lost_at or 0) * 1_000_000 + room), now)
            tats[rate.key] = tat + rate.cost * processes * MINUTE_US / rate.refill
            late = tats[rate.key] - room - now
            if late > max(worst.wait_us, 0):
                worst = Verdict(LATER, at, int(late) + 1)
        if worst.what == PASSES:
            for at, place in enumerate(places, 1):
                if len(self._places.get(place.key, ())) >= place.most // processes:
                    return Verdict(NO_PLACE, len(rates) + at, 1_000_000), {}
        return worst, tats
