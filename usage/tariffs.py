"""What tenants pay instead of list prices: plans, tariffs, and which of them apply to a call; frozen when it is held.

By figure: what is fixed for the tenant, else the list price with the tenant's markup, else what is fixed for its plan, else the
list price with the plan's markup, else the list price. A tariff of the model goes before one of the provider, and that before
one of all.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from aiplatform.lib import money, postgres
from usage.pricing import STANDARD, WHOLE, Part, Tariff

SANDBOX = "sandbox"


class Rule(NamedTuple):
    """A row of tariffs."""

    tenant_id: UUID | None
    plan_id: int | None
    provider: str
    model: str
    markup_bps: int | None
    parts: tuple[Part, ...]
    valid_from: datetime
    valid_to: datetime | None


class Assignment(NamedTuple):
    """The plan of a tenant in a span of time."""

    plan_id: int
    charges_retries: bool
    own_key_bps: int
    cache_hit_bps: int
    valid_from: datetime
    valid_to: datetime | None


@dataclass(slots=True)
class TariffBook:
    """All tariffs and plans that apply now or later. Immutable once read, but for what `frozen` remembers."""

    of_tenant: dict[UUID, list[Rule]] = field(default_factory=dict)
    of_plan: dict[int, list[Rule]] = field(default_factory=dict)
    plans: dict[UUID, list[Assignment]] = field(default_factory=dict)
    frozen: dict[bytes, Tariff] = field(default_factory=dict)

    def tariff(self, tenant_id: UUID, provider: str, model: str, now: datetime) -> Tariff | None:
        """What this tenant pays instead of the list price, frozen; None where it pays the list price.

        The built-in provider is free for everybody. Raises Unavailable where a combination is new and cannot be written.
        """
        if (tenant_id not in self.plans and tenant_id not in self.of_tenant) or provider == SANDBOX:
            return None
        own = _applying(self.of_tenant.get(tenant_id, ()), provider, model, now)
        plan = self._plan(tenant_id, now)
        offered = _applying(self.of_plan.get(plan.plan_id, ()), provider, model, now) if plan else []
        content = _combined(own, offered, charges_retries=bool(plan and plan.charges_retries))
        if content is None:
            return None
        return self._frozen(*content)

    def own_key(self, tenant_id: UUID, now: datetime) -> Tariff:
        """What a tenant pays for a call on a credential of its own: nothing, or the fee of its plan, of the list price.

        Raises Unavailable where a combination is new and cannot be written.
        """
        plan = self._plan(tenant_id, now)
        return self._frozen((plan.own_key_bps if plan else 0) - WHOLE, (), charges_retries=False, own_key=True)

    def cache_share(self, tenant_id: UUID, now: datetime) -> int:
        """What this tenant's plan takes of what an answer that is given again saves, in basis points."""
        plan = self._plan(tenant_id, now)
        return plan.cache_hit_bps if plan else 0

    def _plan(self, tenant_id: UUID, now: datetime) -> Assignment | None:
        return next((one for one in self.plans.get(tenant_id, ()) if _covers(one, now)), None)

    def _frozen(
        self, markup_bps: int, fixed: tuple[Part, ...], charges_retries: bool, *, own_key: bool = False
    ) -> Tariff:
        key = _canonical(markup_bps, fixed, charges_retries, own_key)
        if key not in self.frozen:
            self.frozen[key] = _freeze(key, Tariff(0, markup_bps, fixed, charges_retries, own_key))
        return self.frozen[key]


def load() -> TariffBook:
    """Reads what applies now or later."""
    book = TariffBook()
    for row in postgres.run(
        """SELECT tenant_id, plan_id, provider, model, markup_bps, components, valid_from, valid_to FROM usage_tariff
           WHERE valid_to IS NULL OR (valid_to > now() AND valid_to > valid_from)"""
    ):
        rule = Rule(*row)._replace(parts=parts(row.components))
        if rule.tenant_id is not None:
            book.of_tenant.setdefault(rule.tenant_id, []).append(rule)
        elif rule.plan_id is not None:
            book.of_plan.setdefault(rule.plan_id, []).append(rule)
    for row in postgres.run(
        """SELECT a.tenant_id, p.id, p.charges_retries, p.own_key_bps, p.cache_hit_bps, a.valid_from, a.valid_to
           FROM usage_planassignment a JOIN usage_plan p ON p.id = a.plan_id WHERE a.valid_to IS NULL OR a.valid_to > now()"""
    ):
        book.plans.setdefault(row[0], []).append(Assignment(*row[1:]))
    return book


