"""The door: limits, then the hold, then the doorbell, each once for a whole batch of waiting calls."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiplatform.gateway import catalogue, doorbell
from aiplatform.gateway.wires import Facts
from aiplatform.lib import failpoints, money, redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.ids import uuid7
from aiplatform.lib.logs import log
from tenants import limits
from tenants.auth import Principal, Unauthenticated
from usage import ledger

# Against tokens per minute a call counts what its input is likely to be, not the bound that its hold needs.
BYTES_PER_TOKEN = 4


class CapExceeded(ApiError):
    """A spending cap leaves no room for this call."""

    status = 402
    code = "cap_exceeded"


class CapContended(ApiError):
    """Calls in flight hold what is left of a spending cap; there may be room when they end."""

    status = 429
    code = "cap_contended"


@dataclass(slots=True)
class Ticket:
    """A call on its way in."""

    principal: Principal
    facts: Facts
    request_id: str
    call_id: uuid.UUID = field(default_factory=uuid7)


@dataclass(slots=True)
class Admitted:
    """A call that is held and durable. Amounts in nano-USD; `remaining_nano` is None where no cap applies."""

    call_id: uuid.UUID
    held_nano: int
    remaining_nano: int | None
    clamped_tokens: int | None


class Admission:
    """One web process's door."""

    def __init__(self, web: uuid.UUID) -> None:
        self._web = web
        self._batches: Batcher[Ticket, Admitted] = Batcher(
            "admission", self.admit, size=lambda ticket: len(ticket.facts.body)
        )

    async def submit(self, ticket: Ticket) -> Admitted:
        """Raises the ApiError that refuses the call."""
        return await self._batches.submit(ticket)

    def admit(self, tickets: list[Ticket]) -> list[Admitted]:
        """An Admitted or an ApiError for each ticket, in order."""
        failpoints.reached("admission.before_limits")
        outcomes: list[Any] = list(
            limits.take(
                [limits.Ask(t.call_id, _likely_tokens(t), t.principal.limits) for t in tickets],
                idle_seconds=ledger.idle_seconds,
            )
        )
        failpoints.reached("admission.after_limits")
        passed = [at for at, refusal in enumerate(outcomes) if refusal is None]
        try:
            held = self._hold([tickets[at] for at in passed])
        except Unavailable:
            doorbell.free_places([_place(tickets[at]) for at in passed])
            raise
        for at, outcome in zip(passed, held, strict=True):
            outcomes[at] = outcome
        doorbell.free_places([_place(tickets[at]) for at in passed if isinstance(outcomes[at], ApiError)])
        admitted = [outcome.call_id for outcome in outcomes if isinstance(outcome, Admitted)]
        failpoints.reached("admission.before_doorbell", admitted)
        if not doorbell.ring(admitted):
            self._take_back(admitted, outcomes)
        failpoints.reached("admission.after_doorbell", admitted)
        return outcomes

    @staticmethod
    def _take_back(admitted: list[uuid.UUID], outcomes: list[Any]) -> None:
        """Voids what no worker can hear of, and no caller should wait for; what one has claimed after all goes on."""
        voided = ledger.settle(
            None, [ledger.Ending(call_id, "void", 503, "not_executed") for call_id in admitted], from_states=["held"]
        )
        for at, outcome in enumerate(outcomes):
            if isinstance(outcome, Admitted) and outcome.call_id in voided:
                outcomes[at] = redis.unavailable()

    def _hold(self, tickets: Sequence[Ticket]) -> list[Admitted | ApiError]:
        """Holds what can be held; reads the catalogue again where it changed meanwhile."""
        outcomes: dict[uuid.UUID, Admitted | ApiError] = {}
        waiting, book = list(tickets), catalogue.current()
        while waiting:
            asked: list[tuple[Ticket, ledger.Hold]] = []
            for ticket in waiting:
                try:
                    asked.append((ticket, _hold(ticket, book)))
                except ApiError as error:
                    outcomes[ticket.call_id] = error
            failpoints.reached("admission.before_hold", asked)
            rows = ledger.hold(self._web, book.revision, [hold for _, hold in asked])
            failpoints.reached("admission.after_hold", rows)
            waiting = []
            for (ticket, hold), row in zip(asked, rows, strict=True):
                if row.verdict == "stale":
                    waiting.append(ticket)
                else:
                    outcomes[ticket.call_id] = _outcome(ticket, hold, row)
            if waiting:
                book = catalogue.current(newer_than=book.revision)
        return [outcomes[ticket.call_id] for ticket in tickets]


