"""Tells people of the thresholds that a cap's spending has reached.

A notice's row is written by the statement that spent beyond the threshold, once for each period; here it is told. Whoever
tells it first takes the row for a while, so that two processes never tell the same one; it is told a second time only if
the process dies between the mail and the mark that it was sent, or the mail server took it and then failed. Nothing is locked
while a mail server is talked to.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.db.models import Q
from django.template.loader import render_to_string
from django.utils import timezone

from aiplatform.lib import money, postgres
from aiplatform.lib.logs import log
from tenants.models import ApiKey, Member
from usage.models import CapNotice, SpendingCap

AT_ONCE = 20
TOLD_ROLES = (Member.Role.OWNER, Member.Role.ADMIN, Member.Role.FINANCE)
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Reached:
    """The highest threshold that a cap's running period has reached."""

    notice: CapNotice
    named: dict[str, Any]  # what a page needs to name the cap


def tell_notices() -> int:
    """One round: tells what is due, and says of how many notices nobody need be told any more."""
    taken = _take()
    if not taken:
        return 0
    notices = CapNotice.objects.filter(pk__in=taken).select_related(
        "bucket__cap__tenant", "bucket__cap__environment", "bucket__cap__api_key__environment"
    )
    with _mail_server() as server:
        told = [notice.pk for notice in notices.order_by("pk") if _tell(notice, server)]
    return CapNotice.objects.filter(pk__in=told, notified_at=None).update(notified_at=timezone.now())


def latest(
    *, tenant_id: uuid.UUID, api_key: ApiKey | None = None, before: int | None = None, limit: int
) -> list[CapNotice]:
    """Newest first; with a key only of caps that bind its calls."""
    notices = CapNotice.objects.filter(bucket__cap__tenant_id=tenant_id)
    if api_key:
        notices = notices.filter(
            Q(bucket__cap__environment=None) | Q(bucket__cap__environment=api_key.environment_id),
            Q(bucket__cap__api_key=None) | Q(bucket__cap__api_key=api_key),
        )
    if before is not None:
        notices = notices.filter(pk__lt=before)
    return list(notices.select_related("bucket__cap__environment", "bucket__cap__api_key").order_by("-pk")[:limit])


def standing(*, tenant_id: uuid.UUID, now: datetime) -> list[Reached]:
    """The highest threshold of each cap in its running period, latest first; only the few that a page has room for."""
    running = Q(bucket__ends_at=None) | Q(bucket__ends_at__gt=now)
    highest = (
        CapNotice.objects.filter(running, bucket__cap__tenant_id=tenant_id, bucket__starts_at__lte=now)
        .order_by("bucket", "-percent")
        .distinct("bucket")
    )
    notices = CapNotice.objects.filter(pk__in=highest.values("pk")).select_related(
        "bucket__cap__environment", "bucket__cap__api_key__environment"
    )
    return [Reached(notice, _named(notice)) for notice in notices.order_by("-reached_at", "-pk")[:SHOWN]]


def as_json(notice: CapNotice) -> dict[str, Any]:
    """Money in USD with all nine decimals."""
    cap = notice.bucket.cap
    return {
        "id": notice.pk,
        "cap": cap.pk,
        "percent": notice.percent,
        "period": cap.period,
        "mode": cap.mode,
        "environment": cap.environment and cap.environment.name,
        "key": cap.api_key and cap.api_key.prefix,
        "end_user": notice.bucket.end_user or cap.end_user or None,
        "limit_usd": money.usd(notice.limit_nano),
        "spent_usd": money.usd(notice.spent_nano),
        "period_starts_at": notice.bucket.starts_at.isoformat(),
        "reached_at": notice.reached_at.isoformat(),
        "notified_at": notice.notified_at and notice.notified_at.isoformat(),
    }


def _named(notice: CapNotice) -> dict[str, Any]:
    cap = notice.bucket.cap
    environment = cap.environment or (cap.api_key and cap.api_key.environment)
    return {
        "period": cap.period,
        "is_credit": cap.mode == SpendingCap.Mode.CREDIT,
        "is_shadow": cap.mode == SpendingCap.Mode.SHADOW,
        "environment": environment and environment.name,
        "key_public_id": cap.api_key and cap.api_key.public_id,
        "key_name": cap.api_key and cap.api_key.name,
        "end_user": notice.bucket.end_user or cap.end_user,
    }


