"""Recomputes every cap, hold and balance from the rows, and says where they differ. It repairs nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

from django.db import connection, transaction
from psycopg import sql

from aiplatform.lib import money
from usage import seals

MOST_SHOWN = 1000


@dataclass(slots=True)
class Audit:
    """How many rows were looked at, and each difference found (at most MOST_SHOWN of them)."""

    checked: dict[str, int] = field(default_factory=dict)
    drift: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[int, int] = field(
        default_factory=dict
    )  # what running periods had spent up to a given number, by bucket

    @property
    def ok(self) -> bool:
        return not self.drift


@dataclass(frozen=True, slots=True)
class Moved:
    """What to look at when not at everything: the calls admitted from `since` on, those that still hold money, those booked on
    by entries above `number`, and the caps' running periods, from their marks as of `number` on.
    """

    since: datetime
    number: int


# Which calls, entries and periods are looked at. Everything:
_ALL: dict[str, LiteralString] = {
    "chosen": "SELECT id FROM usage_call WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s",
    "entry": "SELECT * FROM usage_ledgerentry WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s",
    "spending": "SELECT * FROM entry",
    "period": "true",
    "mark": "SELECT NULL::bigint AS bucket_id, 0::bigint AS after, 0::bigint AS spent_nano WHERE false",
}
# What moved:
_MOVED: dict[str, LiteralString] = {
    "chosen": """SELECT id FROM usage_call WHERE id >= usage_uuid_at(%(since)s) UNION SELECT id FROM usage_call WHERE is_live
        UNION SELECT ref FROM usage_ledgerentry WHERE number > %(number)s""",
    "entry": """SELECT * FROM usage_ledgerentry WHERE number > %(number)s
        UNION SELECT l.* FROM usage_ledgerentry l JOIN chosen x ON x.id = l.ref""",
    "spending": """SELECT * FROM usage_ledgerentry WHERE number > %(number)s
        UNION ALL SELECT * FROM usage_ledgerentry
        WHERE number <= %(number)s AND belongs_at >= (SELECT min(starts_at) FROM bucket WHERE after = 0)""",
    "period": "b.ends_at IS NULL OR b.ends_at > now()",
    "mark": "SELECT bucket_id, %(number)s::bigint AS after, spent_nano FROM usage_auditmark",
}

# One statement, so all of it sees one snapshot of the database, whatever is being held and settled meanwhile.
_VERIFY: LiteralString = """
WITH chosen AS MATERIALIZED ({chosen}),
entry AS ({entry}),
signed AS (  -- what each entry adds to its kind: one that is booked the other way round takes it off again
    SELECT e.*, CASE WHEN e.debit IN ('revenue', 'revenue_forgone')
        OR (e.kind = 'cost_correction' AND e.credit = 'cost_of_sales') THEN -e.amount_nano ELSE e.amount_nano END AS nano
    FROM entry e
),
booked AS (
    SELECT ref,
        count(*) AS entries,
        coalesce(sum(nano) FILTER (WHERE kind = 'charge'), 0) AS charge,
        coalesce(sum(nano) FILTER (WHERE kind = 'correction'), 0) AS correction,
        coalesce(sum(nano) FILTER (WHERE kind IN ('provider_cost', 'cost_correction')), 0) AS provider_cost,
        coalesce(sum(nano) FILTER (WHERE kind = 'platform_loss'), 0) AS platform_loss,
        coalesce(sum(nano) FILTER (WHERE kind = 'exposure'), 0) AS exposure,
        coalesce(sum(nano) FILTER (WHERE kind = 'exposure_release'), 0) AS released,
        coalesce(sum(nano) FILTER (WHERE 'customer_credit' IN (debit, credit)), 0) AS burnt,
        bool_or(kind IN ('correction', 'cost_correction') OR (seq > 0 AND kind <> 'provider_cost')) AS is_corrected
    FROM signed GROUP BY ref
),
call AS (
    SELECT c.*, b.entries, coalesce(b.charge, 0) AS booked_charge, coalesce(b.correction, 0) AS booked_correction,
        coalesce(b.provider_cost, 0) AS booked_provider_cost, coalesce(b.platform_loss, 0) AS booked_platform_loss,
        coalesce(b.exposure, 0) AS exposure, coalesce(b.released, 0) AS released, coalesce(b.burnt, 0) AS booked_burnt,
        coalesce(b.is_corrected, false) AS is_corrected,
        CASE WHEN NOT c.is_live THEN usage_rated(c.price_id, c.variant, c.input_tokens, c.cache_read_tokens,
            c.cache_write_5m_tokens, c.cache_write_1h_tokens, c.output_tokens, c.meters) END AS rated
    FROM usage_call c JOIN chosen x USING (id) LEFT JOIN booked b ON b.ref = c.id
),
bucket AS MATERIALIZED (  -- of one tenant, the platform's too: his calls are in them
    SELECT b.id, b.cap_id, b.starts_at, b.ends_at, b.held_nano, b.spent_nano, c.tenant_id, c.environment_id, c.api_key_id,
        coalesce(c.tenant_id, '00000000-0000-0000-0000-000000000000') AS party,
        CASE WHEN c.end_user = '*' THEN b.end_user ELSE c.end_user END AS end_user, c.mode = 'credit' AS is_credit,
        %(tenant)s::uuid IS NULL OR c.tenant_id IS NOT NULL AS is_whole, b.ends_at IS NULL OR b.ends_at > now() AS is_running,
        coalesce(k.after, 0) AS after, coalesce(k.spent_nano, 0) AS marked
    FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id LEFT JOIN ({mark}) k ON k.bucket_id = b.id
    WHERE (%(tenant)s::uuid IS NULL OR c.tenant_id IS NULL OR c.tenant_id = %(tenant)s) AND ({period})
),
spending AS ({spending}),
moved AS (  -- what was spent and what holds money, in one shape
    SELECT NULL::uuid AS call_id, number, tenant_id, environment_id, api_key_id, end_user, belongs_at AS at,
        'customer_credit' IN (debit, credit) AS is_credit,
        CASE WHEN credit = 'revenue' THEN amount_nano ELSE -amount_nano END AS spent, 0::bigint AS held
    FROM spending WHERE 'revenue' IN (debit, credit)
    UNION ALL
    SELECT id, 9223372036854775807, tenant_id, environment_id, api_key_id, end_user, admitted_at, is_prepaid, 0, held_nano
    FROM call WHERE is_live
),
keyed AS MATERIALIZED (  -- by whom a cap may be for, so that the two can be hashed together
    SELECT m.*, p.party, u.bucket_user
    FROM moved m
    CROSS JOIN unnest(ARRAY[m.tenant_id, '00000000-0000-0000-0000-000000000000']) AS p(party)
    CROSS JOIN unnest(CASE WHEN m.end_user = '' THEN ARRAY[''] ELSE ARRAY['', m.end_user] END) AS u(bucket_user)
    WHERE p.party IN (SELECT party FROM bucket)
),
matched AS (
    SELECT b.id, m.call_id, m.number, m.spent, m.held
    FROM keyed m
    JOIN bucket b ON b.party = m.party AND b.end_user = m.bucket_user
        AND (b.environment_id IS NULL OR b.environment_id = m.environment_id)
        AND (b.api_key_id IS NULL OR b.api_key_id = m.api_key_id)
        AND m.at >= b.starts_at AND (b.ends_at IS NULL OR m.at < b.ends_at)
        AND (m.is_credit OR NOT b.is_credit) AND m.number > b.after
),
recomputed AS (
    SELECT b.id, b.marked + coalesce(sum(m.spent), 0) AS spent, coalesce(sum(m.held), 0) AS held,
        b.marked + coalesce(sum(m.spent) FILTER (WHERE m.number <= %(upto)s), 0) AS decided
    FROM bucket b LEFT JOIN matched m USING (id) GROUP BY b.id, b.marked
),
given AS (  -- answers given again: what the plan takes of the saving, half to even, and what the source call was charged
    SELECT x.id, CASE WHEN x.nano %% 1 = 0.5 THEN 2 * round(x.nano / 2) ELSE round(x.nano) END AS share, x.source_nano
    FROM (SELECT c.id, (c.charged_nano + c.saved_nano)::numeric * coalesce(c.cache_share_bps, 0) / 10000 AS nano,
              CASE WHEN c.state = 'void' THEN 0 WHEN s.id IS NULL THEN NULL
                  WHEN (s.tenant_id, s.environment_id) = (c.tenant_id, c.environment_id)
                  THEN s.charged_nano ELSE -1 END AS source_nano
          FROM call c LEFT JOIN usage_call s ON s.id = c.cached_from WHERE c.cached <> '') x
),
burnt AS (
    SELECT k.call_id, sum(k.amount_nano) AS nano FROM usage_creditconsumption k JOIN call c ON c.id = k.call_id GROUP BY 1
),
tried AS (
    SELECT a.call_id, count(*) AS attempts, max(a.n) AS last, count(*) FILTER (WHERE a.outcome = 'sent') AS open,
        coalesce(sum(a.cost_nano) FILTER (WHERE a.n < c.tries), 0) AS retried_cost
    FROM usage_attempt a JOIN call c ON c.id = a.call_id GROUP BY 1
),
drift(what, subject, field, expected, found) AS (
    SELECT 'cap', b.cap_id || ' from ' || b.starts_at, x.field, x.expected, x.found
    FROM bucket b JOIN recomputed r USING (id), LATERAL (VALUES
        ('spent_nano', r.spent, b.spent_nano), ('held_nano', r.held, b.held_nano)
    ) AS x(field, expected, found)
    WHERE b.is_whole AND x.expected <> x.found
    UNION ALL
    SELECT 'call', c.id::text, x.field, x.expected, x.found
    FROM call c LEFT JOIN burnt k ON k.call_id = c.id LEFT JOIN given g ON g.id = c.id, LATERAL (VALUES
        ('charged_nano', c.booked_charge, c.charged_nano),
        ('corrected_nano', c.booked_correction, c.corrected_nano),
        ('provider_cost_nano', c.booked_provider_cost, c.provider_cost_nano),
        ('platform_loss_nano', c.booked_platform_loss, c.platform_loss_nano),
        ('exposure_nano released', least(c.released, c.exposure), c.released),
        ('credit burnt_nano, by ledger and by grants', c.booked_burnt, coalesce(k.nano, 0)),
        ('credit burnt_nano, by charge and by grants',
            CASE WHEN c.is_prepaid THEN c.charged_nano + c.corrected_nano ELSE 0 END, coalesce(k.nano, 0)),
        ('charged_nano of an answer given again', coalesce(g.share, c.charged_nano), c.charged_nano),
        ('saved_nano by the source call', coalesce(g.source_nano, c.charged_nano + c.saved_nano),
            c.charged_nano + c.saved_nano),
        ('charged_nano and platform_loss_nano', CASE WHEN c.state = 'void' THEN 0 ELSE c.list_nano + c.retried_charge_nano END,
            CASE WHEN NOT c.is_corrected AND c.cached = '' AND (c.tariff_id IS NULL OR c.state = 'void')
                THEN c.charged_nano + c.platform_loss_nano
            WHEN c.state = 'void' THEN 0 ELSE c.list_nano + c.retried_charge_nano END)
    ) AS x(field, expected, found)
    WHERE x.expected <> x.found
    UNION ALL
    SELECT 'call', id::text, 'is_live', (state IN ('held', 'inflight', 'unknown'))::integer, is_live::integer FROM call
    WHERE is_live <> (state IN ('held', 'inflight', 'unknown'))
    UNION ALL
    SELECT 'call', id::text, 'charged_nano above held_nano', held_nano, charged_nano FROM call
    WHERE charged_nano > held_nano
    UNION ALL
    SELECT 'call', id::text, 'list_nano by tokens and price', r.nano, list_nano FROM call, LATERAL (SELECT
        CASE WHEN rated %% 1 = 0.5 THEN 2 * round(rated / 2) ELSE round(rated) END AS nano) AS r  -- half to even
    WHERE NOT is_live AND r.nano IS DISTINCT FROM list_nano
    UNION ALL
    SELECT 'call', id::text, 'ledger entries of a live call', 0, entries FROM call WHERE is_live AND entries > 0
    UNION ALL
    SELECT 'call', id::text, 'settled_at of an ended call', 1, 0 FROM call WHERE NOT is_live AND settled_at IS NULL
    UNION ALL
    SELECT 'call', id::text, 'charged_nano of a void call', 0, charged_nano FROM call
    WHERE state = 'void' AND charged_nano > retried_charge_nano
    UNION ALL
    SELECT 'call', c.id::text, x.field, x.expected, x.found
    FROM call c LEFT JOIN tried a ON a.call_id = c.id, LATERAL (VALUES
        ('open attempts of an ended call', 0, CASE WHEN c.is_live THEN 0 ELSE coalesce(a.open, 0) END),
        ('attempts', CASE WHEN c.claimed_at IS NULL THEN 0 ELSE c.tries END, coalesce(a.attempts, 0)),
        ('number of the last attempt', coalesce(a.attempts, 0), coalesce(a.last, 0)),
        ('retried_cost_nano', coalesce(a.retried_cost, 0), c.retried_cost_nano)
    ) AS x(field, expected, found)
    WHERE x.expected <> x.found
    UNION ALL
    SELECT 'call', c.id::text, 'buckets of a live call', count(m.id), cardinality(c.bucket_ids) FROM call c
    LEFT JOIN matched m ON m.call_id = c.id WHERE c.is_live GROUP BY c.id, c.bucket_ids
    HAVING coalesce(array_agg(m.id ORDER BY m.id) FILTER (WHERE m.id IS NOT NULL), ARRAY[]::bigint[])
        <> ARRAY(SELECT u FROM unnest(c.bucket_ids) u JOIN bucket b ON b.id = u ORDER BY 1)
    UNION ALL
    SELECT 'call', c.id::text, 'bucket of another scope or period', 0, b.id FROM call c, unnest(c.bucket_ids) AS u(id)
    JOIN bucket b ON b.id = u.id
    WHERE NOT c.is_live AND (b.tenant_id <> c.tenant_id OR b.environment_id <> c.environment_id
        OR b.api_key_id <> c.api_key_id OR (b.end_user <> '' AND b.end_user <> c.end_user)
        OR (b.is_credit AND NOT c.is_prepaid) OR c.admitted_at < b.starts_at OR c.admitted_at >= b.ends_at)
    UNION ALL
    SELECT 'ledger', l.number::text, 'entry of no call, or of another owner or time', 0, l.amount_nano
    FROM entry l LEFT JOIN usage_call c ON c.id = l.ref
    WHERE l.kind NOT IN ('credit_grant', 'credit_expiry')
      AND (c.id IS NULL OR (l.tenant_id, l.environment_id, l.api_key_id, l.end_user, l.belongs_at)
          IS DISTINCT FROM (c.tenant_id, c.environment_id, c.api_key_id, c.end_user, c.admitted_at))
    UNION ALL
    SELECT 'ledger', l.number::text, 'entry of no grant, or of another owner', 0, l.amount_nano
    FROM entry l LEFT JOIN usage_creditgrant g ON g.id = l.ref AND g.tenant_id = l.tenant_id
    WHERE l.kind IN ('credit_grant', 'credit_expiry') AND g.id IS NULL
    UNION ALL
    SELECT 'ledger', l.number::text, 'accounts of its kind: ' || l.debit || ' to ' || l.credit || ' by ' || l.kind, 0,
        l.amount_nano
    FROM entry l LEFT JOIN usage_call c ON c.id = l.ref,
    LATERAL (SELECT CASE WHEN c.is_prepaid THEN 'customer_credit' ELSE 'receivable' END AS account) o
    WHERE NOT coalesce(l.amount_nano > 0 AND CASE l.kind
        WHEN 'charge' THEN (l.debit, l.credit) = (o.account, 'revenue')
        WHEN 'correction' THEN ARRAY[l.debit, l.credit] <@ ARRAY[o.account, 'revenue'] AND l.debit <> l.credit
        WHEN 'provider_cost' THEN (l.debit, l.credit) = ('cost_of_sales', 'payable:' || c.provider)
            OR (l.seq > 0 AND l.debit = 'cost_of_sales' AND l.amount_nano = (SELECT sum(a.cost_nano) FROM usage_attempt a
                WHERE a.call_id = c.id AND a.n < c.tries AND l.credit = 'payable:' || a.provider AND a.provider <> c.provider))
        WHEN 'cost_correction' THEN ARRAY[l.debit, l.credit] <@ ARRAY['cost_of_sales', 'payable:' || c.provider]
            AND l.debit <> l.credit
        WHEN 'platform_loss' THEN (l.debit, l.credit) = ('platform_loss', 'revenue_forgone')
            OR (l.debit, l.credit, l.seq > 0) = ('revenue_forgone', 'platform_loss', true)
        WHEN 'exposure' THEN (l.debit, l.credit) = ('exposure', 'payable:' || c.provider)
        WHEN 'exposure_release' THEN (l.debit, l.credit) = ('payable:' || c.provider, 'exposure')
        WHEN 'credit_grant' THEN l.debit IN ('cash', 'marketing') AND l.credit = 'customer_credit'
        WHEN 'credit_expiry' THEN (l.debit, l.credit) = ('customer_credit', 'breakage') END, false)
)
SELECT 'checked', 'calls', '', NULL::numeric, count(*)::numeric FROM call
UNION ALL SELECT 'checked', 'ledger_entries', '', NULL, count(*) FROM entry
UNION ALL SELECT 'checked', 'cap_periods', '', NULL, count(*) FROM bucket
UNION ALL SELECT 'checked', 'live_calls', '', NULL, count(*) FROM call WHERE is_live
UNION ALL SELECT 'mark', b.id::text, '', NULL, r.decided FROM bucket b JOIN recomputed r USING (id)
    WHERE b.is_running AND %(upto)s > 0 AND (b.after = 0 OR r.decided <> b.marked)
