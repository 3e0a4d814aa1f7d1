"""What a key's holder can read of his caps and credit, and change of his caps and switches if he is an admin."""

import uuid
from typing import Any
from urllib.parse import urlencode

from django.utils import timezone
from rest_framework import permissions
from rest_framework.request import Request
from rest_framework.response import Response

from aiplatform.lib import ids
from tenants import api, lookup, suspension
from tenants.api import BadParameter, KeyHolder, MayChange, MayRead
from tenants.models import Suspendable
from usage import cap_notices, caps, credit, standings
from usage.api import Reading, page_size
from usage.models import SpendingCap


class Steering(Reading):
    """A resource of the holder's tenant that keys with the scope `read` may read, and those with `admin` change."""

    def get_permissions(self) -> list[permissions.BasePermission]:
        return [MayRead() if self.request.method in permissions.SAFE_METHODS else MayChange()]


class Caps(Steering):
    """`/api/caps`: GET every cap that the key may see, in its current period; PUT one, new or changed."""

    parameters = frozenset({"end_user"})
    members = frozenset({"environment", "key", "end_user", "period", "mode", "limit_usd", "thresholds_percent"})

    def get(self, request: Request) -> Response:
        holder = self.holder(request)
        found = standings.standings(
            tenant_id=holder.tenant_id,
            now=timezone.now(),
            api_key=bound_to(holder),
            end_user=request.query_params.get("end_user"),
        )
        return Response({"results": [standing.as_json() for standing in found]})

    def put(self, request: Request) -> Response:
        holder = self.holder(request)
        body = api.fields(request, self.members)
        tenant, environment, key = lookup.scope(
            str(holder.tenant_id), body.get("environment") and api.text(body, "environment"),
            body.get("key") and api.text(body, "key"),
        )  # fmt: skip
        cap_id = caps.set_cap(
            tenant=tenant,
            environment=environment,
            api_key=key,
            end_user=api.text(body, "end_user", ""),
            period=api.text(body, "period"),
            mode=api.text(body, "mode", SpendingCap.Mode.ENFORCE),
            limit_nano=caps.parse_usd(api.text(body, "limit_usd")),
            thresholds=_percents(body.get("thresholds_percent")),
        )
        return Response(standings.standing_of(cap_id))


class OneCap(Steering):
    """`DELETE /api/caps/ID`."""

    def delete(self, request: Request, cap_id: str) -> Response:
        caps.remove_cap(caps.find(cap_id, tenant_id=self.holder(request).tenant_id))
        return Response(status=204)


class Raise(Steering):
    """`POST /api/caps/ID/raise`: so many USD more until a moment; 0 ends it now."""

    members = frozenset({"usd", "until"})

    def post(self, request: Request, cap_id: str) -> Response:
        cap = caps.find(cap_id, tenant_id=self.holder(request).tenant_id)
        body = api.fields(request, self.members)
        by_nano, until = caps.parse_usd(api.text(body, "usd")), caps.parse_until(api.text(body, "until"))
        caps.raise_cap(cap, by_nano=by_nano, until=until)
        return Response(standings.standing_of(cap.pk))


class Notices(Reading):
    """`GET /api/caps/notices`: thresholds that were reached, newest first."""

    parameters = frozenset({"limit", "cursor"})

    def get(self, request: Request) -> Response:
        holder, limit = self.holder(request), page_size(request.query_params.get("limit"))
        cursor = request.query_params.get("cursor")
        found = cap_notices.latest(
            tenant_id=holder.tenant_id,
            api_key=bound_to(holder),
            before=None if cursor is None else _number(cursor),
            limit=limit + 1,
        )
        following = _next(request, str(found[limit - 1].pk)) if len(found) > limit else None
        return Response({"results": [cap_notices.as_json(it) for it in found[:limit]], "next": following})


class Credit(Reading):
    """`GET /api/credit`: the prepaid balance, and the grants in the order in which they burn."""

    def get(self, request: Request) -> Response:
        return Response(credit.account(tenant_id=self.holder(request).tenant_id))


class Consumption(Reading):
    """`GET /api/credit/ID`: the calls that a grant paid, newest first."""

    parameters = frozenset({"limit", "cursor"})

    def get(self, request: Request, grant_id: str) -> Response:
        holder, limit = self.holder(request), page_size(request.query_params.get("limit"))
        grant = credit.find(grant_id, tenant_id=holder.tenant_id)
        cursor = request.query_params.get("cursor")
        rows = credit.consumption(grant, before=None if cursor is None else _call_and_seq(cursor), limit=limit + 1)
        following = None
        if len(rows) > limit:
            last = rows[limit - 1]
            following = _next(request, f"{ids.call_name(last.call_id)}.{last.seq}")
        return Response({"results": [credit.consumption_json(row) for row in rows[:limit]], "next": following})


class Switch(Steering):
    """`/api/environments/NAME/suspension` and `/api/keys/ID/suspension`: GET it, PUT it on, DELETE it."""

    members = frozenset({"reason"})

    def get(self, request: Request, **named: str) -> Response:
        return Response(suspension.as_json(self._what(request, **named)))

    def put(self, request: Request, **named: str) -> Response:
        what = self._what(request, **named)
        reason = api.text(api.fields(request, self.members), "reason")
        suspension.suspend(what, by=Suspendable.Hand.TENANT, reason=reason)
        return Response(suspension.as_json(what))

    def delete(self, request: Request, **named: str) -> Response:
        what = self._what(request, **named)
        suspension.resume(what, by=Suspendable.Hand.TENANT)
        return Response(suspension.as_json(what))

    def _what(self, request: Request, environment: str | None = None, key: str | None = None) -> suspension.Stoppable:
        holder = self.holder(request)
        what = lookup.narrowest(str(holder.tenant_id), environment, key)
        only = holder.environment_id
        if only and only not in {what.pk, getattr(what, "environment_id", None)}:
            raise lookup.NotFound
        return what


def bound_to(holder: KeyHolder) -> Any:
    """The key to whose calls the holder's view is narrowed; None for all of his tenant."""
    return holder.key if holder.environment_id else None


def _percents(value: Any) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(percent) is int for percent in value):
        raise BadParameter("`thresholds_percent` is a list of whole numbers, like [50, 80, 100].")
    return value


def _next(request: Request, cursor: str) -> str:
    query = {**request.query_params.dict(), "cursor": cursor}
    return request.build_absolute_uri(f"{request.path}?{urlencode(query)}")


def _number(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < len(str(2**63))):
        raise BadParameter("`cursor` comes from `next` of the page before; leave it out for the first page.")
    return int(cursor)


def _call_and_seq(cursor: str) -> tuple[uuid.UUID, int]:
    name, _, seq = cursor.partition(".")
    try:
        return ids.call_id(name), int(seq[:5])
    except ValueError:
        raise BadParameter("`cursor` comes from `next` of the page before; leave it out for the first page.") from None
