"""Late fixes of prices: calls are rated again by the figures that should have been, and the differences booked as new entries.

The price row, the calls' frozen figures and the entries before stay as they are (`usage.ledger.correct`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from django.db.models import F, Q

from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import Usage
from usage import ledger, pricebook, tariffs
from usage.ledger import Correction
from usage.models import Price, PriceFix
from usage.pricing import STANDARD, Cost, Part, Rates, Tariff, Version

AT_ONCE = 200


class FixRefused(ApiError):
    """A price cannot be fixed like this."""


@dataclass(slots=True)
class Fixed:
    """What a fix did, or would do, in nano-USD: less than 0 is in the tenants' favour, `house` is what they do not pay."""

    prices: int = 0
    calls: int = 0
    corrected_calls: int = 0
    charge_delta_nano: int = 0
    cost_delta_nano: int = 0
    house_delta_nano: int = 0


@dataclass(slots=True)
class _Plan:
    """One price's fix: its figures, and those of the fixes before, which stay in force for what they covered."""

    price: Price
    parts: tuple[Part, ...]
    span: tuple[datetime, datetime]
    earlier: list[PriceFix] = field(default_factory=list)
    sheets: dict[tuple[Any, ...], Rates] = field(default_factory=dict)

    def cost(self, row: Any) -> Cost:
        """What a call should have cost."""
        covering = tuple(fix.pk for fix in self.earlier if fix.span_from <= row.admitted_at < fix.span_to)
        key = (*covering, None, row.tariff_id)
        if key not in self.sheets:
            parts = pricebook.parts_of(self.price)
            for one in self.earlier:
                if one.pk in covering:
                    parts = _overlaid(parts, tariffs.parts(one.components))
            parts = _overlaid(parts, self.parts)
            pricebook.check_parts(parts)
            version = Version(self.price.pk, self.price.provider, self.price.model, *self.span)
            self.sheets[key] = Rates(version, parts, _tariff(row.tariff_id))
        return self.sheets[key].cost(_usage(row))


