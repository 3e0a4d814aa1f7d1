"""Requests per minute, tokens per minute and concurrent calls: one Lua script decides a whole batch, by Redis's clock.

All buckets of a call are checked before any is charged. A Redis that has forgotten is never looser: its buckets begin empty;
one that is away is stood in for by each process's share, and not for long (docs/limits.md).
"""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings

from aiplatform.lib import postgres, redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.logs import log
from tenants.auth import Limit
from tenants.limits import scripts
from tenants.limits.buckets import CONCURRENT, EACH, REQUESTS, TOKENS, Ask, Place, Rate
from tenants.limits.share import LATER, NEVER, PASSES, Outage, Share, Verdict

__all__ = [
    "CONCURRENT",
    "REQUESTS",
    "TOKENS",
    "Ask",
    "GivenBack",
    "Left",
    "Passage",
    "RateLimited",
    "Standing",
    "TooLargeForLimit",
    "begin",
    "give_back",
    "standing",
    "take",
]

MINUTE_US = 60_000_000
REMEMBER_SECONDS = 3600  # that a call's tokens were corrected; longer than any call may take


class RateLimited(ApiError):
    """A rate limit of this tenant is reached."""

    status = 429
    code = "rate_limit_exceeded"
    left: "tuple[Left, ...]" = ()
    """How all rates of the call stood."""


class TooLargeForLimit(ApiError):
    """This one call needs more tokens than its limit allows at once; it would never pass."""

    status = 400
    code = "exceeds_token_limit"


class Left(NamedTuple):
    """How a rate stands after a call was looked at: what is left of it now, and seconds until it is full again."""

    scope: str
    name: str
    limit: int
    remaining: int
    resets_in_seconds: float


@dataclass(slots=True)
class Passage:
    """What became of one call at its limits."""

    refusal: ApiError | None
    left: tuple[Left, ...] = ()
    by_share: bool = False
    """Redis is away: this process decided it by itself."""
    taken: list[Any] | None = None
    """What is to be given back when the call ends, ready for JSON: its estimate, its buckets of tokens, its places."""


_share = Share()
_shadows: list[Batcher[int, None]] = []
_starting = threading.Lock()


def begin(idle_seconds: float) -> None:
    """At a process's start, where none is older: an empty Redis that has missed nothing for so long is not a forgetful one.

    Nothing where Redis is away, or knows better.
    """
    try:
        redis.script(scripts.BEGIN)(keys=[scripts.BORN], args=[idle_seconds], client=redis.limiter())
    except redis.LOST as error:
        log.warning("limits.not_begun", error=type(error).__name__)


def take(asks: Sequence[Ask], *, processes: Callable[[], int] = lambda: 1) -> list[Passage]:
    """What becomes of each call, in order. `processes` tells how many share the limits while Redis is away; where it has been
    away for longer than shares may be taken, whoever is limited is refused.
    """
    limited = [ask for ask in asks if ask.limits]
    wishes = [(ask.rates(), ask.places()) for ask in limited]
    verdicts = None if _share.is_resting else _decided(limited, wishes)
    by_share, refusal = verdicts is None, None
    if verdicts is None:
        try:
            verdicts = _share.take(limited, processes=processes())
        except Outage:
            refusal = redis.unavailable()
    found = {
        ask.call_id: _passage(ask, *wish, verdict, by_share=by_share)
        for ask, wish, verdict in zip(limited, wishes, verdicts or (), strict=False)
    }
    unlimited, away = Passage(None, by_share=by_share), Passage(refusal, by_share=by_share)
    return [found.get(ask.call_id, away if ask.limits else unlimited) for ask in asks]


def _decided(asks: Sequence[Ask], wishes: Sequence[tuple[list[Rate], list[Place]]]) -> list[Verdict] | None:
    """Redis's verdicts; None where it is away."""
    try:
        _repay()
        return _asked(asks, wishes)
    except redis.LOST as error:
        log.warning("limits.lost", error=type(error).__name__)
        _share.lost()
        return None


def _asked(asks: Sequence[Ask], wishes: Sequence[tuple[list[Rate], list[Place]]]) -> list[Verdict]:
    keys, arguments = [scripts.BORN], [str(len(asks))]
    time_to_live = str(settings.CALL_DEADLINE_SECONDS * 1000)
    for ask, (rates, places) in zip(asks, wishes, strict=True):
        arguments += [str(ask.call_id), time_to_live, str(len(rates)), str(len(places))]
        for rate in rates:
            keys.append(rate.key)
            arguments += [str(rate.refill), str(rate.burst), str(rate.cost), "1" if rate.limit.is_shadow else "0"]
        for place in places:
            keys.append(place.key)
            arguments += [str(place.most), "1" if place.limit.is_shadow else "0"]
    answers = redis.script(scripts.TAKE)(keys=keys, args=arguments, client=redis.limiter())
    return [Verdict(*answer) for answer in answers]


