"""Readers of spend: every figure is a sum of ledger entries that caps count, or a cap's own bucket; nothing is kept twice."""

import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

from django.db import connection

from aiplatform.providers.base import Usage
from tenants.models import ApiKey
from usage import standings, tariffs
from usage.models import FrozenTariff, PriceComponent, SpendingCap
from usage.pricing import RARE_INPUT_METERS, STANDARD, Rates, rates
from usage.standings import Standing

# What a tenant has spent, owed or prepaid: charges and later corrections. usage_count_cap and the audit count by it too.
_SPENT = "CASE WHEN l.credit = 'revenue' THEN l.amount_nano ELSE -l.amount_nano END"
_OF_TENANT = """l.tenant_id = %(tenant)s AND 'revenue' IN (l.debit, l.credit)
    AND l.belongs_at >= %(starts_at)s AND l.belongs_at < %(ends_at)s"""


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

    tightest: list[Standing]
    count: int


@dataclass(frozen=True, slots=True)
class DaySpend:
    """What one model cost on one day of the tenant's calendar; `model` is empty where no call is meant."""

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
    (SELECT coalesce(sum({_SPENT}), 0)::bigint FROM usage_ledgerentry l
     WHERE l.tenant_id = t.tenant_id AND 'revenue' IN (l.debit, l.credit)
       AND l.belongs_at >= t.starts_at AND l.belongs_at < t.ends_at) AS spent_nano,
    live.held_nano, live.live_calls,
    (SELECT coalesce(b.spent_nano, 0) FROM usage_spendingcap c
     LEFT JOIN usage_capbucket b ON b.cap_id = c.id AND b.starts_at = t.starts_at
     WHERE c.tenant_id = t.tenant_id AND c.environment_id IS NULL AND c.api_key_id IS NULL AND c.end_user = ''
       AND c.period = 'month' ORDER BY c.mode LIMIT 1) AS cap_spent_nano
FROM t
CROSS JOIN LATERAL (
    SELECT coalesce(sum(held_nano), 0)::bigint AS held_nano, count(*) AS live_calls FROM usage_call
    WHERE tenant_id = t.tenant_id AND is_live
      AND admitted_at >= t.starts_at AND admitted_at < t.ends_at) live
"""  # noqa: S608 - no part of it comes from outside


def month(*, tenant_id: uuid.UUID, now: datetime) -> Month:
    """The tenant's calendar month around `now`, in his own time zone: spent by the ledger, held by calls not yet ended."""
    return _rows(Month, _MONTH, {"tenant": tenant_id, "now": now})[0]


def caps(*, tenant_id: uuid.UUID, now: datetime, limit: int = 8) -> Caps:
    """The caps that have the least of their limit left in the period around `now`, by their buckets."""
    tightest = standings.tightest(tenant_id=tenant_id, now=now, limit=limit)
    if len(tightest) < limit:
        return Caps(tightest, len(tightest))
    return Caps(tightest, SpendingCap.objects.filter(tenant_id=tenant_id).count())


def tenant_cap(*, tenant_id: uuid.UUID, now: datetime) -> Standing | None:
    """The cap on the whole tenant that will refuse first; None where no cap bounds the tenant as a whole."""
    found = standings.of_tenant_as_a_whole(tenant_id=tenant_id, now=now)
    return min(found, key=lambda cap: cap.left_nano, default=None)


def spend_by_day(*, tenant_id: uuid.UUID, zone: str, starts_at: datetime, ends_at: datetime) -> list[DaySpend]:
    """Nano-USD by day of `zone` and model, both in order; days without spend have no row. Sums to the month's `spent_nano`."""
    return _rows(
        DaySpend,
        f"""SELECT (l.belongs_at AT TIME ZONE %(zone)s)::date AS day, coalesce(c.model, '') AS model,
               sum({_SPENT})::bigint AS amount_nano
           FROM usage_ledgerentry l
           LEFT JOIN usage_call c ON c.id = l.ref AND c.tenant_id = l.tenant_id
           WHERE {_OF_TENANT} GROUP BY 1, 2 ORDER BY 1, 2""",  # noqa: S608 - no part of it comes from outside
        {"tenant": tenant_id, "zone": zone, "starts_at": starts_at, "ends_at": ends_at},
    )


