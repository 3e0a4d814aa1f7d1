"""How each cap stands in one of its periods: the one reader of caps, for the API, receipts and the dashboard."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.utils import timezone

from aiplatform.lib import money
from tenants.lookup import NotFound
from tenants.models import ApiKey
from usage.models import SpendingCap


@dataclass(frozen=True, slots=True)
class Standing:
    """A cap in one of its periods; amounts in nano-USD. `resets_at` is None for a lifetime.

    A cap on each end user shows the one who has the least left (`fullest_end_user`), and counts all who have a share in
    this period; its shadow figures are of all.
    """

    cap_id: int
    scope: str
    period: str
    mode: str
    environment_id: UUID | None
    environment: str | None
    api_key_id: UUID | None
    api_key: str | None
    key_public_id: str | None
    key_name: str | None
    end_user: str
    fullest_end_user: str
    end_users: int
    starts_at: datetime
    resets_at: datetime | None
    limit_nano: int  # what binds now: with the raise, while there is one; of a balance without what has expired
    base_limit_nano: int
    raise_nano: int
    raise_until: datetime | None
    spent_nano: int
    held_nano: int
    thresholds: list[int]
    shadow_refused_calls: int
    shadow_refused_nano: int

    @property
    def left_nano(self) -> int:
        """Below zero where a limit was lowered beneath what was spent, or in shadow mode."""
        return self.limit_nano - self.spent_nano - self.held_nano

    @property
    def over_nano(self) -> int:
        return max(-self.left_nano, 0)

    @property
    def spent_share(self) -> float:
        return min(self.spent_nano / self.limit_nano, 1) if self.limit_nano else float(self.spent_nano > 0)

    @property
    def held_share(self) -> float:
        return min(self.held_nano / self.limit_nano, 1 - self.spent_share) if self.limit_nano else 0

    @property
    def is_tight(self) -> bool:
        """A tenth of the limit or less is left."""
        return self.left_nano * 10 <= self.limit_nano

    @property
    def is_shadow(self) -> bool:
        return self.mode == SpendingCap.Mode.SHADOW

    @property
    def is_credit(self) -> bool:
        return self.mode == SpendingCap.Mode.CREDIT

    def as_json(self) -> dict[str, Any]:
        """As receipts and the REST API show it: money in USD with all nine decimals."""
        each = self.end_user == SpendingCap.EACH_END_USER
        return {
            "cap": self.cap_id,
            "scope": self.scope,
            "period": self.period,
            "mode": self.mode,
            "environment": self.environment,
            "key": self.api_key,
            "end_user": self.end_user or None,
            **({"fullest_end_user": self.fullest_end_user or None, "end_users": self.end_users} if each else {}),
            "limit_usd": money.usd(self.limit_nano),
            "base_limit_usd": money.usd(self.base_limit_nano),
            "raise_usd": money.usd(self.raise_nano),
            "raise_until": self.raise_until and self.raise_until.isoformat(),
            "spent_usd": money.usd(self.spent_nano),
            "held_usd": money.usd(self.held_nano),
            "left_usd": money.usd(self.left_nano),
            "thresholds_percent": self.thresholds,
            "shadow_refused_calls": self.shadow_refused_calls,
            "shadow_refused_usd": money.usd(self.shadow_refused_nano),
            "starts_at": self.starts_at.isoformat(),
            "resets_at": self.resets_at and self.resets_at.isoformat(),
        }


_STANDINGS = """
SELECT c.id, usage_cap_scope(c), c.period, c.mode, coalesce(c.environment_id, k.environment_id), e.name, c.api_key_id,
    k.prefix, k.public_id, k.name, c.end_user, coalesce(b.end_user, ''), coalesce(b.end_users, 0), {span}.starts_at,
    {span}.ends_at, l.nano, c.limit_nano, CASE WHEN r.is_on THEN c.raise_nano ELSE 0 END,
    CASE WHEN r.is_on THEN c.raise_until END, coalesce(b.spent_nano, 0), coalesce(b.held_nano, 0), c.thresholds,
    coalesce(b.refused_calls, 0)::bigint, coalesce(b.refused_nano, 0)::bigint
