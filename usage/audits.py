"""Audits by the clock, and what the last one found: the drift gauge, which must read 0."""

import time
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from aiplatform.lib import postgres
from aiplatform.lib.logs import log
from usage import audit
from usage.models import AuditRun

MOST_KEPT = 50


def run(*, complete: bool) -> AuditRun:
    """Looks at everything, or at what moved since the run before, and records what it found; drift is logged as an error.

    What was booked up to a moment ago may have been looked at before: a run reaches back a little, since a number is drawn
    before its entry can be seen.
    """
    before = AuditRun.objects.order_by("-id").first()
    at, began = timezone.now(), time.monotonic()
    number = _last_number()
    if complete or before is None:
        complete, found = True, audit.verify()
    else:
        overlap = timedelta(seconds=settings.CALL_DEADLINE_SECONDS + settings.UNKNOWN_GRACE_SECONDS)
        found = audit.verify_moved(audit.Moved(since=before.at - overlap, number=before.upto_number))
    done = AuditRun.objects.create(
        at=at,
        seconds=round(time.monotonic() - began, 3),
        complete=complete,
        upto_number=number,
        checked=found.checked,
        drift=len(found.drift),
        details=found.drift[:MOST_KEPT],
    )
    if done.drift:
        log.error("ledger.drift", drift=done.drift, complete=complete, first=found.drift[0])
    return done


def last() -> dict[str, Any] | None:
    """The newest run, and the newest that looked at everything."""
    newest = AuditRun.objects.order_by("-id").first()
    if newest is None:
        return None
    whole = AuditRun.objects.filter(complete=True).order_by("-id").first()
    return as_json(newest) | {"last_complete": whole and as_json(whole)}


def as_json(run: AuditRun) -> dict[str, Any]:
    return {
        "at": run.at.isoformat(),
        "seconds": run.seconds,
        "complete": run.complete,
        "checked": run.checked,
        "drift": run.drift,
        "details": run.details,
    }


def _last_number() -> int:
    """Below it nothing is still being booked, unless a transaction outlives the sealer's patience: then the last seal's."""
    (row,) = postgres.run("SELECT coalesce(max(upto_number), 0) AS number FROM usage_ledgerseal")
    return int(row.number)
