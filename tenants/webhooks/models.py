"""Endpoints, the events that they are told of, and each delivery with its attempts."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from aiplatform.lib.ids import uuid7


class WebhookEndpoint(models.Model):
    """A URL that a tenant wants to be told at, of everything or of one environment."""

    class Why(models.TextChoices):
        """Why it is disabled."""

        BY_HAND = "by_hand", "somebody disabled it"
        GONE = "gone", "it answered 410 Gone"
        FAILING = "failing", "nothing reached it for days"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey("tenants.Tenant", models.CASCADE, related_name="webhook_endpoints")
    environment = models.ForeignKey(
        "tenants.Environment", models.CASCADE, null=True, blank=True, related_name="webhook_endpoints"
    )
    url = models.CharField(max_length=2000)
    event_types = ArrayField(models.CharField(max_length=60), default=list, blank=True, help_text="empty: all")
    description = models.CharField(max_length=200, blank=True, default="")
    is_enabled = models.BooleanField(default=True)
    disabled_at = models.DateTimeField(null=True, blank=True)
    disabled_why = models.CharField(max_length=16, choices=Why, blank=True, default="")
    notice_due_at = models.DateTimeField(
        null=True, blank=True, help_text="when its tenant is to be told that it is disabled"
    )
    failing_since = models.DateTimeField(null=True, blank=True, help_text="first failure since the last success")
    secret = models.BinaryField(help_text="encrypted, see tenants.webhooks.signing")
    old_secret = models.BinaryField(null=True, blank=True, help_text="signs as well, until `old_secret_until`")
    old_secret_until = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant", "environment", "url"], name="webhook_endpoint_once", nulls_distinct=False
            )
        ]
        indexes: ClassVar = [
            models.Index(fields=["notice_due_at"], condition=~Q(notice_due_at=None), name="webhook_notice_due")
        ]

    def __str__(self) -> str:
        return self.url


class WebhookEvent(models.Model):
    """Something that happened, once for each type and subject; written by the transaction in which it happened.

    `body` is what endpoints get, to the byte; empty until somebody has put it together.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey("tenants.Tenant", models.CASCADE, db_constraint=False, related_name="webhook_events")
    environment_id = models.UUIDField(null=True, help_text="where it happened; NULL for the whole tenant")
    only_endpoint_id = models.UUIDField(null=True, help_text="told to this endpoint only, whatever it wants")
    type = models.CharField(max_length=60)
    subject = models.CharField(max_length=100, help_text="what it happened to")
    occurred_at = models.DateTimeField()
    body = models.TextField(null=True)  # noqa: DJ001 - not yet written is not empty

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["subject", "type"], name="webhook_event_once")]
        indexes: ClassVar = [models.Index(fields=["id"], condition=Q(body=None), name="webhook_event_unwritten")]

    def __str__(self) -> str:
        return f"{self.type} of {self.subject}"


class WebhookDelivery(models.Model):
    """One event on its way to one endpoint."""

    class State(models.TextChoices):
        PENDING = "pending", "to be sent, now or again later"
        DELIVERED = "delivered", "answered with 2xx"
        FAILED = "failed", "given up"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant_id = models.UUIDField()
    endpoint = models.ForeignKey(WebhookEndpoint, models.CASCADE, related_name="deliveries")
    event = models.ForeignKey(WebhookEvent, models.CASCADE, related_name="deliveries")
    state = models.CharField(max_length=16, choices=State, default=State.PENDING)
    tries = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField(help_text="when it is due; of a claimed one, when its claim ends")
    claim = models.UUIDField(null=True, help_text="by whose claim it is being sent")
    window_from = models.DateTimeField(help_text="given up so long after this")
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["event", "endpoint"], name="webhook_delivery_once")]
        indexes: ClassVar = [
            models.Index(fields=["endpoint", "-id"], name="webhook_delivery_list"),
            models.Index(fields=["endpoint", "next_at"], condition=Q(state="pending"), name="webhook_delivery_due"),
            models.Index(fields=["endpoint"], condition=~Q(claim=None), name="webhook_delivery_claimed"),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} to {self.endpoint_id}"


class WebhookAttempt(models.Model):
    """One try to deliver; its row is committed before its first byte may leave."""

    delivery = models.ForeignKey(WebhookDelivery, models.CASCADE, related_name="attempts")
    n = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    status = models.PositiveSmallIntegerField(null=True)
    milliseconds = models.PositiveIntegerField(null=True)
    error = models.CharField(max_length=40, blank=True, default="", help_text="why there was no answer")
    answer = models.TextField(blank=True, default="", help_text="the beginning of what it answered, as plain text")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["delivery", "n"], name="webhook_attempt_once")]

    def __str__(self) -> str:
        return f"try {self.n}: {self.status or self.error}"
