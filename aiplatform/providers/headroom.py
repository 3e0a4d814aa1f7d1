"""What a credential may still send: learnt from replies, shared by all workers in Redis, spent before the limit and fairly.

A lane is a credential with a model. While much is left a call passes without a round trip. Where little is left (a fifth of the
limit, or 20 requests), or the credential has limits of its own, or a 429 has closed the lane for a while, calls queue: what is
left is spread over the time until it is full again, and the tenant that was served least goes first, in this worker and in
all. docs/routing.md tells the rules.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import RedisError

from aiplatform.lib.logs import log

TIGHT_SHARE = 0.2
TIGHT_REQUESTS = 20
WINDOW_SECONDS = 60.0  # of a limit whose reset is not told
SYNC_SECONDS = 1.0
LONGEST_NAP_SECONDS = 1.0
HEADS = 8  # calls of one tenant that are asked for at once
ASSUMED_WORKERS = 4  # among whom a share is divided while Redis is lost
LONGEST_RESET_SECONDS = 86_400.0
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_ANTHROPIC_TOKENS = ("tokens", "input-tokens", "output-tokens")


class Level(NamedTuple):
    """What a reply told: so many are left, of so many (None: not told), full again in so many seconds."""

    left: int
    limit: int | None
    full_in: float


class Told(NamedTuple):
    """Requests and tokens; None where nothing was told."""

    requests: Level | None
    tokens: Level | None


class Limits(NamedTuple):
    """A credential's own, set by whoever set it up."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


NO_LIMITS = Limits()


def read(headers: Mapping[str, str], now: datetime | None = None) -> Told | None:
    """What a reply's headers tell; None where they tell nothing that makes sense.

    Sources: developers.openai.com/api/docs/guides/rate-limits, platform.claude.com/docs/en/api/rate-limits, and Azure, which
    leaves the limit out or says -1, and often tells what remains but not when it resets.
    """
    if "anthropic-ratelimit-requests-remaining" in headers or "anthropic-ratelimit-tokens-remaining" in headers:
        moment = now or datetime.now(UTC)
        levels = [_anthropic(headers, what, moment) for what in _ANTHROPIC_TOKENS]
        known = [level for level in levels if level is not None]
        told = Told(_anthropic(headers, "requests", moment), min(known, key=lambda level: level.left, default=None))
    else:
        told = Told(_openai(headers, "requests"), _openai(headers, "tokens"))
    return told if told.requests or told.tokens else None


def _openai(headers: Mapping[str, str], what: str) -> Level | None:
    left = _count(headers.get(f"x-ratelimit-remaining-{what}"))
    if left is None:
        return None
    full_in = duration(headers.get(f"x-ratelimit-reset-{what}") or "")
    limit = _count(headers.get(f"x-ratelimit-limit-{what}"))
    return _level(left, limit, WINDOW_SECONDS if full_in is None else full_in)


def _anthropic(headers: Mapping[str, str], what: str, now: datetime) -> Level | None:
    prefix = f"anthropic-ratelimit-{what}"
    left = _count(headers.get(f"{prefix}-remaining"))
    if left is None:
        return None
    try:
        reset = datetime.fromisoformat(headers.get(f"{prefix}-reset") or "")
        full_in = ((reset if reset.tzinfo else reset.replace(tzinfo=UTC)) - now).total_seconds()
    except ValueError:
        full_in = WINDOW_SECONDS
    return _level(left, _count(headers.get(f"{prefix}-limit")), full_in)


def _level(left: int, limit: int | None, full_in: float) -> Level:
    return Level(left, limit if limit and limit >= left else None, min(max(full_in, 0.0), LONGEST_RESET_SECONDS))


