"""Spending caps: setting, raising and removing them; `usage.standings` says how each stands."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from aiplatform.lib import money, postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from tenants.lookup import NotFound
from tenants.models import ApiKey, Environment, Tenant
from usage.models import SpendingCap

MOST_USD = 9_000_000_000  # what a BIGINT of nano-USD holds
MOST_THRESHOLDS = 20
MODES = (SpendingCap.Mode.ENFORCE, SpendingCap.Mode.SHADOW)  # the third is credit, whose limit is what was granted
_AMOUNT = re.compile(r"\d{1,10}(\.\d{1,9})?", re.ASCII)
_SPAN = re.compile(r"\+(\d{1,4})([hd])", re.ASCII)
_ID = re.compile(r"\d{1,18}", re.ASCII)
_LONGEST_END_USER = 256
_LONGEST_RAISE = timedelta(days=3660)


class CapRefused(ApiError):
    """A cap cannot be set like this."""


def parse_usd(text: str) -> int:
    """Nano-USD of `10`, `10.00` or `0.000000001`; raises CapRefused."""
    if not _AMOUNT.fullmatch(text) or Decimal(text) > MOST_USD:
        raise CapRefused(
            f"{text[:40]!a} is no amount; write USD from 0 to {MOST_USD} with up to nine decimals, like 10.00."
        )
    return money.from_usd(text)


def parse_thresholds(text: str) -> list[int]:
    """The percents of `50,80,100`; an empty text is none. Raises CapRefused."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdecimal() and len(part) <= len("100") for part in parts):
        raise CapRefused(f"{text[:60]!a} are no thresholds; write whole percents, like 50,80,100.")
    return [int(part) for part in parts]


def parse_until(text: str) -> datetime:
    """The moment of `+4h`, `+2d`, `2027-01-31` (midnight UTC) or `2027-01-31T12:00+01:00`; raises CapRefused."""
    if span := _SPAN.fullmatch(text):
        count = int(span[1])
        return timezone.now() + (timedelta(hours=count) if span[2] == "h" else timedelta(days=count))
    try:
        until = datetime.fromisoformat(text)
    except ValueError:
        raise CapRefused(f"{text[:40]!a} is no moment; write +4h, +2d, 2027-01-31 or 2027-01-31T12:00Z.") from None
    return until if until.tzinfo else until.replace(tzinfo=ZoneInfo("UTC"))


def set_cap(
    *,
    tenant: Tenant | None,
    environment: Environment | None = None,
    api_key: ApiKey | None = None,
    end_user: str = "",
    period: str,
    mode: str = SpendingCap.Mode.ENFORCE,
    limit_nano: int,
    thresholds: Sequence[int] | None = None,
) -> int:
    """Sets the cap of this scope, period and mode, new or not, and returns its id; 0 refuses every call that costs anything.

    No tenant: the whole platform, in UTC. End user `*`: each by himself. `thresholds` None keeps those there are, or the
    default. A new cap counts what its period has already seen, an edited one keeps it. Raises CapRefused.
    """
    if period not in SpendingCap.Period.values:
        raise CapRefused(f"The period {period[:40]!a} is unknown; it is one of {', '.join(SpendingCap.Period.values)}.")
    if mode not in MODES:
        raise CapRefused(f"The mode {mode[:40]!a} is unknown; it is one of {', '.join(MODES)}.")
    if not 0 <= limit_nano <= MOST_USD * money.NANO:
        raise CapRefused(f"A cap is from 0 to {MOST_USD} USD.")
    if len(end_user) > _LONGEST_END_USER or not end_user.isprintable():
        raise CapRefused(f"An end user is at most {_LONGEST_END_USER} printable characters.")
    _check_thresholds(thresholds)
    _check_scope(tenant, environment, api_key, end_user)
    scope = [it.pk if it else None for it in (tenant, environment, api_key)]
    cap_id = _call(
        "usage_set_cap(%s::uuid, %s::uuid, %s::uuid, %s, %s, %s, %s, %s::smallint[])",
        [*scope, end_user, period, mode, limit_nano, None if thresholds is None else list(thresholds)],
    )
    log.info("cap.set", cap=cap_id, tenant=_name(tenant), mode=mode, period=period, limit_nano=limit_nano)
    return int(cap_id)


