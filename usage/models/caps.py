"""Spending caps, what each has held and spent in each period, and the notices that it sent."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import ApiKey, Environment, Tenant


def default_thresholds() -> list[int]:
    """Percent of a cap at which its tenant is told."""
    return [50, 80, 100]


class SpendingCap(models.Model):
    """At most so much money per period for the platform (no tenant), a tenant, or one environment, key or end user of it,
    in any combination.
    """

    class Period(models.TextChoices):
        DAY = "day"
        WEEK = "week"
        MONTH = "month"
        LIFETIME = "lifetime"

    class Mode(models.TextChoices):
        ENFORCE = "enforce", "refuses what it does not afford"
        SHADOW = "shadow", "counts what it would have refused"
        CREDIT = "credit", "a prepaid balance: its limit is what was granted"

    EACH_END_USER = "*"

    tenant = models.ForeignKey(Tenant, models.CASCADE, null=True, blank=True, related_name="spending_caps")
    environment = models.ForeignKey(Environment, models.CASCADE, null=True, blank=True, related_name="spending_caps")
    api_key = models.ForeignKey(ApiKey, models.CASCADE, null=True, blank=True, related_name="spending_caps")
    end_user = models.CharField(max_length=256, blank=True, default="", help_text="`*` is each end user by himself")
    period = models.CharField(max_length=16, choices=Period)
    mode = models.CharField(max_length=16, choices=Mode, default=Mode.ENFORCE, db_default=Mode.ENFORCE)
    limit_nano = models.BigIntegerField()
    raise_nano = models.BigIntegerField(default=0, db_default=0, help_text="on top of the limit, until `raise_until`")
    raise_until = models.DateTimeField(null=True, blank=True)
    thresholds = ArrayField(
        models.PositiveSmallIntegerField(), default=default_thresholds, blank=True, help_text="percent; one notice each"
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant", "environment", "api_key", "end_user", "period", "mode"],
                name="spending_cap_once",
                nulls_distinct=False,
            ),
            models.CheckConstraint(condition=Q(limit_nano__gte=0), name="spending_cap_not_negative"),
            models.CheckConstraint(condition=Q(raise_nano__gte=0), name="cap_raise_not_negative"),
        ]
        indexes: ClassVar = [models.Index(fields=["tenant", "end_user"], name="spending_cap_match")]

    def __str__(self) -> str:
        return f"{self.limit_nano} nano-USD per {self.period}"


class CapBucket(models.Model):
    """What one cap has held and spent in one period; a new period is a new row, so nothing is ever reset."""

    # Its unique constraint begins with the cap.
    cap = models.ForeignKey(SpendingCap, models.CASCADE, related_name="buckets", db_index=False)
    end_user = models.CharField(
        max_length=256, blank=True, default="", db_default="", help_text="of a cap on each end user"
    )
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True, blank=True)
    held_nano = models.BigIntegerField(default=0)
    spent_nano = models.BigIntegerField(default=0)
    notice_at_nano = models.BigIntegerField(null=True, blank=True, help_text="spent from which the next notice is due")
    shadow_refused_calls = models.BigIntegerField(default=0, db_default=0)
    shadow_refused_nano = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["cap", "end_user", "starts_at"], name="cap_bucket_once"),
            models.CheckConstraint(condition=Q(held_nano__gte=0, spent_nano__gte=0), name="cap_bucket_not_negative"),
        ]
        # A cap on each end user has many buckets a period.
        indexes: ClassVar = [models.Index(fields=["cap", "starts_at"], name="cap_bucket_of_period")]

    def __str__(self) -> str:
        return f"held {self.held_nano}, spent {self.spent_nano} from {self.starts_at:%Y-%m-%d}"


class CapNotice(models.Model):
    """A threshold that a cap's period has reached; written once, in the statement that spent beyond it."""

    bucket = models.ForeignKey(CapBucket, models.CASCADE, related_name="notices")
    percent = models.PositiveSmallIntegerField()
    limit_nano = models.BigIntegerField()
    spent_nano = models.BigIntegerField()
    reached_at = models.DateTimeField(default=timezone.now)
    notified_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveSmallIntegerField(default=0, db_default=0, help_text="to tell it")
    next_try_at = models.DateTimeField(null=True, blank=True, help_text="nobody else tells it before then")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["bucket", "percent"], name="cap_notice_once")]
        indexes: ClassVar = [models.Index(fields=["id"], condition=Q(notified_at=None), name="cap_notice_due")]

    def __str__(self) -> str:
        return f"{self.percent} % of {self.limit_nano} nano-USD"
