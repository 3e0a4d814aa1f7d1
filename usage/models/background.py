"""Calls that a provider carries out in the background, and when somebody looks at them next."""

from typing import ClassVar

from django.db import models
from django.utils import timezone


class BackgroundCall(models.Model):
    """A call whose end the provider tells only who asks (docs/responses.md).

    It belongs to no process: whoever finds it due looks, so that no death of a worker leaves its outcome unknown.
    """

    call_id = models.UUIDField(primary_key=True)
    provider = models.TextField()
    response_id = models.TextField()
    credential = models.TextField(default="", blank=True, help_text="the secret's reference: the account that has it")
    is_streaming = models.BooleanField(help_text="its worker, as long as that lives, hears of its end by itself")
    looks = models.SmallIntegerField(default=0)
    next_look_at = models.DateTimeField()
    begun_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["provider", "response_id"], name="background_call_once"),
        ]
        indexes: ClassVar = [models.Index(fields=["next_look_at"], name="background_call_due")]

    def __str__(self) -> str:
        return self.response_id
