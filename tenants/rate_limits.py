"""The rate limits of a tenant as people set them: read, added, changed and removed; `tenants.limits` applies them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet

from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.logs import log
from tenants import limits
from tenants.auth import Limit
from tenants.limits.buckets import EACH
from tenants.lookup import NotFound
from tenants.models import ApiKey, Environment, RateLimit, Tenant

RATES = ("rpm", "tpm", "concurrency")
BURSTS = {"rpm_burst": "rpm", "tpm_burst": "tpm"}
"""Each with the rate that fills it again."""
FIGURES = (*RATES, *BURSTS)
MOST = 10**12
NO_LIMIT = "none"
LONGEST_END_USER = 256
_WHOLE = re.compile(r"[0-9]{1,13}", re.ASCII)
_ID = re.compile(r"[0-9]{1,18}", re.ASCII)
_NAMES = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm", limits.CONCURRENT: "concurrency"}


class LimitRefused(ApiError):
    """A rate limit cannot be set like this."""


class LimitExists(ApiError):
    """There is a rate limit of this scope, end user and mode already."""

    status = 409
    code = "limit_exists"


def parse_figure(text: str) -> int | None:
    """The figure of `60`, or None for `none`; raises LimitRefused."""
    if text == NO_LIMIT:
        return None
    if _WHOLE.fullmatch(text) and 1 <= int(text) <= MOST:
        return int(text)
    raise LimitRefused(f"{text[:30]!a} is no whole number from 1 to {MOST}, nor the word {NO_LIMIT!r}.")


def defaults(kind: str) -> dict[str, int]:
    """What a new environment of this kind starts with, by RATE_LIMIT_…; empty where nothing limits it. Raises LimitRefused
    for a setting that makes no sense.
    """
    text = settings.RATE_LIMITS[kind]
    parts = [text] * len(RATES) if text == NO_LIMIT else text.split("/")
    try:
        figures = dict(zip(RATES, [parse_figure(part.strip()) for part in parts], strict=True))
    except (LimitRefused, ValueError):
        raise LimitRefused(
            f"RATE_LIMIT_{kind.upper()} is {text[:60]!a}; write requests a minute, tokens a minute and calls at once, like "
            f"60/60000/8, each a whole number from 1 to {MOST} or `none`, or just `none`."
        ) from None
    return {rate: figure for rate, figure in figures.items() if figure is not None}


def set_limit(
    *,
    tenant: Tenant,
    environment: Environment | None = None,
    api_key: ApiKey | None = None,
    end_user: str = "",
    mode: str = RateLimit.Mode.ENFORCE,
    figures: Mapping[str, int | None],
) -> tuple[RateLimit | None, bool]:
    """Sets these of FIGURES, None lifting one, on the limit of this scope, end user and mode; and whether that is new.

    Figures not given stay. A limit that has none left is removed, and then there is none to return. Raises LimitRefused.
    """
    scope = _scope(tenant, environment, api_key, end_user, mode)
    with transaction.atomic():
        limit = RateLimit.objects.select_for_update().filter(**_where(scope)).first()
        is_new = limit is None
        limit = limit or RateLimit(**scope)
        _apply(limit, figures)
        if _is_empty(limit):
            if limit.pk:
                remove(limit)
            return None, False
        _save(limit, None if is_new else FIGURES)
    _tell("limit.set", limit)
    return limit, is_new


def add(
    *,
    tenant: Tenant,
    environment: Environment | None = None,
    api_key: ApiKey | None = None,
    end_user: str = "",
    mode: str = RateLimit.Mode.ENFORCE,
    figures: Mapping[str, int | None],
) -> RateLimit:
    """A new limit; raises LimitExists where there is one of this scope, end user and mode, and LimitRefused."""
    limit = RateLimit(**_scope(tenant, environment, api_key, end_user, mode))
    _apply(limit, figures)
    _refuse_empty(limit)
    _save(limit)
    _tell("limit.set", limit)
    return limit


def change(limit: RateLimit, *, figures: Mapping[str, int | None], mode: str | None = None) -> RateLimit:
    """Changes figures, None lifting one, and the mode; what is not given stays. What shadow has counted begins anew where the
    mode changes. Raises LimitRefused, and LimitExists where there is another one of that mode.
    """
    fields: list[str] = list(FIGURES)
    if mode is not None and mode != limit.mode:
        _check_mode(mode)
        limit.mode, limit.shadow_refused_calls, limit.shadow_refused_at = mode, 0, None
        fields += ["mode", "shadow_refused_calls", "shadow_refused_at"]
    _apply(limit, figures)
    _refuse_empty(limit)
    _save(limit, fields)
    _tell("limit.set", limit)
    return limit


def remove(limit: RateLimit) -> None:
    """Ends a limit; whatever else limits the same calls stays."""
    _tell("limit.removed", limit)
    limit.delete()


def find(limit_id: int | str, *, tenant: Any = None) -> RateLimit:
    """The limit of this id; of this tenant (or its id) only, if given. Raises NotFound."""
    text = str(limit_id)
    found = _listed().filter(pk=int(text) if _ID.fullmatch(text) else -1)
    limit = (found if tenant is None else found.filter(tenant=tenant)).first()
    if limit is None:
        raise NotFound(f"There is no rate limit {text[:40]!a} here.")
    return limit


def listed(*, tenant: Any, api_key: ApiKey | None = None) -> list[RateLimit]:
    """A tenant's limits: its own first, then those of its environments and keys; of what binds `api_key` only, if given."""
    found = _listed().filter(tenant=tenant)
    if api_key is not None:
        found = found.filter(
            Q(environment=None) | Q(environment=api_key.environment_id), Q(api_key=None) | Q(api_key=api_key.pk)
        )
    return list(
        found.order_by(
            F("api_key").asc(nulls_first=True), F("environment").asc(nulls_first=True), "end_user", "mode", "pk"
        )
    )


