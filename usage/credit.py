"""Prepaid credit: grants, their order of burning, and what each call burnt of which.

A tenant with a grant is prepaid: each of his calls must find its hold in what is left (a cap of mode `credit`), and its charge
burns grants by priority, then earliest expiry, then age, in the statement that settles it.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q
from django.utils import timezone

from aiplatform.lib import ids, money, postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from tenants.lookup import NotFound
from tenants.models import Tenant
from usage.models import CreditConsumption, CreditGrant, SpendingCap
from usage.standings import Standing, of_tenant_as_a_whole

MOST_USD = 9_000_000_000
SMALLEST, LARGEST = -32_768, 32_767  # of a priority
LONGEST_NOTE = 200
AT_ONCE = 500


class GrantRefused(ApiError):
    """Credit cannot be granted like this."""


@dataclass(frozen=True, slots=True)
class Balance:
    """A tenant's credit in nano-USD: what was granted and has not expired, what of it is burnt, what calls in flight hold."""

    granted_nano: int
    burnt_nano: int
    held_nano: int

    @property
    def left_nano(self) -> int:
        return self.granted_nano - self.burnt_nano

    @property
    def available_nano(self) -> int:
        """What a new call may still hold."""
        return self.left_nano - self.held_nano

    def as_json(self) -> dict[str, str]:
        return {
            "granted_usd": money.usd(self.granted_nano),
            "burnt_usd": money.usd(self.burnt_nano),
            "left_usd": money.usd(self.left_nano),
            "held_usd": money.usd(self.held_nano),
            "available_usd": money.usd(self.available_nano),
        }


def grant(
    *,
    tenant: Tenant,
    amount_nano: int,
    category: str,
    priority: int = 100,
    expires_at: datetime | None = None,
    note: str = "",
) -> CreditGrant:
    """Grants credit, and with the first grant makes the tenant prepaid: what he spends from then on burns credit.

    Calls already in flight stay as they were admitted. Raises GrantRefused.
    """
    if not 0 < amount_nano <= MOST_USD * money.NANO:
        raise GrantRefused(f"A grant is above 0 and at most {MOST_USD} USD.")
    if category not in CreditGrant.Category.values:
        raise GrantRefused(f"The category {category[:40]!a} is unknown; it is paid or promotional.")
    if not SMALLEST <= priority <= LARGEST:
        raise GrantRefused(f"A priority is from {SMALLEST} to {LARGEST}; the lowest is burnt first.")
    if expires_at and expires_at <= timezone.now():
        raise GrantRefused("A grant expires in the future, or never.")
    if len(note) > LONGEST_NOTE or not note.isprintable():
        raise GrantRefused(f"A note is at most {LONGEST_NOTE} printable characters.")
    pk = ids.uuid7()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT usage_grant_credit(%s::uuid, %s::uuid, %s, %s, %s::smallint, %s, %s)",
            [tenant.pk, pk, amount_nano, category, priority, expires_at, note],
        )
    log.info("credit.granted", tenant=str(tenant.pk), grant=str(pk), amount_nano=amount_nano, category=category)
    return CreditGrant.objects.get(pk=pk)


def expire() -> int:
    """Forfeits what has expired and no open hold needs; a sweeper's step. How many grants it moved."""
    return int(postgres.run("SELECT usage_expire_credit(%s) AS expired", [AT_ONCE])[0].expired)


def balance(*, tenant_id: uuid.UUID, now: datetime | None = None) -> Balance | None:
    """None for a tenant who is not prepaid."""
    found = of_tenant_as_a_whole(tenant_id=tenant_id, now=now or timezone.now())
    cap: Standing | None = next((it for it in found if it.is_credit), None)
    return Balance(cap.limit_nano, cap.spent_nano, cap.held_nano) if cap else None


def balances() -> list[dict[str, str]]:
    """Every prepaid tenant with his balance, the least first."""
    rows = SpendingCap.objects.filter(mode=SpendingCap.Mode.CREDIT).select_related("tenant").order_by("tenant__name")
    found = [(cap.tenant, balance(tenant_id=cap.tenant.pk)) for cap in rows if cap.tenant]
    known = [(tenant, it) for tenant, it in found if it]
    return [
        {"tenant": str(tenant.pk), "name": tenant.name, **it.as_json()}
        for tenant, it in sorted(known, key=lambda pair: pair[1].left_nano)
    ]


def account(*, tenant_id: uuid.UUID) -> dict[str, Any]:
    """Balance and grants, ready for JSON; the balance is None for a tenant who is not prepaid."""
    now = balance(tenant_id=tenant_id)
    return {
        "balance": now and now.as_json(),
        "grants": [grant_json(it, order) for order, it in enumerate(grants(tenant_id=tenant_id), 1)],
    }


def grants(*, tenant_id: uuid.UUID) -> list[CreditGrant]:
    """All of a tenant's, in the order in which they burn."""
    its = CreditGrant.objects.filter(tenant_id=tenant_id)
    return list(its.order_by("priority", F("expires_at").asc(nulls_last=True), "id"))


def find(grant_id: str, *, tenant_id: uuid.UUID) -> CreditGrant:
    """This tenant's only; raises NotFound."""
    try:
        return CreditGrant.objects.get(pk=uuid.UUID(grant_id), tenant_id=tenant_id)
    except (ValueError, CreditGrant.DoesNotExist):
        raise NotFound(f"There is no grant {grant_id[:60]!a} here.") from None


def consumption(of: CreditGrant, *, before: tuple[uuid.UUID, int] | None, limit: int) -> list[CreditConsumption]:
    """What calls burnt of a grant, and corrections gave back, newest call first."""
    rows = CreditConsumption.objects.filter(grant_id=of.pk)
    if before:
        rows = rows.filter(Q(call_id__lt=before[0]) | Q(call_id=before[0], seq__lt=before[1]))
    return list(rows.order_by("-call_id", "-seq")[:limit])


def of_call(call_id: uuid.UUID) -> list[dict[str, Any]]:
    """The grants that paid a call, as its receipt shows them; below zero is what a correction gave back."""
    rows = list(CreditConsumption.objects.filter(call_id=call_id).order_by("seq", "created_at", "grant_id"))
    known = CreditGrant.objects.in_bulk({row.grant_id for row in rows}) if rows else {}
    return [
        {
            "grant": str(row.grant_id),
            "category": known[row.grant_id].category,
            "usd": money.usd(row.amount_nano),
            "at": row.created_at.isoformat(),
        }
        for row in rows
    ]


def grant_json(it: CreditGrant, order: int) -> dict[str, Any]:
    """A grant with its place in the order of burning, from 1."""
    left = it.amount_nano - it.burnt_nano - it.expired_nano
    return {
        "grant": str(it.pk),
        "order": order,
        "category": it.category,
        "priority": it.priority,
        "amount_usd": money.usd(it.amount_nano),
        "burnt_usd": money.usd(it.burnt_nano),
        "expired_usd": money.usd(it.expired_nano),
        "left_usd": money.usd(left),
        "expires_at": it.expires_at and it.expires_at.isoformat(),
        "note": it.note,
        "created_at": it.created_at.isoformat(),
    }


def consumption_json(row: CreditConsumption) -> dict[str, Any]:
    return {"call": ids.call_name(row.call_id), "usd": money.usd(row.amount_nano), "at": row.created_at.isoformat()}
