"""The kill switch: stops a tenant, an environment or a key on every process within a second, and lets it go on."""

from typing import Any

from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from tenants.models import ApiKey, Environment, Suspendable, Tenant

Stoppable = Tenant | Environment | ApiKey
LONGEST_REASON = 200
_SCOPES = {Tenant: "tenant", Environment: "environment", ApiKey: "key"}


class BadReason(ApiError):
    """A reason is 1 to 200 printable characters."""


class StoppedByOperator(ApiError):
    """The operator suspended this, and only he can resume it."""

    status = 403
    code = "suspended_by_operator"


def suspend(what: Stoppable, *, by: Suspendable.Hand, reason: str) -> None:
    """From its commit on nothing of it is admitted or sent; calls in flight end and settle. Repeated, it stays as it is.

    Processes that remember a key ask again within `PRINCIPAL_CACHE_SECONDS`; the hold and the claim ask every time. The
    operator takes over what the tenant stopped. Raises BadReason.
    """
    if not (0 < len(reason.strip()) <= LONGEST_REASON and reason.isprintable()):
        raise BadReason
    running = Q(suspended_at=None)
    mine = running | Q(suspended_by=Suspendable.Hand.TENANT) if by == Suspendable.Hand.OPERATOR else running
    changed = _rows(what).filter(mine).update(
        suspended_at=Coalesce(F("suspended_at"), timezone.now()), suspended_by=by, suspended_reason=reason.strip()
    )  # fmt: skip
    if changed:
        log.warning("scope.suspended", scope=_SCOPES[type(what)], id=str(what.pk), by=by, reason=reason.strip())
    what.refresh_from_db()


def resume(what: Stoppable, *, by: Suspendable.Hand) -> None:
    """Lets it go on, within a second as well; repeated, changes nothing. Raises StoppedByOperator."""
    stopped = _rows(what).exclude(suspended_at=None)
    if by == Suspendable.Hand.TENANT:
        stopped = stopped.filter(suspended_by=by)
    if stopped.update(suspended_at=None, suspended_by="", suspended_reason=""):
        log.warning("scope.resumed", scope=_SCOPES[type(what)], id=str(what.pk), by=by)
    what.refresh_from_db()
    if what.suspended_at:
        raise StoppedByOperator


def scope_of(key: ApiKey) -> str:
    """What stops this key, the widest first: tenant, environment or key; empty if nothing does."""
    of_key: tuple[Stoppable, ...] = (key.tenant, key.environment, key)
    return next((_SCOPES[type(it)] for it in of_key if it.suspended_at), "")


def as_json(what: Stoppable) -> dict[str, Any]:
    return {
        "scope": _SCOPES[type(what)],
        "id": str(what.pk),
        "name": str(what),
        "suspended": what.suspended_at is not None,
        "suspended_at": what.suspended_at and what.suspended_at.isoformat(),
        "suspended_by": what.suspended_by or None,
        "reason": what.suspended_reason or None,
    }


def _rows(what: Stoppable) -> Any:
    return type(what).objects.filter(pk=what.pk)
