"""A line by itself, before a door that the test keeps: who is asked when, and who is not let in at all."""

import asyncio
import time
import uuid
from collections import namedtuple
from typing import Any

import pytest
from pytest_django import Settings

from aiplatform.gateway.refusals import CapContended
from aiplatform.gateway.tickets import Admitted, Contended, Ticket
from aiplatform.gateway.waiting import MOST_IN_LINE, Lines, party
from aiplatform.gateway.wires import OPENAI
from tenants.auth import Principal
from usage.ledger import Hold

BODY = b'{"model":"m","messages":[{}]}'
Row = namedtuple(  # noqa: PYI024 - as psycopg makes them
    "Row", "verdict cap_id cap_scope cap_period limit_nano spent_nano cap_held_nano affordable_tokens resets_at"
)
FULL = Row("cap_contended", 1, "tenant", "lifetime", 100, 0, 90, 0, None)
PRINCIPAL = Principal(uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), "prod", 10, 1, ("calls",), (), b"", True)


def a_ticket() -> Ticket:
    return Ticket(PRINCIPAL, OPENAI.read("chat", BODY, {}), "r")


def contended(ticket: Ticket, row: Any = FULL, nano: int = 20) -> Contended:
    hold = Hold(ticket.call_id, PRINCIPAL.key_id, "", "", "openai", "chat", "m", "p", False, 1, nano, 0, 10, 1, {}, b"")
    return Contended(party(ticket, "tenant"), hold, row)


class Door:
    """Lets as many in as there is room for, and remembers whom it was asked for."""

    def __init__(self) -> None:
        self.room = 0
        self.asked: list[int] = []
        self.lines = Lines(self.ask)

    async def ask(self, ticket: Ticket) -> Any:
        self.asked.append(ticket.arrival)
        await asyncio.sleep(0)
        if self.room >= 20:
            self.room -= 20
            return Admitted(ticket.call_id, 20, self.room, None)
        if ticket.last_try:
            raise CapContended
        return contended(ticket)

    async def wait(self, ticket: Ticket) -> bool:
        try:
            await self.lines.wait(ticket, contended(ticket))
        except CapContended:
            return False
        return True


def test_the_line_has_an_end_and_who_comes_later_is_refused_at_once(settings: Settings) -> None:
    settings.CONTENDED_WAIT_SECONDS = 0.5

    async def scene() -> tuple[float, Any]:
        door = Door()
        line = [asyncio.create_task(door.wait(a_ticket())) for _ in range(MOST_IN_LINE)]
        await asyncio.sleep(0.1)
        late = a_ticket()
        assert door.lines.before(late) == party(late, "tenant")
        began = time.monotonic()
        with pytest.raises(CapContended) as refused:
            await door.lines.wait(late, contended(late, row=None))
        took = time.monotonic() - began
        assert not any(await asyncio.gather(*line))
        assert door.lines.before(late) is None
        return took, refused.value.details

    took, details = asyncio.run(scene())
    assert took < 0.05
    assert (details["held_usd"], details["affordable_max_tokens"]) == ("0.000000090", 0)


def test_as_many_are_asked_as_surely_fit_and_only_the_first_where_none_does(settings: Settings) -> None:
    settings.CONTENDED_WAIT_SECONDS = 5

    async def scene() -> list[int]:
        door, tickets = Door(), [a_ticket() for _ in range(6)]
        line = [asyncio.create_task(door.wait(ticket)) for ticket in tickets]
        await asyncio.sleep(0.2)
        first = tickets[0].arrival
        assert set(door.asked) == {first}
        assert len(door.asked) < 8  # about every 50 ms
        door.asked.clear()
        door.room = 70
        door.lines.ring()
        await asyncio.sleep(0.03)
        asked = [arrival - first for arrival in door.asked]
        door.room = 1000
        door.lines.ring()
        assert all(await asyncio.gather(*line))
        return asked

    assert asyncio.run(scene()) == [0, 1, 2, 3]


def test_all_get_their_turn_in_order_of_arrival_though_they_join_in_another(settings: Settings) -> None:
    settings.CONTENDED_WAIT_SECONDS = 5

    async def scene() -> list[int]:
        door, tickets = Door(), [a_ticket() for _ in range(5)]
        done: list[int] = []

        async def one(ticket: Ticket) -> None:
            await door.wait(ticket)
            done.append(ticket.arrival - tickets[0].arrival)

        line = [asyncio.create_task(one(ticket)) for ticket in reversed(tickets)]
        for _ in range(5):
            await asyncio.sleep(0.06)
            door.room = 20
        await asyncio.gather(*line)
        return done

    assert asyncio.run(scene()) == [0, 1, 2, 3, 4]
