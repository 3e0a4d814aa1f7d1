"""Writes the price book: a price is never changed, only succeeded, so that every receipt can be derived again."""

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args

from django.db import connection, transaction
from django.db.models import F, Q

from aiplatform.lib.errors import ApiError
from aiplatform.lib.money import MILLION
from usage.models import Price, PriceComponent

METERS = tuple(PriceComponent.Meter.values)
MANUAL = "manual"
_AMOUNT = re.compile(r"\d{1,7}(\.\d{1,12})?", re.ASCII)
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
_MODEL = re.compile(r"[!-~]{1,200}")


class PriceRefused(ApiError):
    """A price cannot be set like this."""


def parse_usd(text: str) -> Decimal:
    """USD per million tokens; raises PriceRefused."""
    if not _AMOUNT.fullmatch(text):
        raise PriceRefused(f"{text[:40]!a} is no price; write USD per million tokens with up to 12 decimals.")
    return Decimal(text)


@transaction.atomic
def set_price(
    *,
    provider: str,
    model: str,
    usd_per_million: Mapping[str, Decimal],
    valid_from: datetime | None = None,
    source: str = MANUAL,
) -> tuple[Price, bool]:
    """The price in force from `valid_from` (default: now) on, and whether it is new: the same figures change nothing.

    Ends the price before it, and keeps a later one that is announced already. Cache classes without a figure of their
    own cost what input costs. None begins in the past once the model had a price: calls are charged by it already.
    Raises PriceRefused.
    """
    _check(provider, model, usd_per_million)
    now = _lock(provider, model)
    begins = valid_from or now
    rows = list(_in_force(provider, model).filter(Q(valid_to=None) | Q(valid_to__gt=begins)).order_by("valid_from"))
    running = next((row for row in rows if row.valid_from <= begins), None)
    if running and _figures(running) == dict(usd_per_million):
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
        provider=provider, model=model, valid_from=begins, valid_to=following, source=source, created_at=now
    )
    PriceComponent.objects.bulk_create(
        PriceComponent(price=price, meter=meter, usd=usd, per=int(MILLION)) for meter, usd in usd_per_million.items()
    )
    return price, True


@dataclass(slots=True)
class Imported:
    """What an import did: names of models, and why others were left out."""

    source: str
    added: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def import_prices(now: datetime | None = None) -> Imported:
    """Takes over the flat prices of OpenAI's and Anthropic's models from genai-prices; touches no price set by hand."""
    imported = Imported(f"genai-prices {importlib.metadata.version('genai-prices')}")
    for provider, model, figures in _offered(now or datetime.now(UTC)):
        name = f"{provider}/{model}"
        if isinstance(figures, str):
            imported.skipped[name] = figures
        elif _is_set_by_hand(provider, model):
            imported.skipped[name] = "its price is set by hand"
        else:
            _, is_new = set_price(provider=provider, model=model, usd_per_million=figures, source=imported.source)
            (imported.added if is_new else imported.unchanged).append(name)
    return imported


def _check(provider: str, model: str, usd_per_million: Mapping[str, Decimal]) -> None:
    if not _PROVIDER.fullmatch(provider):
        raise PriceRefused(f"The provider {provider[:60]!a} is not allowed; use up to 60 small letters, digits, . _ -")
    if not _MODEL.fullmatch(model) or model == "*":
        raise PriceRefused(f"The model {model[:60]!a} is not allowed; use up to 200 printable ASCII characters.")
    unknown = set(usd_per_million) - set(METERS)
    if unknown:
        raise PriceRefused(f"Unknown: {', '.join(sorted(unknown))}; a price has the classes {', '.join(METERS)}.")
    missing = {"input", "output"} - set(usd_per_million)
    if missing:
        raise PriceRefused(f"A price needs input and output; {' and '.join(sorted(missing))} was not given.")


