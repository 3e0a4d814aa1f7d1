"""Prepaid credit: grants, and which call burnt which of them."""

from typing import ClassVar

from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from aiplatform.lib.ids import uuid7
from tenants.models import Tenant


class CreditGrant(models.Model):
    """Credit of a prepaid tenant; burnt by priority, then earliest expiry, then age."""

    class Category(models.TextChoices):
        PAID = "paid"
        PROMOTIONAL = "promotional"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="credit_grants")
    amount_nano = models.BigIntegerField()
    burnt_nano = models.BigIntegerField(default=0)
    expired_nano = models.BigIntegerField(default=0)
    category = models.CharField(max_length=16, choices=Category)
    priority = models.SmallIntegerField(default=100, help_text="the lowest is burnt first")
    expires_at = models.DateTimeField(null=True, blank=True)
    note = models.CharField(max_length=200, blank=True, default="")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(amount_nano__gt=0, burnt_nano__gte=0, expired_nano__gte=0), name="credit_grant_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(amount_nano__gte=F("burnt_nano") + F("expired_nano")), name="credit_grant_not_overdrawn"
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["tenant", "priority", "expires_at"], name="credit_grant_order")]

    def __str__(self) -> str:
        return f"{self.amount_nano} nano-USD {self.category}"


class CreditConsumption(models.Model):
    """What one call burnt of one grant; `amount_nano` below zero is credit that a correction gave back. Append-only."""

    pk = models.CompositePrimaryKey("call_id", "grant_id", "seq")
    call_id = models.UUIDField()
    grant_id = models.UUIDField()
    seq = models.SmallIntegerField(default=0, help_text="0 at settlement, then one for each correction")
    amount_nano = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["grant_id"], name="credit_by_grant")]

    def __str__(self) -> str:
        return f"{self.amount_nano} nano-USD of {self.grant_id}"
