"""Tells a tenant's people by mail that an endpoint of theirs was disabled."""

from django.conf import settings
from django.core import mail
from django.template.loader import render_to_string

from aiplatform.lib import postgres
from aiplatform.lib.logs import log
from tenants.models import Member, WebhookEndpoint

AT_ONCE = 20
TOLD_ROLES = (Member.Role.OWNER, Member.Role.ADMIN, Member.Role.DEVELOPER)


def tell_disabled() -> int:
    """One round; says how many were told. Whoever takes one keeps it for a while, so that two never tell the same."""
    taken = postgres.run(
        """UPDATE tenants_webhookendpoint SET notice_due_at = now() + interval '5 minutes'
           WHERE id IN (SELECT id FROM tenants_webhookendpoint WHERE notice_due_at <= now() ORDER BY notice_due_at LIMIT %s
                        FOR NO KEY UPDATE SKIP LOCKED) RETURNING id""",
        [AT_ONCE],
    )
    endpoints = WebhookEndpoint.objects.filter(pk__in=[row.id for row in taken]).select_related("tenant", "environment")
    told = [endpoint.pk for endpoint in endpoints if _tell(endpoint)]
    return WebhookEndpoint.objects.filter(pk__in=told).update(notice_due_at=None)


def _tell(endpoint: WebhookEndpoint) -> bool:
    people = Member.objects.filter(tenant_id=endpoint.tenant_id, role__in=TOLD_ROLES, user__is_active=True)
    recipients = list(people.order_by("user__email").values_list("user__email", flat=True))
    if not recipients:
        return True
    body = render_to_string(
        "emails/webhook_disabled.txt",
        {"endpoint": endpoint, "days": settings.WEBHOOK_GIVE_UP_SECONDS / 86_400, "tenant": endpoint.tenant},
    )
    try:
        mail.EmailMessage(f"A webhook endpoint of {endpoint.tenant.name} was disabled", body, to=recipients).send()
    except OSError as error:  # smtplib's own errors are OSErrors as well
        log.warning("webhook.notice_not_sent", endpoint=str(endpoint.pk), error=type(error).__name__)
        return False
    return True