UNION ALL (SELECT what, subject, field, expected, found FROM drift ORDER BY what, subject, field LIMIT %(most)s)"""


# Balances of accounts, and of grants; needs the whole ledger, of one tenant or of all.
_BALANCES: LiteralString = """
WITH entry AS (SELECT * FROM usage_ledgerentry WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s),
account AS (
    SELECT tenant_id, account, sum(nano) AS nano FROM (
        SELECT tenant_id, debit AS account, amount_nano AS nano FROM entry
        UNION ALL SELECT tenant_id, credit, -amount_nano FROM entry) x GROUP BY 1, 2
),
owed AS (
    SELECT tenant_id, sum(charged_nano + corrected_nano) FILTER (WHERE NOT is_prepaid) AS receivable,
        -sum(charged_nano + corrected_nano) AS revenue, sum(platform_loss_nano) AS loss
    FROM usage_call WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s GROUP BY 1
),
granted AS (
    SELECT tenant_id, -sum(amount_nano - burnt_nano - expired_nano) AS credit, sum(amount_nano - expired_nano) AS balance_limit,
        sum(burnt_nano) AS burnt, sum(expired_nano) AS expired
    FROM usage_creditgrant WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s GROUP BY 1
),
tenant AS (SELECT tenant_id FROM account UNION SELECT tenant_id FROM owed UNION SELECT tenant_id FROM granted),
consumed AS (SELECT grant_id, sum(amount_nano) AS nano FROM usage_creditconsumption GROUP BY 1),
movement AS (
    SELECT ref, coalesce(sum(amount_nano) FILTER (WHERE kind = 'credit_grant'), 0) AS granted,
        coalesce(sum(amount_nano) FILTER (WHERE kind = 'credit_expiry'), 0) AS expired
    FROM entry WHERE kind IN ('credit_grant', 'credit_expiry') GROUP BY 1
),
drift(what, subject, field, expected, found) AS (
    SELECT 'account', t.tenant_id::text, x.account || '_nano', x.expected, coalesce(a.nano, 0)
    FROM tenant t LEFT JOIN owed o USING (tenant_id) LEFT JOIN granted g USING (tenant_id) CROSS JOIN LATERAL (VALUES
        ('receivable', coalesce(o.receivable, 0)), ('revenue', coalesce(o.revenue, 0)), ('platform_loss', coalesce(o.loss, 0)),
        ('customer_credit', coalesce(g.credit, 0)), ('breakage', -coalesce(g.expired, 0))
    ) AS x(account, expected) LEFT JOIN account a ON a.tenant_id = t.tenant_id AND a.account = x.account
    WHERE x.expected <> coalesce(a.nano, 0)
    UNION ALL
    SELECT 'credit', g.id::text, x.field, x.expected, x.found
    FROM usage_creditgrant g LEFT JOIN consumed k ON k.grant_id = g.id LEFT JOIN movement m ON m.ref = g.id, LATERAL (VALUES
        ('burnt_nano', coalesce(k.nano, 0), g.burnt_nano), ('amount_nano', coalesce(m.granted, 0), g.amount_nano),
        ('expired_nano', coalesce(m.expired, 0), g.expired_nano)
    ) AS x(field, expected, found)
    WHERE (%(tenant)s::uuid IS NULL OR g.tenant_id = %(tenant)s) AND x.expected <> x.found
    UNION ALL
    SELECT 'credit', t.tenant_id::text, x.field, x.expected, x.found
    FROM tenant t LEFT JOIN granted g USING (tenant_id)
    JOIN usage_spendingcap c ON c.tenant_id = t.tenant_id AND c.mode = 'credit' JOIN usage_capbucket b ON b.cap_id = c.id,
    LATERAL (VALUES ('limit_nano of the balance', coalesce(g.balance_limit, 0), c.limit_nano),
                    ('spent_nano of the balance', coalesce(g.burnt, 0), b.spent_nano)) AS x(field, expected, found)
    WHERE x.expected <> x.found
    UNION ALL
    SELECT 'credit', k.grant_id::text, 'consumption of no grant, amount_nano', 0, k.nano
    FROM consumed k LEFT JOIN usage_creditgrant g ON g.id = k.grant_id WHERE %(tenant)s::uuid IS NULL AND g.id IS NULL
)
SELECT 'checked', 'accounts', '', NULL::numeric, count(*)::numeric FROM account
UNION ALL SELECT 'checked', 'credit_grants', '', NULL, count(*) FROM usage_creditgrant
    WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s
