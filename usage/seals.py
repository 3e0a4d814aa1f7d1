"""Seals the ledger: hash chains over its entries, one for each tenant and one for the house (docs/ledger.md).

It runs beside the writers and behind them: an entry is sealed once no entry with a lower number can appear any more.
"""

import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any

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
