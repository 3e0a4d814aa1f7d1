"""Calls and their attempts, prices, spending caps and the ledger. Only `usage.ledger` writes money."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from aiplatform.lib.ids import call_name, uuid7
from tenants.models import ApiKey, Environment, Tenant


class Catalogue(models.Model):
    """One row whose revision grows with every change to providers or prices; admission compares it with the copy in memory."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    revision = models.BigIntegerField(default=1)

    def __str__(self) -> str:
        return str(self.revision)


class Price(models.Model):
    """What one model of one provider costs from a day on; never changed, only succeeded (see `usage.pricing`)."""

    provider = models.CharField(max_length=60)
    model = models.CharField(max_length=200)
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True, blank=True)
    source = models.CharField(max_length=60)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.provider} {self.model} from {self.valid_from:%Y-%m-%d}"


class PriceComponent(models.Model):
    """USD per so many tokens of one class."""

    class Meter(models.TextChoices):
        INPUT = "input", "Input"
        CACHE_READ = "cache_read", "Cache read"
        CACHE_WRITE_5M = "cache_write_5m", "Cache write, 5 min"
        CACHE_WRITE_1H = "cache_write_1h", "Cache write, 1 h"
        OUTPUT = "output", "Output"

    price = models.ForeignKey(Price, models.CASCADE, related_name="components")
    meter = models.CharField(max_length=24, choices=Meter)
    usd = models.DecimalField(max_digits=24, decimal_places=12)
    per = models.PositiveBigIntegerField(default=1_000_000)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["price", "meter"], name="price_component_once")]

    def __str__(self) -> str:
        return f"{self.meter} {self.usd} per {self.per}"


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


class ProcessLease(models.Model):
    """A web or worker process that is alive, by the database's clock."""

    class State(models.TextChoices):
        ALIVE = "alive"
        FENCED = "fenced"
        STOPPED = "stopped"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=16)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    state = models.CharField(max_length=16, choices=State, default=State.ALIVE)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.kind} {self.pid}@{self.host} {self.state}"


class CallQuerySet(models.QuerySet["Call"]):
    def live(self) -> "CallQuerySet":
        """Calls that still hold money."""
        return self.filter(state__in=Call.LIVE)


class Call(models.Model):
    """One AI call: its hold, its way and its cost. Partitioned by id, which is time (see the first migration)."""

    class State(models.TextChoices):
        HELD = "held"
        INFLIGHT = "inflight"
        UNKNOWN = "unknown"
        SETTLED = "settled"
        VOID = "void"

    class Evidence(models.TextChoices):
        """What the charge rests on."""

        NONE = "", "nothing was charged"
        PROVIDER = "provider", "the provider's own usage"
        COUNTED = "counted", "counted from what was relayed"

    LIVE: ClassVar = [State.HELD, State.INFLIGHT, State.UNKNOWN]

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, db_constraint=False, related_name="calls")
    environment = models.ForeignKey(Environment, models.PROTECT, db_constraint=False, related_name="calls")
    api_key = models.ForeignKey(ApiKey, models.PROTECT, db_constraint=False, related_name="calls")
    price = models.ForeignKey(Price, models.PROTECT, db_constraint=False, related_name="calls")
    end_user = models.TextField(default="", blank=True)
    request_id = models.TextField(default="", blank=True)
    wire = models.TextField()
    endpoint = models.TextField()
    model = models.TextField()
    provider = models.TextField()
    streamed = models.BooleanField()
    state = models.TextField(choices=State)
    held_nano = models.BigIntegerField()
    bucket_ids = ArrayField(models.BigIntegerField())
    max_output_tokens = models.BigIntegerField()
    clamped = models.BooleanField(default=False)
    admitted_at = models.DateTimeField()
    start_by = models.DateTimeField()
    deadline_at = models.DateTimeField()
    next_ring_at = models.DateTimeField()
    rings = models.SmallIntegerField(default=0)
    web_process = models.UUIDField()
    worker_process = models.UUIDField(null=True)
    claimed_at = models.DateTimeField(null=True)
    first_byte_at = models.DateTimeField(null=True)
    settled_at = models.DateTimeField(null=True)
    status = models.SmallIntegerField(null=True)
    error_code = models.TextField(default="", blank=True)
    served_model = models.TextField(default="", blank=True)
    provider_request_id = models.TextField(default="", blank=True)
    input_tokens = models.BigIntegerField(default=0)
    cache_read_tokens = models.BigIntegerField(default=0)
    cache_write_5m_tokens = models.BigIntegerField(default=0)
    cache_write_1h_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    reasoning_tokens = models.BigIntegerField(default=0, help_text="a part of output_tokens")
    charged_nano = models.BigIntegerField(default=0)
    list_nano = models.BigIntegerField(default=0)
    provider_cost_nano = models.BigIntegerField(default=0)
    platform_loss_nano = models.BigIntegerField(default=0)
    evidence = models.TextField(choices=Evidence, default="", blank=True)

    objects = CallQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["tenant", "-id"], name="call_by_tenant"),
            models.Index(fields=["next_ring_at"], condition=Q(state="held"), name="call_held"),
            models.Index(
                fields=["worker_process"], condition=Q(state__in=["inflight", "unknown"]), name="call_inflight"
            ),
        ]

    def __str__(self) -> str:
        return call_name(self.id)


