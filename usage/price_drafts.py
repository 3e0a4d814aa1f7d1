"""Drafts of prices: what sources say, approved where two of them agree, and by a person otherwise. Never an average."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
from django.db import transaction

from aiplatform.lib.errors import ApiError
from aiplatform.lib.money import MILLION
from usage import price_sources, pricebook
from usage.models import Price, PriceDraft
from usage.price_sources import Source
from usage.pricing import STANDARD, Part
from usage.tariffs import components, parts, plain

_IMPORTED = "genai-prices "


class DraftNotOpen(ApiError):
    """There is no such draft, or it has been decided about; `manage.py prices_review` lists the open ones."""


@dataclass(slots=True)
class Imported:
    """What an import did: names of models, and why others were left out."""

    source: str
    second_source: str
    approved: list[str] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def import_prices(*, second: Source | None = None, now: datetime | None = None) -> Imported:
    """Drafts of the prices that genai-prices has; in force at once where the second source says the same."""
    first, second = price_sources.genai_prices(now or datetime.now(UTC)), second or price_sources.second_source()
    imported = Imported(first.title, second.title)
    imported.skipped = {"/".join(name): reason for name, reason in first.left_out.items()}
    for (provider, model), offered in first.parts.items():
        name = f"{provider}/{model}"
        outcome = _import_one(provider, model, offered, first, second)
        if outcome is None:
            imported.unchanged.append(name)
        elif outcome:
            imported.waiting[name] = outcome
        else:
            imported.approved.append(name)
    return imported


def approve(draft_id: int, *, by: str, valid_from: datetime | None = None, reason: str = "") -> PriceDraft:
    """Puts a draft in force from `valid_from` (default: now) on; raises DraftNotOpen or PriceRefused."""
    with transaction.atomic():
        return _accept(_open(draft_id), by, valid_from, reason)


def reject(draft_id: int, *, by: str, reason: str) -> PriceDraft:
    """Closes a draft; the same figures of the same source do not come again. Raises DraftNotOpen."""
    with transaction.atomic():
        return _decide(_open(draft_id), PriceDraft.Decision.REJECTED, by, reason)


def review() -> list[dict[str, Any]]:
    """The open drafts with what they would change, and where the sources differ."""
    return [
        {
            "draft": draft.pk,
            "provider": draft.provider,
            "model": draft.model,
            "source": f"{draft.source} {draft.source_version}",
            "created_at": draft.created_at.isoformat(),
            "why": draft.reason,
            "changes": _differences(_current_parts(draft), parts(draft.components), ("now", "draft")),
            "second_source": draft.second_source and draft.second_source["name"],
            "disagreements": [
                one
                for one in _differences(
                    parts(draft.components),
                    parts((draft.second_source or {}).get("components", [])),
                    ("draft", "second"),
                )
                if draft.second_source
            ],
        }
        for draft in PriceDraft.objects.filter(decision="").order_by("provider", "model")
    ]


def disagreements(first: Iterable[Part], second: Iterable[Part]) -> list[str]:
    """What both know and tell differently. A meter's tiers belong together: a flat price is no tiered one."""
    ours, theirs = _by_meter(first), _by_meter(second)
    return [f"{meter} ({variant})" for variant, meter in ours if (variant, meter) in theirs
            and ours[variant, meter] != theirs[variant, meter]]  # fmt: skip


@transaction.atomic
def _import_one(provider: str, model: str, offered: list[Part], first: Source, second: Source) -> str | None:
    """None where nothing changes, "" where the price is in force now, else why it waits for a person."""
    price = pricebook.current(provider, model)
    opened = PriceDraft.objects.select_for_update().filter(provider=provider, model=model, decision="").first()
    if price is not None and pricebook.same(pricebook.parts_of(price), offered):
        if opened:
            _decide(opened, PriceDraft.Decision.SUPERSEDED, first.title, "these figures are in force")
        return None
    figures = components(offered)
    digest = hashlib.sha256(orjson.dumps(figures)).hexdigest()
    if PriceDraft.objects.filter(
        provider=provider, model=model, source=first.name, sha256=digest, decision=PriceDraft.Decision.REJECTED
    ).exists():
        return "was rejected"
    if opened and opened.sha256 != digest:
        _decide(opened, PriceDraft.Decision.SUPERSEDED, first.title, "newer figures came")
        opened = None
    draft = opened or PriceDraft(provider=provider, model=model, source=first.name, sha256=digest, components=figures)
    other = second.parts.get((provider, model))
    draft.source_version = first.version
    draft.second_source = other and {"name": second.title, "components": components(other)}
    draft.reason = _why_a_person(provider, model, offered, other)
    draft.save()
    if draft.reason:
        return draft.reason
    _accept(draft, f"two sources: {first.title}, {second.title}", None, "")
    return ""


