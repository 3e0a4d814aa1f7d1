"""Readers of spend: every figure is a sum of ledger entries that caps count, or a cap's own bucket; nothing is kept twice."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

from django.db import connection

# What a tenant has spent: charges, with their corrections. usage_count_cap counts by the same rule.
_OWED = "CASE WHEN l.credit = 'revenue' THEN l.amount_nano ELSE -l.amount_nano END"
_OF_TENANT = """l.tenant_id = %(tenant)s AND 'revenue' IN (l.debit, l.credit)
    AND l.belongs_at >= %(starts_at)s AND l.belongs_at < %(ends_at)s"""


@dataclass(frozen=True, slots=True)
class Cap:
    """A spending cap in its current period; amounts in nano-USD."""

    id: int
    period: str
    environment: str | None
    key_id: str | None
    key_name: str | None
    end_user: str
    limit_nano: int
    spent_nano: int
    held_nano: int
    starts_at: datetime
    ends_at: datetime | None

    @property
    def left_nano(self) -> int:
        return self.limit_nano - self.spent_nano - self.held_nano

    @property
    def over_nano(self) -> int:
        return max(-self.left_nano, 0)

    @property
    def spent_share(self) -> float:
        return min(self.spent_nano / self.limit_nano, 1) if self.limit_nano else float(self.spent_nano > 0)

    @property
    def held_share(self) -> float:
        return min(self.held_nano / self.limit_nano, 1 - self.spent_share) if self.limit_nano else 0

    @property
    def is_tight(self) -> bool:
        """A tenth of the limit or less is left."""
        return self.left_nano * 10 <= self.limit_nano


@dataclass(frozen=True, slots=True)
class Month:
    """Where a tenant stands in the month of `now`, all of one instant."""

    starts_at: datetime
    ends_at: datetime
    spent_nano: int
    held_nano: int
    live_calls: int
    cap_spent_nano: int | None

    @property
    def drift_nano(self) -> int:
        """What the tenant's monthly cap counts beyond the ledger: zero, or a fault that must be shown."""
        return 0 if self.cap_spent_nano is None else self.cap_spent_nano - self.spent_nano


@dataclass(frozen=True, slots=True)
class Caps:
    """The tightest caps of a tenant, and how many there are."""

    tightest: list[Cap]
    count: int


@dataclass(frozen=True, slots=True)
class DaySpend:
    """What one model cost on one day of the tenant's calendar; `model` is empty for corrections."""

    day: date
    model: str
    amount_nano: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls admitted in a span of time; `median_first_byte` of those that had one."""

    calls: int
    failed: int
    live: int
    charged_nano: int
    held_nano: int
    median_first_byte: timedelta | None


Row = TypeVar("Row")

_MONTH = f"""
WITH t AS (SELECT t.id AS tenant_id, p.starts_at, p.ends_at
           FROM tenants_tenant t, usage_period('month', t.time_zone, %(now)s) p WHERE t.id = %(tenant)s)
SELECT t.starts_at, t.ends_at,
    (SELECT coalesce(sum({_OWED}), 0)::bigint FROM usage_ledgerentry l
     WHERE l.tenant_id = t.tenant_id AND 'revenue' IN (l.debit, l.credit)
       AND l.belongs_at >= t.starts_at AND l.belongs_at < t.ends_at) AS spent_nano,
    live.held_nano, live.live_calls,
    (SELECT coalesce(max(b.spent_nano), 0) FROM usage_capbucket b WHERE b.cap_id = c.id AND b.starts_at = t.starts_at)
        + CASE WHEN c.id IS NULL THEN NULL ELSE 0 END AS cap_spent_nano
FROM t
CROSS JOIN LATERAL (
    SELECT coalesce(sum(held_nano), 0)::bigint AS held_nano, count(*) AS live_calls FROM usage_call
    WHERE tenant_id = t.tenant_id AND is_live
      AND admitted_at >= t.starts_at AND admitted_at < t.ends_at) live
LEFT JOIN usage_spendingcap c ON c.tenant_id = t.tenant_id AND c.environment_id IS NULL AND c.api_key_id IS NULL
    AND c.end_user = '' AND c.period = 'month'
"""  # noqa: S608 - no part of it comes from outside


def month(*, tenant_id: uuid.UUID, now: datetime) -> Month:
    """The tenant's calendar month around `now`, in his own time zone: spent by the ledger, held by calls not yet ended."""
    return _rows(Month, _MONTH, {"tenant": tenant_id, "now": now})[0]


