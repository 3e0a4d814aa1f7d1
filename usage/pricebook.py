"""Writes the price book: a price is never changed, only succeeded, so that every receipt can be derived again."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q

from aiplatform.lib.errors import ApiError
from aiplatform.lib.money import MILLION
from usage.models import Price, PriceComponent
from usage.pricing import METERS, PER, STANDARD, VARIANTS, Part

MANUAL = "manual"
_AMOUNT = re.compile(r"\d{1,7}(\.\d{1,12})?", re.ASCII)
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
_MODEL = re.compile(r"[!-~]{1,200}")
_COMPONENT = re.compile(r"([a-z0-9_]+)(?:@(\d{1,12}))?(?:/([a-z]+))?=([\d.]+)(?:/(1|1000|1000000|1k|1M))?", re.ASCII)
_PER = {"1": 1, "1000": 1000, "1k": 1000, "1000000": 1_000_000, "1M": 1_000_000}


class PriceRefused(ApiError):
    """A price cannot be set like this."""


def parse_usd(text: str) -> Decimal:
    """USD per million tokens; raises PriceRefused."""
    if not _AMOUNT.fullmatch(text):
        raise PriceRefused(f"{text[:40]!a} is no price; write USD per million tokens with up to 12 decimals.")
    return Decimal(text)


def parse_component(text: str) -> Part:
    """`METER[@TIER][/VARIANT]=USD[/PER]`, by default per million tokens or thousand calls; raises PriceRefused."""
    found = _COMPONENT.fullmatch(text)
    if not found:
        raise PriceRefused(
            f"{text[:60]!a} is no component; write METER[@TIER][/VARIANT]=USD[/PER], such as input=2.5, "
            "input@200000=5, output/batch=7.5 or web_search=10/1k."
        )
    meter, tier, variant, usd, per = found.groups()
    return Part(variant or STANDARD, meter, int(tier or 0), parse_usd(usd), _PER[per] if per else usual_per(meter))


def usual_per(meter: str) -> int:
    """Of how many units a meter's price is usually told."""
    return PER.get(meter, int(MILLION))


def per_million(usd: Mapping[str, Decimal]) -> list[Part]:
    """A flat price by meter, in USD per million tokens."""
    return [Part(STANDARD, meter, 0, each, int(MILLION)) for meter, each in usd.items()]


@transaction.atomic
def set_price(
    *,
    provider: str,
    model: str,
    parts: Iterable[Part],
    valid_from: datetime | None = None,
    source: str = MANUAL,
) -> tuple[Price, bool]:
    """The price in force from `valid_from` (default: now) on, and whether it is new: the same figures change nothing.

    Ends the price before it, and keeps a later one that is announced already. Cache classes without a figure of their
    own cost what input costs. None begins in the past once the model had a price: calls are charged by it already.
    Raises PriceRefused.
    """
    parts = list(parts)
    check_model(provider, model)
    _check_whole(parts)
    now = _lock(provider, model)
    begins = valid_from or now
    rows = list(in_force(provider, model).filter(Q(valid_to=None) | Q(valid_to__gt=begins)).order_by("valid_from"))
    running = next((row for row in rows if row.valid_from <= begins), None)
    if running and same(parts_of(running), parts):
        return running, False
    if begins < now and (running or rows):
        begins_text = f"{begins.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        raise PriceRefused(
            f"{provider} {model} had prices since {begins_text}, by which calls are charged; give a date from now on."
        )
    following = min((row.valid_from for row in rows if row.valid_from > begins), default=None)
    if running:
        # One that was to begin at this very moment never does: its range becomes empty.
        Price.objects.filter(pk=running.pk).update(valid_to=begins)
    price = Price.objects.create(
        provider=provider, model=model, valid_from=begins, valid_to=following, source=source[:60], created_at=now
    )
    PriceComponent.objects.bulk_create(PriceComponent(price=price, **part._asdict()) for part in parts)
    return price, True


def check_model(provider: str, model: str) -> None:
    """Raises PriceRefused where that can be no provider's or no model's name."""
    if not _PROVIDER.fullmatch(provider):
        raise PriceRefused(f"The provider {provider[:60]!a} is not allowed; use up to 60 small letters, digits, . _ -")
    if not _MODEL.fullmatch(model) or model == "*":
        raise PriceRefused(f"The model {model[:60]!a} is not allowed; use up to 200 printable ASCII characters.")


def check_parts(parts: Iterable[Part]) -> None:
    """Raises PriceRefused where a figure is none, or is given twice."""
    parts = list(parts)
    if unknown := {part.meter for part in parts} - set(METERS):
        raise PriceRefused(f"Unknown: {', '.join(sorted(unknown))}; a price has the classes {', '.join(METERS)}.")
    if unknown := {part.variant for part in parts} - set(VARIANTS):
        raise PriceRefused(f"Unknown variant: {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}.")
    for (variant, meter, tier), count in Counter((part.variant, part.meter, part.tier_from) for part in parts).items():
        if count > 1:
            raise PriceRefused(f"{meter} ({variant}, from {tier} tokens) is given {count} times.")
        if tier and not any((one.variant, one.meter, one.tier_from) == (variant, meter, 0) for one in parts):
            raise PriceRefused(f"{meter} ({variant}) has a price from {tier} tokens on, but none below.")


def _check_whole(parts: list[Part]) -> None:
    check_parts(parts)
    priced = {part.meter for part in parts if part.variant == STANDARD}
    if not priced:
        raise PriceRefused("A price needs a figure: input and output, or what else the model is paid for.")
    for variant in sorted({part.variant for part in parts}, key=VARIANTS.index):
        if missing := (priced & {"input", "output"}) - {part.meter for part in parts if part.variant == variant}:
            of = f" for {variant}, too"
            raise PriceRefused(f"A price needs what it has{of}; {' and '.join(sorted(missing))} was not given.")


def in_force(provider: str, model: str) -> Any:
    """Rows that ever apply; a withdrawn one has an empty range."""
    return Price.objects.filter(provider=provider, model=model).exclude(valid_to=F("valid_from"))


def current(provider: str, model: str, now: datetime | None = None) -> Price | None:
    """The price that applies now."""
    now = now or datetime.now(UTC)
    rows = in_force(provider, model).filter(Q(valid_to=None) | Q(valid_to__gt=now), valid_from__lte=now)
    found: Price | None = rows.first()
    return found


def parts_of(price: Price) -> list[Part]:
    """Its figures."""
    rows = price.components.values_list("variant", "meter", "tier_from", "usd", "per")
    return [Part(*row) for row in rows]


def same(some: Iterable[Part], others: Iterable[Part]) -> bool:
    """Whether they cost the same, however the figures are written."""
    return _units(some) == _units(others)


def _units(parts: Iterable[Part]) -> dict[tuple[str, str, int], Decimal]:
    return {(part.variant, part.meter, part.tier_from): part.usd * (MILLION / part.per) for part in parts}


def _lock(provider: str, model: str) -> datetime:
    """One writer at a time for each model; returns the database's time, later than that of the writer before."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", [f"{provider} {model}"])
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone() or [None]
    assert isinstance(now, datetime)  # noqa: S101 - for the type checker
    return now