def _hold(ticket: Ticket, book: catalogue.Catalogue) -> ledger.Hold:
    """What the call asks for, by the book's price; raises ModelNotFound or ModelNotPriced."""
    facts, principal = ticket.facts, ticket.principal
    place, rates = book.route(facts.wire, facts.model, principal.environment_kind)
    wanted = facts.max_tokens or principal.default_max_tokens
    return ledger.Hold(
        call_id=ticket.call_id,
        key_id=principal.key_id,
        end_user=facts.end_user,
        request_id=ticket.request_id,
        wire=facts.wire,
        endpoint=facts.endpoint,
        model=facts.model[:200],
        provider=place.name,
        streamed=facts.streamed,
        price_id=rates.price_id,
        base_nano=rates.input_bound_nano(facts.input_bound_tokens),
        output_pico=rates.output_pico(facts.choices),
        wanted_tokens=wanted,
        floor_tokens=min(principal.floor_max_tokens, wanted),
        headers={
            "forward": facts.forward,
            "set": facts.set_fields,
            "limit": [facts.max_tokens_field, facts.max_tokens],
            "hide_usage": facts.hide_usage,
        },
        body=facts.body,
    )


def _outcome(ticket: Ticket, hold: ledger.Hold, row: Any) -> Admitted | ApiError:
    if row.verdict == "held":
        clamped = row.max_tokens if row.max_tokens < hold.wanted_tokens else None
        return Admitted(ticket.call_id, row.held_nano, row.remaining_nano, clamped)
    if row.verdict == "key_invalid":
        return Unauthenticated()
    return _cap_refusal(ticket, hold, row)


def _cap_refusal(ticket: Ticket, hold: ledger.Hold, row: Any) -> ApiError:
    """A refusal that explains itself; amounts in USD."""
    estimate = hold.base_nano - (-hold.output_pico * hold.wanted_tokens // 1000)
    details = {
        "cap": row.cap_id,
        "period": row.cap_period,
        "limit_usd": money.usd(row.limit_nano),
        "spent_usd": money.usd(row.spent_nano),
        "held_usd": money.usd(row.cap_held_nano),
        "estimate_usd": money.usd(estimate),
        "affordable_max_tokens": row.affordable_tokens,
        "resets_at": row.resets_at.isoformat() if row.resets_at else None,
    }
    log.info("call.refused", call_id=str(ticket.call_id), reason=row.verdict, cap=row.cap_id)
    figures = (
        f"limit {details['limit_usd']}, spent {details['spent_usd']}, held by calls in flight {details['held_usd']}, "
        f"this call at most {details['estimate_usd']} USD"
    )
    if row.verdict == "cap_contended":
        return CapContended(f"{CapContended.__doc__} ({figures})", headers={"retry-after": "1"}, **details)
    headers = {"x-should-retry": "false"}
    if row.resets_at:
        headers["x-budget-resets-at"] = row.resets_at.isoformat()
        seconds = max(int((row.resets_at - datetime.now(UTC)).total_seconds()), 1)
        details["resets_in_seconds"] = seconds
    return CapExceeded(
        f"The {row.cap_period} spending cap leaves no room for this call ({figures}).", headers=headers, **details
    )


def _likely_tokens(ticket: Ticket) -> int:
    output = (ticket.facts.max_tokens or ticket.principal.default_max_tokens) * ticket.facts.choices
    return len(ticket.facts.body) // BYTES_PER_TOKEN + output


def _place(ticket: Ticket) -> tuple[uuid.UUID, list[str]]:
    return ticket.call_id, limits.slot_keys(ticket.principal.limits)
