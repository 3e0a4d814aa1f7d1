"""Seals of the ledger in hash chains, and the record of audits. Both append-only."""

from typing import ClassVar
from uuid import UUID

from django.db import models
from django.utils import timezone

HOUSE = UUID(int=0)


class LedgerSeal(models.Model):
    """One block of a chain: `sha256` covers the block before it and the canonical lines of its entries."""

    pk = models.CompositePrimaryKey("tenant_id", "n")
    tenant_id = models.UUIDField(help_text="whose chain; the nil UUID is the house's")
    n = models.IntegerField(help_text="in the chain, from 1 without gaps")
    first_number = models.BigIntegerField()
    last_number = models.BigIntegerField()
    upto_number = models.BigIntegerField(help_text="every entry of every chain up to this one was sealed with it")
    entries = models.IntegerField()
    prev_sha256 = models.CharField(max_length=64, help_text="64 zeros for the first block")
    sha256 = models.CharField(max_length=64)
    version = models.SmallIntegerField(help_text="of the canonical bytes")
    sealed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["upto_number"], name="seal_by_upto")]

    def __str__(self) -> str:
        return f"block {self.n} of {self.tenant_id}"


class AuditRun(models.Model):
    """What one audit looked at and found; the newest row is the drift gauge."""

    at = models.DateTimeField(default=timezone.now)
    seconds = models.FloatField()
    complete = models.BooleanField(help_text="everything, not only what moved since the run before")
    upto_number = models.BigIntegerField(help_text="up to which entries were sealed when it began")
    checked = models.JSONField(help_text="how many of each kind")
    drift = models.IntegerField(help_text="differences found; must be 0")
    details = models.JSONField(help_text="the first of them")

    def __str__(self) -> str:
        return f"{self.drift} differences at {self.at:%Y-%m-%d %H:%M}"


class AuditMark(models.Model):
    """What a cap's running period had spent by the entries up to the last audit's `upto_number`, so that the next one need not
    add them up again. A cache of audits alone: the nightly one makes it anew.
    """

    bucket_id = models.BigIntegerField(primary_key=True)
    spent_nano = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.spent_nano} nano-USD in {self.bucket_id}"
