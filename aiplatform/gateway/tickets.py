"""A call on its way in, and what the door may answer to it."""

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiplatform.gateway.wires import Facts
from aiplatform.lib.ids import uuid7
from tenants.auth import Principal
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
    passed: bool = False
    """It has passed its limits, and holds a place among concurrent calls."""
    queued: bool = False
    """It is at the head of its line, so it need not join one."""
    last_try: bool = False
    """Where it does not fit now, it is refused."""

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


Outcome = Admitted | Replay | Contended


def worst_nano(hold: Hold) -> int:
    """The whole of what a call asks for, in nano-USD: rounded up, as it is held."""
    return hold.base_nano - (-hold.output_pico * hold.wanted_tokens // 1000)