class CallPayload(models.Model):
    """The body and headers that came in, or the reply that went out, apart from the call's money."""

    class Kind(models.TextChoices):
        REQUEST = "request"
        RESPONSE = "response"

    pk = models.CompositePrimaryKey("call_id", "kind")
    call_id = models.UUIDField()
    kind = models.TextField(choices=Kind)
    headers = models.JSONField(default=dict)
    body = models.BinaryField()

    def __str__(self) -> str:
        return f"{self.kind} of {self.call_id}"


class Attempt(models.Model):
    """One try at a provider; its row is committed before the first byte may leave."""

    class Outcome(models.TextChoices):
        SENT = "sent", "maybe sent, end not known yet"
        ANSWERED = "answered", "the provider answered in full"
        REFUSED = "refused", "the provider answered with an error"
        BROKEN = "broken", "the answer broke off"
        UNSENT = "unsent", "surely never reached the provider"
        UNKNOWN = "unknown", "sent, and nobody can say how it ended"

    pk = models.CompositePrimaryKey("call_id", "n")
    call_id = models.UUIDField()
    n = models.SmallIntegerField()
    provider = models.TextField()
    outcome = models.TextField(choices=Outcome, default=Outcome.SENT)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    status = models.SmallIntegerField(null=True)
    provider_request_id = models.TextField(default="")
    error = models.TextField(default="")
    backoff_ms = models.IntegerField(default=0, help_text="waited before this try")

    def __str__(self) -> str:
        return f"try {self.n} of {self.call_id}: {self.outcome}"


class LedgerEntry(models.Model):
    """One transfer: debit, credit and a positive amount in one row. Append-only; a correction is a new entry."""

    class Kind(models.TextChoices):
        CHARGE = "charge", "what the tenant owes"
        PROVIDER_COST = "provider_cost", "what the provider bills us"
        PLATFORM_LOSS = "platform_loss", "above the hold, borne by the house"
        EXPOSURE = "exposure", "of an unknown outcome, borne by the house"
        CORRECTION = "correction"

    pk = models.CompositePrimaryKey("ref", "kind", "seq")
    number = models.BigIntegerField(editable=False)
    ref = models.UUIDField(help_text="the call, or the document, that it books")
    kind = models.TextField(choices=Kind)
    seq = models.SmallIntegerField(default=0)
    tenant_id = models.UUIDField()
    environment_id = models.UUIDField(null=True)
    api_key_id = models.UUIDField(null=True)
    end_user = models.TextField(default="")
    debit = models.TextField()
    credit = models.TextField()
    amount_nano = models.BigIntegerField()
    price_id = models.BigIntegerField(null=True)
    evidence = models.TextField(default="")
    belongs_at = models.DateTimeField(help_text="when the hold was opened; says which period the money belongs to")
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["tenant_id", "belongs_at"], name="ledger_by_tenant")]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount_nano} nano-USD for {self.ref}"
