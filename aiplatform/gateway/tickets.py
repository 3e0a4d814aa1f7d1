"""A call on its way in, and what the door may answer to it."""

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiplatform.gateway.cache.shelf import Entry
from aiplatform.gateway.cache.wishes import Wish
from aiplatform.gateway.wires import Facts
from aiplatform.lib import addresses
from aiplatform.lib.ids import uuid7
from tenants.auth import Principal
from tenants.limits import Left
from usage.ledger import Hold

Party = tuple[Any, ...]
_arrivals = itertools.count()


@dataclass(slots=True, eq=False)
class Ticket:
    """A call on its way in. `hung_up` returns once its caller has gone."""

    principal: Principal
    facts: Facts
    request_id: str
    idempotency_hash: bytes | None = None
    body_hash: bytes | None = None
    hung_up: Callable[[], Awaitable[None]] | None = None
    detached: bool = False
    """Nobody waits for its answer: it is fetched later by the call's id."""
    lane: str = "interactive"
    call_id: uuid.UUID = field(default_factory=uuid7)
    arrival: int = field(default_factory=_arrivals.__next__)
    address: str = ""
    """Where it comes from, as far as that is known."""
    passed: bool = False
    """It has passed its limits, and holds a place among concurrent calls."""
    taken: list[Any] | None = None
    """What it has taken of its limits, to be given back when it ends."""
    left: tuple[Left, ...] = ()
    """How its rates stood when it passed or was refused."""
    queued: bool = False
    """It is at the head of its line, so it need not join one."""
    last_try: bool = False
    """Where it does not fit now, it is refused."""
    wish: Wish | None = None
    """What it may do with answers that are kept."""
    question: str = ""
    """The name of what it asks, where the answer may be one that is kept, or be kept itself."""
    policy_version: int = 0
    """Of the content policy by which the question is named."""
    is_leading: bool = False
    """The same question of others waits for its answer."""
    failed: tuple[uuid.UUID, ...] = ()
    """The calls that it had waited for, and whose answers are not to be had."""
    near: "Near | None" = None
    """What is known of questions much like it, where its name has near matches."""
    priced: "tuple[int, Any] | None" = None
    """Its route and the revision of the catalogue by which that was found."""

    @property
    def subject(self) -> str:
        """Who is limited as an end user: whoever is named, else where the call comes from."""
        if self.facts.end_user or not self.address:
            return self.facts.end_user
        return f"ip:{addresses.home(self.address)}"

    async def caller_gone(self) -> None:
        """Returns once its caller has gone; never where nobody would notice."""
        await (self.hung_up() if self.hung_up is not None else asyncio.Event().wait())


@dataclass(slots=True)
class Admitted:
    """A call that is held and durable. Amounts in nano-USD; `remaining_nano` is None where no cap applies."""

    call_id: uuid.UUID
    held_nano: int
    remaining_nano: int | None
    clamped_tokens: int | None


@dataclass(slots=True)
class Replay:
    """The call that the ticket's Idempotency-Key stands for; nothing new was held."""

    call_id: uuid.UUID


@dataclass(slots=True)
class Contended:
    """Only what calls in flight hold stands in the way: the ticket waits in the line of `party`.

    `row` is the refusal of `usage_hold`; None for a ticket that was not asked, since others stood in line before it.
    """

    party: Party
    hold: Hold
    row: Any = None


@dataclass(slots=True)
class Hit:
    """An answer that another call had made, in the form in which this one wants it; on record as a call of its own."""

    call_id: uuid.UUID
    kind: str
    entry: Entry
    body: bytes
    age_seconds: int
    charged_nano: int = 0
    share_bps: int = 0
    is_streamed: bool = False
    likeness: float | None = None
    """Of its question to this one, where it is not the same."""

    @property
    def saved_nano(self) -> int:
        return self.entry.nano - self.charged_nano


@dataclass(frozen=True, slots=True)
class Near:
    """Where a question stands among those that are much like it.

    `hit` is an answer that it may get, `candidate` one that is held against its own: the question's name, the call that
    answered it, and the likeness of the two questions.
    """

    matching: int
    bucket: str
    question: str
    vector: bytes
    candidate: tuple[str, uuid.UUID, float] | None = None
    hit: Hit | None = None


@dataclass(slots=True)
class Follow:
    """The same question is in flight: the ticket waits for that call's answer."""

    call_id: uuid.UUID


Outcome = Admitted | Replay | Contended | Hit | Follow


def worst_nano(hold: Hold) -> int:
    """The whole of what a call asks for, in nano-USD: rounded up, as it is held."""
    return hold.base_nano - (-hold.output_pico * hold.wanted_tokens // 1000)
