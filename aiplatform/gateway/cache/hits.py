"""Kept answers that fit a question: found for a whole batch at once, put on record as calls of their own, and told as such."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiplatform.gateway import catalogue
from aiplatform.gateway.cache import forms, identity, shelf
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.gateway.catalogue import Catalogue
from aiplatform.gateway.chain import Route
from aiplatform.gateway.tickets import Hit, Outcome, Replay, Ticket
from aiplatform.lib import money
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.ids import call_name
from moderation.screen import Screen
from tenants.auth import Caching
from usage import ledger
from usage.ledger import Given
from usage.pricing import WHOLE, half_even

EXACT, COALESCED, NEAR = "exact", "coalesced", "near"
# Their answers go out first, and more of them are put on record together.
RECORD_PAUSE_SECONDS = 0.005
_KIND = {True: "text/event-stream; charset=utf-8", False: "application/json"}
_OF_STREAMS = {"cache-control": "no-store", "x-accel-buffering": "no"}
Refuse = Callable[[Ticket, ledger.Hold, Any], ApiError]


@dataclass(slots=True)
class Shared:
    """What the provider would not answer to the same question, told to all who asked it."""

    call_id: uuid.UUID
    """The call that was refused."""
    status: int
    content_type: str
    body: bytes


class Answers:
    """One web process's look at kept answers."""

    def __init__(self, web: uuid.UUID, hold: Callable[[Ticket, Catalogue], ledger.Hold], refuse: Refuse) -> None:
        """`hold` and `refuse` are the door's: what a call asks for, and why it is refused."""
        self._web, self._hold, self._refuse = web, hold, refuse
        self._screen = Screen()
        self._records: Batcher[Given, None] = Batcher("hits", self._recorded)

    def find(
        self, tickets: Sequence[Ticket], book: Catalogue, route: Callable[[Ticket, Catalogue], Route]
    ) -> dict[Ticket, Hit]:
        """What fits of what is kept, in one round trip. Names the question of every ticket that may have or leave an answer."""
        wishing = [ticket for ticket in tickets if ticket.wish is not None]
        if not wishing:
            return {}
        try:
            self._screen.refresh()
        except Unavailable:
            return {}
        for ticket in wishing:
            self._name(ticket, book, route)
        looking = [ticket for ticket in wishing if ticket.question and ticket.wish and ticket.wish.looks]
        kept = shelf.look(list({ticket.question for ticket in looking})) if looking else {}
        return {
            ticket: hit
            for ticket in looking
            if (entry := kept.get(ticket.question)) and (hit := fitting(ticket, entry, EXACT, book))
        }

    def give(self, hits: Sequence[tuple[Ticket, Hit]], book: Catalogue) -> dict[Ticket, Outcome | ApiError]:
        """Puts these answers on record: at once where money, or an Idempotency-Key, hangs on it; else right after."""
        first = [
            (ticket, hit) for ticket, hit in hits if hit.charged_nano or ticket.idempotency_hash or ticket.detached
        ]
        outcomes = self._charged(first, book) if first else {}
        for ticket, hit in hits:
            if ticket not in outcomes:
                self._records.put(given(ticket, hit))
                outcomes[ticket] = hit
        return outcomes

    def record(self, ticket: Ticket, shared: Shared) -> None:
        """Puts a refusal that was shared on record; it costs nothing."""
        entry = Entry(shared.call_id, 0, ticket.principal.key_id, ticket.facts.model, "", "", "", "", False, b"")
        hit = Hit(ticket.call_id, COALESCED, entry, b"", 0)
        self._records.put(given(ticket, hit, status=shared.status))

    def _charged(self, hits: list[tuple[Ticket, Hit]], book: Catalogue) -> dict[Ticket, Outcome | ApiError]:
        """Holds and settles each in one transaction, as any call: caps, credit and Idempotency-Keys apply."""
        for _ in range(10):  # the catalogue changes rarely, never so often
            asked = [(ticket, hit, self._asked(ticket, hit, book)) for ticket, hit in hits]
            rows = ledger.give(
                self._web, book.revision, [(hold, given(ticket, hit)) for ticket, hit, hold in asked],
                [_kept_for_later(ticket, hit) for ticket, hit, _ in asked],
            )  # fmt: skip
            if all(row.verdict != "stale" for row in rows):
                break
            book = catalogue.current(newer_than=book.revision)
        return {
            ticket: self._outcome(ticket, hit, hold, row) for (ticket, hit, hold), row in zip(asked, rows, strict=True)
        }

    def _asked(self, ticket: Ticket, hit: Hit, book: Catalogue) -> ledger.Hold:
        """A hold of exactly what the answer is charged."""
        hold = self._hold(ticket, book)
        hold.base_nano, hold.output_pico, hold.tariff_id = hit.charged_nano, 0, None
        hold.wanted_tokens = hold.floor_tokens = 0
        return hold

    def _outcome(self, ticket: Ticket, hit: Hit, hold: ledger.Hold, row: Any) -> Outcome | ApiError:
        if row.verdict == "held":
            return hit
        if row.verdict == "replay":
            return Replay(row.call_id)
        if row.verdict in {"stale", "again"}:
            return Unavailable()
        return self._refuse(ticket, hold, row)

    def _name(self, ticket: Ticket, book: Catalogue, route: Callable[[Ticket, Catalogue], Route]) -> None:
        ticket.question = ""
        try:
            found = route(ticket, book)
        except ApiError:
            return  # the hold says why
        ticket.priced = book.revision, found
        ticket.policy_version = self._screen.version(ticket.principal.environment_id)
        normalises = bool(ticket.wish and ticket.wish.normalises)
        ticket.question = identity.question(ticket, found, ticket.policy_version, normalises=normalises) or ""

    def _recorded(self, hits: list[Given]) -> list[None]:
        time.sleep(RECORD_PAUSE_SECONDS)
        ledger.record(self._web, hits)
        return [None] * len(hits)