FROM usage_spendingcap c
LEFT JOIN tenants_tenant t ON t.id = c.tenant_id
CROSS JOIN LATERAL (SELECT c.raise_nano > 0 AND c.raise_until > %(now)s AS is_on) r
CROSS JOIN LATERAL (SELECT usage_cap_limit(c, %(now)s) AS nano) l
{buckets}
LEFT JOIN tenants_apikey k ON k.id = c.api_key_id
LEFT JOIN tenants_environment e ON e.id = coalesce(c.environment_id, k.environment_id)
WHERE {these}
"""
_NOW = """CROSS JOIN LATERAL usage_period(c.period, coalesce(t.time_zone, 'UTC'), %(now)s) p
LEFT JOIN LATERAL (
    SELECT b.*, count(*) OVER () AS end_users, sum(b.shadow_refused_calls) OVER () AS refused_calls,
        sum(b.shadow_refused_nano) OVER () AS refused_nano
    FROM usage_capbucket b
    WHERE b.cap_id = c.id AND b.starts_at = p.starts_at
      AND (c.end_user <> '*' OR %(end_user)s::text IS NULL OR b.end_user = %(end_user)s)
    ORDER BY b.spent_nano + b.held_nano DESC, b.id LIMIT 1) b ON true"""
_OF_BUCKETS = """JOIN LATERAL (
    SELECT b.*, 1 AS end_users, b.shadow_refused_calls AS refused_calls, b.shadow_refused_nano AS refused_nano
    FROM usage_capbucket b WHERE b.cap_id = c.id AND b.id = ANY (%(buckets)s)) b ON true"""
_IN_ORDER = "ORDER BY c.environment_id NULLS FIRST, c.api_key_id NULLS FIRST, c.end_user, {span}.starts_at, c.id"
_TIGHTEST = """ORDER BY c.mode = 'shadow',
    (coalesce(b.spent_nano, 0) + coalesce(b.held_nano, 0))
        / greatest(l.nano, 1)::float8 DESC,
    c.id LIMIT %(limit)s"""


def standings(
    *, tenant_id: UUID | None, now: datetime, api_key: ApiKey | None = None, end_user: str | None = None
) -> list[Standing]:
    """Every cap of a tenant, or of the platform (None), in the period of `now`.

    With a key or an end user only those that bind its, or his, calls, and of a cap on each end user his own figures.
    """
    these, values = _whose(tenant_id)
    if api_key:
        these += """ AND (c.environment_id IS NULL OR c.environment_id = %(environment)s)
            AND (c.api_key_id IS NULL OR c.api_key_id = %(key)s)"""
        values |= {"environment": api_key.environment_id, "key": api_key.pk}
    if end_user is not None:
        these += " AND c.end_user IN ('', '*', %(end_user)s)"
    statement = _STANDINGS.format(span="p", buckets=_NOW, these=these) + _IN_ORDER.format(span="p")
    return _read(statement, values | {"now": now, "end_user": end_user})


def standing(cap_id: int, *, now: datetime) -> Standing | None:
    """One cap in the period of `now`; None where it was removed meanwhile."""
    statement = _STANDINGS.format(span="p", buckets=_NOW, these="c.id = %(cap)s")
    return next(iter(_read(statement, {"cap": cap_id, "now": now, "end_user": None})), None)


def standing_of(cap_id: int) -> dict[str, Any]:
    """One cap as it stands now, ready for JSON; raises NotFound where it was removed meanwhile."""
    found = standing(cap_id, now=timezone.now())
    if found is None:
        raise NotFound(f"The cap {cap_id} was removed while it was read.")
    return found.as_json()


def in_words(cap: dict[str, Any]) -> str:
    """The JSON of a standing for the terminal, in one line."""
    parts = [part for part in (cap["environment"], cap["key"], cap["end_user"]) if part]
    on = f"{cap['scope'].replace('_', ' ')}{' ' if parts else ''}{' / '.join(parts)}"
    more = f" ({cap['raise_usd']} of it until {cap['raise_until']})" if cap["raise_until"] else ""
    shadow = (
        f"; would have refused {cap['shadow_refused_calls']} calls, {cap['shadow_refused_usd']} USD"
        if cap["mode"] == SpendingCap.Mode.SHADOW
        else ""
    )
    return (
        f"Cap {cap['cap']} on {on}, {cap['mode']}: {cap['limit_usd']} USD per {cap['period']}{more}; "
        f"{cap['spent_usd']} spent, {cap['held_usd']} held, {cap['left_usd']} left{shadow}"
    )


def tightest(*, tenant_id: UUID, now: datetime, limit: int) -> list[Standing]:
    """The caps that have the least of their limit left; those that only count come last."""
    these, values = _whose(tenant_id)
    statement = _STANDINGS.format(span="p", buckets=_NOW, these=these) + _TIGHTEST
    return _read(statement, values | {"now": now, "end_user": None, "limit": limit})


def of_tenant_as_a_whole(*, tenant_id: UUID, now: datetime) -> list[Standing]:
    """The caps, and the prepaid balance, that every call of the tenant must pass."""
    these, values = _whose(tenant_id)
    these += " AND c.environment_id IS NULL AND c.api_key_id IS NULL AND c.end_user = '' AND c.mode <> 'shadow'"
    statement = _STANDINGS.format(span="p", buckets=_NOW, these=these)
    return _read(statement, values | {"now": now, "end_user": None})


def standings_of(bucket_ids: Sequence[int], *, tenant_id: UUID, now: datetime) -> list[Standing]:
    """The tenant's own caps of a call, in the periods to which it belongs."""
    these, values = _whose(tenant_id)
    statement = _STANDINGS.format(span="b", buckets=_OF_BUCKETS, these=these) + _IN_ORDER.format(span="b")
    return _read(statement, values | {"now": now, "buckets": list(bucket_ids)})


def _whose(tenant_id: UUID | None) -> tuple[str, dict[str, Any]]:
    """The platform's own figures are the operator's: whoever asks for a tenant's gets none of them."""
    return ("c.tenant_id = %(tenant)s", {"tenant": tenant_id}) if tenant_id else ("c.tenant_id IS NULL", {})


def _read(statement: str, parameters: dict[str, Any]) -> list[Standing]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return [Standing(*row) for row in cursor.fetchall()]