def binds(limit: RateLimit, api_key: ApiKey) -> bool:
    """Whether calls of this key, which is of the limit's tenant, must pass it."""
    return limit.environment_id in {None, api_key.environment_id} and limit.api_key_id in {None, api_key.pk}


def scope_of(limit: RateLimit) -> str:
    """What it is on: tenant, environment or key; for end users, of which they are."""
    return "key" if limit.api_key_id else "environment" if limit.environment_id else "tenant"


def left(found: Sequence[RateLimit]) -> dict[int, dict[str, int]]:
    """What of each rate is free now, by the limit's id; nothing of limits on each end user by himself, which are many buckets,
    of shadows, and of any while Redis is lost.
    """
    plain = [limit for limit in found if not limit.end_user and limit.mode == RateLimit.Mode.ENFORCE]
    free: dict[int, dict[str, int]] = {}
    for limit in plain:
        applied = Limit(
            scope=scope_of(limit), scope_id=limit.api_key_id or limit.environment_id or limit.tenant_id, rpm=limit.rpm,
            tpm=limit.tpm, concurrency=limit.concurrency, rpm_burst=limit.rpm_burst, tpm_burst=limit.tpm_burst,
        )  # fmt: skip
        try:
            free[limit.pk] = {_NAMES[one.name]: one.remaining for one in limits.standing([applied])}
        except Unavailable:
            return {}
    return free


