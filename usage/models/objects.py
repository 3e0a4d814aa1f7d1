"""Objects that providers keep for tenants: stored responses, files, batches."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Environment, Tenant


class ProviderObject(models.Model):
    """Whose an object is that a provider keeps under an id of its own (docs/objects.md).

    The provider knows one account, ours; only this table tells tenants apart.
    """

    class Kind(models.TextChoices):
        RESPONSE = "response"
        ITEM = "item", "a part of a response"
        FILE = "file"
        BATCH = "batch"
        MESSAGE_BATCH = "message_batch"

    tenant = models.ForeignKey(Tenant, models.PROTECT, related_name="provider_objects")
    environment = models.ForeignKey(Environment, models.PROTECT, related_name="provider_objects")
    kind = models.TextField(choices=Kind)
    wire = models.TextField()
    provider = models.TextField()
    credential = models.TextField(default="", blank=True, help_text="the secret's reference: the account that keeps it")
    provider_id = models.TextField(help_text="the object's id at the provider, and so at our door")
    model = models.TextField(default="", blank=True)
    call_id = models.UUIDField(help_text="the call that made it")
    money_call_id = models.UUIDField(
        null=True, help_text="of a batch: the call that holds and pays what its lines cost"
    )
    figures = models.JSONField(default=dict, help_text="numbers that later calls need, such as a response's tokens")
    shown = models.JSONField(default=dict, help_text="the object as the provider last told it, for lists")
    created_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True, help_text="of a batch: its money is settled")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["provider", "provider_id"], name="provider_object_once"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["environment", "wire", "kind", "-id"], name="object_list"),
            models.Index(fields=["id"], condition=Q(money_call_id__isnull=False, ended_at=None), name="batch_running"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.provider_id}"
