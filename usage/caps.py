"""Spending caps: setting them, and what each has spent, holds and leaves in its period."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from aiplatform.lib import money
from aiplatform.lib.errors import ApiError
from tenants.models import ApiKey, Environment, Tenant
from usage.models import SpendingCap

MOST_USD = 9_000_000_000  # what a BIGINT of nano-USD holds
_AMOUNT = re.compile(r"\d{1,10}(\.\d{1,9})?", re.ASCII)
_LONGEST_END_USER = 256


class CapRefused(ApiError):
    """A cap cannot be set like this."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A cap in one of its periods; amounts in nano-USD. `resets_at` is None for a lifetime."""

    cap_id: int
    scope: str
    period: str
    environment_id: UUID | None
    environment: str | None
    api_key_id: UUID | None
    api_key: str | None
    end_user: str
    starts_at: datetime
    resets_at: datetime | None
    limit_nano: int
    spent_nano: int
    held_nano: int

    @property
    def left_nano(self) -> int:
        """Below zero where a limit was lowered beneath what was spent."""
        return self.limit_nano - self.spent_nano - self.held_nano

    def as_json(self) -> dict[str, Any]:
        """As receipts and the REST API show it: money in USD with all nine decimals."""
        return {
            "cap": self.cap_id,
            "scope": self.scope,
            "period": self.period,
            "environment": self.environment,
            "key": self.api_key,
            "end_user": self.end_user or None,
            "limit_usd": money.usd(self.limit_nano),
            "spent_usd": money.usd(self.spent_nano),
            "held_usd": money.usd(self.held_nano),
            "left_usd": money.usd(self.left_nano),
            "starts_at": self.starts_at.isoformat(),
            "resets_at": self.resets_at and self.resets_at.isoformat(),
        }


def parse_usd(text: str) -> int:
    """Nano-USD of `10`, `10.00` or `0.000000001`; raises CapRefused."""
    if not _AMOUNT.fullmatch(text) or Decimal(text) > MOST_USD:
        raise CapRefused(
            f"{text[:40]!a} is no amount; write USD from 0 to {MOST_USD} with up to nine decimals, like 10.00."
        )
    return money.from_usd(text)


def set_cap(
    *,
    tenant: Tenant,
    environment: Environment | None = None,
    api_key: ApiKey | None = None,
    end_user: str = "",
    period: str,
    limit_nano: int,
) -> int:
    """Sets the cap of this scope and period, new or not, and returns its id; 0 refuses every call that costs anything.

    A new cap counts what its period has already seen. Raises CapRefused.
    """
    if period not in SpendingCap.Period.values:
        raise CapRefused(f"The period {period[:40]!a} is unknown; it is one of {', '.join(SpendingCap.Period.values)}.")
    if not 0 <= limit_nano <= MOST_USD * money.NANO:
        raise CapRefused(f"A cap is from 0 to {MOST_USD} USD.")
    if len(end_user) > _LONGEST_END_USER or not end_user.isprintable():
        raise CapRefused(f"An end user is at most {_LONGEST_END_USER} printable characters.")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT usage_set_cap(%s::uuid, %s::uuid, %s::uuid, %s, %s, 'enforce', %s, NULL)",
            [
                tenant.pk,
                environment.pk if environment else None,
                api_key.pk if api_key else None,
                end_user,
                period,
                limit_nano,
            ],
        )
        (cap_id,) = _one(cursor)
    return int(cap_id)


_STANDINGS = """
SELECT c.id,
    CASE WHEN c.end_user <> '' THEN 'end_user' WHEN c.api_key_id IS NOT NULL THEN 'key'
         WHEN c.environment_id IS NOT NULL THEN 'environment' ELSE 'tenant' END,
    c.period, c.environment_id, e.name, c.api_key_id, k.prefix, c.end_user, {span}.starts_at, {span}.ends_at,
    c.limit_nano, coalesce(b.spent_nano, 0), coalesce(b.held_nano, 0)
FROM usage_spendingcap c
{buckets}
LEFT JOIN tenants_environment e ON e.id = c.environment_id
LEFT JOIN tenants_apikey k ON k.id = c.api_key_id
WHERE c.tenant_id = %s AND {these}
ORDER BY c.environment_id NULLS FIRST, c.api_key_id NULLS FIRST, c.end_user, {span}.starts_at, c.id"""
_NOW = _STANDINGS.format(
    span="p",
    buckets="""JOIN tenants_tenant t ON t.id = c.tenant_id
CROSS JOIN LATERAL usage_period(c.period, t.time_zone, now()) p
LEFT JOIN usage_capbucket b ON b.cap_id = c.id AND b.starts_at = p.starts_at""",
    these="(%s::uuid IS NULL OR ((c.environment_id IS NULL OR c.environment_id = %s) "
    "AND (c.api_key_id IS NULL OR c.api_key_id = %s)))",
)
_OF_BUCKETS = _STANDINGS.format(span="b", buckets="JOIN usage_capbucket b ON b.cap_id = c.id", these="b.id = ANY (%s)")


def standings(*, tenant_id: UUID, api_key: ApiKey | None = None) -> list[Standing]:
    """Every cap of a tenant in its current period, or only those that bind one key."""
    key = (api_key.environment_id, api_key.environment_id, api_key.pk) if api_key else (None, None, None)
    return _read(_NOW, [tenant_id, *key])


def standings_of(bucket_ids: Sequence[int], *, tenant_id: UUID) -> list[Standing]:
    """The caps of a call, in the periods to which it belongs."""
    return _read(_OF_BUCKETS, [tenant_id, list(bucket_ids)])


def _read(statement: str, parameters: list[Any]) -> list[Standing]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return [Standing(*row) for row in cursor.fetchall()]


def _one(cursor: CursorWrapper) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = cursor.fetchone()
    if row is None:
        raise AssertionError("a function without a row")
    return row
