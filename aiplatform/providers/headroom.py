"""What a credential may still send: learnt from replies, shared by all workers in Redis, spent before the limit and fairly.

A lane is a credential with a model. While much is left a call passes without a round trip. Where little is left (a fifth of the
limit, or 20 requests), or the credential has limits of its own, or a 429 has closed the lane for a while, calls queue: what is
left is spread over the time until it is full again, and the tenant that was served least goes first, in this worker and in
all. docs/routing.md tells the rules.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import RedisError

from aiplatform.lib.logs import log
from aiplatform.providers.headroom_scripts import ASK, TELL, TIGHT_REQUESTS, TIGHT_SHARE
from aiplatform.providers.levels import Level, Told, read

SYNC_SECONDS = 1.0
LONGEST_NAP_SECONDS = 1.0
HEADS = 8  # calls of one tenant that are asked for at once
ASSUMED_WORKERS = 4  # among whom a share is divided while Redis is lost


class Limits(NamedTuple):
    """A credential's own, set by whoever set it up."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


NO_LIMITS = Limits()


@dataclass(slots=True)
class Gauge:
    """A level as this worker knows it, less what it has sent since."""

    left: float
    limit: float
    full_at: float

    def is_tight(self, few: float, now: float) -> bool:
        return now < self.full_at and self.left <= max(self.limit * TIGHT_SHARE, few)


@dataclass(slots=True)
class _Waiter:
    call: str
    tokens: int
    passed: asyncio.Future[bool]


@dataclass(slots=True)
class Pass:
    """A call's way through a lane; `leave` ends it. `granted` says that Redis counted it."""

    lane: "Lane"
    call: str
    granted: bool


@dataclass(slots=True, eq=False)
class Lane:
    """One credential with one model, as this worker sees it."""

    name: str
    limits: Limits = NO_LIMITS
    requests: Gauge | None = None
    tokens: Gauge | None = None
    closed_until: float = 0.0
    paced_until: float = 0.0
    synced_at: float = 0.0
    told: int = 0
    """How many replies have told something; what Redis was asked before the last of them is old."""
    gap: float = 0.0
    """Seconds between two grants, as they came of late."""
    queues: dict[str, deque[_Waiter]] = field(default_factory=dict)
    pump: asyncio.Task[None] | None = None
    granted_at: float = 0.0

    def is_open(self, tokens: int, now: float) -> bool:
        """Whether a call may pass without asking anybody."""
        if self.limits != NO_LIMITS or now < self.paced_until or now < self.closed_until:
            return False
        if self.requests is not None and self.requests.is_tight(TIGHT_REQUESTS, now):
            return False
        return self.tokens is None or not self.tokens.is_tight(TIGHT_REQUESTS * tokens, now)

    def wait(self, tenant: str, now: float) -> float:
        """Seconds that a call of this tenant is likely to wait; 0 where nobody knows."""
        closed = max(self.closed_until - now, 0.0)
        for gauge in (self.requests, self.tokens):
            if gauge is not None and gauge.left < 1 and now < gauge.full_at:
                whole = gauge.full_at - now
                closed = max(closed, whole / (gauge.limit - gauge.left) if gauge.limit > gauge.left else whole)
        before = len(self.queues.get(tenant, ())) * max(len(self.queues), 1)
        return closed + before * self.pace(now)

    def pace(self, now: float) -> float:
        """Seconds between two calls."""
        gap = self.gap
        if self.requests is not None and self.requests.is_tight(TIGHT_REQUESTS, now):
            gap = max(gap, (self.requests.full_at - now) / max(self.requests.left, self.requests.limit, 1))
        return gap

    def spend(self, tokens: int) -> None:
        if self.requests is not None:
            self.requests.left -= 1
        if self.tokens is not None:
            self.tokens.left -= tokens

    def see(self, view: list[int], now: float) -> None:
        """What Redis knows."""
        left, limit, full, tokens, most, filled, closed, paced = view
        self.requests = Gauge(left, max(limit, 0), now + full / 1000) if left >= 0 else None
        self.tokens = Gauge(tokens, max(most, 0), now + filled / 1000) if tokens >= 0 else None
        self.closed_until, self.paced_until = now + max(closed, 0) / 1000, now + max(paced, 0) / 1000
        self.synced_at = now


