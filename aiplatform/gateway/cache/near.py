"""At the door: what was answered to a question much like this one, where the name that is asked has near matches.

It takes milliseconds of CPU, so it has a thread of its own: neither the event loop nor admission waits for it, only the call.
"""

import asyncio
import base64
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jiter

from aiplatform.gateway import chain
from aiplatform.gateway.cache import buckets, hits, identity, likeness, shelf
from aiplatform.gateway.cache.buckets import Member
from aiplatform.gateway.cache.metering import Meter
from aiplatform.gateway.catalogue import Catalogue
from aiplatform.gateway.tickets import Hit, Near, Ticket
from aiplatform.lib import embedding
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from moderation.screen import Screen
from tenants import auth
from tenants.models import NearMatching

PATIENCE_SECONDS = 1.0  # a call that has waited so long goes on without
BATCH = 16
MOST_LOOKED_AT = 4  # of the likest, since a kept answer may have gone or have no form that fits
CHECKED_ONE_IN = 20


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    ticket: Ticket
    matching: auth.Near
    until: float


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """A question that takes part."""

    ticket: Ticket
    matching: auth.Near
    question: str
    bucket: str
    text: str
    request: Any


class Neighbourhood:
    """One web process's look at like questions."""

    def __init__(self, book: Callable[[], Catalogue]) -> None:
        """`book` gives the catalogue as of a second ago."""
        self._book, self._screen, self._meter = book, Screen(), Meter()
        self._would_be: Counter[int] = Counter()
        self._looks: Batcher[_Asked, Near | None] = Batcher("embedding", self._found, limit=BATCH)

    async def look(self, ticket: Ticket) -> None:
        """Sets the ticket's `near`, where there is something to say; never raises, since an answer can be made without."""
        matching = next((one for one in ticket.principal.near if one.model == ticket.facts.model), None)
        if matching is None or ticket.wish is None or not ticket.wish.looks:
            return
        asked = _Asked(ticket, matching, time.monotonic() + PATIENCE_SECONDS)
        try:
            ticket.near = await asyncio.wait_for(self._looks.submit(asked), PATIENCE_SECONDS)
        except Exception as error:  # noqa: BLE001 - an edge: whatever fails here, the call does not
            log.warning("near.not_looked", call_id=str(ticket.call_id), error=type(error).__name__)

    def _found(self, asked: list[_Asked]) -> list[Near | None]:
        """What is known of each; nothing for those that have waited too long, so that a backlog does not grow."""
        self._screen.refresh()
        book, now = self._book(), time.monotonic()
        named = {one: self._named(one, book) for one in asked if one.until > now}
        wanted = [it for it in named.values() if it is not None]
        if not wanted:
            return [None] * len(asked)
        kept = shelf.get(list({name for it in wanted for name in (it.question, it.bucket)}))
        embedding_for = [it for it in wanted if not _has_exact(it, kept.get(it.question), book)]
        try:
            vectors = self._vectors(embedding_for)
        except embedding.NotAvailable:
            return [None] * len(asked)
        found = self._near(embedding_for, vectors, kept, book)
        return [found.get(it) if (it := named.get(one)) else None for one in asked]

    def _named(self, asked: _Asked, book: Catalogue) -> _Named | None:
        """None where the request may match nothing but its equal."""
        ticket, facts = asked.ticket, asked.ticket.facts
        try:
            request = jiter.from_json(facts.body)
            question = likeness.question(facts.endpoint, identity.without_whom(facts.endpoint, request))
            route = chain.route(ticket, book) if question else None
        except (ApiError, ValueError):  # whoever admits the call says why
            return None
        if question is None or route is None or ticket.wish is None:
            return None
        version = self._screen.version(ticket.principal.environment_id)
        name = identity.question(ticket, route, version, normalises=ticket.wish.normalises)
        # Its own words, not only those of the like question, must pass the policy.
        if name is None or self._screen.verdict(ticket.principal.environment_id, lambda: request) is not None:
            return None
        bucket = identity.bucket(ticket, route, version, question.exact)
        return _Named(ticket, asked.matching, name, bucket, question.text, request)

    def _vectors(self, named: Sequence[_Named]) -> dict[_Named, bytes]:
        """Raises NotAvailable; each environment's texts go through the model together, and on its account."""
        by_environment: dict[uuid.UUID, list[_Named]] = defaultdict(list)
        for it in named:
            by_environment[it.ticket.principal.environment_id].append(it)
        vectors: dict[_Named, bytes] = {}
        for environment_id, its in by_environment.items():
            with self._meter.of(environment_id):
                vectors |= zip(its, embedding.vectors([it.text for it in its]), strict=True)
        return vectors

    def _near(
        self, named: Sequence[_Named], vectors: dict[_Named, bytes], kept: Any, book: Catalogue
    ) -> dict[_Named, Near]:
        likest = {it: _likest(it, vectors[it], buckets.unpacked(kept.get(it.bucket))) for it in named}
        names = {member.question for members in likest.values() for _, member in members}
        entries = shelf.look(list(names)) if names else {}
        found: dict[_Named, Near] = {}
        for it in named:
            hits_in_order = (
                (member.question, hit)
                for alike, member in likest[it]
                if (entry := entries.get(member.question)) and (hit := _hit(it.ticket, entry, alike, book))
            )
            found[it] = self._standing(it, vectors[it], next(hits_in_order, None))
        return found

    def _standing(self, it: _Named, vector: bytes, best: tuple[str, Hit] | None) -> Near:
        """Whether the best of what fits is given, or held against the answer that is made."""
        if best is None:
            return Near(it.matching.id, it.bucket, it.question, vector)
        question, hit = best
        self._would_be[it.matching.id] += 1
        is_checked = self._would_be[it.matching.id] % CHECKED_ONE_IN == 0
        if it.matching.mode == NearMatching.Mode.ON and not is_checked:
            return Near(it.matching.id, it.bucket, it.question, vector, hit=hit)
        candidate = question, hit.entry.call_id, hit.likeness or 0.0
        return Near(it.matching.id, it.bucket, it.question, vector, candidate)


def given(ticket: Ticket) -> Hit | None:
    """The answer of a like question that the ticket may get; None where its own question is named otherwise by now, since the
    route or the policy has changed.
    """
    near = ticket.near
    return near.hit if near and near.hit and near.question == ticket.question else None


def told(ticket: Ticket) -> list[Any] | None:
    """What the worker must know to add the question to its bucket, and to hold its answer against another."""
    near = ticket.near
    if near is None or near.question != ticket.question:
        return None
    return [near.matching, near.bucket, base64.b64encode(near.vector).decode(), near.candidate and list(near.candidate)]


def _has_exact(it: _Named, kept: Any, book: Catalogue) -> bool:
    """Whether its own question has been answered, which goes first."""
    entry = shelf.unpacked(kept)
    return entry is not None and hits.fitting(it.ticket, entry, hits.EXACT, book) is not None


def _likest(it: _Named, vector: bytes, members: Sequence[Member]) -> list[tuple[float, Member]]:
    """The likest other questions at or above the threshold, and how like they are."""
    others = [member for member in members if member.question != it.question]
    alike = [(embedding.likeness(vector, member.vector), member) for member in others]
    close = [pair for pair in alike if pair[0] >= it.matching.threshold]
    return sorted(close, key=lambda pair: pair[0], reverse=True)[:MOST_LOOKED_AT]


def _hit(ticket: Ticket, entry: shelf.Entry, alike: float, book: Catalogue) -> Hit | None:
    hit = hits.fitting(ticket, entry, hits.NEAR, book)
    if hit is not None:
        hit.likeness = alike
    return hit
