"""The outbox: what endpoints are told of, from the event's own transaction to the last attempt.

An event is a row that is written with what happened. Its body is written once, together with a delivery for each endpoint
that wants it. Deliveries are claimed and ended by one statement each (tenants/sql), so two processes never send the same
attempt, and a process that dies loses nothing: its claim ends by itself.
"""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from django.conf import settings
from django.db import connection
from django.utils import timezone

from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import uuid7
from aiplatform.lib.logs import log
from tenants.lookup import NotFound
from tenants.models import Tenant, WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent

GROWTH = 3
LONGEST_WAIT_SECONDS = 8 * 3600.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
PER_ENDPOINT, PER_TENANT = 4, 16
# A claim outlives its attempt by this: a process that was held up for longer must not send any more.
LEASE_MARGIN_SECONDS = 10.0


class EndpointDisabled(ApiError):
    """The endpoint is disabled; enable it first."""

    code = "bad_endpoint"


def event_name(event_id: uuid.UUID) -> str:
    """The `webhook-id`: the same for every endpoint and every attempt."""
    return f"evt_{event_id}"


def message(event_type: str, at: datetime, data: dict[str, Any]) -> str:
    """The body of an event, as Standard Webhooks shape it."""
    return orjson.dumps({"type": event_type, "timestamp": at.isoformat(), "data": data}).decode()


def publish(
    *,
    tenant: Tenant,
    event_type: str,
    subject: str,
    data: dict[str, Any],
    environment_id: uuid.UUID | None = None,
    only: WebhookEndpoint | None = None,
    at: datetime | None = None,
) -> int:
    """Puts an event into the outbox, in the caller's transaction if he has one; says to how many endpoints it goes.

    `subject` is what it happened to, unique among all tenants; with the same type it is told once. With `only` it goes to that
    endpoint whatever it wants.
    """
    at = at or timezone.now()
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO tenants_webhookevent
                   (id, tenant_id, environment_id, only_endpoint_id, type, subject, occurred_at)
               VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id""",
            [uuid7(), tenant.pk, environment_id, only.pk if only else None, event_type, subject, at],
        )
        if (row := cursor.fetchone()) is None:
            return 0
        cursor.execute("SELECT tenants_webhook_tell(%s::uuid[], %s)", [[row[0]], [message(event_type, at, data)]])
        return int(cursor.fetchone()[0])


def tell(bodies: dict[uuid.UUID, str]) -> int:
    """Writes the bodies of events that were put down without one; says how many deliveries that makes."""
    if not bodies:
        return 0
    (row,) = postgres.run(
        "SELECT tenants_webhook_tell(%s::uuid[], %s::text[]) AS made", [list(bodies), list(bodies.values())]
    )
    return int(row.made)


def unwritten(prefix: str, limit: int) -> list[Any]:
    """Events of this kind that have no body yet, oldest first: id, type, subject, tenant_id, occurred_at."""
    return postgres.run(
        """SELECT id, type, subject, tenant_id, occurred_at FROM tenants_webhookevent
           WHERE body IS NULL AND type LIKE %s ORDER BY id LIMIT %s""",
        [f"{prefix}%", limit],
    )


def claim(token: uuid.UUID, *, places: int, failing_places: int) -> list[Any]:
    """What this process is to send now, at most `places` and of those `failing_places` to endpoints that fail: rows with id, n,
    endpoint_id, event_id, url, fails, secret, old_secret, body. Nobody else gets them for the time of the lease.
    """
    return postgres.run(
        "SELECT * FROM tenants_webhook_claim(%s::uuid, %s, %s, %s, %s, %s * interval '1 second')",
        [
            token,
            places,
            failing_places,
            PER_ENDPOINT,
            PER_TENANT,
            settings.WEBHOOK_TIMEOUT_SECONDS + LEASE_MARGIN_SECONDS,
        ],
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: delivered, gone, or again after `wait_seconds`."""

    delivery_id: uuid.UUID
    token: uuid.UUID
    outcome: str
    wait_seconds: float = 0.0
    status: int | None = None
    milliseconds: int = 0
    error: str = ""
    answer: str = ""


def finish(outcomes: Sequence[Outcome]) -> list[None]:
    """Ends attempts, for a Batcher; of deliveries whose claim was lost nothing changes."""
    columns = zip(
        *(
            (o.delivery_id, o.token, o.outcome, o.wait_seconds, o.status, o.milliseconds, o.error, o.answer)
            for o in outcomes
        ),
        strict=True,
    )
    rows = postgres.run(
        """SELECT * FROM tenants_webhook_finish(%s::uuid[], %s::uuid[], %s::text[], %s::float8[], %s::int[], %s::int[],
               %s::text[], %s::text[], %s * interval '1 second')""",
        [*(list(column) for column in columns), settings.WEBHOOK_GIVE_UP_SECONDS],
        patience=LEASE_MARGIN_SECONDS,
    )
    for endpoint, why in {(row.endpoint_id, row.disabled_why) for row in rows if row.disabled_why}:
        log.warning("webhook.disabled", endpoint=str(endpoint), why=why)
    return [None] * len(outcomes)


