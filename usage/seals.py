"""Seals the ledger: hash chains over its entries, one for each tenant and one for the house (docs/ledger.md).

It runs beside the writers and behind them: an entry is sealed once no entry with a lower number can appear any more.
"""

import time
import uuid
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from django.db import connection

from aiplatform.lib import postgres
from aiplatform.lib.logs import log
from tenants.lookup import NotFound
from usage.models import LedgerSeal

AT_ONCE = 10_000
PATIENCE_SECONDS = 2.0
POLL_SECONDS = 0.02


@dataclass(slots=True)
class Sealed:
    """What one round did. `is_complete` says that every entry of before the round is sealed now."""

    blocks: int = 0
    entries: int = 0
    upto_number: int = 0
    is_complete: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def seal(*, patience: float = PATIENCE_SECONDS) -> Sealed:
    """Seals every entry that was booked before now, in blocks of at most AT_ONCE.

    Waits up to `patience` seconds for transactions that are still booking; if they go on, it seals nothing and leaves
    it to the next round. Where another sealer is at work, it leaves the rest to that one.
    """
    done = Sealed()
    horizon = _horizon(patience)
    if horizon is None:
        log.warning("seal.delayed", seconds=patience)
        return done
    while True:
        (row,) = postgres.run("SELECT * FROM usage_seal(%s::bigint, %s::integer)", [horizon, AT_ONCE])
        if row.sealed_to is None:
            return done
        done.blocks += row.blocks
        done.entries += row.entries
        done.upto_number = row.sealed_to
        if row.sealed_to >= horizon:
            done.is_complete = True
            if done.entries:
                log.info("seal.done", blocks=done.blocks, entries=done.entries, upto_number=done.upto_number)
            return done


def lines(tenant_id: uuid.UUID, n: int) -> bytes:
    """The canonical lines of one block's entries, as they were hashed. Raises NotFound."""
    block = LedgerSeal.objects.filter(tenant_id=tenant_id, n=n).first()
    if block is None:
        raise NotFound(f"There is no block {n} in this chain.")
    (row,) = postgres.run(
        """SELECT string_agg(usage_ledger_line(l), '' ORDER BY l.number, l.ref, l.kind, l.seq) AS text FROM usage_ledgerentry l
           WHERE l.number BETWEEN %s::bigint AND %s::bigint AND usage_ledger_chain(l) = %s::uuid""",
        [block.first_number, block.last_number, tenant_id],
    )
    return (row.text or "").encode()


def verify(tenant_id: uuid.UUID | None = None) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Recomputes all chains, or one tenant's: how much was checked, and each difference.

    Finds blocks and entries that were changed, removed or added after they were sealed, wherever something newer is left: who
    removes the end of a chain leaves no trace in it, which is why tenants keep the newest hash they have seen.
    """
    (row,) = _ask(
        """SELECT count(*) AS blocks, coalesce(max(upto_number), 0) AS upto,
               coalesce(sum(entries), 0)::bigint AS entries FROM usage_ledgerseal
           WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s""",
        tenant=tenant_id,
    )
    drift = [_drift(it.tenant_id, it.n, it.field, it.expected, it.found) for it in _ask(_LINKS, tenant=tenant_id)]
    for behind, upto in [(0, row.upto)] if tenant_id else _windows():
        for it in _ask(_BLOCKS, tenant=tenant_id, behind=behind, upto=upto):
            if it.n is None:
                where = f"entries {it.first}-{it.last} of {it.tenant_id}"
                drift.append(
                    {"what": "seal", "subject": where, "field": "in no block", "expected": 0, "found": it.count}
                )
                continue
            drift += [
                _drift(it.tenant_id, it.n, name, expected, found)
                for name, expected, found in (
                    ("version", 1, it.version), ("entries", it.entries, it.count or 0),
                    ("first_number", it.first_number, it.first), ("last_number", it.last_number, it.last),
                    ("sha256", it.sha256, it.recomputed), ("entries booked after it was sealed", [], it.late or []),
                ) if expected != found
            ]  # fmt: skip
    return {"seals": row.blocks, "sealed_entries": row.entries}, drift


_WINDOW = 100_000
# Each block continues the one before it.
_LINKS = """
SELECT s.tenant_id, s.n, x.field, x.expected, x.found FROM (
    SELECT *, lag(n, 1, 0) OVER chain + 1 AS next_n, lag(sha256, 1, repeat('0', 64)::varchar) OVER chain AS before
    FROM usage_ledgerseal WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s
    WINDOW chain AS (PARTITION BY tenant_id ORDER BY n)) s,
