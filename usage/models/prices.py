"""What models cost: versions of prices, drafts of them, tariffs of plans and tenants, and late fixes."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Tenant


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


class Variant(models.TextChoices):
    """The way by which a provider serves a call."""

    STANDARD = "standard", "Standard"
    BATCH = "batch", "Batch"
    FLEX = "flex", "Flex"
    PRIORITY = "priority", "Priority"
    FAST = "fast", "Fast"


class PriceComponent(models.Model):
    """USD per so many units of one meter, for calls whose whole input is longer than `tier_from` tokens."""

    class Meter(models.TextChoices):
        INPUT = "input", "Input"
        CACHE_READ = "cache_read", "Cache read"
        CACHE_WRITE_5M = "cache_write_5m", "Cache write, 5 min"
        CACHE_WRITE_1H = "cache_write_1h", "Cache write, 1 h"
        OUTPUT = "output", "Output"
        INPUT_AUDIO = "input_audio", "Audio input"
        CACHE_AUDIO_READ = "cache_audio_read", "Audio cache read"
        OUTPUT_AUDIO = "output_audio", "Audio output"
        INPUT_IMAGE = "input_image", "Image input"
        CACHE_IMAGE_READ = "cache_image_read", "Image cache read"
        OUTPUT_IMAGE = "output_image", "Image output"
        WEB_SEARCH = "web_search", "Web search"
        FILE_SEARCH = "file_search", "File search"
        IMAGE_256 = "image_256", "Image, 256 px"
        IMAGE_512 = "image_512", "Image, 512 px"
        IMAGE_1024 = "image_1024", "Image, 1024 px"
        IMAGE_WIDE = "image_wide", "Image, wide"
        IMAGE_HD_1024 = "image_hd_1024", "HD image, 1024 px"
        IMAGE_HD_WIDE = "image_hd_wide", "HD image, wide"
        INPUT_SECONDS = "input_seconds", "Audio, a second"
        INPUT_CHARACTERS = "input_characters", "Characters spoken"

    price = models.ForeignKey(Price, models.CASCADE, related_name="components")
    variant = models.CharField(max_length=16, choices=Variant, default=Variant.STANDARD, db_default=Variant.STANDARD)
    meter = models.CharField(max_length=24, choices=Meter)
    tier_from = models.PositiveBigIntegerField(default=0, db_default=0)
    usd = models.DecimalField(max_digits=24, decimal_places=12)
    per = models.PositiveBigIntegerField(default=1_000_000)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["price", "variant", "meter", "tier_from"], name="price_component_once_a_tier"
            ),
            models.CheckConstraint(condition=Q(usd__gte=0), name="price_component_not_negative"),
            models.CheckConstraint(condition=Q(per__in=[1, 1000, 1_000_000]), name="price_component_per"),
        ]

    def __str__(self) -> str:
        return f"{self.meter} {self.usd} per {self.per}"


class PriceDraft(models.Model):
    """What a source says that a model costs, until somebody decides about it."""

    class Decision(models.TextChoices):
        ACCEPTED = "accepted"
        REJECTED = "rejected"
        SUPERSEDED = "superseded"

    provider = models.CharField(max_length=60)
    model = models.CharField(max_length=200)
    components = models.JSONField(help_text="[{variant, meter, tier_from, usd, per}]")
    source = models.CharField(max_length=60)
    source_version = models.CharField(max_length=60)
    sha256 = models.CharField(max_length=64)
    second_source = models.JSONField(null=True, blank=True, help_text="what another source says: {name, components}")
    created_at = models.DateTimeField(default=timezone.now)
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.CharField(max_length=200, default="", blank=True)
    decision = models.CharField(max_length=16, choices=Decision, default="", blank=True)
    reason = models.TextField(default="", blank=True)
    price = models.ForeignKey(Price, models.PROTECT, null=True, blank=True, related_name="drafts")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["provider", "model"], condition=Q(decision=""), name="price_draft_open_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.provider} {self.model} by {self.source}"


class Plan(models.Model):
    """What a group of tenants is offered; its markup is a Tariff."""

    name = models.CharField(max_length=100, unique=True)
    charges_retries = models.BooleanField(
        default=False, help_text="the tenant pays what earlier attempts of a call cost, within its hold"
    )
    own_key_bps = models.PositiveIntegerField(
        default=0, db_default=0, help_text="what a call on the tenant's own credential is charged, of its list price"
    )
    cache_hit_bps = models.PositiveIntegerField(
        default=0, db_default=0, help_text="what an answer that is given again is charged, of what it saved"
    )
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name


class PlanAssignment(models.Model):
    """The plan of a tenant in a span of time; spans of one tenant never overlap."""

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="plan_assignments")
    plan = models.ForeignKey(Plan, models.PROTECT, related_name="assignments")
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.tenant_id}: {self.plan_id}"


class Tariff(models.Model):
    """What the tenants of a plan, or one tenant, pay instead of list prices; never changed, only succeeded.

    For one model, all models of a provider, or all. `markup_bps` is in hundredths of a percent, NULL says nothing;
    `components` are fixed figures of a model, which no markup touches.
    """

    tenant = models.ForeignKey(Tenant, models.CASCADE, null=True, blank=True, related_name="tariffs")
    plan = models.ForeignKey(Plan, models.CASCADE, null=True, blank=True, related_name="tariffs")
    provider = models.CharField(max_length=60, default="", blank=True)
    model = models.CharField(max_length=200, default="", blank=True)
    markup_bps = models.IntegerField(null=True, blank=True)
    components = models.JSONField(default=list, blank=True, help_text="[{variant, meter, tier_from, usd, per}]")
    valid_from = models.DateTimeField()
    valid_to = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(tenant=None, plan__isnull=False) | Q(tenant__isnull=False, plan=None),
                name="tariff_of_tenant_or_plan",
            ),
            models.CheckConstraint(
                condition=Q(markup_bps=None) | Q(markup_bps__gte=-10_000, markup_bps__lte=1_000_000),
                name="tariff_markup_range",
            ),
            models.CheckConstraint(condition=Q(model="") | ~Q(provider=""), name="tariff_model_has_provider"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant_id or self.plan_id} {self.provider} {self.model}".strip()


class FrozenTariff(models.Model):
    """A combination of tariffs as calls were held by it: what `Call.tariff_id` names. Never changed nor deleted.

    One row for each content, made when a call first needs it, so that a call's charge can be derived from its price, this row
    and its usage alone.
    """

    sha256 = models.CharField(max_length=64, unique=True)
    markup_bps = models.IntegerField()
    components = models.JSONField(help_text="[{variant, meter, tier_from, usd, per}]")
    charges_retries = models.BooleanField()
    own_key = models.BooleanField(
        default=False, db_default=False, help_text="on the tenant's own credential: the provider bills him, not us"
    )
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.markup_bps / 100:+.2f} %"


class PriceFix(models.Model):
    """A late correction of a price: which calls were rated again, by which figures, why and by whom."""

    price = models.ForeignKey(Price, models.PROTECT, related_name="fixes")
    components = models.JSONField(
        help_text="the figures that should have been: [{variant, meter, tier_from, usd, per}]"
    )
    span_from = models.DateTimeField()
    span_to = models.DateTimeField()
    reason = models.TextField()
    decided_by = models.CharField(max_length=200)
    charge_tenant = models.BooleanField()
    calls = models.BigIntegerField(default=0)
    corrected_calls = models.BigIntegerField(default=0)
    charge_delta_nano = models.BigIntegerField(default=0)
    cost_delta_nano = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.price_id}: {self.reason}"
