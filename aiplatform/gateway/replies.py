"""Answers from what Postgres knows of a call: where the relay fell silent, and where an Idempotency-Key asks for it again."""

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from aiplatform.gateway import recovery, relay, wires
from aiplatform.gateway.execution import PENDING_HEADER, OutcomeUnknown
from aiplatform.gateway.relay import Inbox, Kind
from aiplatform.gateway.tickets import Admitted
from aiplatform.lib import money, postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_name
from tenants.auth import Suspended

OK = 200


class NotExecuted(ApiError):
    """The call could not be started in time; nothing was sent and nothing was charged."""

    status = 503
    code = "not_executed"


class AnswerLost(ApiError):
    """The call's answer cannot be relayed any more. What it cost is on record: GET /api/calls/ID."""

    status = 502
    code = "answer_lost"
    always = {"x-should-retry": "false"}  # an SDK's own retry would buy a second answer


def states(call_ids: Sequence[uuid.UUID]) -> list[Any]:
    """What is known of these calls, in order; None where there is no such call. Voids those that nobody started in time.

    The answer of one that got another's is that one's, as far as it came in the same form.
    """
    rows = postgres.run(
        """SELECT c.id, c.state, c.wire, c.endpoint, c.request_id, c.streamed, c.status, c.error_code, c.charged_nano,
               c.held_nano, CASE WHEN c.clamped THEN c.max_output_tokens END AS clamped_tokens, c.web_process,
               c.detached, c.lane, c.environment_id, c.worker_process,
               c.start_by < now() AS late, coalesce(p.headers, q.headers) AS headers, coalesce(p.body, q.body) AS body,
               c.state = 'inflight' AND l.state IS DISTINCT FROM 'alive' AS is_orphan
           FROM usage_call c LEFT JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'response'
           LEFT JOIN usage_processlease l ON l.id = c.worker_process
           LEFT JOIN usage_call s ON s.id = c.cached_from AND s.environment_id = c.environment_id AND s.streamed = c.streamed
           LEFT JOIN usage_callpayload q ON q.call_id = s.id AND q.kind = 'response' AND p.call_id IS NULL
           WHERE c.id = ANY (%s::uuid[])""",
        [list(call_ids)],
    )
    found = {row.id: row for row in rows}
    for row in rows:
        if row.state == "held" and row.late:
            recovery.void_late(row.id)
    return [found.get(call_id) for call_id in call_ids]


def end(inbox: Inbox, row: Any, *, worker_is_dead: bool = False) -> None:
    """Ends the wait for a call of which Postgres knows more than the relay, or whose relay has broken off for good."""
    if row is None:
        return
    is_cut = inbox.seq and (row.is_orphan or inbox.is_lost)
    if is_running(row) and not (is_cut or (worker_is_dead and row.state == "inflight")):
        return
    if inbox.seq:  # in the middle of a stream; no number, since it is no event of the answer's own
        message = f"The answer's relay broke off; call {call_name(row.id)} is on record."
        inbox.end((Kind.END, wires.WIRES[row.wire].broken_event("answer_lost", message, row.endpoint)))
        return
    headers = {"content-type": "application/json"}
    if row.body and not (row.streamed and row.status == OK):
        headers |= row.headers | _cost(row)
        inbox.end((Kind.WHOLE, relay.head(row.status or OK, headers, bytes(row.body))))
        return
    if row.body:
        cost = f": cost_usd={money.usd(row.charged_nano)}\n".encode()
        inbox.end((Kind.HEAD, relay.head(row.status, row.headers)), (Kind.END, bytes(row.body) + cost))
        return
    error = _why_no_answer(row)
    body = orjson.dumps(wires.WIRES[row.wire].error(error, row.request_id or call_name(row.id)))
    inbox.end((Kind.WHOLE, relay.head(error.status, headers | error.headers, body)))


def is_running(row: Any) -> bool:
    """Whether its answer is still to come; that of a call in the background is there before it ends."""
    return row.state == "held" or (row.state == "inflight" and (row.body is None or row.streamed))


def _cost(row: Any) -> dict[str, str]:
    if row.state in {"settled", "void"}:
        return {"x-cost-usd": money.usd(row.charged_nano)}
    return {PENDING_HEADER: "true"}


def _why_no_answer(row: Any) -> ApiError:
    if row.state == "unknown" or row.error_code == OutcomeUnknown.code:
        return OutcomeUnknown(call=call_name(row.id))
    if row.error_code == Suspended.code:
        return Suspended()
    if row.state == "inflight":
        message = "The worker of this call has died after it may have been sent, so nobody can say yet how it ended."
        return OutcomeUnknown(message, call=call_name(row.id))
    if row.state == "void":
        return NotExecuted(headers={"retry-after": "1"})
    return AnswerLost(
        f"The answer of {call_name(row.id)} was too large to be kept, or is lost; what it cost is on record: GET "
        f"/api/calls/{call_name(row.id)}.",
        headers={"x-should-retry": "false", "x-cost-usd": money.usd(row.charged_nano)},
        call=call_name(row.id),
    )


def headers_of(admitted: Admitted) -> dict[str, str]:
    """What every answer to a call tells of its hold."""
    headers = {"x-call-id": call_name(admitted.call_id), "x-held-usd": money.usd(admitted.held_nano)}
    if admitted.remaining_nano is not None:
        headers["x-budget-remaining-usd"] = money.usd(admitted.remaining_nano)
    if admitted.clamped_tokens is not None:
        headers["x-budget-clamped"] = str(admitted.clamped_tokens)
    return headers


def headers_of_row(row: Any) -> dict[str, str]:
    """The same for an answer that is given later, with what it cost; what was left of a cap then is not kept."""
    headers = headers_of(Admitted(row.id, row.held_nano, None, row.clamped_tokens))
    return headers | _cost(row) if row.state in {"settled", "void"} else headers


def replayed_headers(row: Any) -> dict[str, str]:
    """The same for an answer that is given again by its Idempotency-Key."""
    return headers_of(Admitted(row.id, row.held_nano, None, row.clamped_tokens)) | {"idempotent-replayed": "true"}
