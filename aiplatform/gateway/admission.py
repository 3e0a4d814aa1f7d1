"""The door: kept answers, limits, the hold, the doorbell, each once for a whole batch of waiting calls."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from django.conf import settings

from aiplatform.gateway import catalogue, chain, doorbell, holds, idempotency, refusals, waiting
from aiplatform.gateway.cache import flights, near
from aiplatform.gateway.cache.hits import COALESCED, Answers, Shared, fitting
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.gateway.idempotency import KeyReused
from aiplatform.gateway.tickets import Admitted, Contended, Follow, Hit, Outcome, Replay, Ticket
from aiplatform.gateway.waiting import Lines
from aiplatform.lib import failpoints, redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.logs import log
from tenants import limits
from tenants.auth import Suspended, Unauthenticated, suspended
from usage import ledger

# A batch is asked for again where the catalogue changed meanwhile, or another's Idempotency-Key stood in the way.
MOST_ROUNDS = 10
# How often it is asked whether the catalogue has changed, for answers that are given without a hold.
BOOK_SECONDS = 1.0
# How long it is tried to void what nobody waits for; in the end the sweeper finds it.
ABANDONED_PATIENCE_SECONDS = 600.0
# What an older book may say of a name or a price that is new.
NOT_IN_THE_BOOK = (catalogue.ModelNotFound, catalogue.ModelNotPriced)


class Admission:
    """One web process's door."""

    def __init__(self, web: uuid.UUID, processes: Callable[[], int] = lambda: 1) -> None:
        """`processes` tells how many web processes there are."""
        self._web, self._processes = web, processes
        self._batches: Batcher[Ticket, Outcome] = Batcher(
            "admission", self.admit, size=lambda ticket: len(ticket.facts.body)
        )
        self.lines = Lines(self._batches.submit)
        self.answers = Answers(web, holds.of, _refusal)
        self._sharing: Batcher[tuple[Ticket, Entry], Any] = Batcher("sharing", self._shared)
        self._leaving: Batcher[Ticket, None] = Batcher("leaving", _let_go)
        self._abandoned: Batcher[list[uuid.UUID], None] = Batcher("abandoned", _void)
        self._book: catalogue.Catalogue | None = None
        self._book_at = 0.0

    async def submit(self, ticket: Ticket) -> Admitted | Replay | Hit | Follow:
        """Waits its turn where a cap is contended. Raises the ApiError that refuses the call, and ClientDisconnect where the
        caller has gone before it was admitted.
        """
        try:
            outcome = await self._batches.submit(ticket)
            return await self.lines.wait(ticket, outcome) if isinstance(outcome, Contended) else outcome
        except BaseException:
            if ticket.passed or ticket.is_leading:
                await asyncio.to_thread(_let_go, [ticket])
            raise

    async def share(self, ticket: Ticket, entry: Entry) -> Hit | Replay | None:
        """Puts on record that the ticket gets the answer of the call that it waited for; None where that has not the form that
        it wants. Raises the ApiError that refuses it.
        """
        given: Hit | Replay | None = await self._sharing.submit((ticket, entry))
        return given

    def shared(self, ticket: Ticket, refusal: Shared) -> None:
        """Puts on record that it was refused as the call that it waited for."""
        self.answers.record(ticket, refusal)
        self.leave(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Gives back what a ticket has taken that waits for nothing any more."""
        self._leaving.put(ticket)

    def _shared(self, following: list[tuple[Ticket, Entry]]) -> list[Any]:
        book = catalogue.current()
        hits = [
            (ticket, hit) for ticket, entry in following if (hit := fitting(ticket, entry, COALESCED, book)) is not None
        ]
        outcomes = self.answers.give(hits, book)
        _let_go(list(outcomes))
        return [outcomes.get(ticket) for ticket, _ in following]

    def admit(self, tickets: list[Ticket]) -> list[Any]:
        """An Outcome or an ApiError for each ticket, in order."""
        first = _first_of_each_key(tickets)
        asking = [ticket for ticket in tickets if first[ticket] is ticket]
        replayed = _replayed([ticket for ticket in asking if ticket.idempotency_hash])
        hits = self._kept([ticket for ticket in asking if ticket not in replayed and not ticket.queued])
        failpoints.reached("admission.before_limits")
        outcomes: dict[Ticket, Any] = self._limited([ticket for ticket in asking if ticket not in replayed], hits)
        failpoints.reached("admission.after_limits")
        try:
            if passing := [(ticket, hit) for ticket, hit in hits.items() if ticket not in outcomes]:
                outcomes |= self.answers.give(passing, self.book())
            outcomes |= self._flown([ticket for ticket in asking if ticket not in outcomes])
        except Unavailable as error:  # it is no matter of those who have their answer already
            outcomes |= {ticket: error for ticket in asking if ticket not in outcomes}
        finally:
            staying = Admitted | Contended | Follow
            _let_go([one for one in asking if one.passed and not isinstance(outcomes.get(one), staying)])
        for ticket, outcome in outcomes.items():
            if isinstance(outcome, Contended) and not ticket.queued:
                self.lines.expect(ticket, outcome.party)
        held = [ticket for ticket, outcome in outcomes.items() if isinstance(outcome, Admitted)]
        admitted = [ticket.call_id for ticket in held]
        failpoints.reached("admission.before_doorbell", admitted)
        if not doorbell.ring((ticket.call_id, ticket.lane) for ticket in held):
            # Nobody waits for the detached ones: the sweeper rings for them.
            self._take_back([ticket.call_id for ticket in held if not ticket.detached], outcomes)
        failpoints.reached("admission.after_doorbell", admitted)
        return [outcomes[ticket] if first[ticket] is ticket else _like(outcomes[first[ticket]]) for ticket in tickets]

    def _limited(self, tickets: Sequence[Ticket], hits: Mapping[Ticket, Hit]) -> dict[Ticket, ApiError]:
        """The refusals of limits, which each ticket passes once; and of those whose answer needs a Redis that is away, before
        anything is held.
        """
        limited = [ticket for ticket in tickets if not ticket.passed]
        passages = limits.take(
            [_wish_to_pass(ticket, is_hit=ticket in hits) for ticket in limited], processes=self._processes
        )
        refusals: dict[Ticket, ApiError] = {}
        for ticket, passage in zip(limited, passages, strict=True):
            ticket.left, ticket.taken = passage.left, passage.taken
            ticket.passed = passage.refusal is None and ticket not in hits
            if passage.refusal is not None:
                refusals[ticket] = passage.refusal
        is_lost = _is_relay_lost(by_share=any(passage.by_share for passage in passages))
        for ticket in tickets if is_lost else ():
            if ticket not in hits and not ticket.detached:
                refusals[ticket] = redis.unavailable()
        return refusals

    def _kept(self, tickets: list[Ticket]) -> dict[Ticket, Hit]:
        """Answers that are there already: to the same question, else to one that is much like it."""
        wishing = [ticket for ticket in tickets if ticket.wish is not None]
        exact = self.answers.find(wishing, self.book(), chain.route) if wishing else {}
        return {ticket: hit for ticket in wishing if (hit := near.given(ticket))} | exact

    def book(self) -> catalogue.Catalogue:
        """The catalogue as of a second ago: what needs no hold is not told by one that it has changed."""
        if self._book is None or time.monotonic() - self._book_at > BOOK_SECONDS:
            self._book, self._book_at = catalogue.renewed(catalogue.current()), time.monotonic()
        return self._book

    def _flown(self, tickets: list[Ticket], rounds: int = flights.MOST_LEADERS) -> dict[Ticket, Outcome | ApiError]:
        """Holds one call of each question that is not in flight; the others follow it.

        Where the one that was to lead is refused, another of those that came with it leads, for what stood in its way may not
        stand in theirs; in the end each asks by himself.
        """
        joining = [ticket for ticket in tickets if rounds and _may_share(ticket)]
        if not joining:
            return self._held(tickets)
        leaders = flights.lead(joining)
        following = {ticket: leader for ticket, leader in leaders.items() if leader != ticket.call_id}
        for ticket in joining:
            ticket.is_leading = ticket not in following
        outcomes = self._held([ticket for ticket in tickets if ticket not in following])
        refused = {ticket.call_id for ticket in joining if isinstance(outcomes.get(ticket), ApiError)}
        alone = [ticket for ticket, leader in following.items() if leader in refused]
        if refused:
            flights.land([(ticket.question, ticket.call_id) for ticket in joining if ticket.call_id in refused])
            outcomes |= self._flown(alone, rounds - 1)
        return outcomes | {ticket: Follow(leader) for ticket, leader in following.items() if leader not in refused}

    def _held(self, tickets: list[Ticket]) -> dict[Ticket, Outcome | ApiError]:
        """Holds what need not stand in line; nobody stands there for an answer that his Idempotency-Key has already."""
        outcomes: dict[Ticket, Outcome | ApiError] = {}
        book, asking = catalogue.current(), []
        for ticket in tickets:
            line = None if ticket.queued or not ticket.passed else self.lines.before(ticket)
            if line is None:
                asking.append(ticket)
                continue
            try:
                outcomes[ticket] = Contended(line, holds.of(ticket, book))
            except ApiError as error:
                outcomes[ticket] = error
        return outcomes | dict(zip(asking, self._hold(asking), strict=True))

    @staticmethod
    def _take_back(admitted: list[uuid.UUID], outcomes: dict[Ticket, Any]) -> None:
        """Voids what no worker can hear of, and no caller should wait for; what one has claimed after all goes on."""
        voided = ledger.settle(None, _not_executed(admitted), from_states=["held"])
        for ticket, outcome in outcomes.items():
            if isinstance(outcome, Admitted) and outcome.call_id in voided:
                outcomes[ticket] = redis.unavailable()

    def _hold(self, tickets: Sequence[Ticket]) -> list[Outcome | ApiError]:
        """Holds what can be held; reads the catalogue again where it changed meanwhile."""
        outcomes: dict[Ticket, Outcome | ApiError] = {}
        waiting, book = list(tickets), catalogue.current()
        for _ in range(MOST_ROUNDS):
            asked, refused = _asked(waiting, book)
            if any(isinstance(error, NOT_IN_THE_BOOK) for error in refused.values()):
                newest = catalogue.renewed(book)
                if newest is not book:
                    book = newest
                    asked, refused = _asked(waiting, book)
            outcomes |= refused
            failpoints.reached("admission.before_hold", asked)
            try:
                rows = ledger.hold(self._web, book.revision, [hold for _, hold in asked])
            except (
                Unavailable
            ) as error:  # nobody knows whether these are held; those who ask are told that they are not
                self._abandoned.put([hold.call_id for _, hold in asked])
                return [outcomes.get(ticket) or error for ticket in tickets]
            failpoints.reached("admission.after_hold", rows)
            waiting, stale = [], False
            for (ticket, hold), row in zip(asked, rows, strict=True):
                if row.verdict in {"stale", "again"}:
                    waiting.append(ticket)
                    stale = stale or row.verdict == "stale"
                else:
                    outcomes[ticket] = _outcome(ticket, hold, row)
            if not waiting:
                break
            if stale:
                book = catalogue.current(newer_than=book.revision)
        return [outcomes.get(ticket) or Unavailable() for ticket in tickets]


def _asked(
    tickets: Sequence[Ticket], book: catalogue.Catalogue
) -> tuple[list[tuple[Ticket, ledger.Hold]], dict[Ticket, ApiError]]:
    """What each asks for by this book, and whom it refuses."""
    asked: list[tuple[Ticket, ledger.Hold]] = []
    refused: dict[Ticket, ApiError] = {}
    for ticket in tickets:
        try:
            asked.append((ticket, holds.of(ticket, book)))
        except ApiError as error:
            refused[ticket] = error
    return asked, refused


def _first_of_each_key(tickets: Sequence[Ticket]) -> dict[Ticket, Ticket]:
    """For each ticket the first with its Idempotency-Key and body, which alone is asked for: itself, where it has none."""
    first: dict[tuple[uuid.UUID, bytes, bytes | None], Ticket] = {}
    return {
        ticket: first.setdefault((ticket.principal.environment_id, ticket.idempotency_hash, ticket.body_hash), ticket)
        if ticket.idempotency_hash
        else ticket
        for ticket in tickets
    }


def _like(outcome: Outcome | ApiError) -> Outcome | ApiError:
    """The outcome of a ticket that came together with the first of its Idempotency-Key."""
    return Replay(outcome.call_id) if isinstance(outcome, Admitted | Hit) else outcome


def _may_share(ticket: Ticket) -> bool:
    """Whether it may wait for another's answer, or be waited for. What nobody waits for waits for nobody."""
    wish = ticket.wish
    return bool(
        ticket.question
        and wish
        and wish.looks
        and not (ticket.detached or ticket.queued)
        and len(ticket.failed) < flights.MOST_LEADERS
    )


def _wish_to_pass(ticket: Ticket, *, is_hit: bool) -> limits.Ask:
    """An answer that is there already counts as a request, and as no tokens and no place."""
    allowed = ticket.principal.limits
    if not is_hit:
        return limits.Ask(ticket.call_id, holds.likely_tokens(ticket), allowed, ticket.subject)
    return limits.Ask(ticket.call_id, 0, tuple(replace(one, concurrency=None) for one in allowed), ticket.subject)


def _replayed(tickets: Sequence[Ticket]) -> set[Ticket]:
    """Those whose Idempotency-Key stands for a call already, as far as can be seen before the hold decides it; that call's
    answer counts against no limit.
    """
    if not tickets:
        return set()
    keys = [(ticket.principal.environment_id, ticket.idempotency_hash) for ticket in tickets if ticket.idempotency_hash]
    known = idempotency.in_use(keys)
    return {ticket for ticket, key in zip(tickets, keys, strict=True) if key in known}


def _outcome(ticket: Ticket, hold: ledger.Hold, row: Any) -> Outcome | ApiError:
    if row.verdict == "held":
        clamped = row.max_tokens if row.max_tokens < hold.wanted_tokens else None
        return Admitted(ticket.call_id, row.held_nano, row.remaining_nano, clamped)
    if row.verdict == "replay":
        return Replay(row.call_id)
    if row.verdict == "cap_contended" and not ticket.last_try:
        return Contended(waiting.party(ticket, row.cap_scope), hold, row)
    log.info("call.refused", call_id=str(ticket.call_id), reason=row.verdict, cap=row.cap_id)
    return _refusal(ticket, hold, row)


def _refusal(ticket: Ticket, hold: ledger.Hold, row: Any) -> ApiError:
    if row.verdict == "key_reused":
        return KeyReused(row.call_id)
    if row.verdict == "key_invalid":
        return Unauthenticated()
    if row.verdict == "suspended":
        return Suspended(suspended(ticket.principal.key_id))
    return refusals.of_cap(hold, row)


def _is_relay_lost(*, by_share: bool) -> bool:
    """Whether no answer could be relayed: what the limiter's Redis says, where relay and doorbell have the same."""
    if settings.LIMITS_REDIS_URL == settings.REDIS_URL:
        return by_share
    try:
        redis.client().ping()
    except redis.LOST:
        return True
    return False


def _not_executed(call_ids: Iterable[uuid.UUID]) -> list[ledger.Ending]:
    return [ledger.Ending(call_id, "void", 503, "not_executed") for call_id in call_ids]


def _void(abandoned: list[list[uuid.UUID]]) -> list[None]:
    """Voids what was held after all, before the sweeper rings for it: whoever asked was told that nothing is charged."""
    endings = _not_executed(itertools.chain.from_iterable(abandoned))
    ledger.settle(None, endings, from_states=["held"], patience=ABANDONED_PATIENCE_SECONDS)
    return [None] * len(abandoned)


def _let_go(tickets: Sequence[Ticket]) -> list[None]:
    """Gives back the places and the tokens of calls that were not held, and lets nobody wait for them; they stay counted as
    requests.
    """
    if leading := [(ticket.question, ticket.call_id) for ticket in tickets if ticket.is_leading]:
        flights.land(leading)
    limits.give_back([(ticket.call_id, ticket.taken, 0) for ticket in tickets])
    for ticket in tickets:
        ticket.passed, ticket.is_leading, ticket.taken = False, False, None
    return [None] * len(tickets)