LATERAL (VALUES ('n', s.next_n::text, s.n::text), ('prev_sha256', s.before, s.prev_sha256)) AS x(field, expected, found)
WHERE x.expected <> x.found ORDER BY s.tenant_id, s.n LIMIT 1000"""
# Each block has the entries that it had; an entry is looked for in the round of its number.
_BLOCKS = """
WITH entry AS (
    SELECT l AS line, usage_ledger_chain(l) AS tenant_id, l.number, l.created_at, (
        SELECT s.upto_number FROM usage_ledgerseal s WHERE s.upto_number >= l.number ORDER BY s.upto_number LIMIT 1
    ) AS upto_number
    FROM usage_ledgerentry l
    WHERE l.number > %(behind)s AND l.number <= %(upto)s AND (%(tenant)s::uuid IS NULL OR l.tenant_id = %(tenant)s)
), there AS (
    SELECT e.tenant_id, e.upto_number, count(*) AS count, min(e.number) AS first, max(e.number) AS last,
        string_agg(usage_ledger_line(e.line), '' ORDER BY e.number, (e.line).ref, (e.line).kind, (e.line).seq) AS lines
    FROM entry e WHERE %(tenant)s::uuid IS NULL OR e.tenant_id = %(tenant)s GROUP BY 1, 2
), block AS (
    SELECT * FROM usage_ledgerseal s WHERE s.upto_number > %(behind)s AND s.upto_number <= %(upto)s
        AND (%(tenant)s::uuid IS NULL OR s.tenant_id = %(tenant)s)
), compared AS (
    SELECT b.*, t.count, t.first, t.last, t.tenant_id AS there_id, t.upto_number AS there_upto,
        usage_seal_sha256(b.prev_sha256, coalesce(t.lines, '')) AS recomputed
    FROM block b FULL JOIN there t ON t.tenant_id = b.tenant_id AND t.upto_number = b.upto_number
)
SELECT coalesce(c.tenant_id, c.there_id) AS tenant_id, c.n, c.entries, c.first_number, c.last_number, c.sha256, c.version,
    c.count, c.first, c.last, c.recomputed,
    (SELECT array_agg(e.number ORDER BY e.number) FROM entry e
     WHERE e.tenant_id = c.tenant_id AND e.upto_number = c.upto_number AND e.created_at > c.sealed_at) AS late
FROM compared c
WHERE c.n IS NULL OR c.there_id IS NULL OR c.version <> 1 OR c.sha256 <> c.recomputed
    OR (c.entries, c.first_number, c.last_number) <> (c.count, c.first, c.last)
ORDER BY 1, 2 LIMIT 1000"""


def _windows() -> Iterator[tuple[int, int]]:
    """Ranges of numbers, each of whole rounds, so that no statement runs long or holds much."""
    behind = last = 0
    for (upto,) in LedgerSeal.objects.order_by("upto_number").values_list("upto_number").distinct().iterator():
        if upto - behind > _WINDOW and last > behind:
            yield behind, last
            behind = last
        last = upto
    if last > behind:
        yield behind, last


def _ask(statement: str, **parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row = namedtuple("row", [column.name for column in cursor.description])  # type: ignore[misc]  # noqa: PYI024
        return [row(*values) for values in cursor.fetchall()]


def _drift(tenant_id: uuid.UUID, n: int, field: str, expected: object, found: object) -> dict[str, Any]:
    return {
        "what": "seal",
        "subject": f"block {n} of {tenant_id}",
        "field": field,
        "expected": expected,
        "found": found,
    }


def _horizon(patience: float) -> int | None:
    """A number up to which every entry is there or never will be; None if writers did not end in time."""
    give_up_at = time.monotonic() + patience
    (drawn,) = postgres.run("SELECT * FROM usage_ledger_drawn()")
    writing = set(drawn.writers)
    while writing:
        if time.monotonic() > give_up_at:
            return None
        time.sleep(POLL_SECONDS)
        writing &= set(postgres.run("SELECT usage_ledger_writers() AS writers")[0].writers)
    return int(drawn.number)
