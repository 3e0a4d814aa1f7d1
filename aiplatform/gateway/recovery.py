"""The sweeper: brings every call to one end, whatever died, and reports drift without ever repairing it silently.

One round at a time, by an advisory lock; each step is one repeatable statement over a bounded number of rows, and none holds
a lock while it talks to anything else.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from django.conf import settings

from aiplatform.gateway import doorbell, idempotency, webhooks
from aiplatform.lib import failpoints, postgres
from aiplatform.lib.logs import log
from tenants import limits
from tenants.webhooks import outbox
from usage import caps, credit, ledger
from usage.ledger import Ending

AT_ONCE = 500
SUSPENDED_STATUS = 403


def sweep() -> dict[str, int]:
    """One round; how many calls each step moved. Nothing where another sweeper is at work."""
    if not postgres.run("SELECT usage_sweeper_begins(%s * interval '1 second') AS first", [settings.SWEEP_SECONDS / 2])[
        0
    ].first:
        return {}
    failpoints.reached("sweep.begun")
    done = {
        "voided": void_unstarted(),
        "fenced": fence_dead_processes(),
        "unknown": mark_unknown(),
        "finalised": finalise_unknown(),
        "rung": ring_again(),
        "raises_ended": caps.end_raises(),
        "credit_expired": credit.expire(),
        "forgotten": forget_idempotency_keys(),
        "webhooks_forgotten": outbox.tidy(AT_ONCE),
        "partitions": postgres.run("SELECT usage_open_partitions(2) AS opened")[0].opened,
    }
    failpoints.reached("sweep.done")
    if any(done.values()):
        log.info("sweep.done", **done)
    return done


def ring_again() -> int:
    """S1: held calls whose doorbell seems lost, ever more rarely."""
    rows = [row for lane in doorbell.QUEUES for row in _due_bells(lane)]
    failpoints.reached("sweep.before_bells", rows)
    doorbell.ring((row.id, row.lane) for row in rows)
    failpoints.reached("sweep.after_bells", rows)
    return len(rows)


def _due_bells(lane: str) -> list[Any]:
    """By lane, so that many calls that wait in one do not delay the bells of the other; a day's wait counts few rings."""
    return postgres.run(
        """UPDATE usage_call c SET rings = least(rings + 1, 10),
               next_ring_at = now() + CASE c.lane WHEN 'batch' THEN 60 ELSE least(3 * 2 ^ (c.rings + 1), 60) END
                   * (0.75 + random() / 2) * interval '1 second'
           WHERE c.id IN (SELECT h.id FROM usage_call h
                          WHERE h.is_live AND h.state = 'held' AND h.lane = %s AND h.next_ring_at < now()
                          ORDER BY h.next_ring_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)
           RETURNING c.id, c.lane""",
        [lane, AT_ONCE],
    )


def void_unstarted() -> int:
    """S2: held calls that it is too late to start, that nobody waits for any more since their web process died
    (those that were handed in wait for no process), or whose key, environment or tenant was suspended.
    """
    rows = postgres.run(
        """SELECT c.id, CASE WHEN coalesce(t.suspended_at, e.suspended_at, k.suspended_at) IS NOT NULL THEN 'suspended'
                             WHEN c.start_by < now() THEN 'not_started_in_time' ELSE 'caller_gone' END AS why
           FROM usage_call c LEFT JOIN usage_processlease p ON p.id = c.web_process
           JOIN tenants_tenant t ON t.id = c.tenant_id
           JOIN tenants_environment e ON e.id = c.environment_id
           JOIN tenants_apikey k ON k.id = c.api_key_id
           WHERE c.is_live AND c.state = 'held' AND (c.start_by < now()
               OR (p.state IS DISTINCT FROM 'alive' AND NOT c.detached)
               OR coalesce(t.suspended_at, e.suspended_at, k.suspended_at) IS NOT NULL)
           LIMIT %s""",
        [AT_ONCE],
    )
    return _end(
        [Ending(row.id, "void", SUSPENDED_STATUS if row.why == "suspended" else 503, row.why) for row in rows], "held"
    )