def _count(text: str | None) -> int | None:
    """A count; None for what is missing, negative (Azure's -1 is "not known") or no number."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None  # noqa: PLR2004 - fits a double


def duration(text: str) -> float | None:
    """Seconds of `1s`, `6m0s`, `20ms`, `1h2m3.5s` or a bare number; None for anything else."""
    text = text.strip()
    found = _DURATION.fullmatch(text)
    if text and found:
        days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + milliseconds / 1000
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


# State of a lane, times in ms: r, rl, rx (requests left, their limit or 0, when full), t, tl, tx (tokens), rn, tn (when the
# next may go), ru, tu (when one more has flowed back), b (closed until), p, pn, pu (ms between two calls, the next, until), the
# own buckets or, ora, ot, ota; v (virtual time), o (grants whose reply has not come).
_COMMON = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local s = {}
local raw = redis.call('HGETALL', KEYS[1])
for i = 1, #raw, 2 do s[raw[i]] = tonumber(raw[i + 1]) end
for _, d in ipairs({'r', 't'}) do
  if s[d] and now >= s[d .. 'x'] then
    s[d], s[d .. 'n'], s[d .. 'u'] = nil, nil, nil
    if d == 'r' then s.o = 0 end
  end
end
local function save()
  local flat = {}
  for k, v in pairs(s) do flat[#flat + 1] = k; flat[#flat + 1] = string.format('%.3f', v) end
  redis.call('DEL', KEYS[1])
  if #flat > 0 then redis.call('HSET', KEYS[1], unpack(flat)) end
  redis.call('PEXPIRE', KEYS[1], math.max(120000, (s.rx or 0) - now, (s.tx or 0) - now, (s.b or 0) - now))
end
local function view()
  local out = {}
  for i, k in ipairs({'r', 'rl', 'rx', 't', 'tl', 'tx', 'b', 'pu'}) do
    local v = s[k] or -1
    if v >= 0 and (k == 'rx' or k == 'tx' or k == 'b' or k == 'pu') then v = math.max(v - now, 0) end
    out[i] = math.floor(v)
  end
  return out
end
"""

# ARGV: was granted (1 or 0), left, limit, full in ms of requests, then of tokens ('' is not told), closed for ms, is a 429.
_TELL = (
    _COMMON
    + """
if ARGV[1] == '1' then s.o = math.max((s.o or 0) - 1, 0) end
local a = 2
for _, d in ipairs({'r', 't'}) do
  if ARGV[a] ~= '' then
    local told = tonumber(ARGV[a])
    local level = told
    if d == 'r' then level = told - (s.o or 0) end
    if s[d] then level = math.max(level, math.min(s[d], told)) end
    s[d], s[d .. 'l'], s[d .. 'x'] = math.max(level, 0), tonumber(ARGV[a + 1]), now + tonumber(ARGV[a + 2])
    if s[d] >= 1 then s[d .. 'u'] = nil end
  end
  a = a + 3
end
if ARGV[9] == '1' then
  s.b = math.max(s.b or 0, now + tonumber(ARGV[8]))
  s.p = math.min(math.max(2 * (((s.pu or 0) > now) and s.p or 0), 100), 1000)
  s.pu = s.b + 10000
end
save()
return view()
"""
)