def cache_saving(*, tenant_id: uuid.UUID, starts_at: datetime, ends_at: datetime) -> int:
    """Nano-USD at the tenant's prices: what the tokens of calls admitted then would have cost uncached, less what they cost.

    Rounded once for all calls of one price, where each receipt rounds its own.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """WITH tiers AS (SELECT array_agg(tier ORDER BY tier) AS above FROM (
                   SELECT tier_from FROM usage_pricecomponent
                   UNION SELECT (part ->> 'tier_from')::bigint FROM usage_frozentariff, jsonb_array_elements(components) AS part
               ) AS t(tier)), cached AS (
                   SELECT c.price_id, c.tariff_id, c.variant, c.cache_read_tokens AS read, c.cache_write_5m_tokens AS short,
                       c.cache_write_1h_tokens AS long, c.input_tokens + c.cache_read_tokens + c.cache_write_5m_tokens
                       + c.cache_write_1h_tokens + coalesce((SELECT sum(value::bigint) FROM jsonb_each_text(c.meters)
                           WHERE key = ANY (%s)), 0)::bigint AS total
                   FROM usage_call c
                   WHERE c.tenant_id = %s AND c.state = 'settled' AND c.admitted_at >= %s AND c.admitted_at < %s
                     AND c.id >= usage_uuid_at(%s - interval '1 minute')
                     AND c.cache_read_tokens + c.cache_write_5m_tokens + c.cache_write_1h_tokens > 0)
               SELECT c.price_id, c.tariff_id, c.variant, max(c.total), sum(c.read)::bigint, sum(c.short)::bigint,
                   sum(c.long)::bigint
               FROM cached c, tiers t
               GROUP BY c.price_id, c.tariff_id, c.variant, width_bucket(c.total - 1, t.above)""",
            [list(RARE_INPUT_METERS), tenant_id, starts_at, ends_at, starts_at],
        )
        rows = cursor.fetchall()
    prices = {one.price_id: one for one in _prices({row[0] for row in rows})}
    contracts = FrozenTariff.objects.in_bulk({row[1] for row in rows if row[1] is not None})
    saved = 0
    for price_id, tariff_id, variant, total, *cached in rows:
        price = prices[price_id]
        if tariff_id is not None:
            price = price.under(tariffs.of_row(contracts[tariff_id]))
        usage = Usage(0, *cached)
        usage.variant = variant or STANDARD
        saved += price.cache_saving(usage, total)
    return saved


def answers_saved(*, tenant_id: uuid.UUID, starts_at: datetime, ends_at: datetime) -> tuple[int, int]:
    """How many calls admitted then got an answer that was made for another, and what that saved in nano-USD."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT count(*), coalesce(sum(saved_nano), 0)::bigint FROM usage_call
               WHERE tenant_id = %s AND cached <> '' AND state = 'settled' AND admitted_at >= %s AND admitted_at < %s
                 AND id >= usage_uuid_at(%s - interval '1 minute')""",
            [tenant_id, starts_at, ends_at, starts_at],
        )
        calls, nano = cursor.fetchone()
    return calls, nano


def _prices(ids: set[int]) -> list[Rates]:
    of_price = ("id", "provider", "model", "valid_from", "valid_to")
    parts = PriceComponent.objects.filter(price__in=ids).order_by("price_id", "pk")
    return rates(
        parts.values_list(*(f"price__{name}" for name in of_price), "variant", "meter", "tier_from", "usd", "per")
    )


def traffic(*, tenant_id: uuid.UUID, since: datetime) -> Traffic:
    """What was admitted since then, and how it went."""
    return _rows(
        Traffic,
        """SELECT count(*) AS calls, count(*) FILTER (WHERE status >= 400) AS failed,
               count(*) FILTER (WHERE is_live) AS live,
               coalesce(sum(charged_nano + corrected_nano), 0)::bigint AS charged_nano,
               coalesce(sum(held_nano) FILTER (WHERE is_live), 0)::bigint AS held_nano,
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


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent from `starts_at` to `ends_at`, in nano-USD."""

    nano: int
    starts_at: datetime
    ends_at: datetime


def spend_of_key(key: ApiKey, *, period: str, now: datetime) -> Spent:
    """What one key has spent in the day, week or month of `now`, in its tenant's time zone."""
    return _rows(
        Spent,
        f"""SELECT coalesce(sum({_SPENT}), 0)::bigint AS nano, p.starts_at, p.ends_at
            FROM tenants_tenant t CROSS JOIN usage_period(%(period)s, t.time_zone, %(now)s) p
            LEFT JOIN usage_ledgerentry l ON l.tenant_id = t.id AND 'revenue' IN (l.debit, l.credit)
                AND l.api_key_id = %(key)s AND l.belongs_at >= p.starts_at AND l.belongs_at < p.ends_at
            WHERE t.id = %(tenant)s GROUP BY p.starts_at, p.ends_at""",  # noqa: S608 - no text of a caller's
        {"key": key.pk, "period": period, "now": now, "tenant": key.tenant_id},
    )[0]
