"""Spending caps and what each has held and spent in each period."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import ApiKey, Environment, Tenant


class SpendingCap(models.Model):
    """At most so much money per period for a tenant, or for one environment, key or end user of it."""

    class Period(models.TextChoices):
        DAY = "day"
        WEEK = "week"
        MONTH = "month"
        LIFETIME = "lifetime"

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="spending_caps")
    environment = models.ForeignKey(Environment, models.CASCADE, null=True, blank=True, related_name="spending_caps")
    api_key = models.ForeignKey(ApiKey, models.CASCADE, null=True, blank=True, related_name="spending_caps")
    end_user = models.CharField(max_length=256, blank=True, default="")
    period = models.CharField(max_length=16, choices=Period)
    limit_nano = models.BigIntegerField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant", "environment", "api_key", "end_user", "period"],
                name="spending_cap_once",
                nulls_distinct=False,
            ),
            models.CheckConstraint(condition=Q(limit_nano__gte=0), name="spending_cap_not_negative"),
        ]
        indexes: ClassVar = [models.Index(fields=["tenant", "end_user"], name="spending_cap_match")]

    def __str__(self) -> str:
        return f"{self.limit_nano} nano-USD per {self.period}"


class CapBucket(models.Model):
    """What one cap has held and spent in one period; a new period is a new row, so nothing is ever reset."""

    cap = models.ForeignKey(SpendingCap, models.CASCADE, related_name="buckets")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True, blank=True)
    held_nano = models.BigIntegerField(default=0)
    spent_nano = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["cap", "starts_at"], name="cap_bucket_once"),
            models.CheckConstraint(condition=Q(held_nano__gte=0, spent_nano__gte=0), name="cap_bucket_not_negative"),
        ]

    def __str__(self) -> str:
        return f"held {self.held_nano}, spent {self.spent_nano} from {self.starts_at:%Y-%m-%d}"