def _passage(ask: Ask, rates: list[Rate], places: list[Place], verdict: Verdict, *, by_share: bool) -> Passage:
    if by_share:  # which knows nothing of shadows
        rates = [rate for rate in rates if not rate.limit.is_shadow]
        places = [place for place in places if not place.limit.is_shadow]
    skipped: set[str] = set()
    for at in verdict.shadows:
        shadow = rates[at - 1] if at <= len(rates) else places[at - len(rates) - 1]
        skipped.add(shadow.key)
        _in_shadow(shadow.limit, ask)
    left = tuple(
        Left(scope_of(rate.limit), rate.name, rate.refill, remaining, full / 1_000_000)
        for rate, remaining, full in zip(rates, verdict.left[::2], verdict.left[1::2], strict=False)
        if not rate.limit.is_shadow
    )
    refusal = _refusal(ask, rates, places, verdict)
    if isinstance(refusal, RateLimited):
        refusal.left = left
    return Passage(refusal, left, by_share, None if refusal else _taken(ask, rates, places, skipped))


def _taken(ask: Ask, rates: list[Rate], places: list[Place], skipped: AbstractSet[str]) -> list[Any] | None:
    """What a shadow has not taken is not given back to it either."""
    tokens = [[rate.key, rate.refill, rate.burst] for rate in rates if rate.name == TOKENS and rate.key not in skipped]
    held = [place.key for place in places if place.key not in skipped]
    return [ask.tokens, tokens, held] if tokens or held else None


def _repay() -> None:
    """Charges Redis, now that it is back, with what was let pass without it; nothing is forgotten before Redis has it."""
    if not _share.is_taken:
        return
    seconds, _ = redis.limiter().time()
    owed, places = _share.owed()
    pipeline = redis.limiter().pipeline(transaction=False)
    for key, calls in places.items():
        if calls:
            until = (seconds + settings.CALL_DEADLINE_SECONDS) * 1_000_000
            pipeline.zadd(key, {str(call): until for call in calls})
            pipeline.expire(key, settings.CALL_DEADLINE_SECONDS)
    pipeline.execute()
    for repayment, rates in owed.items():
        charged = tuple((rate.key, rate.refill, rate.burst, rate.cost) for rate in rates)
        _corrected([GivenBack(repayment, (), charged)])
    log.info("limits.repaid", buckets=sum(map(len, owed.values())), places=sum(map(len, places.values())))
    _share.repaid()


class GivenBack(NamedTuple):
    """What a call that has ended gives back: its places, and for each bucket of tokens (key, refill, burst, difference)."""

    call_id: uuid.UUID
    places: tuple[str, ...]
    differences: tuple[tuple[str, int, int, int], ...]


def give_back(calls: Sequence[tuple[uuid.UUID, list[Any] | None, int | None]]) -> None:
    """For each call what its passage took, and the tokens that it has used; None where nobody knows: its estimate stays.

    What is lost here expires by itself.
    """
    given = [
        GivenBack(
            call_id, tuple(places),
            tuple((name, refill, burst, used - estimate) for name, refill, burst in tokens) if used is not None else (),
        )
        for call_id, told, used in calls
        if told is not None
        for estimate, tokens, places in [told]
    ]  # fmt: skip
    if not given:
        return
    for one in given:
        _share.free(one.call_id, one.places)
    if _share.is_resting:  # whoever asked it would wait for nothing
        return
    try:
        _corrected(given)
    except redis.LOST as error:
        log.warning("limits.not_given_back", calls=len(given), error=type(error).__name__)


def _corrected(given: Sequence[GivenBack]) -> None:
    keys, arguments = [scripts.BORN], [str(len(given))]
    for one in given:
        keys.append(f"limit:corrected:{one.call_id}")
        arguments += [str(one.call_id), str(len(one.differences)), str(len(one.places)), str(REMEMBER_SECONDS)]
        for name, refill, burst, difference in one.differences:
            keys.append(name)
            arguments += [str(refill), str(burst), str(difference)]
        keys += one.places
    redis.script(scripts.GIVE_BACK)(keys=keys, args=arguments, client=redis.limiter())


@dataclass(frozen=True, slots=True)
class Standing:
    """One figure of a limit, and how much of it is free now."""

    scope: str
    name: str
    limit: int
    remaining: int
    burst: int | None = None
    is_shadow: bool = False


