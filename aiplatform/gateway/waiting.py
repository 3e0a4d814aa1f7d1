"""Lines before contended caps: whoever is refused only because of calls in flight waits his turn, in order, and not for long.

One task serves all lines of a process: it asks for their heads in one batch, as soon as a call of this process has ended, and
at the latest every `TRY_SECONDS`, since calls of other processes end too. Each web process has lines of its own.
"""

import asyncio
import bisect
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from starlette.requests import ClientDisconnect

from aiplatform.gateway import refusals
from aiplatform.gateway.tickets import Admitted, Contended, Follow, Hit, Outcome, Party, Replay, Ticket, worst_nano
from aiplatform.lib.logs import log
from usage.ledger import Hold

MOST_IN_LINE = 1000
TRY_SECONDS = 0.05
# Between two rounds, however often calls end: one statement then serves more of them.
PAUSE_SECONDS = 0.02
Ended = Admitted | Replay | Hit | Follow
_SCOPES = ("platform", "tenant", "environment", "key", "end_user")


def party(ticket: Ticket, scope: str) -> Party:
    """Whose calls wait in one line: all that meet the same caps. End users are told apart by key and name."""
    principal = ticket.principal
    if scope == "platform":
        return (scope,)
    if scope == "environment":
        return (scope, principal.environment_id)
    if scope == "key":
        return (scope, principal.key_id)
    if scope == "end_user":
        return (scope, principal.key_id, ticket.facts.end_user)
    return ("tenant", principal.tenant_id)


@dataclass(slots=True, eq=False)
class _Waiting:
    ticket: Ticket
    contended: Contended
    until: float
    future: asyncio.Future[Ended]
    is_asked: bool = False
    is_gone: bool = False


@dataclass(slots=True)
class _Line:
    waiting: list[_Waiting] = field(default_factory=list)
    room_nano: int | None = None
    """What was left after the last one passed; None where nobody knows."""
    row: Any = None
    """The last refusal."""

    def heads(self, now: float) -> list[_Waiting]:
        """Who is asked next: all whose time is up, for the last time; else as many as surely fit, and at least the first."""
        late = [one for one in self.waiting if one.until <= now]
        for one in late:
            one.ticket.last_try = True
        if late:
            return late
        heads, room = self.waiting[:1], (self.room_nano or 0) - worst_nano(self.waiting[0].contended.hold)
        for one in self.waiting[1:]:
            room -= worst_nano(one.contended.hold)
            if room < 0:
                break
            heads.append(one)
        return heads


class Lines:
    """The lines of one web process. `ask` tries to admit a ticket."""

    def __init__(self, ask: Callable[[Ticket], Awaitable[Outcome]]) -> None:
        self._ask = ask
        self._lines: dict[Party, _Line] = {}
        self._coming: dict[Ticket, Party] = {}
        self._bell = asyncio.Event()
        self._server: asyncio.Task[None] | None = None

    def before(self, ticket: Ticket) -> Party | None:
        """The line that a newcomer would overtake; may be asked from the thread that admits."""
        coming = tuple(self._coming.values())  # in one step: another thread may take one out
        ours = (party(ticket, scope) for scope in _SCOPES)
        return next((line for line in ours if line in self._lines or line in coming), None)

    def expect(self, ticket: Ticket, line: Party) -> None:
        """Says from the thread that admits who is about to wait, so that nobody overtakes him on his way to the line."""
        self._coming[ticket] = line

    def ring(self) -> None:
        """A call has ended: there may be room."""
        if self._lines:
            self._bell.set()

    async def wait(self, ticket: Ticket, contended: Contended) -> Ended:
        """The ticket's outcome when its turn has come; raises CapContended after CONTENDED_WAIT_SECONDS, and at once where
        the line is too long, and ClientDisconnect where the caller has gone.
        """
        line = self._lines.setdefault(contended.party, _Line())
        self._coming.pop(ticket, None)
        if len(line.waiting) >= MOST_IN_LINE:
            raise refusals.of_cap(contended.hold, contended.row or _as_of(line.row, contended.hold))
        until = time.monotonic() + settings.CONTENDED_WAIT_SECONDS
        waiting = _Waiting(ticket, contended, until, asyncio.get_running_loop().create_future())
        ticket.queued = True
        self._join(waiting)
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        with self._watched(waiting):
            return await waiting.future

    @contextlib.contextmanager
    def _watched(self, waiting: _Waiting) -> Iterator[None]:
        """Lets the ticket leave its line as soon as its caller has gone."""
        if waiting.ticket.hung_up is None:
            yield
            return

        async def watch(hung_up: Callable[[], Awaitable[None]]) -> None:
            await hung_up()
            waiting.is_gone = True
            if not waiting.is_asked:
                self._leave(waiting)

        watch_task = asyncio.create_task(watch(waiting.ticket.hung_up))
        try:
            yield
        finally:
            watch_task.cancel()

    async def _serve(self) -> None:
        while self._lines:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), TRY_SECONDS)
            self._bell.clear()
            try:
                while await self._round():
                    pass
            except Exception:  # noqa: BLE001 - an edge: without this task the lines would stand still
                log.exception("waiting.round_failed")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _round(self) -> bool:
        """Asks for the heads of all lines; whether a line went on, so that another round is worth while."""
        now = time.monotonic()
        asked = [one for line in self._lines.values() for one in line.heads(now)]
        for one in asked:
            one.is_asked = True
        outcomes = await asyncio.gather(*(self._ask(one.ticket) for one in asked), return_exceptions=True)
        for one, outcome in zip(asked, outcomes, strict=True):
            one.is_asked = False
            self._answer(one, outcome)
        return any(not isinstance(outcome, Contended) for outcome in outcomes)

    def _answer(self, waiting: _Waiting, outcome: Outcome | BaseException) -> None:
        line = self._lines[waiting.contended.party]
        if isinstance(outcome, Contended):
            line.room_nano, line.row = None, outcome.row or line.row
            if waiting.is_gone:
                self._leave(waiting)
            elif outcome.party != waiting.contended.party:  # another cap stands in its way now
                self._remove(waiting)
                waiting.contended = outcome
                self._join(waiting)
            return
        if isinstance(outcome, Admitted):
            # What is told to tenants leaves the platform's caps out.
            line.room_nano = None if waiting.contended.party[0] == "platform" else outcome.remaining_nano
        self._remove(waiting)
        if waiting.future.done():
            return
        if isinstance(outcome, BaseException):
            waiting.future.set_exception(outcome)
        else:
            waiting.future.set_result(outcome)

    def _join(self, waiting: _Waiting) -> None:
        """By order of arrival, also for one that comes from another line."""
        line = self._lines.setdefault(waiting.contended.party, _Line())
        line.row = waiting.contended.row or line.row
        bisect.insort(line.waiting, waiting, key=lambda one: one.ticket.arrival)

    def _leave(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        if not waiting.future.done():
            waiting.future.set_exception(ClientDisconnect())

    def _remove(self, waiting: _Waiting) -> None:
        line = self._lines.get(waiting.contended.party)
        if line is None or waiting not in line.waiting:
            return
        line.waiting.remove(waiting)
        if not line.waiting:
            del self._lines[waiting.contended.party]


def _as_of(row: Any, hold: Hold) -> Any:
    """Another ticket's refusal by the same cap, told of this hold."""
    room = row.limit_nano - row.spent_nano - row.cap_held_nano
    return row._replace(affordable_tokens=refusals.affordable_tokens(hold, room))