_CAPS = """
SELECT c.id, c.period, e.name AS environment, k.public_id AS key_id, k.name AS key_name, c.end_user, c.limit_nano,
    coalesce(b.spent_nano, 0) AS spent_nano, coalesce(b.held_nano, 0) AS held_nano, p.starts_at, p.ends_at
FROM usage_spendingcap c
JOIN tenants_tenant t ON t.id = c.tenant_id
CROSS JOIN LATERAL usage_period(c.period, t.time_zone, %(now)s) p
LEFT JOIN usage_capbucket b ON b.cap_id = c.id AND b.starts_at = p.starts_at
LEFT JOIN tenants_apikey k ON k.id = c.api_key_id
LEFT JOIN tenants_environment e ON e.id = coalesce(c.environment_id, k.environment_id)
WHERE c.tenant_id = %(tenant)s
"""


def caps(*, tenant_id: uuid.UUID, now: datetime, limit: int = 8) -> Caps:
    """The caps that have the least of their limit left in the period around `now`, by their buckets."""
    order = """ORDER BY (coalesce(b.spent_nano, 0) + coalesce(b.held_nano, 0)) / greatest(c.limit_nano, 1)::float8 DESC, c.id
        LIMIT %(limit)s"""
    tightest = _rows(Cap, _CAPS + order, {"tenant": tenant_id, "now": now, "limit": limit})
    if len(tightest) < limit:
        return Caps(tightest, len(tightest))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM usage_spendingcap WHERE tenant_id = %s", [tenant_id])
        return Caps(tightest, cursor.fetchone()[0])


def tenant_cap(*, tenant_id: uuid.UUID, now: datetime) -> Cap | None:
    """The cap on the whole tenant that will refuse first; None where no cap bounds the tenant as a whole."""
    whole = "AND c.environment_id IS NULL AND c.api_key_id IS NULL AND c.end_user = ''"
    found = _rows(Cap, _CAPS + whole, {"tenant": tenant_id, "now": now})
    return min(found, key=lambda cap: cap.left_nano, default=None)


def caps_of_buckets(*, tenant_id: uuid.UUID, bucket_ids: Sequence[int]) -> list[Cap]:
    """The caps that a call counts in, each in the period that it belongs to."""
    return _rows(
        Cap,
        """SELECT c.id, c.period, e.name AS environment, k.public_id AS key_id, k.name AS key_name, c.end_user, c.limit_nano,
               b.spent_nano, b.held_nano, b.starts_at, b.ends_at
           FROM usage_capbucket b
           JOIN usage_spendingcap c ON c.id = b.cap_id
           LEFT JOIN tenants_apikey k ON k.id = c.api_key_id
           LEFT JOIN tenants_environment e ON e.id = coalesce(c.environment_id, k.environment_id)
           WHERE b.id = ANY (%(buckets)s) AND c.tenant_id = %(tenant)s ORDER BY c.id""",
        {"tenant": tenant_id, "buckets": list(bucket_ids)},
    )


def spend_by_day(*, tenant_id: uuid.UUID, zone: str, starts_at: datetime, ends_at: datetime) -> list[DaySpend]:
    """Nano-USD by day of `zone` and model, both in order; days without spend have no row. Sums to the month's `spent_nano`."""
    return _rows(
        DaySpend,
        f"""SELECT (l.belongs_at AT TIME ZONE %(zone)s)::date AS day, coalesce(c.model, '') AS model,
               sum({_OWED})::bigint AS amount_nano
           FROM usage_ledgerentry l
           LEFT JOIN usage_call c ON c.id = l.ref AND c.tenant_id = l.tenant_id
           WHERE {_OF_TENANT} GROUP BY 1, 2 ORDER BY 1, 2""",  # noqa: S608 - no part of it comes from outside
        {"tenant": tenant_id, "zone": zone, "starts_at": starts_at, "ends_at": ends_at},
    )


def traffic(*, tenant_id: uuid.UUID, since: datetime) -> Traffic:
    """What was admitted since then, and how it went."""
    return _rows(
        Traffic,
        """SELECT count(*) AS calls, count(*) FILTER (WHERE status >= 400) AS failed,
               count(*) FILTER (WHERE state IN ('held', 'inflight', 'unknown')) AS live,
               coalesce(sum(charged_nano), 0)::bigint AS charged_nano,
               coalesce(sum(held_nano) FILTER (WHERE state IN ('held', 'inflight', 'unknown')), 0)::bigint AS held_nano,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY first_byte_at - admitted_at) AS median_first_byte
           FROM usage_call
           WHERE tenant_id = %(tenant)s AND admitted_at >= %(since)s
             AND id >= usage_uuid_at(%(since)s - interval '1 minute')""",
        {"tenant": tenant_id, "since": since},
    )[0]


def _rows(shape: type[Row], statement: str, parameters: dict[str, Any]) -> list[Row]:
    """The statement's rows, whose columns are the fields of `shape`."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column.name for column in cursor.description or ()]
        return [shape(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
