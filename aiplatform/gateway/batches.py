"""The money of a batch: a call of its own that is held before the batch is created, and settled when its results are seen.

The call that creates the batch is free and ends at once. The money's call (endpoint `batch`) is in flight with the creating
worker, until the batch is on record; then it belongs to no worker, and waits for the beat (docs/objects.md).
"""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

from aiplatform.gateway import batch_lines, catalogue, refusals
from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.ids import uuid7
from tenants import bounds
from tenants.auth import Suspended
from usage import ledger
from usage.ledger import Ending, Hold
from usage.pricing import Rates

CREATES = frozenset((("openai", "batches.create"), ("anthropic", "message_batches.create")))
ENDPOINT = "batch"
MOST_ROUNDS = 10


class BatchNotSent(ApiError):
    """The worker that was to create this batch died before; nothing was sent and nothing is charged."""

    status = 503
    code = "not_executed"


@dataclass(slots=True)
class Money:
    """The call that holds what the lines of a batch may cost."""

    call_id: uuid.UUID
    is_kept: bool = False
    """The batch is on record, and its money waits for the results."""


async def hold(call: Any, *, own: bool) -> Money | None:
    """Holds the worst case of a batch before it is created; nothing for any other call. `own` says whether it goes on the
    tenant's own credential. Raises the ApiError that refuses it.
    """
    if (call.wire, call.endpoint) not in CREATES:
        return None
    return Money(await asyncio.to_thread(_hold, call, own=own))


async def conclude(money: Money | None, state: str, status: int) -> None:
    """Ends the money of a batch whose creation ended in `state` and that is not on record: void, or else unknown."""
    if money is not None and not money.is_kept:
        await asyncio.to_thread(_end, money, "void" if state == "void" else "unknown", status)


def _end(money: Money, state: str, status: int) -> None:
    code = "batch_not_created" if state == "void" else "outcome_unknown"
    outcome = "unsent" if state == "void" else "unknown"
    ending = Ending(money.call_id, state, status, code, attempt_outcome=outcome)
    ledger.settle(None, [ending], from_states=["inflight"], patience=60.0)


def _hold(call: Any, *, own: bool) -> uuid.UUID:
    """The id of the call that holds the money, in flight by this call's worker. Raises ApiError."""
    model, found = batch_lines.read(call, batch_lines.lines_of(call))
    (mine,) = postgres.run(
        """SELECT c.worker_process, c.end_user, e.kind, k.allowed_models
           FROM usage_call c JOIN tenants_environment e ON e.id = c.environment_id JOIN tenants_apikey k ON k.id = c.api_key_id
           WHERE c.id = %s""",
        [call.id],
    )
    bounds.refuse_call(bounds.of(mine.allowed_models, (), (), ()), model=model, endpoint=call.endpoint)
    call_id, book = uuid7(), catalogue.current(max_age=2)
    for _ in range(MOST_ROUNDS):
        place, rates = book.route(call.wire, model, mine.kind, call.tenant_id, own=own)
        if place.name != call.provider:
            raise catalogue.ModelNotFound(
                f"The batch would be kept by {call.provider}, and {model[:200]!r} is served by {place.name}; `x-provider` "
                "chooses where a file is uploaded.",
                param="model",
            )
        hold = _asked(call, call_id, model, rates, batch_lines.worst_nano(rates, found))
        hold.end_user = mine.end_user
        (row,) = ledger.hold(call.web_process, book.revision, [hold])
        if row.verdict == "held":
            break
        if row.verdict in {"suspended", "key_invalid"}:
            raise Suspended
        if row.verdict != "stale":
            raise refusals.of_cap(hold, row)
        book = catalogue.current(newer_than=book.revision)
    else:
        raise Unavailable
    if not ledger.claim(mine.worker_process, [call_id]):
        raise Unavailable  # suspended meanwhile, or this worker is taken for dead: the sweeper voids it
    return call_id


def _asked(call: Any, call_id: uuid.UUID, model: str, rates: Rates, worst_nano: int) -> Hold:
    return Hold(
        call_id=call_id,
        key_id=call.api_key_id,
        end_user="",
        request_id=call.request_id,
        wire=call.wire,
        endpoint=ENDPOINT,
        model=model[:200],
        provider=call.provider,
        streamed=False,
        price_id=rates.price_id,
        tariff_id=rates.tariff_id,
        base_nano=worst_nano,
        output_pico=0,
        wanted_tokens=0,
        floor_tokens=0,
        headers={"created_by": str(call.id), "forward": {}, "set": {}, "limit": ["", 0], "hide_usage": False},
        body=b"",
    )