def _lock(provider: str, model: str) -> datetime:
    """One writer at a time for each model; returns the database's time, later than that of the writer before."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", [f"{provider} {model}"])
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone() or [None]
    assert isinstance(now, datetime)  # noqa: S101 - for the type checker
    return now


def _in_force(provider: str, model: str) -> Any:
    """Rows that ever apply; a withdrawn one has an empty range."""
    return Price.objects.filter(provider=provider, model=model).exclude(valid_to=F("valid_from"))


def _figures(price: Price) -> dict[str, Decimal]:
    return {part.meter: part.usd * MILLION / part.per for part in price.components.all()}


def _is_set_by_hand(provider: str, model: str) -> bool:
    """Whether a price of ours, now or announced, was not imported."""
    here = _in_force(provider, model).filter(Q(valid_to=None) | Q(valid_to__gt=datetime.now(UTC)))
    return bool(here.exclude(source__startswith="genai-prices ").exists())


# --- genai-prices -----------------------------------------------------------------------------------------------------
_CLASSES = {  # ours: theirs, the first one given
    "input": ("input_mtok",),
    "cache_read": ("cache_read_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok"),
    "output": ("output_mtok",),
}
# Fees for tools that the gateway refuses, since it cannot bound them; they do not stand in the way of the rest.
_REFUSED_TOOLS = {"web_searches_kcount", "storage_searches_kcount"}
_KNOWN = {theirs for names in _CLASSES.values() for theirs in names} | _REFUSED_TOOLS
_NOT_TEXT = re.compile(r"audio|realtime|transcribe|whisper|tts|image|live|embedding|moderation")
_PAID_PER_CALL = re.compile(r"search|deep-research|computer-use")


def _offered(now: datetime) -> Iterator[tuple[str, str, dict[str, Decimal] | str]]:
    """(provider, model, USD per million by class, or the reason why they cannot be ours)."""
    from genai_prices import data_snapshot  # noqa: PLC0415 - 40 MB that only an import needs

    snapshot = data_snapshot.get_snapshot()
    for provider in snapshot.providers:
        if provider.id not in {"openai", "anthropic"}:
            continue
        for name in sorted(_names(provider)):
            model = provider.find_model(name)
            if model and not name.startswith("ft:"):  # fine-tuned models have names that no list can know
                yield provider.id, name, _representable(name, model, now)


def _names(provider: Any) -> set[str]:
    """The exact names that genai-prices knows, and the dated ones that the vendors' SDKs list."""
    from anthropic.types import Model  # noqa: PLC0415 - as above
    from openai.types import ChatModel  # noqa: PLC0415

    listed = ChatModel if provider.id == "openai" else Model
    return {
        *_literals(listed),
        *(model.id for model in provider.models),
        *(name for model in provider.models for name in _equals(model.match)),
    }


def _literals(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from _literals(part)


def _equals(clause: Any) -> Iterator[str]:
    if hasattr(clause, "equals"):
        yield clause.equals
    for part in getattr(clause, "or_", []):
        yield from _equals(part)


def _representable(name: str, model: Any, now: datetime) -> dict[str, Decimal] | str:
    given = {key: price for key, price in vars(model.get_prices(now)).items() if price is not None}
    if _NOT_TEXT.search(name):
        return "not a model of text"
    if _PAID_PER_CALL.search(name):
        return "has fees for each call"
    if odd := sorted(set(given) - _KNOWN):
        return f"has prices for {', '.join(odd)}"
    if any(not isinstance(price, Decimal) for price in given.values()):
        return "its price depends on the length of the context"
    if any(not hasattr(each.constraint, "start_date") for each in _conditional(model)):
        return "its price depends on the time of day"
    found = {ours: next((given[key] for key in theirs if key in given), None) for ours, theirs in _CLASSES.items()}
    figures = {meter: usd for meter, usd in found.items() if usd is not None}
    return figures if {"input", "output"} <= figures.keys() else "has no price for input and output"


def _conditional(model: Any) -> list[Any]:
    """Its prices that hold under a condition."""
    return [each for each in model.prices if each.constraint] if isinstance(model.prices, list) else []