UNION ALL (SELECT what, subject, field, expected, found FROM drift ORDER BY what, subject, field LIMIT %(most)s)"""


def verify(*, tenant_id: UUID | None = None, with_seals: bool = True, upto: int = 0) -> Audit:
    """Looks at every cap period, call, ledger entry and balance, of all tenants or of one, and then at every seal.

    All but the seals is seen as of one moment; a sealed entry never changes. With `upto`, marks as of that number.
    """
    audit = Audit()
    with _one_snapshot():
        _read(audit, _VERIFY, _ALL, {"tenant": tenant_id, "upto": upto})
        _read(audit, _BALANCES, {}, {"tenant": tenant_id})
    if with_seals:
        checked, drift = seals.verify(tenant_id)
        audit.checked |= checked
        audit.drift += drift
    return audit


def verify_moved(moved: Moved, *, upto: int) -> Audit:
    """Looks at what moved, and at every cap's running period."""
    audit = Audit()
    with transaction.atomic():
        parameters = {"tenant": None, "since": moved.since, "number": moved.number, "upto": upto}
        _read(audit, _VERIFY, _MOVED, parameters)
    return audit


@contextmanager
def _one_snapshot() -> Iterator[None]:
    """For more than one statement; within a transaction that has begun it is too late."""
    is_outermost = not connection.in_atomic_block
    with transaction.atomic():
        if is_outermost:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _read(audit: Audit, statement: LiteralString, parts: dict[str, LiteralString], parameters: dict[str, Any]) -> None:
    composed = sql.SQL(statement).format(**{name: sql.SQL(part) for name, part in parts.items()})
    with connection.cursor() as cursor:
        # Compiling so large a statement takes longer than a small one runs.
        cursor.execute("SELECT set_config('jit', 'off', true), set_config('work_mem', '64MB', true)")
        cursor.execute(composed, parameters | {"most": MOST_SHOWN})
        for what, subject, name, expected, found in cursor.fetchall():
            if what == "checked":
                audit.checked[subject] = int(found)
            elif what == "mark":
                audit.marks[int(subject)] = int(found)
            else:
                told = {"expected": _shown(name, expected), "found": _shown(name, found)}
                audit.drift.append({"what": what, "subject": subject, "field": name, **told})


def _shown(name: str, value: Decimal | None) -> str | int | None:
    """Money in USD, counts as they are."""
    if value is None:
        return None
    return money.usd(int(value)) if "_nano" in name else int(value)
