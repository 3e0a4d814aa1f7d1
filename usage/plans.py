"""Writes plans and tariffs: like prices they are never changed, only succeeded, and only from now on."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q

from aiplatform.lib.errors import ApiError
from tenants.models import Tenant
from usage import pricebook
from usage.models import Plan, PlanAssignment, Price, Tariff
from usage.pricing import WHOLE, Part
from usage.tariffs import components

DEAREST_BPS = 100 * WHOLE


class TariffRefused(ApiError):
    """A tariff cannot be set like this."""


@transaction.atomic
def set_plan(
    *,
    name: str,
    markup_bps: int | None = None,
    charges_retries: bool | None = None,
    own_key_bps: int | None = None,
    cache_hit_bps: int | None = None,
) -> tuple[Plan, bool]:
    """The plan of this name, made if need be; what is None stays as it is. Raises TariffRefused."""
    if own_key_bps is not None and not 0 <= own_key_bps <= WHOLE:
        raise TariffRefused(f"A fee is between 0 and {WHOLE} basis points of the list price, not {own_key_bps}.")
    if cache_hit_bps is not None and not 0 <= cache_hit_bps <= WHOLE:
        raise TariffRefused(f"A share is between 0 and {WHOLE} basis points of what was saved, not {cache_hit_bps}.")
    plan, created = Plan.objects.get_or_create(name=name)
    if cache_hit_bps is not None and plan.cache_hit_bps != cache_hit_bps:
        plan.cache_hit_bps = cache_hit_bps
        plan.save(update_fields=["cache_hit_bps"])
    if own_key_bps is not None and plan.own_key_bps != own_key_bps:
        plan.own_key_bps = own_key_bps
        plan.save(update_fields=["own_key_bps"])
    if charges_retries is not None and plan.charges_retries != charges_retries:
        plan.charges_retries = charges_retries
        plan.save(update_fields=["charges_retries"])
    if markup_bps is not None:
        set_tariff(plan=plan, markup_bps=markup_bps)
    return plan, created


@transaction.atomic
def assign_plan(*, tenant: Tenant, plan: Plan | None, valid_from: datetime | None = None) -> PlanAssignment | None:
    """The tenant's plan from `valid_from` (default: now) on; None ends the one it has. Raises TariffRefused."""
    now = _lock(f"plan of {tenant.pk}")
    begins = _begins(valid_from, now)
    rows = PlanAssignment.objects.filter(tenant=tenant).exclude(valid_to=F("valid_from"))
    running: PlanAssignment | None
    running, following = _around(rows, begins)
    if (running.plan if running else None) == plan:
        return running
    if running:
        PlanAssignment.objects.filter(pk=running.pk).update(valid_to=begins)
    if plan is None:
        return None
    return PlanAssignment.objects.create(tenant=tenant, plan=plan, valid_from=begins, valid_to=following)


@transaction.atomic
def set_tariff(
    *,
    tenant: Tenant | None = None,
    plan: Plan | None = None,
    provider: str = "",
    model: str = "",
    markup_bps: int | None = None,
    parts: Iterable[Part] = (),
    valid_from: datetime | None = None,
) -> tuple[Tariff, bool]:
    """What a tenant or the tenants of a plan pay from `valid_from` (default: now) on, and whether it is new.

    `markup_bps` is in hundredths of a percent, less than 0 a discount; `parts` are fixed figures of one model. It takes the
    place of the tariff before it of the same scope, provider and model. Raises TariffRefused or PriceRefused.
    """
    parts = sorted(parts)
    _check(provider, model, markup_bps, parts)
    now = _lock(f"tariff of {tenant.pk if tenant else ''} {plan.pk if plan else ''} {provider} {model}")
    begins = _begins(valid_from, now)
    rows = Tariff.objects.filter(tenant=tenant, plan=plan, provider=provider, model=model).exclude(
        valid_to=F("valid_from")
    )
    running, following = _around(rows, begins)
    figures = components(parts)
    if running and (running.markup_bps, running.components) == (markup_bps, figures):
        return running, False
    if running:
        Tariff.objects.filter(pk=running.pk).update(valid_to=begins)
    tariff = Tariff.objects.create(
        tenant=tenant, plan=plan, provider=provider, model=model, markup_bps=markup_bps, components=figures,
        valid_from=begins, valid_to=following, created_at=now,
    )  # fmt: skip
    return tariff, True


def _check(provider: str, model: str, markup_bps: int | None, parts: list[Part]) -> None:
    if markup_bps is None and not parts:
        raise TariffRefused("A tariff needs a markup or a component.")
    if markup_bps is not None and not -WHOLE <= markup_bps <= DEAREST_BPS:
        raise TariffRefused(f"A markup is between -10000 (free) and {DEAREST_BPS} basis points, not {markup_bps}.")
    if model and not provider:
        raise TariffRefused("A tariff of a model needs its provider.")
    if parts and not model:
        raise TariffRefused("Fixed components are those of one model; give --provider and --model.")
    pricebook.check_parts(parts)
    if model and not Price.objects.filter(provider=provider, model=model).exists():
        raise TariffRefused(
            f"There is no price of {model!r} of {provider!r} yet; the operator sets one with price_set."
        )


def _begins(valid_from: datetime | None, now: datetime) -> datetime:
    if valid_from is not None and valid_from < now:
        raise TariffRefused("A tariff begins now or later: until now, calls were charged by the one before.")
    return valid_from or now


def _around(rows: Any, begins: datetime) -> tuple[Any, datetime | None]:
    """The row that applies at that moment, and when the next one begins."""
    open_ = list(rows.filter(Q(valid_to=None) | Q(valid_to__gt=begins)).order_by("valid_from"))
    running = next((row for row in open_ if row.valid_from <= begins), None)
    return running, min((row.valid_from for row in open_ if row.valid_from > begins), default=None)


def _lock(what: str) -> datetime:
    """One writer at a time; the database's time, later than that of the writer before."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 2))", [what])
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone() or [None]
    assert isinstance(now, datetime)  # noqa: S101 - for the type checker
    return now