def wait_seconds(tries: int, retry_after: str = "", *, chance: float | None = None) -> float:
    """How long to wait after so many tries: 5 s, 15 s, 45 s … up to 8 h, each a quarter more or less, and no less than the
    receiver asks for by a Retry-After in seconds (an hour at most). `chance` is in [0, 1).
    """
    base: float = min(settings.WEBHOOK_RETRY_SECONDS * GROWTH ** min(tries - 1, 20), LONGEST_WAIT_SECONDS)
    jitter = 0.75 + (random.random() if chance is None else chance) / 2  # noqa: S311 - spreads load, guards nothing
    asked = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0
    return max(base * jitter, min(asked, LONGEST_RETRY_AFTER_SECONDS))


def resend(delivery: WebhookDelivery) -> None:
    """Sends it again now, with the same `webhook-id`, and again for days where that fails; raises EndpointDisabled."""
    if not WebhookEndpoint.objects.filter(pk=delivery.endpoint_id, is_enabled=True).exists():
        raise EndpointDisabled
    now = timezone.now()
    WebhookDelivery.objects.filter(pk=delivery.pk, claim=None).update(
        state=WebhookDelivery.State.PENDING, next_at=now, window_from=now, ended_at=None
    )
    delivery.refresh_from_db()


def ping(endpoint: WebhookEndpoint) -> WebhookDelivery:
    """Sends an event of no meaning to this endpoint; raises EndpointDisabled."""
    if not endpoint.is_enabled:
        raise EndpointDisabled
    subject = f"ping_{uuid7()}"
    publish(
        tenant=endpoint.tenant, event_type="ping", subject=subject, data={"endpoint": str(endpoint.pk)}, only=endpoint
    )
    return WebhookDelivery.objects.select_related("event").get(endpoint=endpoint, event__subject=subject)


def find(text: str, *, tenant_id: uuid.UUID | None = None, endpoint: WebhookEndpoint | None = None) -> WebhookDelivery:
    """A delivery by id, of this tenant and endpoint only if given; raises NotFound."""
    deliveries = WebhookDelivery.objects.select_related("event", "endpoint")
    if tenant_id is not None:
        deliveries = deliveries.filter(tenant_id=tenant_id)
    if endpoint is not None:
        deliveries = deliveries.filter(endpoint=endpoint)
    try:
        found = deliveries.filter(pk=uuid.UUID(text)).first()
    except ValueError:
        found = None
    if found is None:
        raise NotFound("There is no such delivery.")
    return found


def latest(
    endpoint: WebhookEndpoint, *, state: str | None = None, before: uuid.UUID | None = None, limit: int
) -> list[WebhookDelivery]:
    """An endpoint's deliveries, newest first."""
    found = WebhookDelivery.objects.filter(endpoint=endpoint)
    if state is not None:
        found = found.filter(state=state)
    if before is not None:
        found = found.filter(pk__lt=before)
    return list(found.select_related("event").defer("event__body").order_by("-pk")[:limit])


def as_json(delivery: WebhookDelivery) -> dict[str, Any]:
    """Without the event's body, which may hold what was said in a call."""
    return {
        "id": str(delivery.pk),
        "webhook_id": event_name(delivery.event_id),
        "type": delivery.event.type,
        "subject": delivery.event.subject,
        "occurred_at": delivery.event.occurred_at.isoformat(),
        "state": delivery.state,
        "tries": delivery.tries,
        "next_try_at": delivery.next_at.isoformat() if delivery.state == WebhookDelivery.State.PENDING else None,
        "ended_at": delivery.ended_at and delivery.ended_at.isoformat(),
    }


def attempts_json(delivery: WebhookDelivery) -> list[dict[str, Any]]:
    """Every attempt, in order; `answer` is the beginning of what the endpoint said, as text that nobody should trust."""
    return [
        {
            "n": attempt.n,
            "started_at": attempt.started_at.isoformat(),
            "status": attempt.status,
            "milliseconds": attempt.milliseconds,
            "error": attempt.error or None,
            "answer": attempt.answer,
        }
        for attempt in WebhookAttempt.objects.filter(delivery=delivery).order_by("n")
    ]


def tidy(limit: int) -> int:
    """Gives up what waits at disabled endpoints for too long, and forgets events of WEBHOOK_KEEP_DAYS ago that are at no end
    of a way any more; says how many rows that was.
    """
    postgres.run(
        """UPDATE tenants_webhookdelivery d SET state = 'failed', ended_at = now()
           WHERE d.id IN (SELECT w.id FROM tenants_webhookendpoint p JOIN tenants_webhookdelivery w ON w.endpoint_id = p.id
                          WHERE NOT p.is_enabled AND w.state = 'pending' AND w.claim IS NULL
                            AND w.window_from < now() - %s * interval '1 second' LIMIT %s)""",
        [settings.WEBHOOK_GIVE_UP_SECONDS, limit],
    )
    old = WebhookEvent.objects.filter(pk__lt=_at(settings.WEBHOOK_KEEP_DAYS))
    pending = WebhookDelivery.objects.filter(state=WebhookDelivery.State.PENDING)
    gone = old.exclude(pk__in=pending.values("event_id")).order_by("pk")[:limit]
    removed, _ = WebhookEvent.objects.filter(pk__in=list(gone.values_list("pk", flat=True))).delete()
    return removed


def _at(days_ago: int) -> uuid.UUID:
    """The lowest UUIDv7 of a moment."""
    milliseconds = int(timezone.now().timestamp() * 1000) - days_ago * 86_400_000
    return uuid.UUID(int=milliseconds << 80)