def as_json(limit: RateLimit, free: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Ready for JSON; `left` holds what of each rate is free now, as far as that is known."""
    key, environment = limit.api_key, limit.environment or (limit.api_key and limit.api_key.environment)
    return {
        "limit": limit.pk,
        "scope": scope_of(limit),
        "environment": environment and environment.name,
        "key": key and {"id": str(key.pk), "public_id": key.public_id, "name": key.name},
        "end_user": limit.end_user,
        "mode": limit.mode,
        **{name: getattr(limit, name) for name in FIGURES},
        "left": dict(free) if free is not None else None,
        "shadow_refused_calls": limit.shadow_refused_calls,
        "shadow_refused_at": limit.shadow_refused_at and limit.shadow_refused_at.isoformat(),
    }


def in_words(shown: Mapping[str, Any]) -> str:
    """A limit that `as_json` made, on one line."""
    key, names = shown["key"], {"rpm": "requests/min", "tpm": "tokens/min", "concurrency": "at once"}
    figures = [
        f"{shown[rate]} {name}" + (f" (burst {shown[f'{rate}_burst']})" if shown.get(f"{rate}_burst") else "")
        for rate, name in names.items()
        if shown[rate]
    ]
    whose = {"": "", EACH: ", each end user"}.get(shown["end_user"], f", end user {shown['end_user']}")
    what = f"key {key['public_id']}" if key else shown["environment"] and f"environment {shown['environment']}"
    is_shadow = shown["mode"] == RateLimit.Mode.SHADOW
    counted = f", shadow: would have refused {shown['shadow_refused_calls']}" if is_shadow else ""
    return f"{shown['limit']}  {what or 'tenant'}{whose}: {', '.join(figures)}{counted}"


def _listed() -> QuerySet[RateLimit]:
    return RateLimit.objects.select_related("tenant", "environment", "api_key", "api_key__environment")


def _scope(
    tenant: Tenant, environment: Environment | None, api_key: ApiKey | None, end_user: str, mode: str
) -> dict[str, Any]:
    _check_mode(mode)
    if len(end_user) > LONGEST_END_USER or not end_user.isprintable():
        raise LimitRefused(
            f"An end user is a name of at most {LONGEST_END_USER} printable characters, or {EACH} for each."
        )
    return {
        "tenant": tenant,
        "environment": None if api_key else environment,  # a key is in one environment anyway
        "api_key": api_key,
        "end_user": end_user,
        "mode": mode,
    }


def _where(scope: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}__isnull" if value is None else name: value is None or value for name, value in scope.items()}


def _check_mode(mode: str) -> None:
    if mode not in RateLimit.Mode.values:
        raise LimitRefused(f"The mode {mode[:40]!a} is unknown; it is one of {', '.join(RateLimit.Mode.values)}.")


def _apply(limit: RateLimit, figures: Mapping[str, int | None]) -> None:
    """Raises LimitRefused; a burst goes with the rate that it is of."""
    for name, figure in figures.items():
        if name not in FIGURES:
            raise LimitRefused(f"There is no figure {name[:40]!a}; there are {', '.join(FIGURES)}.")
        if figure is not None and (type(figure) is not int or not 1 <= figure <= MOST):
            raise LimitRefused(f"{name} is a whole number from 1 to {MOST}.")
        setattr(limit, name, figure)
    for burst, rate in BURSTS.items():
        if getattr(limit, rate) is None and getattr(limit, burst) is not None:
            if figures.get(burst) is not None:
                raise LimitRefused(f"{burst} is how much of {rate} may come at once; set {rate} as well.")
            setattr(limit, burst, None)


def _is_empty(limit: RateLimit) -> bool:
    return all(getattr(limit, rate) is None for rate in RATES)


def _refuse_empty(limit: RateLimit) -> None:
    if _is_empty(limit):
        raise LimitRefused(f"A limit needs at least one of {', '.join(RATES)}; to have none, remove it.")


def _save(limit: RateLimit, fields: Sequence[str] | None = None) -> None:
    """All of a new one; of another these fields only, since shadow counts meanwhile. Raises LimitExists."""
    try:
        with transaction.atomic():
            limit.save(update_fields=fields)
    except IntegrityError:
        raise LimitExists(
            f"There is a limit of this scope, end user and mode {limit.mode} already; change that one."
        ) from None


def _tell(event: str, limit: RateLimit) -> None:
    figures = {name: getattr(limit, name) for name in FIGURES if getattr(limit, name) is not None}
    log.info(event, limit=limit.pk, tenant=str(limit.tenant_id), scope=scope_of(limit), mode=limit.mode, **figures)
