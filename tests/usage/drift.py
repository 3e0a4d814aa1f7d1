"""An oracle for caps: every period of a tenant's caps added up again in Python, from ledger entries and live calls."""

from datetime import datetime
from typing import Any

from tests.usage.book import Book
from usage.models import Call, CapBucket, LedgerEntry


def drift(book: Book) -> list[tuple[Any, ...]]:
    """(cap, end user, start, (held, spent) expected, found) where they differ."""
    entries, live = LedgerEntry.objects.filter(tenant_id=book.tenant.pk), Call.objects.filter(tenant=book.tenant).live()
    found = []
    for bucket in CapBucket.objects.filter(cap__tenant=book.tenant).select_related("cap"):
        held = sum(
            it.held_nano for it in live if _counts(bucket, it, it.admitted_at) and _prepaid(bucket, it.is_prepaid)
        )
        spent = sum(
            it.amount_nano if it.credit == "revenue" else -it.amount_nano
            for it in entries
            if "revenue" in {it.debit, it.credit}
            and _counts(bucket, it, it.belongs_at)
            and _prepaid(bucket, "customer_credit" in {it.debit, it.credit})
        )
        if (held, spent) != (bucket.held_nano, bucket.spent_nano):
            found.append(
                (bucket.cap_id, bucket.end_user, bucket.starts_at, (held, spent), (bucket.held_nano, bucket.spent_nano))
            )
    return found


def _counts(bucket: CapBucket, it: Call | LedgerEntry, moment: datetime) -> bool:
    cap = bucket.cap
    return (
        cap.environment_id in {None, it.environment_id}
        and cap.api_key_id in {None, it.api_key_id}
        and (cap.end_user == "" or (it.end_user != "" and (bucket.end_user or cap.end_user) == it.end_user))
        and bucket.starts_at <= moment
        and (bucket.ends_at is None or moment < bucket.ends_at)
    )


def _prepaid(bucket: CapBucket, is_prepaid: bool) -> bool:
    return is_prepaid or bucket.cap.mode != "credit"
