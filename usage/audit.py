"""Recomputes every cap, hold and balance from the rows, and says where they differ. It repairs nothing."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import connection

from aiplatform.lib import money

MOST_SHOWN = 1000


@dataclass(slots=True)
class Audit:
    """How many rows were looked at, and each difference found (at most MOST_SHOWN of them)."""

    checked: dict[str, int] = field(default_factory=dict)
    drift: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.drift


# One statement, so all of it sees one snapshot of the database, whatever is being held and settled meanwhile.
_VERIFY = """
WITH entry AS (SELECT * FROM usage_ledgerentry WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s),
booked AS (
    SELECT ref,
        count(*) AS entries,
        coalesce(sum(amount_nano) FILTER (WHERE kind = 'charge'), 0) AS charge,
        coalesce(sum(amount_nano) FILTER (WHERE kind = 'provider_cost'), 0) AS provider_cost,
        coalesce(sum(amount_nano) FILTER (WHERE kind = 'platform_loss'), 0) AS platform_loss
    FROM entry GROUP BY ref
),
rate AS (
    SELECT p.id, max(c.usd * 1000000000 / c.per) FILTER (WHERE c.meter = 'input') AS input,
        max(c.usd * 1000000000 / c.per) FILTER (WHERE c.meter = 'cache_read') AS cache_read,
        max(c.usd * 1000000000 / c.per) FILTER (WHERE c.meter = 'cache_write_5m') AS cache_write_5m,
        max(c.usd * 1000000000 / c.per) FILTER (WHERE c.meter = 'cache_write_1h') AS cache_write_1h,
        max(c.usd * 1000000000 / c.per) FILTER (WHERE c.meter = 'output') AS output
    FROM usage_price p JOIN usage_pricecomponent c ON c.price_id = p.id GROUP BY p.id
),
call AS (
    SELECT c.*, b.entries, coalesce(b.charge, 0) AS booked_charge,
        coalesce(b.provider_cost, 0) AS booked_provider_cost, coalesce(b.platform_loss, 0) AS booked_platform_loss,
        r.input * c.input_tokens + coalesce(r.cache_read, r.input) * c.cache_read_tokens
            + coalesce(r.cache_write_5m, r.input) * c.cache_write_5m_tokens
            + coalesce(r.cache_write_1h, r.input) * c.cache_write_1h_tokens + r.output * c.output_tokens AS rated
    FROM usage_call c LEFT JOIN booked b ON b.ref = c.id LEFT JOIN rate r ON r.id = c.price_id
    WHERE %(tenant)s::uuid IS NULL OR c.tenant_id = %(tenant)s
),
bucket AS (
    SELECT b.id, b.cap_id, b.starts_at, b.ends_at, b.held_nano, b.spent_nano, c.tenant_id, c.environment_id, c.api_key_id,
        c.end_user
    FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id
    WHERE %(tenant)s::uuid IS NULL OR c.tenant_id = %(tenant)s
),
moved AS (  -- what was booked on and what holds money, in one shape
    SELECT NULL::uuid AS call_id, tenant_id, environment_id, api_key_id, end_user, belongs_at AS at,
        CASE WHEN credit = 'revenue' THEN amount_nano ELSE -amount_nano END AS spent, 0::bigint AS held
    FROM entry WHERE 'revenue' IN (debit, credit)
    UNION ALL
    SELECT id, tenant_id, environment_id, api_key_id, end_user, admitted_at, 0, held_nano FROM call WHERE is_live
),
matched AS (
    SELECT b.id, m.call_id, m.spent, m.held
    FROM moved m
    CROSS JOIN unnest(CASE WHEN m.end_user = '' THEN ARRAY[''] ELSE ARRAY['', m.end_user] END) AS u(end_user)
    JOIN bucket b ON b.tenant_id = m.tenant_id AND b.end_user = u.end_user
        AND (b.environment_id IS NULL OR b.environment_id = m.environment_id)
        AND (b.api_key_id IS NULL OR b.api_key_id = m.api_key_id)
        AND m.at >= b.starts_at AND (b.ends_at IS NULL OR m.at < b.ends_at)
),
recomputed AS (SELECT id, sum(spent) AS spent, sum(held) AS held FROM matched GROUP BY id),
drift(what, subject, field, expected, found) AS (
    SELECT 'cap', b.cap_id || ' from ' || b.starts_at, x.field, x.expected, x.found
    FROM bucket b LEFT JOIN recomputed r USING (id), LATERAL (VALUES
        ('spent_nano', coalesce(r.spent, 0), b.spent_nano), ('held_nano', coalesce(r.held, 0), b.held_nano)
    ) AS x(field, expected, found)
    WHERE x.expected <> x.found
    UNION ALL
    SELECT 'call', c.id::text, x.field, x.expected, x.found
    FROM call c, LATERAL (VALUES
        ('charged_nano', c.booked_charge, c.charged_nano),
        ('provider_cost_nano', c.booked_provider_cost, c.provider_cost_nano),
        ('platform_loss_nano', c.booked_platform_loss, c.platform_loss_nano),
        ('list_nano', c.charged_nano + c.platform_loss_nano, c.list_nano)
    ) AS x(field, expected, found)
    WHERE x.expected <> x.found
    UNION ALL
    SELECT 'call', id::text, 'charged_nano above held_nano', held_nano, charged_nano FROM call
    WHERE charged_nano > held_nano
    UNION ALL
    SELECT 'call', id::text, 'list_nano by tokens and price', round(rated), list_nano FROM call
    WHERE NOT is_live AND (rated IS NULL OR abs(rated - list_nano) > 0.500001)
    UNION ALL
    SELECT 'call', id::text, 'ledger entries of a live call', 0, entries FROM call WHERE is_live AND entries > 0
    UNION ALL
    SELECT 'call', id::text, 'settled_at of an ended call', 1, 0 FROM call WHERE NOT is_live AND settled_at IS NULL
    UNION ALL
    SELECT 'call', id::text, 'charged_nano of a void call', 0, charged_nano FROM call
    WHERE state = 'void' AND charged_nano > 0
    UNION ALL
    SELECT 'call', c.id::text, 'open attempts of an ended call', 0, count(*) FROM call c
    JOIN usage_attempt a ON a.call_id = c.id AND a.outcome = 'sent' WHERE NOT c.is_live GROUP BY c.id
    UNION ALL
    SELECT 'call', c.id::text, 'buckets of a live call', count(m.id), cardinality(c.bucket_ids) FROM call c
    LEFT JOIN matched m ON m.call_id = c.id WHERE c.is_live GROUP BY c.id, c.bucket_ids
    HAVING coalesce(array_agg(m.id ORDER BY m.id) FILTER (WHERE m.id IS NOT NULL), '{}')
        <> ARRAY(SELECT unnest(c.bucket_ids) ORDER BY 1)
    UNION ALL
    SELECT 'call', c.id::text, 'bucket of another scope or period', 0, b.id FROM call c, unnest(c.bucket_ids) AS u(id)
    JOIN bucket b ON b.id = u.id
    WHERE NOT c.is_live AND (b.tenant_id <> c.tenant_id OR b.environment_id <> c.environment_id
        OR b.api_key_id <> c.api_key_id OR (b.end_user <> '' AND b.end_user <> c.end_user)
        OR c.admitted_at < b.starts_at OR c.admitted_at >= b.ends_at)
    UNION ALL
    SELECT 'ledger', l.number::text, 'entry of no call, or of another owner or time', 0, l.amount_nano
    FROM entry l LEFT JOIN usage_call c ON c.id = l.ref
    WHERE l.kind <> 'correction'
      AND (c.id IS NULL OR (l.tenant_id, l.environment_id, l.api_key_id, l.end_user, l.belongs_at)
          IS DISTINCT FROM (c.tenant_id, c.environment_id, c.api_key_id, c.end_user, c.admitted_at))
)
SELECT 'checked', 'calls', '', NULL::numeric, count(*)::numeric FROM call
UNION ALL SELECT 'checked', 'ledger_entries', '', NULL, count(*) FROM entry
UNION ALL SELECT 'checked', 'cap_periods', '', NULL, count(*) FROM bucket
UNION ALL SELECT 'checked', 'live_calls', '', NULL, count(*) FROM call WHERE is_live
UNION ALL (SELECT what, subject, field, expected, found FROM drift ORDER BY what, subject, field LIMIT %(most)s)"""


def verify(*, tenant_id: UUID | None = None) -> Audit:
    """Looks at every cap period, call and ledger entry, of all tenants or of one, as of one moment."""
    audit = Audit()
    with connection.cursor() as cursor:
        cursor.execute(_VERIFY, {"tenant": tenant_id, "most": MOST_SHOWN})
        for what, subject, name, expected, found in cursor.fetchall():
            if what == "checked":
                audit.checked[subject] = int(found)
            else:
                audit.drift.append(
                    {
                        "what": what,
                        "subject": subject,
                        "field": name,
                        "expected": _shown(name, expected),
                        "found": _shown(name, found),
                    }
                )
    return audit


def _shown(name: str, value: Decimal | None) -> str | int | None:
    """Money in USD, counts as they are."""
    if value is None:
        return None
    return money.usd(int(value)) if "_nano" in name else int(value)
