"""`GET /v1/me/usage`: what the holder of a key has spent, and what is left to him."""

from collections.abc import Callable
from typing import Any, TypeVar

from django.db import connection
from django.utils import timezone

from aiplatform.lib import money
from tenants import limits
from tenants.auth import Principal
from tenants.models import ApiKey
from usage import reports, standings
from usage.standings import Standing

_NOT_SHOWN = "The operator may also limit the whole platform; those figures would tell what other tenants spend."
Found = TypeVar("Found")


def usage(principal: Principal, end_user: str | None) -> dict[str, Any]:
    """Ready for JSON, USD with nine decimals; with an end user his own caps as well. Raises Unavailable where Redis is lost."""
    return on_django(lambda: _usage(principal, end_user))


def binding(principal: Principal, end_user: str) -> list[Standing]:
    """The tenant's caps that a call of this key for this end user ('' for none) must pass, as they stand now."""
    key = ApiKey(pk=principal.key_id, environment_id=principal.environment_id)
    found = standings.standings(tenant_id=principal.tenant_id, now=timezone.now(), api_key=key, end_user=end_user)
    return [one for one in found if one.end_user == "" or end_user]


def on_django(read: Callable[[], Found]) -> Found:
    """Reads through Django's connection from a thread of the lean application, and gives it back to its pool."""
    try:
        return read()
    finally:
        connection.close()


def _usage(principal: Principal, end_user: str | None) -> dict[str, Any]:
    key = ApiKey.objects.select_related("tenant", "environment").get(pk=principal.key_id)
    found = binding(principal, (end_user or "").replace("\0", "")[:256])
    now = timezone.now()
    return {
        "tenant": key.tenant.name,
        "environment": key.environment.name,
        "key": {"id": str(key.pk), "name": key.name, "prefix": key.prefix},
        "end_user": end_user or None,
        "caps": [_cap(one) for one in found if not one.is_credit],
        "not_shown": _NOT_SHOWN,
        "prepaid": next((_balance(one) for one in found if one.is_credit), None),
        "rate_limits": [_limit(one) for one in limits.standing(principal.limits, end_user or "")],
        "spend": {
            name: {
                "usd": money.usd(spent.nano),
                "starts_at": spent.starts_at.isoformat(),
                "resets_at": spent.ends_at.isoformat(),
            }
            for name, spent in (
                ("today", reports.spend_of_key(key, period="day", now=now)),
                ("this_month", reports.spend_of_key(key, period="month", now=now)),
            )
        },
    }


def _cap(one: Standing) -> dict[str, Any]:
    """Without what concerns other end users of the same cap."""
    return {
        "cap": one.cap_id,
        "scope": one.scope,
        "period": one.period,
        "mode": one.mode,
        "limit_usd": money.usd(one.limit_nano),
        "spent_usd": money.usd(one.spent_nano),
        "held_usd": money.usd(one.held_nano),
        "left_usd": money.usd(one.left_nano),
        "resets_at": one.resets_at and one.resets_at.isoformat(),
    }


def _balance(one: Standing) -> dict[str, Any]:
    return {
        "granted_usd": money.usd(one.limit_nano),
        "held_usd": money.usd(one.held_nano),
        "left_usd": money.usd(one.left_nano),
    }


def _limit(one: limits.Standing) -> dict[str, Any]:
    figures = {"scope": one.scope, "name": one.name, "limit": one.limit, "remaining": one.remaining}
    return figures | ({"burst": one.burst} if one.burst not in {None, one.limit} else {}) | (
        {"mode": "shadow"} if one.is_shadow else {}
    )  # fmt: skip