def raise_cap(cap: SpendingCap, *, by_nano: int, until: datetime) -> None:
    """Affords so much more until then, in place of any raise before; 0 ends it now. Raises CapRefused."""
    if cap.mode == SpendingCap.Mode.CREDIT:
        raise CapRefused("A prepaid balance is raised by a grant (credit_grant), not for a time.")
    if not 0 <= by_nano <= MOST_USD * money.NANO - cap.limit_nano:
        raise CapRefused(f"Limit and raise together are from 0 to {MOST_USD} USD.")
    now = timezone.now()
    if not now < until <= now + _LONGEST_RAISE:
        raise CapRefused("A raise ends in the future, within ten years.")
    if not _call("usage_raise_cap(%s, %s, %s)", [cap.pk, by_nano, until if by_nano else None]):
        raise NotFound(f"The cap {cap.pk} was removed meanwhile.")
    log.info("cap.raised", cap=cap.pk, by_nano=by_nano, until=until.isoformat())


def end_raises() -> int:
    """Ends the raises whose time has come; a sweeper's step, since thresholds must be looked at again. How many."""
    return int(postgres.run("SELECT usage_end_raises() AS ended")[0].ended)


def remove_cap(cap: SpendingCap) -> None:
    """Ends a cap with its periods and notices; calls, charges and other caps stay as they are. Raises CapRefused."""
    if cap.mode == SpendingCap.Mode.CREDIT:
        raise CapRefused("A prepaid balance cannot be removed: what was granted and burnt stands in the ledger.")
    _call("usage_remove_cap(%s)", [cap.pk])
    log.info("cap.removed", cap=cap.pk, tenant=cap.tenant_id and str(cap.tenant_id))


def set_time_zone(tenant: Tenant, zone: str) -> None:
    """Calendar caps turn over in this zone from now on; running periods are counted anew, so nothing is reset.

    Raises CapRefused for a zone that Python or Postgres does not know.
    """
    try:
        ZoneInfo(zone)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT now() AT TIME ZONE %s", [zone])
    except (ValueError, OSError, KeyError, DatabaseError):  # ZoneInfo says no in three ways
        raise CapRefused(f"The time zone {zone[:60]!a} is unknown; write an IANA name, like Europe/Berlin.") from None
    _call("usage_set_time_zone(%s::uuid, %s)", [tenant.pk, zone])
    tenant.refresh_from_db(fields=["time_zone"])
    log.info("tenant.time_zone_set", tenant=str(tenant.pk), zone=zone)


def find(cap_id: int | str, *, tenant_id: Any = ...) -> SpendingCap:
    """The cap of this id; of this tenant's only, if given. Raises NotFound."""
    text = str(cap_id)
    caps = SpendingCap.objects.filter(pk=int(text) if _ID.fullmatch(text) else -1)
    if tenant_id is not ...:
        caps = caps.filter(tenant_id=tenant_id)
    found = caps.select_related("tenant").first()
    if found is None:
        raise NotFound(f"There is no cap {text[:40]!a} here.")
    return found


def _check_thresholds(thresholds: Sequence[int] | None) -> None:
    for percent, after in zip(thresholds or (), [*(thresholds or ())[1:], 101], strict=False):
        if not 1 <= percent < after:
            raise CapRefused("Thresholds are ascending whole percents from 1 to 100, like 50,80,100.")
    if thresholds and len(thresholds) > MOST_THRESHOLDS:
        raise CapRefused(f"A cap has at most {MOST_THRESHOLDS} thresholds.")


def _check_scope(tenant: Tenant | None, environment: Environment | None, api_key: ApiKey | None, end_user: str) -> None:
    """Whose parts these are; the function trusts its caller."""
    if tenant is None and (environment or api_key or end_user):
        raise CapRefused("A platform-wide cap has no environment, key or end user.")
    if any(tenant and it and it.tenant_id != tenant.pk for it in (environment, api_key)):
        raise CapRefused("Environment and key must be the tenant's own.")


def _call(function: str, parameters: list[Any]) -> Any:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}", parameters)
        row = cursor.fetchone()
    return row[0] if row else None


def _name(tenant: Tenant | None) -> str | None:
    return str(tenant.pk) if tenant else None