def fitting(ticket: Ticket, entry: Entry, kind: str, book: Catalogue) -> Hit | None:
    """The answer in the form in which the ticket wants it; None where it is too old, purged, or has no such form."""
    age = max(time.time() - entry.made_at, 0)
    if ticket.wish is None or is_purged(entry, ticket.principal.cache):
        return None
    if kind != COALESCED and age > ticket.wish.max_age_seconds:
        return None
    try:
        body = _in_form(entry, streamed=ticket.facts.streamed, hide_usage=ticket.facts.hide_usage)
    except forms.NotRenderable:
        return None
    share = book.tariffs.cache_share(ticket.principal.tenant_id, datetime.now(UTC))
    charged = half_even(entry.nano * share, WHOLE) if share else 0
    return Hit(ticket.call_id, kind, entry, body, int(age), charged, share, is_streamed=ticket.facts.streamed)


def is_purged(entry: Entry, caching: Caching) -> bool:
    """Whether its environment has taken back all answers of its key, its model, or any, that were made until then."""
    return any(
        entry.made_at <= at
        and key in {None, entry.key_id}
        and model in {"", entry.model, entry.served_model}
        for key, model, at in caching.purges
    )  # fmt: skip


def given(ticket: Ticket, hit: Hit, status: int = 200) -> Given:
    """The record of an answer that was given again."""
    facts, principal = ticket.facts, ticket.principal
    if ticket.priced is None:
        raise ValueError("Only a call whose question was named gets another's answer.")
    first = ticket.priced[1].steps[0].way
    return Given(
        call_id=hit.call_id, tenant_id=principal.tenant_id, environment_id=principal.environment_id,
        key_id=principal.key_id, end_user=facts.end_user, request_id=ticket.request_id, wire=facts.wire,
        endpoint=facts.endpoint, model=facts.model[:200], provider=first.place.name,
        streamed=facts.streamed, price_id=first.rates.price_id, kind=hit.kind,
        source=hit.entry.call_id, age_seconds=hit.age_seconds, saved_nano=hit.saved_nano,
        charged_nano=hit.charged_nano, share_bps=hit.share_bps, status=status, served_model=hit.entry.served_model,
    )  # fmt: skip


def headers_of(hit: Hit) -> dict[str, str]:
    """What an answer that is given again tells of itself."""
    told = {
        "x-call-id": call_name(hit.call_id),
        "x-cache": "hit" if hit.kind == EXACT else hit.kind,
        "x-cache-source": call_name(hit.entry.call_id),
        "age": str(hit.age_seconds),
        "x-cost-usd": money.usd(hit.charged_nano),
        "x-saved-usd": money.usd(hit.saved_nano),
    }
    if hit.likeness is not None:
        told["x-cache-likeness"] = f"{hit.likeness:.3f}"
    kind = hit.entry.content_type if hit.entry.is_stream == hit.is_streamed else _KIND[hit.is_streamed]
    return told | {"content-type": kind} | (_OF_STREAMS if hit.is_streamed else {})


def headers_of_miss(ticket: Ticket) -> dict[str, str]:
    """The same of an answer that was made for its call, where it might have been a kept one; `bypass` is not kept either."""
    if ticket.wish is None:
        return {}
    if not ticket.question:
        return {"x-cache": "bypass"}
    return {"x-cache": "miss" if ticket.wish.looks else "refresh", "x-cache-key": ticket.question}


def headers_of_shared(ticket: Ticket, shared: Shared) -> dict[str, str]:
    """The same of a refusal that all got who asked the same; what the refused call's own caps have left is not for others."""
    return {
        "x-call-id": call_name(ticket.call_id),
        "x-cache": COALESCED,
        "x-cache-source": call_name(shared.call_id),
        "content-type": shared.content_type,
    }


def _in_form(entry: Entry, *, streamed: bool, hide_usage: bool) -> bytes:
    if streamed:
        return (
            forms.again(entry.body, hide_usage=hide_usage)
            if entry.is_stream
            else forms.stream(entry.endpoint, entry.body, hide_usage=hide_usage)
        )
    return forms.plain(entry.endpoint, entry.body) if entry.is_stream else entry.body


def _kept_for_later(ticket: Ticket, hit: Hit) -> tuple[dict[str, str], bytes] | None:
    """The answer itself, where it can be asked for once more by its call."""
    if not (ticket.idempotency_hash or ticket.detached):
        return None
    told = headers_of(hit)
    kept = ("content-type", "x-cache", "x-cache-likeness", "x-cache-source", "age")
    return {name: told[name] for name in kept if name in told}, hit.body
