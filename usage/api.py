"""What a key's holder can read of his calls."""

import uuid
from collections.abc import Mapping
from urllib.parse import urlencode

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from aiplatform.lib import ids
from tenants.api import BadParameter, KeyHolder, MayRead
from tenants.lookup import NotFound
from tenants.models import Environment
from usage import receipts
from usage.models import Call, CallQuerySet

PAGE, LARGEST_PAGE = 50, 200


class Reading(APIView):
    """A resource that is only read, by keys that may; every view answers for the holder's own tenant."""

    permission_classes = [MayRead]
    parameters: frozenset[str] = frozenset()

    def holder(self, request: Request) -> KeyHolder:
        """Who asks, once his query string is looked over; raises BadParameter."""
        unknown = sorted(set(request.query_params) - self.parameters)
        if unknown:
            known = ", ".join(sorted(self.parameters)) or "none"
            raise BadParameter(f"The parameter {unknown[0][:60]!a} is unknown; this resource knows {known}.")
        holder: KeyHolder = request.user  # type: ignore[assignment]  # what KeyAuthentication says
        return holder


class Calls(Reading):
    """`GET /api/calls`: newest first; `next` is the address of the next page."""

    parameters = frozenset({"environment", "state", "limit", "cursor"})

    def get(self, request: Request) -> Response:
        calls = _calls(self.holder(request), request.query_params)
        limit = page_size(request.query_params.get("limit"))
        page = list(calls.select_related("environment", "api_key").order_by("-id")[: limit + 1])
        following = None
        if len(page) > limit:
            page.pop()
            query = {**request.query_params.dict(), "cursor": ids.call_name(page[-1].pk)}
            following = request.build_absolute_uri(f"{request.path}?{urlencode(query)}")
        return Response({"results": [receipts.summary(call) for call in page], "next": following})


class OneCall(Reading):
    """`GET /api/calls/ID`: the receipt."""

    def get(self, request: Request, call_id: str) -> Response:
        holder = self.holder(request)
        return Response(receipts.receipt(call_id, tenant=holder.tenant_id, environment=holder.environment_id))


class Nowhere(Reading):
    """Whatever else is asked for under `/api/`."""

    def get(self, request: Request, _path: str) -> Response:
        raise NotFound(f"There is no {request.path[:200]} here; the README lists what there is.")


def page_size(text: str | None) -> int:
    """The `limit` of a list; raises BadParameter."""
    if text is None:
        return PAGE
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= LARGEST_PAGE):
        raise BadParameter(f"`limit` is a whole number from 1 to {LARGEST_PAGE}.")
    return int(text)


def _calls(holder: KeyHolder, wanted: Mapping[str, str]) -> CallQuerySet:
    calls = Call.objects.filter(tenant_id=holder.tenant_id)
    if holder.environment_id:
        calls = calls.filter(environment_id=holder.environment_id)
    if "environment" in wanted:
        calls = calls.filter(environment=_environment(holder, wanted["environment"]))
    if "state" in wanted:
        if wanted["state"] not in Call.State.values:
            raise BadParameter(f"`state` is one of {', '.join(Call.State.values)}.")
        calls = calls.filter(state=wanted["state"])
    if "cursor" in wanted:
        calls = calls.filter(pk__lt=_cursor(wanted["cursor"]))
    return calls


def _environment(holder: KeyHolder, text: str) -> Environment:
    environments = Environment.objects.filter(tenant_id=holder.tenant_id)
    if holder.environment_id:
        environments = environments.filter(pk=holder.environment_id)
    for environment in environments:
        if text in {environment.name, str(environment.pk)}:
            return environment
    names = ", ".join(environment.name for environment in environments)
    raise BadParameter(f"`environment` is one of those that this key may see: {names}.")


def _cursor(text: str) -> uuid.UUID:
    try:
        return ids.call_id(text)
    except ValueError:
        raise BadParameter("`cursor` comes from `next` of the page before; leave it out for the first page.") from None