def fence_dead_processes() -> int:
    """S3: processes that have not renewed their lease, though the database was there to be asked."""
    rows = postgres.run(
        """UPDATE usage_processlease SET state = 'fenced'
           WHERE state = 'alive' AND seen_at < now() - %s * interval '1 second'
             AND pg_postmaster_start_time() < now() - %s * interval '1 second'
           RETURNING id, kind""",
        [settings.LEASE_LOST_SECONDS, settings.LEASE_LOST_SECONDS],
    )
    failpoints.reached("sweep.fenced", rows)
    for row in rows:
        log.warning("process.declared_dead", process=str(row.id), kind=row.kind)
    return len(rows)


def mark_unknown() -> int:
    """S3 and S4: calls in flight whose worker is dead, or that are past their deadline: maybe sent, and nobody can say.

    The money of a batch belongs to no worker while it waits for the results, and how a call in the background ended any
    worker may ask.
    """
    rows = postgres.run(
        """SELECT c.id FROM usage_call c LEFT JOIN usage_processlease p ON p.id = c.worker_process
           WHERE c.is_live AND c.state = 'inflight' AND (c.deadline_at < now()
               OR (c.worker_process IS NOT NULL AND p.state IS DISTINCT FROM 'alive'
                   AND NOT EXISTS (SELECT FROM usage_backgroundcall b WHERE b.call_id = c.id))) LIMIT %s""",
        [AT_ONCE],
    )
    endings = [Ending(row.id, "unknown", 502, "outcome_unknown", attempt_outcome="unknown") for row in rows]
    return _end(endings, "inflight")


def finalise_unknown() -> int:
    """S5: after the grace period the tenant pays what the evidence shows, here nothing; the exposure is the house's."""
    rows = postgres.run(
        """SELECT c.id, c.held_nano, c.status, c.error_code, c.provider_request_id FROM usage_call c
           WHERE c.is_live AND c.state = 'unknown' AND c.settled_at < now() - %s * interval '1 second' LIMIT %s""",
        [settings.UNKNOWN_GRACE_SECONDS, AT_ONCE],
    )
    return _end(
        [
            Ending(row.id, "void", row.status or 502, row.error_code or "outcome_unknown", exposure_nano=row.held_nano,
                   provider_request_id=row.provider_request_id)
            for row in rows
        ],
        "unknown",
    )  # fmt: skip


def forget_idempotency_keys() -> int:
    """S6: Idempotency-Keys stand for a call for a day."""
    return idempotency.forget(AT_ONCE)


def void_late(call_id: uuid.UUID) -> None:
    """Voids one held call that no worker started in time; its web process need not wait for the sweeper."""
    _end([Ending(call_id, "void", 503, "not_started_in_time")], "held")


def void_left(call_ids: Sequence[uuid.UUID]) -> int:
    """Voids held calls whose callers have gone and do not want them any more; what a worker has claimed goes on."""
    return _end([Ending(call_id, "void", 503, "caller_gone") for call_id in call_ids], "held")


def _end(endings: list[Ending], from_state: str) -> int:
    """Ends those that are still in `from_state`, and gives back their places among concurrent calls."""
    failpoints.reached("sweep.before_end", endings)
    ended = ledger.settle(None, endings, from_states=[from_state])
    failpoints.reached("sweep.after_end", ended)
    rows = postgres.run(
        """SELECT c.id, c.detached, c.state, p.headers -> 'limits' AS taken FROM usage_call c
           LEFT JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'request' WHERE c.id = ANY (%s::uuid[])""",
        [list(ended)],
    )
    if any(row.detached for row in rows):
        webhooks.nudge()
    # What was void used no tokens; of an outcome that nobody knows the estimate stays.
    limits.give_back([(row.id, row.taken, 0 if row.state == "void" else None) for row in rows])
    return len(ended)