def frozen(tariff_id: int) -> Tariff:
    """The combination that a call was held by."""
    (row,) = postgres.run(
        "SELECT id, markup_bps, components, charges_retries, own_key FROM usage_frozentariff WHERE id = %s", [tariff_id]
    )
    return of_row(row)


def of_row(row: Any) -> Tariff:
    return Tariff(row.id, row.markup_bps, parts(row.components), row.charges_retries, row.own_key)


def parts(components: Iterable[dict[str, Any]]) -> tuple[Part, ...]:
    """Figures as JSON keeps them."""
    return tuple(
        Part(one["variant"], one["meter"], one["tier_from"], Decimal(one["usd"]), one["per"]) for one in components
    )


def components(of: Iterable[Part]) -> list[dict[str, Any]]:
    """The other way round, in one order, and each amount in one form: the same figures are the same JSON."""
    return [
        {"variant": one.variant, "meter": one.meter, "tier_from": one.tier_from, "usd": plain(one.usd), "per": one.per}
        for one in sorted(of)
    ]


def told(component: dict[str, Any]) -> str:
    """`input 0.15`, `input@200000/batch 0.3`, `web_search 10 per 1,000`, as people and commands write it."""
    tier = f"@{component['tier_from']}" if component["tier_from"] else ""
    variant = "" if component["variant"] == STANDARD else f"/{component['variant']}"
    per = "" if component["per"] == money.MILLION else f" per {component['per']:,}"
    return f"{component['meter']}{tier}{variant} {component['usd']}{per}"


def plain(usd: Decimal) -> str:
    """Without exponent and without zeros at the end: `0.15`."""
    return f"{usd.normalize():f}"


def _covers(one: Rule | Assignment, now: datetime) -> bool:
    return one.valid_from <= now and (one.valid_to is None or now < one.valid_to)


def _applying(rules: Sequence[Rule], provider: str, model: str, now: datetime) -> list[Rule]:
    """The most specific first."""
    found = [
        rule for rule in rules if rule.provider in {"", provider} and rule.model in {"", model} and _covers(rule, now)
    ]
    return sorted(found, key=lambda rule: (rule.model == "", rule.provider == ""))


def _combined(
    own: Sequence[Rule], offered: Sequence[Rule], *, charges_retries: bool
) -> tuple[int, tuple[Part, ...], bool] | None:
    """(markup, fixed figures, whether retries are charged); None where that is the list price."""
    fixed = list(_fixed(own))
    markup = _first(rule.markup_bps for rule in own)
    if markup is None:  # the tenant's own markup goes before all that its plan says
        fixed += (part for part in _fixed(offered) if not _has(fixed, part))
        markup = _first(rule.markup_bps for rule in offered)
    if not fixed and not markup and not charges_retries:
        return None
    return markup or 0, tuple(sorted(fixed)), charges_retries


def _fixed(rules: Sequence[Rule]) -> Iterator[Part]:
    """Only a tariff of a model fixes figures, and only one of a scope applies at a time."""
    for rule in rules:
        yield from rule.parts


def _has(fixed: Iterable[Part], part: Part) -> bool:
    return any((one.variant, one.meter) == (part.variant, part.meter) for one in fixed)


def _first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


_dumps: Callable[[Any], bytes] = orjson.dumps


def _canonical(markup_bps: int, fixed: tuple[Part, ...], charges_retries: bool, own_key: bool) -> bytes:
    return _dumps([markup_bps, components(fixed), charges_retries, *(["own key"] if own_key else [])])


def _freeze(key: bytes, tariff: Tariff) -> Tariff:
    digest = hashlib.sha256(key).hexdigest()
    figures = _dumps(components(tariff.parts)).decode()
    postgres.run(
        """INSERT INTO usage_frozentariff (sha256, markup_bps, components, charges_retries, own_key, created_at)
           VALUES (%s, %s, %s::jsonb, %s, %s, now()) ON CONFLICT (sha256) DO NOTHING""",
        [digest, tariff.markup_bps, figures, tariff.charges_retries, tariff.own_key],
    )
    (row,) = postgres.run("SELECT id FROM usage_frozentariff WHERE sha256 = %s", [digest])
    return tariff._replace(id=row.id)
