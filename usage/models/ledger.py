"""The ledger: append-only, double entry in single rows."""

from typing import ClassVar

from django.db import models


class LedgerEntry(models.Model):
    """One transfer: debit, credit and a positive amount in one row. Append-only; a correction is a new entry."""

    class Kind(models.TextChoices):
        CHARGE = "charge", "what the tenant owes"
        PROVIDER_COST = "provider_cost", "what the provider bills us"
        PLATFORM_LOSS = "platform_loss", "above the hold, borne by the house"
        EXPOSURE = "exposure", "of an unknown outcome, borne by the house"
        CORRECTION = "correction", "a later change of the charge"
        COST_CORRECTION = "cost_correction", "a later change of the provider's cost"
        EXPOSURE_RELEASE = "exposure_release", "of an outcome that became known"
        CREDIT_GRANT = "credit_grant", "prepaid or promotional credit"
        CREDIT_EXPIRY = "credit_expiry", "credit that ended unused"

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
    reason = models.TextField(default="", db_default="", blank=True)
    belongs_at = models.DateTimeField(help_text="when the hold was opened; says which period the money belongs to")
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["tenant_id", "belongs_at"], name="ledger_by_tenant")]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount_nano} nano-USD for {self.ref}"
