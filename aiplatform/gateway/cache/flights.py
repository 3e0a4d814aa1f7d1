"""The same question while it is in flight: one call goes to the provider, the others wait for its answer.

Who leads is decided in Redis, by one script for a whole batch. Whoever waits looks after the call that he waits for, and asks
for himself where that does not get an answer: no leader's end strands anybody.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from aiplatform.gateway import relay, replies
from aiplatform.gateway.cache import shelf
from aiplatform.gateway.cache.hits import Shared
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.gateway.relay import Inbox, Kind
from aiplatform.gateway.tickets import Ticket
from aiplatform.lib import redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import Unavailable
from aiplatform.lib.logs import log

LOOK_SECONDS = 0.5
LINGER_MS = 1000  # for which a call leads that has left its answer: whoever looked just before finds it so
NEVER_HELD_SECONDS = 5.0  # after which a call that leads, and is on record nowhere, is none
MOST_LEADERS = 2  # that one ticket waits for; whoever was disappointed twice asks by himself
# A provider's word on the question itself, which would be the same for everybody who asks it.
ABOUT_THE_QUESTION = frozenset((400, 404, 413, 422))

# KEYS: flights. ARGV: milliseconds to live; then per flight: this call, and those that are known to have failed, by comma.
# Answers per flight: the call that leads.
_LEAD = """
local out = {}
for i = 1, #KEYS do
  local mine, failed = ARGV[2 * i], ARGV[2 * i + 1]
  local leader = redis.call('GET', KEYS[i])
  if not leader or string.find(failed, leader, 1, true) then
    redis.call('SET', KEYS[i], mine, 'PX', ARGV[1])
    leader = mine
  end
  out[i] = leader
end
return out
"""
# KEYS: flights. ARGV: per flight its call, and for how many milliseconds it still leads.
_LAND = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[2 * i - 1] then redis.call('PEXPIRE', KEYS[i], ARGV[2 * i]) end
end
"""


@dataclass(frozen=True, slots=True)
class Landing:
    """How a call that others waited for ended: with an answer that is kept, with a refusal of the question, or with nothing
    that is of use to others.
    """

    entry: Entry | None = None
    refusal: Shared | None = None


def lead(tickets: Sequence[Ticket]) -> dict[Ticket, uuid.UUID]:
    """The call whose answer each ticket gets; its own where it leads. All lead while Redis is lost."""
    first: dict[str, Ticket] = {}
    for ticket in tickets:
        first.setdefault(ticket.question, ticket)
    arguments: list[str | int] = [(settings.START_WITHIN_SECONDS + settings.CALL_DEADLINE_SECONDS) * 1000]
    for ticket in first.values():
        arguments += [ticket.call_id.hex, ",".join(one.hex for one in ticket.failed)]
    try:
        leaders = redis.script(_LEAD)(keys=[_key(name) for name in first], args=arguments, client=redis.client())
    except redis.LOST as error:
        log.warning("flights.lost", error=type(error).__name__)
        return {ticket: ticket.call_id for ticket in tickets}
    by_question = {name: uuid.UUID(leader.decode()) for name, leader in zip(first, leaders, strict=True)}
    return {ticket: by_question[ticket.question] for ticket in tickets}


def land(calls: Sequence[tuple[str, uuid.UUID]], *, answered: AbstractSet[uuid.UUID] = frozenset()) -> None:
    """These calls lead their questions no more, those that left an answer after a moment; what is lost here ends by itself."""
    arguments: list[str | int] = []
    for _, call in calls:
        arguments += [call.hex, LINGER_MS if call in answered else 0]
    try:
        redis.script(_LAND)(keys=[_key(question) for question, _ in calls], args=arguments, client=redis.client())
    except redis.LOST as error:
        log.warning("flights.not_landed", error=type(error).__name__)


def _is_flying(question: str, leader: uuid.UUID) -> bool:
    try:
        return redis.client().get(_key(question)) == leader.hex.encode()
    except redis.LOST:
        return True  # PostgreSQL knows what became of it


def _key(question: str) -> str:
    return f"flight:{question}"


class Tower:
    """One web process's look after the calls that others wait for: one inbox each, however many wait."""

    def __init__(self, receiver: relay.Receiver, states: Batcher[uuid.UUID, Any]) -> None:
        self._receiver, self._states = receiver, states
        self._watches: dict[uuid.UUID, asyncio.Task[Landing]] = {}

    async def landing(self, question: str, leader: uuid.UUID) -> Landing:
        """How it ended, once it has."""
        watch = self._watches.get(leader)
        if watch is None:
            watch = self._watches[leader] = asyncio.create_task(self._watch(question, leader))
            watch.add_done_callback(lambda _: self._watches.pop(leader, None))
        return await asyncio.shield(watch)

    async def _watch(self, question: str, leader: uuid.UUID) -> Landing:
        inbox = self._receiver.expect(leader, is_polled=not self._receiver.is_expected(leader))
        try:
            last = await self._last(inbox, question)
        finally:
            self._receiver.forget(inbox)
        kept = await asyncio.to_thread(shelf.look, [question])
        entry = kept.get(question)
        if entry is not None and entry.call_id == leader:
            return Landing(entry)
        if last is None:
            return Landing()
        status, headers, body = relay.parse_head(last)
        if status not in ABOUT_THE_QUESTION:
            return Landing()
        return Landing(refusal=Shared(leader, status, headers.get("content-type", "application/json"), body))

    async def _last(self, inbox: Inbox, question: str) -> bytes | None:
        """The whole answer, where it came as one; None where it was a stream, or none came."""
        began = time.monotonic()
        while True:
            try:
                kind, data = await asyncio.wait_for(inbox.get(), LOOK_SECONDS)
            except TimeoutError:
                if await self._has_ended(inbox, question, time.monotonic() - began):
                    return None
                continue
            if kind in {Kind.WHOLE, Kind.END}:
                return data if kind == Kind.WHOLE else None

    async def _has_ended(self, inbox: Inbox, question: str, waited_seconds: float) -> bool:
        """Whether nothing is to come any more: it has ended, or was never held and leads no more."""
        try:
            row = await self._states.submit(inbox.call_id)
        except Unavailable:
            return False
        if row is None:
            if waited_seconds > NEVER_HELD_SECONDS:
                return True
            return not await asyncio.to_thread(_is_flying, question, inbox.call_id)
        return not replies.is_running(row)
