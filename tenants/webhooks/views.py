"""The console's pages about webhooks: endpoints, their deliveries, and what a person does with them."""

import uuid
from typing import Any

from django import forms
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from aiplatform.lib.errors import ApiError
from tenants import access, lookup
from tenants.access import Right
from tenants.models import Member, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from tenants.webhooks import endpoints, outbox

PAGE = 25


class EndpointForm(forms.Form):
    """A new endpoint."""

    url = forms.CharField(
        label="URL", max_length=2000, widget=forms.URLInput(attrs={"placeholder": "https://", "autocomplete": "off"})
    )
    environment = forms.ChoiceField(required=False)
    description = forms.CharField(required=False, max_length=endpoints.LONGEST_DESCRIPTION)
    event_types = forms.MultipleChoiceField(
        required=False, choices=list(endpoints.EVENT_TYPES.items()), widget=forms.CheckboxSelectMultiple
    )

    def __init__(self, *args: Any, member: Member, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = member.tenant.environments.order_by("created_at").values_list("pk", "name")
        self.environments = {str(pk): name for pk, name in names}
        field = self.fields["environment"]
        assert isinstance(field, forms.ChoiceField)  # noqa: S101 - for the type checker
        field.choices = [("", "All"), *self.environments.items()]


@require_http_methods(["GET", "HEAD", "POST"])
@access.requires(Right.WEBHOOKS)
def listed(request: HttpRequest, member: Member) -> HttpResponse:
    """All endpoints; by POST a new one, whose secret this answer alone shows."""
    if request.method != "POST":
        return _list(request, member, EndpointForm(member=member))
    form = EndpointForm(request.POST, member=member)
    if form.is_valid():
        wanted = form.cleaned_data
        chosen = wanted["environment"]
        try:
            endpoint, secret = endpoints.register(
                tenant=member.tenant,
                environment=lookup.environment(member.tenant, chosen) if chosen else None,
                url=wanted["url"],
                event_types=wanted["event_types"],
                description=wanted["description"],
            )
        except ApiError as error:
            form.add_error("url" if error.code == "bad_address" else None, error.message)
        else:
            return _one(request, member, endpoint, secret=secret)
    return _list(request, member, form)


@require_safe
@access.requires(Right.WEBHOOKS)
def one(request: HttpRequest, member: Member, endpoint_id: uuid.UUID) -> HttpResponse:
    return _one(request, member, _endpoint(member, endpoint_id))


@require_POST
@access.requires(Right.WEBHOOKS)
def act(request: HttpRequest, member: Member, endpoint_id: uuid.UUID, action: str) -> HttpResponse:
    """What the buttons do: ping, rotate, enable, disable, remove."""
    endpoint = _endpoint(member, endpoint_id)
    match action:
        case "ping":
            return _done(request, member, endpoint, lambda: outbox.ping(endpoint))
        case "rotate":
            return _one(request, member, endpoint, secret=endpoints.rotate(endpoint))
        case "enable" | "disable":
            return _done(request, member, endpoint, lambda: endpoints.change(endpoint, is_enabled=action == "enable"))
        case "remove":
            endpoints.remove(endpoint)
            return redirect("webhooks")
    raise Http404


@require_POST
@access.requires(Right.WEBHOOKS)
def resend(request: HttpRequest, member: Member, endpoint_id: uuid.UUID, delivery_id: uuid.UUID) -> HttpResponse:
    endpoint = _endpoint(member, endpoint_id)
    try:
        delivery = outbox.find(str(delivery_id), endpoint=endpoint)
    except lookup.NotFound:
        raise Http404 from None
    return _done(request, member, endpoint, lambda: outbox.resend(delivery))


def _endpoint(member: Member, endpoint_id: uuid.UUID) -> WebhookEndpoint:
    try:
        return endpoints.find(str(endpoint_id), tenant_id=member.tenant_id)
    except lookup.NotFound:
        raise Http404 from None


def _done(request: HttpRequest, member: Member, endpoint: WebhookEndpoint, action: Any) -> HttpResponse:
    """Does it and shows the endpoint again, with the reason where it was refused."""
    try:
        action()
    except ApiError as error:
        return _one(request, member, endpoint, refusal=error.message)
    return redirect("webhook", endpoint.pk)


def _list(request: HttpRequest, member: Member, form: EndpointForm) -> HttpResponse:
    found = WebhookEndpoint.objects.filter(tenant=member.tenant).select_related("environment").order_by("pk")
    context = {"endpoints": found, "form": form, "types": endpoints.EVENT_TYPES}
    return access.page(request, member, "tenants/webhooks.html", context)


def _one(
    request: HttpRequest, member: Member, endpoint: WebhookEndpoint, *, secret: str = "", refusal: str = ""
) -> HttpResponse:
    state, before = request.GET.get("state"), request.GET.get("before", "")
    if state not in WebhookDelivery.State.values:
        state = None
    found = outbox.latest(endpoint, state=state, before=_uuid(before), limit=PAGE + 1)
    context = {
        "endpoint": endpoint,
        "is_rotating": endpoints.is_rotating(endpoint),
        "secret": secret,
        "refusal": refusal,
        "state": state,
        "states": WebhookDelivery.State.values,
        "deliveries": _with_attempts(found[:PAGE]),
        "older": found[PAGE - 1].pk if len(found) > PAGE else None,
    }
    return access.page(request, member, "tenants/webhook.html", context)


def _with_attempts(deliveries: list[WebhookDelivery]) -> list[dict[str, Any]]:
    attempts: dict[uuid.UUID, list[WebhookAttempt]] = {delivery.pk: [] for delivery in deliveries}
    for attempt in WebhookAttempt.objects.filter(delivery__in=list(attempts)).order_by("n"):
        attempts[attempt.delivery_id].append(attempt)
    return [
        {"it": delivery, "name": outbox.event_name(delivery.event_id), "attempts": attempts[delivery.pk]}
        for delivery in deliveries
    ]


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
