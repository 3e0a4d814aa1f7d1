"""What models cost: versions of prices and their components."""

from typing import ClassVar

from django.db import models
from django.utils import timezone


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