def _why_a_person(provider: str, model: str, offered: list[Part], other: list[Part] | None) -> str:
    """Why two sources do not suffice; empty where they do."""
    if _is_set_by_hand(provider, model):
        return "its price is set by hand"
    known = {part.meter for part in other or () if part.variant == STANDARD}
    if other is None or not {"input", "output"} <= known:
        return "only one source knows it"
    if differing := disagreements(offered, other):
        return f"sources differ: {', '.join(differing)}"
    return ""


def _accept(draft: PriceDraft, by: str, valid_from: datetime | None, reason: str) -> PriceDraft:
    draft.price, _ = pricebook.set_price(
        provider=draft.provider,
        model=draft.model,
        parts=parts(draft.components),
        valid_from=valid_from,
        source=f"{draft.source} {draft.source_version}",
    )
    return _decide(draft, PriceDraft.Decision.ACCEPTED, by, reason)


def _decide(draft: PriceDraft, decision: PriceDraft.Decision, by: str, reason: str) -> PriceDraft:
    draft.decision, draft.decided_by, draft.decided_at = decision, by, datetime.now(UTC)
    draft.reason = reason or draft.reason
    draft.save()
    return draft


def _open(draft_id: int) -> PriceDraft:
    draft = PriceDraft.objects.select_for_update().filter(pk=draft_id, decision="").first()
    if draft is None:
        raise DraftNotOpen(f"There is no open draft {draft_id}; `manage.py prices_review` lists what is open.")
    return draft


def _is_set_by_hand(provider: str, model: str) -> bool:
    """Whether a price of ours, now or announced, was not imported."""
    ours = pricebook.in_force(provider, model).exclude(valid_to__lte=datetime.now(UTC))
    return bool(ours.exclude(source__startswith=_IMPORTED).exists())


def _current_parts(draft: PriceDraft) -> list[Part]:
    price: Price | None = pricebook.current(draft.provider, draft.model)
    return pricebook.parts_of(price) if price else []


def _by_meter(of: Iterable[Part]) -> dict[tuple[str, str], dict[int, Decimal]]:
    found: dict[tuple[str, str], dict[int, Decimal]] = {}
    for part in of:
        found.setdefault((part.variant, part.meter), {})[part.tier_from] = part.usd * (MILLION / part.per)
    return found


def _differences(before: Iterable[Part], after: Iterable[Part], names: tuple[str, str]) -> list[dict[str, Any]]:
    """Figures of a million units that differ, None where there is none."""
    old, new = _flat(before), _flat(after)
    return [
        {
            "variant": key[0],
            "meter": key[1],
            "tier_from": key[2],
            names[0]: _shown(old, key),
            names[1]: _shown(new, key),
        }
        for key in _keys(old, new)
        if old.get(key) != new.get(key)
    ]


def _keys(*of: dict[tuple[str, str, int], Decimal]) -> Iterator[tuple[str, str, int]]:
    yield from sorted({key for each in of for key in each})


def _flat(of: Iterable[Part]) -> dict[tuple[str, str, int], Decimal]:
    return {
        (variant, meter, tier): usd for (variant, meter), tiers in _by_meter(of).items() for tier, usd in tiers.items()
    }


def _shown(of: dict[tuple[str, str, int], Decimal], key: tuple[str, str, int]) -> str | None:
    return plain(of[key]) if key in of else None