def standing(given: Sequence[Limit], subject: str = "") -> list[Standing]:
    """How each figure of these limits stands for this end user, by Redis's clock; raises Unavailable where Redis is lost. Takes
    nothing. Of a limit on each end user nothing is told where none is named.
    """
    named = [limit for limit in given if subject or limit.end_user != EACH]
    ask = Ask(uuid.UUID(int=0), 0, tuple(named), subject)
    rates, places = ask.rates(), ask.places()
    pipeline = redis.limiter().pipeline(transaction=False)
    pipeline.time()
    pipeline.get(scripts.BORN)
    for rate in rates:
        pipeline.get(rate.key)
    for place in places:
        pipeline.zrange(place.key, 0, -1, withscores=True)
    try:
        (seconds, microseconds), born, *found = pipeline.execute()
    except redis.LOST as error:
        raise redis.unavailable() from error
    now = seconds * 1_000_000 + microseconds
    return [
        Standing(
            scope_of(rate.limit), rate.name, rate.refill, _left_of(rate, value, now, int(born or now)), rate.burst,
            rate.limit.is_shadow,
        )
        for rate, value in zip(rates, found, strict=False)
    ] + [
        Standing(
            scope_of(place.limit), CONCURRENT, place.most, max(place.most - sum(until > now for _, until in value), 0),
            is_shadow=place.limit.is_shadow,
        )
        for place, value in zip(places, found[len(rates) :], strict=True)
    ]  # fmt: skip


def _left_of(rate: Rate, value: Any, now: int, born: int) -> int:
    room = rate.burst * MINUTE_US // rate.refill
    arrival = int(value) if value else (born + room if now - born < room else now)
    return max(rate.burst - -(-max(arrival - now, 0) * rate.refill // MINUTE_US), 0)


def scope_of(limit: Limit) -> str:
    """Whom a limit is on, in one word."""
    return "end_user" if limit.end_user else limit.scope


def _in_shadow(limit: Limit, ask: Ask) -> None:
    """Counts what a limit in shadow mode would have refused."""
    log.info("limits.in_shadow", call_id=str(ask.call_id), limit=limit.id)
    with _starting:
        if not _shadows:
            _shadows.append(Batcher("limits-in-shadow", _counted))
    _shadows[0].put(limit.id)


def _counted(ids: list[int]) -> list[None]:
    counts = Counter(ids)
    try:
        postgres.run(
            """UPDATE tenants_ratelimit l SET shadow_refused_calls = l.shadow_refused_calls + u.n, shadow_refused_at = now()
               FROM unnest(%s::bigint[], %s::bigint[]) AS u(id, n) WHERE l.id = u.id""",
            [list(counts), list(counts.values())],
            patience=30,
        )
    except Unavailable:
        log.warning("limits.shadow_not_counted", calls=len(ids))
    return [None] * len(ids)


def _refusal(ask: Ask, rates: list[Rate], places: list[Place], verdict: Verdict) -> ApiError | None:
    if verdict.what == PASSES:
        return None
    limit, name, figure, burst = _named(rates, places, verdict.which)
    scope = scope_of(limit)
    what, whose = name.replace("_", " "), scope.replace("_", " ")
    details: dict[str, Any] = {"scope": scope, "limit_name": name, "limit": figure}
    if verdict.what == NEVER:
        return TooLargeForLimit(
            f"This call counts as {ask.tokens} tokens (input estimate plus max_tokens), more than the {burst} that the "
            f"{whose}'s limit of {figure} tokens per minute allows at once: lower max_tokens or shorten the input.",
            **details,
        )
    seconds = max(-(-verdict.wait_us // 1_000_000), 1)
    # What is free now is what the call would have taken, less what flows back while it waits.
    cost = {REQUESTS: 1, TOKENS: ask.tokens}.get(name, 0)
    remaining = max(cost - -(-verdict.wait_us * figure // MINUTE_US), 0) if verdict.what == LATER else 0
    resets_at = datetime.now(UTC) + timedelta(microseconds=verdict.wait_us)
    return RateLimited(
        f"The {whose}'s limit of {figure} {what} is reached; try again in {seconds} s.",
        headers={"retry-after": str(seconds)},
        **details,
        remaining=remaining,
        resets_at=resets_at.isoformat(),
        resets_in_seconds=seconds,
    )


def _named(rates: list[Rate], places: list[Place], which: int) -> tuple[Limit, str, int, int]:
    if which <= len(rates):
        rate = rates[which - 1]
        return rate.limit, rate.name, rate.refill, rate.burst
    place = places[which - len(rates) - 1]
    return place.limit, CONCURRENT, place.most, place.most