class Headroom:
    """All lanes of one worker's event loop."""

    def __init__(
        self,
        connect: Callable[[], redis.asyncio.Redis],
        *,
        most_waiting: int,
        place_seconds: float,
        learns: bool = True,
    ) -> None:
        """`most_waiting` calls of one tenant queue in a lane here; `place_seconds` is how long a call may hold a place.

        One that does not learn keeps to credentials' own limits only.
        """
        self._learns = learns
        self._connect, self._most_waiting, self._place_ms = connect, most_waiting, int(place_seconds * 1000)
        self._redis: redis.asyncio.Redis | None = None
        self._scripts: dict[str, Any] = {}
        self._lanes: dict[str, Lane] = {}
        self._background: set[asyncio.Task[Any]] = set()

    def lane(self, name: str, limits: Limits = NO_LIMITS) -> Lane:
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = Lane(name, limits)
        found.limits = limits
        return found

    async def enter(self, lane: Lane, tenant: str, call: str, tokens: int, until: float) -> Pass | None:
        """The call's pass; None where it would have to wait beyond `until` (the loop's time), or too many wait already."""
        now = time.monotonic()
        if not lane.queues and lane.is_open(tokens, now):
            lane.spend(tokens)
            if now - lane.synced_at > SYNC_SECONDS:  # what other workers have learnt
                lane.synced_at = now
                self._tell(lane, ["0", "", "", "", "", "", "", "0", "0"])
            return Pass(lane, call, granted=False)
        loop = asyncio.get_running_loop()
        queue = lane.queues.get(tenant, ())
        if loop.time() + lane.wait(tenant, now) > until or len(queue) >= self._most_waiting:
            return None
        return await self._queue(lane, tenant, _Waiter(call, tokens, loop.create_future()), until)

    async def _queue(self, lane: Lane, tenant: str, waiter: _Waiter, until: float) -> Pass | None:
        lane.queues.setdefault(tenant, deque()).append(waiter)
        if lane.pump is None or lane.pump.done():
            lane.pump = self._spawn(self._pump(lane))
        try:
            async with asyncio.timeout_at(until):
                granted = await waiter.passed
        except BaseException as error:
            if waiter.passed.done() and not waiter.passed.cancelled():
                self.leave(Pass(lane, waiter.call, waiter.passed.result()))
            self._forget(lane, tenant, waiter)
            if tenant not in lane.queues:  # or others would wait for its turn
                self._spawn(self._gone(lane, tenant))
            if isinstance(error, TimeoutError):
                return None
            raise
        return Pass(lane, waiter.call, granted)

    @staticmethod
    def _forget(lane: Lane, tenant: str, waiter: _Waiter) -> None:
        queue = lane.queues.get(tenant)
        if queue is not None:
            if waiter in queue:
                queue.remove(waiter)
            if not queue:
                del lane.queues[tenant]

    def told(self, entered: Pass, headers: Mapping[str, str], *, limited: bool, asked_seconds: float) -> None:
        """A reply has come: what its headers tell, and whether it was a 429 that asks to wait so long."""
        if not self._learns:
            headers, limited = {}, False
        told = read(headers) if limited or _tells(headers) else None
        if told is None and not limited and not entered.granted:
            return
        now, lane = time.monotonic(), entered.lane
        lane.told += 1
        if told:
            lane.requests, lane.tokens = _gauge(told.requests, now), _gauge(told.tokens, now)
        if limited:
            lane.closed_until = max(lane.closed_until, now + asked_seconds)
        if entered.granted or limited or not lane.is_open(0, now) or now - lane.synced_at > SYNC_SECONDS:
            lane.synced_at = now
            told = told or Told(None, None)
            figures = [*_figures(told.requests), *_figures(told.tokens)]
            closed = [str(int(asked_seconds * 1000)), "1" if limited else "0"]
            self._tell(lane, ["1" if entered.granted else "0", *figures, *closed])
        entered.granted = False

    def leave(self, entered: Pass) -> None:
        """The call is over."""
        if entered.granted:  # no reply ever came
            self._tell(entered.lane, ["1", "", "", "", "", "", "", "0", "0"])
        if entered.lane.limits.concurrency:
            self._spawn(self._free(entered))

    async def aclose(self) -> None:
        for task in list(self._background):
            task.cancel()
        if self._redis is not None:
            await self._redis.aclose()

    async def _pump(self, lane: Lane) -> None:
        """Lets those who queue through, as what is left allows; ends where nobody waits any more."""
        while lane.queues:
            asking = [(tenant, waiter) for tenant, queue in lane.queues.items() for waiter in list(queue)[:HEADS]]
            answer = await self._run(ASK, lane, self._asked(lane, asking))
            now = time.monotonic()
            if answer is None:
                await asyncio.sleep(self._alone(lane, asking, now))
                continue
            wait, granted, view = answer
            lane.see(view, now)
            passed = {call.decode() if isinstance(call, bytes) else call for call in granted}
            self._let_through(lane, asking, passed, granted=True)
            if not passed:
                await asyncio.sleep(min(max(wait / 1000, 0.005), LONGEST_NAP_SECONDS))

    def _alone(self, lane: Lane, asking: list[tuple[str, _Waiter]], now: float) -> float:
        """While Redis is lost: one at a time, at this worker's part of the pace. Seconds until the next."""
        wait = lane.closed_until - now
        if wait > 0:
            return min(wait, LONGEST_NAP_SECONDS)
        tenant, waiter = asking[0]
        self._let_through(lane, [(tenant, waiter)], {waiter.call}, granted=False)
        lane.queues = {**{one: lane.queues[one] for one in lane.queues if one != tenant},
                       **({tenant: lane.queues[tenant]} if tenant in lane.queues else {})}  # fmt: skip
        left = lane.requests
        spread = (left.full_at - now) / max(left.left, 1) if left and left.is_tight(TIGHT_REQUESTS, now) else 0.0
        rates = [spread, 60 / lane.limits.rpm if lane.limits.rpm else 0.0]
        lane.spend(waiter.tokens)
        return min(max(rates) * ASSUMED_WORKERS, 5.0) or 0.01

    def _let_through(self, lane: Lane, asking: list[tuple[str, _Waiter]], calls: set[str], *, granted: bool) -> None:
        for tenant, waiter in asking:
            if waiter.call not in calls:
                continue
            now = time.monotonic()
            if lane.granted_at:
                lane.gap = 0.8 * lane.gap + 0.2 * min(now - lane.granted_at, 60.0)
            lane.granted_at = now
            self._forget(lane, tenant, waiter)
            if waiter.passed.done():  # it has given up
                self.leave(Pass(lane, waiter.call, granted))
            else:
                waiter.passed.set_result(granted)

    def _asked(self, lane: Lane, asking: list[tuple[str, _Waiter]]) -> list[str]:
        limits = [str(limit or 0) for limit in lane.limits]
        each = [text for tenant, waiter in asking for text in (tenant, waiter.call, str(waiter.tokens))]
        return [*limits, str(self._place_ms), *each]

    def _tell(self, lane: Lane, figures: list[str]) -> None:
        """Tells Redis, and sees what it knows unless a reply has told something since: answers overtake each other."""
        known = lane.told

        async def tell() -> None:
            view = await self._run(TELL, lane, figures)
            if view is not None and lane.told == known:
                lane.see(view, time.monotonic())

        self._spawn(tell())

    async def _gone(self, lane: Lane, tenant: str) -> None:
        try:
            await self.client().zrem(f"{key(lane.name)}:waiting", tenant)
        except (RedisError, OSError):
            log.warning("headroom.redis_lost")

    async def _free(self, entered: Pass) -> None:
        try:
            await self.client().zrem(f"{key(entered.lane.name)}:places", entered.call)
        except (RedisError, OSError):
            log.warning("headroom.redis_lost")

    async def _run(self, source: str, lane: Lane, arguments: list[str]) -> Any:
        """None where Redis is lost."""
        name = key(lane.name)
        keys = [name, f"{name}:times", f"{name}:waiting", f"{name}:places"]
        client = self.client()
        if source not in self._scripts:
            self._scripts[source] = client.register_script(source)
        try:
            return await self._scripts[source](keys=keys, args=arguments)
        except (RedisError, OSError) as error:
            log.warning("headroom.redis_lost", error=type(error).__name__)
            return None

    def client(self) -> redis.asyncio.Redis:
        if self._redis is None:
            self._redis = self._connect()
        return self._redis

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def key(lane: str) -> str:
    """Where a lane's state is in Redis."""
    return f"headroom:{{{lane}}}"


def _tells(headers: Any) -> bool:
    """One look at the names: most servers of our own tell nothing."""
    raw = getattr(headers, "raw", None)
    if raw is None:
        return True
    return any(b"ratelimit" in name or b"RateLimit" in name or b"Ratelimit" in name for name, _ in raw)


def _gauge(level: Level | None, now: float) -> Gauge | None:
    return Gauge(level.left, level.limit or 0, now + level.full_in) if level else None


def _figures(level: Level | None) -> list[str]:
    return [str(level.left), str(level.limit or 0), str(int(level.full_in * 1000))] if level else ["", "", ""]
