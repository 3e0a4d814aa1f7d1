"""Policies on what may go in, and what they found."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone

from aiplatform.lib.ids import uuid7
from tenants.models import Environment, Tenant


class Policy(models.Model):
    """What an environment's calls may not say; each change is a new version, and findings name theirs."""

    environment = models.OneToOneField(Environment, models.CASCADE, related_name="policy")
    version = models.PositiveIntegerField(default=0)
    blocked_terms = ArrayField(models.CharField(max_length=200), default=list, blank=True)
    changed_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{len(self.blocked_terms)} blocked terms, version {self.version}"


class Finding(models.Model):
    """A call that a policy stopped: which one, and by which of its terms."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="findings")
    environment = models.ForeignKey(Environment, models.CASCADE, related_name="findings")
    call_id = models.UUIDField(unique=True)
    policy_version = models.PositiveIntegerField()
    term = models.CharField(max_length=200)
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.term!r} in {self.call_id}"