def _take() -> list[int]:
    """Ids of notices that are now this round's to tell; taken again a minute later, then ever more rarely."""
    rows = postgres.run(
        """UPDATE usage_capnotice n SET tries = n.tries + 1,
               next_try_at = now() + least(60 * 2 ^ n.tries, 3600) * interval '1 second'
           WHERE n.id IN (SELECT d.id FROM usage_capnotice d
                          WHERE d.notified_at IS NULL AND (d.next_try_at IS NULL OR d.next_try_at < now())
                          ORDER BY d.id LIMIT %s FOR UPDATE SKIP LOCKED)
           RETURNING n.id""",
        [AT_ONCE],
    )
    return [int(row.id) for row in rows]


@contextmanager
def _mail_server() -> Iterator[BaseEmailBackend]:
    """One connection for a round, opened by its first message."""
    backend = mail.get_connection()
    yield backend
    with suppress(OSError):
        backend.close()


def _tell(notice: CapNotice, server: BaseEmailBackend) -> bool:
    """Whether it was told, or nobody is there to be told."""
    cap = notice.bucket.cap
    if notice.tries == 1:
        log.warning(
            "cap.threshold_reached", cap=cap.pk, tenant=cap.tenant_id and str(cap.tenant_id), percent=notice.percent,
            mode=cap.mode, limit_nano=notice.limit_nano, spent_nano=notice.spent_nano,
        )  # fmt: skip
    recipients = _recipients(cap)
    if not recipients:
        return True
    try:
        mail.EmailMessage(_subject(notice), _body(notice), to=recipients, connection=server).send()
    except OSError as error:  # smtplib's own errors are OSErrors as well
        log.warning("cap.notice_not_sent", notice=notice.pk, tries=notice.tries, error=type(error).__name__)
        with suppress(OSError):
            server.close()
        return False
    return True


def _recipients(cap: SpendingCap) -> Sequence[str]:
    if cap.tenant_id is None:
        return [settings.OPERATOR_EMAIL] if settings.OPERATOR_EMAIL else []
    people = Member.objects.filter(tenant_id=cap.tenant_id, role__in=TOLD_ROLES, user__is_active=True)
    return list(people.order_by("user__email").values_list("user__email", flat=True))


def _subject(notice: CapNotice) -> str:
    cap = notice.bucket.cap
    whose = cap.tenant.name if cap.tenant else "the platform"
    what = "prepaid credit" if cap.mode == SpendingCap.Mode.CREDIT else f"{_per(cap)} cap"
    return " ".join(f"{notice.percent} % of the {what} of {whose} is spent".split())


def _body(notice: CapNotice) -> str:
    cap, bucket = notice.bucket.cap, notice.bucket
    zone = cap.tenant.time_zone if cap.tenant else "UTC"
    return render_to_string(
        "emails/cap_threshold.txt",
        {
            "percent": notice.percent,
            "cap": cap,
            "per": _per(cap),
            "scope": ", ".join(_scope(notice)),
            "limit_usd": money.usd(notice.limit_nano),
            "spent_usd": money.usd(notice.spent_nano),
            "reached_at": _local(notice.reached_at, zone),
            "resets_at": _local(bucket.ends_at, zone) if bucket.ends_at else "",
        },
    )


def _scope(notice: CapNotice) -> Iterable[str]:
    cap = notice.bucket.cap
    if cap.tenant is None:
        yield "the whole platform"
        return
    yield f"tenant {cap.tenant.name}"
    if cap.environment:
        yield f"environment {cap.environment.name}"
    if cap.api_key:
        yield f"key {cap.api_key.prefix}"
    if end_user := notice.bucket.end_user or cap.end_user:
        yield f"end user {''.join(it if it.isprintable() else ' ' for it in end_user)}"


def _per(cap: SpendingCap) -> str:
    return {"day": "daily", "week": "weekly", "month": "monthly"}.get(cap.period, cap.period)


def _local(moment: datetime, zone: str) -> str:
    return f"{moment.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}"
