"""Where a tenant wants to be told: registers, changes, rotates and removes endpoints."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from aiplatform.lib import outgoing
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from tenants.lookup import NotFound
from tenants.models import Environment, Tenant, WebhookEndpoint
from tenants.webhooks import signing

EVENT_TYPES = {
    "call.settled": "an asynchronous call was answered",
    "call.failed": "an asynchronous call failed, or nobody can say how it ended",
    "cap.threshold_reached": "spending has reached a threshold of a cap",
    "ping": "sent by hand to try an endpoint",
}
MOST_ENDPOINTS = 100
LONGEST_DESCRIPTION = 200
LONGEST_OVERLAP = timedelta(days=7)
DEFAULT_OVERLAP = timedelta(hours=24)


class BadEndpoint(ApiError):
    """That endpoint cannot be set up so."""

    code = "bad_endpoint"


def rules() -> outgoing.Rules:
    """Where webhooks may go, by the settings."""
    return outgoing.rules(
        networks=settings.WEBHOOK_ALLOWED_NETWORKS,
        ports=settings.WEBHOOK_PORTS,
        plain_http=settings.WEBHOOK_PLAIN_HTTP,
    )


def register(
    *,
    tenant: Tenant,
    environment: Environment | None,
    url: str,
    event_types: Sequence[str] = (),
    description: str = "",
    is_enabled: bool = True,
) -> tuple[WebhookEndpoint, str]:
    """A new endpoint and its secret, which is not shown again; raises BadEndpoint or BadAddress."""
    if WebhookEndpoint.objects.filter(tenant=tenant).count() >= MOST_ENDPOINTS:
        raise BadEndpoint(f"A tenant has at most {MOST_ENDPOINTS} endpoints.")
    secret = signing.new_secret()
    endpoint = WebhookEndpoint(
        tenant=tenant,
        environment=environment,
        url=_checked_url(url),
        event_types=_checked_types(event_types),
        description=_checked_description(description),
        is_enabled=is_enabled,
        **({} if is_enabled else _disabled_by_hand()),
    )
    endpoint.secret = signing.encrypted(secret, endpoint.pk)
    try:
        with transaction.atomic():
            endpoint.save(force_insert=True)
    except IntegrityError:
        raise BadEndpoint("There is an endpoint with this URL already, for the same environment.") from None
    log.info("webhook.registered", endpoint=str(endpoint.pk), tenant=str(tenant.pk))
    return endpoint, secret


def change(endpoint: WebhookEndpoint, **changes: Any) -> None:
    """Changes `url`, `event_types`, `description` or `is_enabled`; raises BadEndpoint or BadAddress.

    Enabled again, it gets what is still on its way, and what happens from now on.
    """
    checks = {"url": _checked_url, "event_types": _checked_types, "description": _checked_description}
    fields = {name: checks[name](value) for name, value in changes.items() if name in checks}
    if (wanted := changes.get("is_enabled")) is not None and wanted != endpoint.is_enabled:
        fields |= _enabled() if wanted else _disabled_by_hand()
    try:
        with transaction.atomic():
            WebhookEndpoint.objects.filter(pk=endpoint.pk).update(**fields)
    except IntegrityError:
        raise BadEndpoint("There is an endpoint with this URL already, for the same environment.") from None
    endpoint.refresh_from_db()
    log.info("webhook.changed", endpoint=str(endpoint.pk), fields=sorted(changes))


def rotate(endpoint: WebhookEndpoint, *, overlap: timedelta = DEFAULT_OVERLAP) -> str:
    """The new secret, which is not shown again. For the time of the overlap both sign; 0 ends the old one now."""
    secret = signing.new_secret()
    with transaction.atomic():
        (current,) = WebhookEndpoint.objects.select_for_update(no_key=True).filter(pk=endpoint.pk).values_list("secret")
        WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
            secret=signing.encrypted(secret, endpoint.pk),
            old_secret=bytes(current[0]) if overlap else None,
            old_secret_until=timezone.now() + overlap if overlap else None,
        )
    endpoint.refresh_from_db()
    log.info("webhook.secret_rotated", endpoint=str(endpoint.pk))
    return secret


def hours(count: float) -> timedelta:
    """An overlap; raises BadEndpoint for what is none."""
    if not 0 <= count <= LONGEST_OVERLAP / timedelta(hours=1):  # NaN neither
        raise BadEndpoint(f"The overlap is 0 to {LONGEST_OVERLAP.days} days.")
    return timedelta(hours=count)


def remove(endpoint: WebhookEndpoint) -> None:
    """With all its deliveries; one that is on its way may still arrive."""
    with transaction.atomic(), connection.cursor() as cursor:
        # Nobody claims a delivery or makes a new one while they are deleted.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('tenants_webhook_claim'))")
        cursor.execute("SELECT FROM tenants_webhookendpoint WHERE id = %s FOR UPDATE", [endpoint.pk])
        WebhookEndpoint.objects.filter(pk=endpoint.pk).delete()
    log.info("webhook.removed", endpoint=str(endpoint.pk), tenant=str(endpoint.tenant_id))


def find(text: str, *, tenant_id: uuid.UUID | None = None) -> WebhookEndpoint:
    """By id, of this tenant only if given; raises NotFound."""
    endpoints = WebhookEndpoint.objects.select_related("tenant", "environment")
    if tenant_id is not None:
        endpoints = endpoints.filter(tenant_id=tenant_id)
    try:
        found = endpoints.filter(pk=uuid.UUID(text)).first()
    except ValueError:
        found = None
    if found is None:
        raise NotFound(
            "There is no such webhook endpoint; `GET /api/webhooks` and `webhook_list` show those there are."
        )
    return found


def as_json(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """Everything but its secrets."""
    return {
        "id": str(endpoint.pk),
        "url": endpoint.url,
        "environment": endpoint.environment and endpoint.environment.name,
        "event_types": endpoint.event_types,
        "description": endpoint.description,
        "enabled": endpoint.is_enabled,
        "disabled_at": _iso(endpoint.disabled_at),
        "disabled_why": endpoint.disabled_why or None,
        "failing_since": _iso(endpoint.failing_since),
        "old_secret_until": _iso(endpoint.old_secret_until) if is_rotating(endpoint) else None,
        "created_at": endpoint.created_at.isoformat(),
    }


def is_rotating(endpoint: WebhookEndpoint) -> bool:
    """Whether its old secret signs as well."""
    return endpoint.old_secret_until is not None and endpoint.old_secret_until > timezone.now()


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _enabled() -> dict[str, Any]:
    return {
        "is_enabled": True,
        "disabled_at": None,
        "disabled_why": "",
        "notice_due_at": None,
        "failing_since": None,
    }


def _disabled_by_hand() -> dict[str, Any]:
    return {"is_enabled": False, "disabled_at": timezone.now(), "disabled_why": WebhookEndpoint.Why.BY_HAND}


def _checked_url(text: str) -> str:
    allowed = rules()
    outgoing.check_name(outgoing.check(text, allowed), allowed)
    return text


def _checked_types(types: Sequence[str]) -> list[str]:
    unknown = [it for it in types if it not in EVENT_TYPES]
    if unknown:
        raise BadEndpoint(f"The event type {unknown[0][:60]!a} is unknown; there are {', '.join(EVENT_TYPES)}.")
    return sorted(set(types))


def _checked_description(text: str) -> str:
    text = text.strip()
    if len(text) > LONGEST_DESCRIPTION or not text.isprintable():
        raise BadEndpoint(f"A description is at most {LONGEST_DESCRIPTION} printable characters.")
    return text
