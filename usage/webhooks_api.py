"""What a tenant's admin does with webhook endpoints and their deliveries over REST; keys with the scope `admin` only."""

import uuid
from typing import Any
from urllib.parse import urlencode

from rest_framework.request import Request
from rest_framework.response import Response

from tenants import api, lookup
from tenants.api import BadParameter, MayChange
from tenants.models import WebhookDelivery, WebhookEndpoint
from tenants.webhooks import endpoints, outbox
from usage.api import Reading, page_size


class Administering(Reading):
    """A resource of the holder's tenant that only keys with the scope `admin` see."""

    permission_classes = [MayChange]

    def endpoint(self, request: Request, endpoint_id: str) -> WebhookEndpoint:
        return endpoints.find(endpoint_id, tenant_id=self.holder(request).tenant_id)


class Webhooks(Administering):
    """`/api/webhooks`: GET all endpoints; POST a new one, whose secret is in this answer only."""

    members = frozenset({"url", "environment", "event_types", "description", "enabled"})

    def get(self, request: Request) -> Response:
        found = WebhookEndpoint.objects.filter(tenant_id=self.holder(request).tenant_id).select_related("environment")
        return Response({"results": [endpoints.as_json(endpoint) for endpoint in found.order_by("pk")]})

    def post(self, request: Request) -> Response:
        holder = self.holder(request)
        body = api.fields(request, self.members)
        named = api.text(body, "environment", "")
        tenant, environment, _ = lookup.scope(str(holder.tenant_id), named or None, None)
        url = api.text(body, "url")
        endpoint, secret = endpoints.register(
            tenant=tenant, environment=environment, url=url, **_changes({**body, "url": None})
        )
        return Response({**endpoints.as_json(endpoint), "secret": secret}, status=201)


class OneWebhook(Administering):
    """`/api/webhooks/ID`: GET it, PATCH what is to change, DELETE it."""

    members = frozenset({"url", "event_types", "description", "enabled"})

    def get(self, request: Request, endpoint_id: str) -> Response:
        return Response(endpoints.as_json(self.endpoint(request, endpoint_id)))

    def patch(self, request: Request, endpoint_id: str) -> Response:
        endpoint = self.endpoint(request, endpoint_id)
        endpoints.change(endpoint, **_changes(api.fields(request, self.members)))
        return Response(endpoints.as_json(endpoint))

    def delete(self, request: Request, endpoint_id: str) -> Response:
        endpoints.remove(self.endpoint(request, endpoint_id))
        return Response(status=204)


class Rotation(Administering):
    """`POST /api/webhooks/ID/rotate`: a new secret, in this answer only; the old one signs as well for `overlap_hours`."""

    members = frozenset({"overlap_hours"})

    def post(self, request: Request, endpoint_id: str) -> Response:
        endpoint = self.endpoint(request, endpoint_id)
        given = api.fields(request, self.members).get("overlap_hours", 24)
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise BadParameter("`overlap_hours` is a number.")
        secret = endpoints.rotate(endpoint, overlap=endpoints.hours(given))
        return Response({**endpoints.as_json(endpoint), "secret": secret})


class Ping(Administering):
    """`POST /api/webhooks/ID/ping`: sends it an event of no meaning."""

    def post(self, request: Request, endpoint_id: str) -> Response:
        return Response(outbox.as_json(outbox.ping(self.endpoint(request, endpoint_id))), status=202)


class Deliveries(Administering):
    """`GET /api/webhooks/ID/deliveries`: newest first; `next` is the address of the next page."""

    parameters = frozenset({"state", "limit", "cursor"})

    def get(self, request: Request, endpoint_id: str) -> Response:
        endpoint, limit = self.endpoint(request, endpoint_id), page_size(request.query_params.get("limit"))
        state = request.query_params.get("state")
        if state is not None and state not in WebhookDelivery.State.values:
            raise BadParameter(f"`state` is one of {', '.join(WebhookDelivery.State.values)}.")
        cursor = request.query_params.get("cursor")
        found = outbox.latest(endpoint, state=state, before=None if cursor is None else _uuid(cursor), limit=limit + 1)
        following = None
        if len(found) > limit:
            query = {**request.query_params.dict(), "cursor": str(found[limit - 1].pk)}
            following = request.build_absolute_uri(f"{request.path}?{urlencode(query)}")
        return Response({"results": [outbox.as_json(it) for it in found[:limit]], "next": following})


class OneDelivery(Administering):
    """`GET /api/webhooks/ID/deliveries/ID`: with every attempt."""

    def get(self, request: Request, endpoint_id: str, delivery_id: str) -> Response:
        delivery = outbox.find(delivery_id, endpoint=self.endpoint(request, endpoint_id))
        return Response({**outbox.as_json(delivery), "attempts": outbox.attempts_json(delivery)})


class Resending(Administering):
    """`POST /api/webhooks/ID/deliveries/ID/resend`: again, with the same `webhook-id`."""

    def post(self, request: Request, endpoint_id: str, delivery_id: str) -> Response:
        delivery = outbox.find(delivery_id, endpoint=self.endpoint(request, endpoint_id))
        outbox.resend(delivery)
        return Response(outbox.as_json(delivery), status=202)


def _changes(body: dict[str, Any]) -> dict[str, Any]:
    """What of an endpoint is to be set; raises BadParameter."""
    changes: dict[str, Any] = {
        name: api.text(body, name) for name in ("url", "description") if body.get(name) is not None
    }
    if (types := body.get("event_types")) is not None:
        if not isinstance(types, list) or not all(isinstance(it, str) for it in types):
            raise BadParameter("`event_types` is a list of strings; an empty one means all.")
        changes["event_types"] = types
    if (enabled := body.get("enabled")) is not None:
        if not isinstance(enabled, bool):
            raise BadParameter("`enabled` is true or false.")
        changes["is_enabled"] = enabled
    return changes


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise BadParameter("`cursor` comes from `next` of the page before; leave it out for the first page.") from None