def fix(
    *,
    provider: str,
    model: str,
    span: tuple[datetime, datetime],
    parts: Sequence[Part],
    reason: str,
    by: str,
    charge_tenant: bool = False,
    dry_run: bool = False,
) -> Fixed:
    """Rates all settled calls of the span [from, to) again, with `parts` instead of the figures of their meters and variants.

    What tenants paid too much is given back; what they paid too little is the house's, but with `charge_tenant` theirs as far
    as their caps afford. Safe to break off and run again; what is right already is left alone. Raises FixRefused or
    PriceRefused.
    """
    if span[0] >= span[1] or span[0] > datetime.now(UTC):
        raise FixRefused("The span to fix must begin in the past, and before it ends.")
    if not parts:
        raise FixRefused("Nothing is fixed: name the components that were wrong.")
    pricebook.check_parts(parts)
    _tariff.cache_clear()
    total = Fixed()
    for price in _prices(provider, model, span):
        plan = _Plan(price, tuple(parts), span, list(PriceFix.objects.filter(price=price).order_by("id")))
        found = _looked_through(plan)
        total.prices += 1
        if found.corrected_calls and not dry_run:
            record = PriceFix.objects.create(
                price=price, components=tariffs.components(parts), span_from=span[0], span_to=span[1], reason=reason,
                decided_by=by, charge_tenant=charge_tenant,
            )  # fmt: skip
            found = _booked(plan, record)
        for name in ("calls", "corrected_calls", "charge_delta_nano", "cost_delta_nano", "house_delta_nano"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
    if not total.prices:
        raise FixRefused(f"{provider} {model} had no price in that span.")
    return total


def _prices(provider: str, model: str, span: tuple[datetime, datetime]) -> Iterable[Price]:
    rows = Price.objects.filter(provider=provider, model=model, valid_from__lt=span[1])
    found: Iterable[Price] = (
        rows.exclude(valid_to=F("valid_from")).exclude(Q(valid_to__lte=span[0])).order_by("valid_from")
    )
    return found


def _looked_through(plan: _Plan) -> Fixed:
    """What would change, as if all of it were charged."""
    found = Fixed()
    for rows in _batches(plan):
        found.calls += len(rows)
        for row, correction in _wrong(plan, rows):
            found.corrected_calls += 1
            found.charge_delta_nano += correction.charge_nano - row.charged_nano - row.corrected_nano
            found.cost_delta_nano += correction.provider_cost_nano - row.provider_cost_nano
    return found


def _booked(plan: _Plan, record: PriceFix) -> Fixed:
    found = Fixed()
    for rows in _batches(plan):
        found.calls += len(rows)
        wrong = [correction for _, correction in _wrong(plan, rows)]
        done = ledger.correct(
            wrong, reason=f"price fix {record.pk}: {record.reason}", charge_tenant=record.charge_tenant
        )
        found.corrected_calls += len(done)
        found.charge_delta_nano += sum(row.charged_delta_nano for row in done.values())
        found.cost_delta_nano += sum(row.cost_delta_nano for row in done.values())
        found.house_delta_nano += sum(row.house_nano for row in done.values())
    PriceFix.objects.filter(pk=record.pk).update(
        calls=found.calls, corrected_calls=found.corrected_calls, charge_delta_nano=found.charge_delta_nano,
        cost_delta_nano=found.cost_delta_nano, ended_at=datetime.now(UTC),
    )  # fmt: skip
    return found


def _wrong(plan: _Plan, rows: Iterable[Any]) -> Iterator[tuple[Any, Correction]]:
    """The calls whose figures are not what they should be. What the house took over was charged to nobody, and is right."""
    for row in rows:
        cost = plan.cost(row)
        charge, provider_cost = (
            cost.charge_nano + row.retried_charge_nano,
            cost.provider_cost_nano + row.retried_cost_nano,
        )
        borne = row.charged_nano + row.corrected_nano + row.platform_loss_nano
        if (borne, row.provider_cost_nano) != (charge, provider_cost):
            yield row, Correction(row.id, charge, provider_cost)


def _batches(plan: _Plan) -> Iterator[list[Any]]:
    """Settled calls of the price that were admitted in the span, by id, which is time but for their way through admission."""
    last = None
    while True:
        rows = postgres.run(
            """SELECT id, tariff_id, admitted_at, input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
                   output_tokens, reasoning_tokens, meters, variant, charged_nano, corrected_nano, platform_loss_nano,
                   provider_cost_nano, retried_cost_nano, retried_charge_nano
               FROM usage_call
               WHERE id > coalesce(%s::uuid, usage_uuid_at(%s::timestamptz - interval '1 hour'))
                 AND id < usage_uuid_at(%s::timestamptz + interval '1 hour')
                 AND price_id = %s AND state = 'settled' AND admitted_at >= %s AND admitted_at < %s
               ORDER BY id LIMIT %s""",
            [last, *plan.span, plan.price.pk, *plan.span, AT_ONCE],
            patience=60,
        )
        if not rows:
            return
        yield rows
        last = rows[-1].id


def _overlaid(parts: Sequence[Part], fixed: Sequence[Part]) -> list[Part]:
    """All tiers of a meter and variant are replaced where one of them is fixed."""
    replaced = {(part.variant, part.meter) for part in fixed}
    return [*(part for part in parts if (part.variant, part.meter) not in replaced), *fixed]


def _usage(row: Any) -> Usage:
    return Usage(
        row.input_tokens, row.cache_read_tokens, row.cache_write_5m_tokens, row.cache_write_1h_tokens, row.output_tokens,
        row.reasoning_tokens, row.meters or {}, row.variant or STANDARD,
    )  # fmt: skip


@cache
def _tariff(tariff_id: int | None) -> Tariff | None:
    return None if tariff_id is None else tariffs.frozen(tariff_id)
