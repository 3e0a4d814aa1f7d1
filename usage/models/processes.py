"""The processes that are alive."""

from django.db import models
from django.utils import timezone

from aiplatform.lib.ids import uuid7


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