# ARGV: own rpm, tpm, concurrency (0 is none), ms that a place is kept, then tenant, call and tokens of each that asks.
# KEYS: state, virtual times by tenant, who waits, places. Answers {ms to wait, how many were granted, their calls …, view}.
_ASK = (
    (
        _COMMON
        + """
local rpm, tpm, places, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function own(name, per_minute)
  local cap = math.max(1, math.floor(per_minute / 10))
  local rate = (per_minute >= 10 and per_minute - cap or per_minute) / 60000
  local left = s[name] and math.min(cap, s[name] + (now - s[name .. 'a']) * rate) or 1
  s[name], s[name .. 'a'] = left, now
  return cap, rate
end
local rcap, rrate, tcap, trate
if rpm > 0 then rcap, rrate = own('or', rpm) end
if tpm > 0 then tcap, trate = own('ot', tpm) if not s.otb then s.ot, s.otb = tcap, 1 end end
if places > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now) end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)

local queues, names = {}, {}
for i = 5, #ARGV, 3 do
  local tenant = ARGV[i]
  if not queues[tenant] then queues[tenant] = {}; names[#names + 1] = tenant end
  table.insert(queues[tenant], {ARGV[i + 1], tonumber(ARGV[i + 2])})
end
local vt = {}
local function virtual(tenant)
  if not vt[tenant] then vt[tenant] = math.max(tonumber(redis.call('HGET', KEYS[2], tenant) or 0), s.v or 0) end
  return vt[tenant]
end
for _, tenant in ipairs(names) do redis.call('ZADD', KEYS[3], now + 1500, tenant) end
local others = {}
for _, tenant in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if not queues[tenant] then others[#others + 1] = virtual(tenant) end
end

-- How long the head must wait for a level that a provider told.
local function wait_for(d, need, few)
  local left, limit, full = s[d], s[d .. 'l'] or 0, s[d .. 'x']
  if not left then return 0 end
  if left < need then
    if not s[d .. 'u'] then
      local whole = full - now
      s[d .. 'u'] = now + ((limit > left) and math.min((need - left) * whole / (limit - left), whole) or whole)
    end
    if now < s[d .. 'u'] then return s[d .. 'u'] - now end
    s[d], s[d .. 'u'] = need, nil
  end
  return math.max((s[d .. 'n'] or 0) - now, 0)
end
local function spend(d, need, few)
  local left, limit = s[d], s[d .. 'l'] or 0
  if not left then return end
  if left <= math.max(limit * SHARE, few) then
    s[d .. 'n'] = now + (s[d .. 'x'] - now) * need / math.max(left, need)
  end
  s[d] = left - need
end

local granted, wait = {}, 0
while #names > 0 do
  local best
  for i, tenant in ipairs(names) do
    if not best or virtual(tenant) < virtual(names[best]) then best = i end
  end
  local tenant = names[best]
  local head = queues[tenant][1]
  local need = head[2]
  wait = math.max((s.b or 0) - now, 0)
  if (s.pu or 0) > now then wait = math.max(wait, (s.pn or 0) - now) end
  local tokens = need
  if (s.tl or 0) > 0 then tokens = math.min(need, s.tl) end
  wait = math.max(wait, wait_for('r', 1), wait_for('t', tokens))
  if rpm > 0 and s['or'] < 1 then wait = math.max(wait, (1 - s['or']) / rrate) end
  if tpm > 0 and s.ot < math.min(need, tcap) then wait = math.max(wait, (math.min(need, tcap) - s.ot) / trate) end
  if places > 0 and redis.call('ZCARD', KEYS[4]) >= places then wait = math.max(wait, 100) end
  if wait > 0 then break end
  local turn = true
  for _, v in ipairs(others) do if v < virtual(tenant) then turn = false end end
  if not turn then wait = 50 break end
  spend('r', 1, FEW)
  spend('t', tokens, FEW * need)
  if rpm > 0 then s['or'] = s['or'] - 1 end
  if tpm > 0 then s.ot = s.ot - need end
  if places > 0 then redis.call('ZADD', KEYS[4], now + ttl, head[1]); redis.call('PEXPIRE', KEYS[4], ttl) end
  if (s.pu or 0) > now then s.pn = now + s.p end
  s.v = virtual(tenant)
  vt[tenant] = vt[tenant] + 1
  redis.call('HSET', KEYS[2], tenant, string.format('%.0f', vt[tenant]))
  redis.call('PEXPIRE', KEYS[2], 120000)
  s.o = (s.o or 0) + 1
  granted[#granted + 1] = head[1]
  table.remove(queues[tenant], 1)
  if #queues[tenant] == 0 then
    table.remove(names, best)
    redis.call('ZREM', KEYS[3], tenant)
  end
end
redis.call('PEXPIRE', KEYS[3], 5000)
save()
return {math.ceil(wait), granted, view()}
"""
    )
    .replace("SHARE", str(TIGHT_SHARE))
    .replace("FEW", str(TIGHT_REQUESTS))
)


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
            answer = await self._run(_ASK, lane, self._asked(lane, asking))
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
            view = await self._run(_TELL, lane, figures)
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
