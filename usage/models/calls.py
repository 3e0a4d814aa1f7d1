"""Calls, their payloads and their attempts; partitioned by id, which is time."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from aiplatform.lib.ids import call_name, uuid7
from tenants.models import ApiKey, Environment, Tenant
from usage.models.prices import Price


class CallQuerySet(models.QuerySet["Call"]):
    def live(self) -> "CallQuerySet":
        """Calls that still hold money."""
        return self.filter(state__in=Call.LIVE)


class Lane(models.TextChoices):
    """Which queue and which places of a worker a call takes."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


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
        CACHE = "cache", "what the source call was charged"

    class Cached(models.TextChoices):
        """How an answer that another call had made came to be given."""

        NO = "", "made for this call"
        EXACT = "exact", "kept from the same question"
        COALESCED = "coalesced", "shared with the same question in flight"
        NEAR = "near", "kept from a question that is much alike"

    LIVE: ClassVar = [State.HELD, State.INFLIGHT, State.UNKNOWN]

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.PROTECT, db_constraint=False, related_name="calls")
    environment = models.ForeignKey(Environment, models.PROTECT, db_constraint=False, related_name="calls")
    api_key = models.ForeignKey(ApiKey, models.PROTECT, db_constraint=False, related_name="calls")
    price = models.ForeignKey(Price, models.PROTECT, db_constraint=False, related_name="calls")
    tariff_id = models.BigIntegerField(null=True, help_text="what the tenant pays instead of the list price, frozen")
    end_user = models.TextField(default="", blank=True)
    request_id = models.TextField(default="", blank=True)
    wire = models.TextField()
    endpoint = models.TextField()
    model = models.TextField()
    provider = models.TextField()
    streamed = models.BooleanField()
    state = models.TextField(choices=State)
    is_live = models.BooleanField(default=True, db_default=True, help_text="holds money: neither settled nor void")
    is_prepaid = models.BooleanField(default=False, db_default=False, help_text="burns credit")
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
    lane = models.TextField(choices=Lane, default=Lane.INTERACTIVE, db_default=Lane.INTERACTIVE)
    detached = models.BooleanField(default=False, db_default=False, help_text="nobody waits for its answer")
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
    variant = models.TextField(
        default="", db_default="", blank=True, help_text="service tier or batch, by whose price it was rated"
    )
    meters = models.JSONField(null=True, help_text="units of rarer classes: audio and image tokens, paid tools")
    tries = models.SmallIntegerField(default=1, db_default=1)
    retried_cost_nano = models.BigIntegerField(default=0, db_default=0, help_text="what earlier attempts cost us")
    retried_charge_nano = models.BigIntegerField(
        default=0, db_default=0, help_text="what of it the tenant pays, by his plan"
    )
    corrected_nano = models.BigIntegerField(
        default=0, db_default=0, help_text="what later entries added to the charge, or took off"
    )

    cached = models.TextField(choices=Cached, default="", db_default="", blank=True)
    cached_from = models.UUIDField(null=True, help_text="the call whose answer was given")
    cached_age_seconds = models.IntegerField(null=True)
    saved_nano = models.BigIntegerField(
        default=0, db_default=0, help_text="what the source call was charged, less what this one is"
    )
    cache_share_bps = models.SmallIntegerField(
        null=True, help_text="what the plan takes of it, in hundredths of a percent"
    )

    objects = CallQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["tenant", "-id"], name="call_by_tenant"),
            models.Index(fields=["id"], condition=Q(is_live=True), name="call_live"),
        ]

    def __str__(self) -> str:
        return call_name(self.id)


class CallPayload(models.Model):
    """The body and headers that came in, or the reply that went out, apart from the call's money."""

    class Kind(models.TextChoices):
        REQUEST = "request"
        RESPONSE = "response"
        RESULT = "result", "how a call in the background ended; its response is the first word"

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
        CLOSED = "closed", "closed by us, since its caller had gone"
        UNSENT = "unsent", "surely never reached the provider"
        UNKNOWN = "unknown", "sent, and nobody can say how it ended"

    pk = models.CompositePrimaryKey("call_id", "n")
    call_id = models.UUIDField()
    n = models.SmallIntegerField()
    provider = models.TextField()
    model = models.TextField(default="", db_default="", help_text="as the provider was asked for it")
    credential = models.TextField(default="", db_default="", help_text="its name; the secret is nowhere here")
    outcome = models.TextField(choices=Outcome, default=Outcome.SENT)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    status = models.SmallIntegerField(null=True)
    provider_request_id = models.TextField(default="")
    error = models.TextField(default="")
    backoff_ms = models.IntegerField(default=0, help_text="waited before this try")
    cost_nano = models.BigIntegerField(
        default=0, db_default=0, help_text="what the provider charges for a try that was not the last"
    )

    def __str__(self) -> str:
        return f"try {self.n} of {self.call_id}: {self.outcome}"


class IdempotencyKey(models.Model):
    """Which call an Idempotency-Key stands for, in one environment, for a day."""

    pk = models.CompositePrimaryKey("environment_id", "key_hash")
    environment_id = models.UUIDField()
    key_hash = models.BinaryField(max_length=32)
    body_hash = models.BinaryField(max_length=32)
    call_id = models.UUIDField()
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["created_at"], name="idempotency_age")]

    def __str__(self) -> str:
        return call_name(self.call_id)
