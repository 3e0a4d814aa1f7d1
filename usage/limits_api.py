"""The rate limits of a key's holder over REST: read by whoever reads caps, changed by admins."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from tenants import api, lookup, rate_limits
from tenants.api import BadParameter
from tenants.models import RateLimit
from usage.caps_api import Steering, bound_to

MEMBERS = frozenset({"mode", *rate_limits.FIGURES})


class Limits(Steering):
    """`/api/limits`: GET every limit that the key may see, with what is left now; POST a new one."""

    members = MEMBERS | {"environment", "key", "end_user"}

    def get(self, request: Request) -> Response:
        holder = self.holder(request)
        found = rate_limits.listed(tenant=holder.tenant_id, api_key=bound_to(holder))
        free = rate_limits.left(found)
        return Response({"results": [rate_limits.as_json(limit, free.get(limit.pk)) for limit in found]})

    def post(self, request: Request) -> Response:
        holder = self.holder(request)
        body = api.fields(request, self.members)
        tenant, environment, key = lookup.scope(str(holder.tenant_id), _named(body, "environment"), _named(body, "key"))
        limit = rate_limits.add(
            tenant=tenant,
            environment=environment,
            api_key=key,
            end_user=api.text(body, "end_user", ""),
            mode=api.text(body, "mode", RateLimit.Mode.ENFORCE),
            figures=_figures(body),
        )
        return Response(_shown(limit), status=201)


class OneLimit(Steering):
    """`/api/limits/ID`: GET it, PATCH figures (null lifts one) or the mode, DELETE it."""

    members = MEMBERS

    def get(self, request: Request, limit_id: str) -> Response:
        return Response(_shown(self._limit(request, limit_id)))

    def patch(self, request: Request, limit_id: str) -> Response:
        limit = self._limit(request, limit_id)
        body = api.fields(request, self.members)
        mode = api.text(body, "mode") if "mode" in body else None
        return Response(_shown(rate_limits.change(limit, figures=_figures(body), mode=mode)))

    def delete(self, request: Request, limit_id: str) -> Response:
        rate_limits.remove(self._limit(request, limit_id))
        return Response(status=204)

    def _limit(self, request: Request, limit_id: str) -> RateLimit:
        """One of those that the key may see; raises NotFound."""
        holder = self.holder(request)
        limit = rate_limits.find(limit_id, tenant=holder.tenant_id)
        only = bound_to(holder)
        if only and not rate_limits.binds(limit, only):
            raise lookup.NotFound(f"There is no rate limit {limit_id[:40]!a} here.")
        return limit


def _named(body: dict[str, Any], name: str) -> str | None:
    """None where it is absent or null; an empty name names nothing, and is not found."""
    return None if body.get(name) is None else api.text(body, name)


def _figures(body: dict[str, Any]) -> dict[str, int | None]:
    """Those that the body names; raises BadParameter."""
    found = {name: body[name] for name in rate_limits.FIGURES if name in body}
    for name, value in found.items():
        if value is not None and type(value) is not int:
            raise BadParameter(f"`{name}` is a whole number, or null for none.")
    return found


def _shown(limit: RateLimit) -> dict[str, Any]:
    return rate_limits.as_json(limit, rate_limits.left([limit]).get(limit.pk))
