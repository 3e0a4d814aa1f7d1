"""Puts into words what webhooks are told of calls and caps; that it happened was put down with the event itself."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings

from aiplatform.lib import money, postgres
from aiplatform.lib.ids import call_id
from tenants.webhooks import outbox
from usage import cap_notices
from usage.models import Call, CapNotice
from usage.pricing import TEXT_METERS as METERS

AT_ONCE = 100
LARGEST_ANSWER_BYTES = 64 * 1024

_CALLS = """
SELECT c.*, e.name AS environment, p.headers, p.body, octet_length(b.body) AS size
FROM usage_call c JOIN tenants_environment e ON e.id = c.environment_id
LEFT JOIN usage_callpayload b ON b.call_id = c.id AND b.kind = 'response'
LEFT JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'response' AND octet_length(p.body) <= %s
WHERE c.id = ANY (%s::uuid[])"""


def write() -> int:
    """One round; safe to repeat and to run twice at once. Says how many events it looked at."""
    calls, notices = outbox.unwritten("call.", AT_ONCE), outbox.unwritten("cap.", AT_ONCE)
    bodies = _bodies(calls, _calls(calls)) | _bodies(notices, _notices(notices))
    outbox.tell(bodies)
    return len(bodies)


def _bodies(events: list[Any], data: dict[str, dict[str, Any]]) -> dict[UUID, str]:
    """By event; of what is there no more only the name is told."""
    return {
        event.id: outbox.message(event.type, event.occurred_at, data.get(event.subject, {"id": event.subject}))
        for event in events
    }


def _calls(events: Iterable[Any]) -> dict[str, dict[str, Any]]:
    wanted = [call_id(event.subject) for event in events]
    rows = postgres.run(_CALLS, [LARGEST_ANSWER_BYTES, wanted]) if wanted else []
    return {f"call_{row.id}": _call(row) for row in rows}


def _call(row: Any) -> dict[str, Any]:
    """An answer above 64 KiB is not in it: `url` has it."""
    return {
        "id": f"call_{row.id}",
        "state": row.state,
        "status": row.status,
        "error": row.error_code or None,
        "cost_usd": None if row.state == Call.State.UNKNOWN else money.usd(row.charged_nano),
        "usage": {meter: getattr(row, f"{meter}_tokens") for meter in (*METERS, "reasoning")},
        "environment": row.environment,
        "endpoint": row.endpoint,
        "model": row.model,
        "served_model": row.served_model or None,
        "end_user": row.end_user or None,
        "request_id": row.request_id or None,
        "admitted_at": row.admitted_at.isoformat(),
        "ended_at": row.settled_at.isoformat(),
        "url": f"{settings.PUBLIC_URL.rstrip('/')}/v1/calls/call_{row.id}",
        "response_bytes": row.size,
        "response": None if row.body is None else _answer(row.headers, bytes(row.body)),
    }


def _answer(headers: dict[str, Any], body: bytes) -> dict[str, Any] | None:
    """JSON as it came, anything else as a string; None for what is no text."""
    named = {"content_type": {name.lower(): value for name, value in headers.items()}.get("content-type")}
    try:
        orjson.loads(body)
        return named | {"body": orjson.Fragment(body)}
    except orjson.JSONDecodeError:
        pass
    try:
        return named | {"body": body.decode()}
    except UnicodeDecodeError:
        return None


def _notices(events: Iterable[Any]) -> dict[str, dict[str, Any]]:
    wanted = [int(event.subject.removeprefix("notice_")) for event in events]
    rows = CapNotice.objects.filter(pk__in=wanted).select_related(
        "bucket__cap__environment", "bucket__cap__api_key__environment"
    )
    return {f"notice_{row.pk}": cap_notices.as_json(row) for row in rows} if wanted else {}
