"""Audits by the clock, and what the last one found: the drift gauge, which must read 0."""

import time
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max
from django.utils import timezone

from aiplatform.lib.logs import log
from usage import audit
from usage.models import AuditMark, AuditRun, LedgerSeal

MOST_KEPT = 50


def run(*, complete: bool) -> AuditRun | None:
    """Looks at everything, or at what moved since the run before, and records what it found; drift is logged as an error.

    One at a time: None where another is at work. A cap that seems to have drifted since its mark is added up from the start
    before anything is said.
    """
    with transaction.atomic():
        if not _is_alone():
            return None
        before = AuditRun.objects.order_by("-id").first()
        at, began, upto = timezone.now(), time.monotonic(), _sealed_to()
        found = None if complete or before is None else _moved(before, upto)
        whole = found is None
        found = found or audit.verify(upto=upto)
        _mark(found.marks, anew=whole)
        done = AuditRun.objects.create(
            at=at,
            seconds=round(time.monotonic() - began, 3),
            complete=whole,
            upto_number=upto,
            checked=found.checked,
            drift=len(found.drift),
            details=found.drift[:MOST_KEPT],
        )
    if done.drift:
        log.error("ledger.drift", drift=done.drift, complete=whole, first=found.drift[0])
    return done


def _moved(before: AuditRun, upto: int) -> audit.Audit:
    # Back to the admission of any call that may have ended since.
    overlap = timedelta(seconds=settings.CALL_DEADLINE_SECONDS + settings.UNKNOWN_GRACE_SECONDS)
    since = audit.Moved(since=before.at - overlap, number=before.upto_number)
    found = audit.verify_moved(since, upto=upto)
    if any(it["what"] == "cap" for it in found.drift):
        AuditMark.objects.all().delete()
        found = audit.verify_moved(since, upto=upto)
    return found


def _mark(marks: dict[int, int], *, anew: bool) -> None:
    if anew:
        AuditMark.objects.all().delete()
    AuditMark.objects.bulk_create(
        [AuditMark(bucket_id=bucket, spent_nano=spent) for bucket, spent in marks.items()],
        update_conflicts=True,
        unique_fields=["bucket_id"],
        update_fields=["spent_nano"],
        batch_size=5000,
    )


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


def _is_alone() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(5703)")
        return bool(cursor.fetchone()[0])


def _sealed_to() -> int:
    """A number up to which no entry can appear any more."""
    return LedgerSeal.objects.aggregate(upto=Max("upto_number"))["upto"] or 0
