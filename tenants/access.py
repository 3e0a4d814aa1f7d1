"""Which tenant a person looks at, and what his role lets him see there."""

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from zoneinfo import ZoneInfo

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.cache import add_never_cache_headers

from tenants.models import Member


class Right(StrEnum):
    """What a page may ask of a role."""

    SPEND = "spend"  # figures, caps, calls and receipts
    CONTENT = "content"  # the words of prompts and responses
    LIMITS = "limits"  # changing rate limits; whoever sees the spend sees them
    WEBHOOKS = "webhooks"  # where answers are sent to, which is content as well


RIGHTS: dict[str, frozenset[Right]] = {
    Member.Role.OWNER: frozenset({Right.SPEND, Right.CONTENT, Right.LIMITS, Right.WEBHOOKS}),
    Member.Role.ADMIN: frozenset({Right.SPEND, Right.CONTENT, Right.LIMITS, Right.WEBHOOKS}),
    Member.Role.DEVELOPER: frozenset({Right.SPEND, Right.CONTENT, Right.WEBHOOKS}),
    Member.Role.FINANCE: frozenset({Right.SPEND}),
    Member.Role.VIEWER: frozenset({Right.SPEND}),
}

P = ParamSpec("P")
MemberView = Callable[Concatenate[HttpRequest, Member, P], HttpResponse]

_CHOSEN = "tenant"  # the key in the session


def may(member: Member, right: Right) -> bool:
    """Whether the member's role has the right; a role that the table does not know has none."""
    return right in RIGHTS.get(member.role, frozenset())


def requires(right: Right) -> Callable[[MemberView[P]], Callable[..., HttpResponse]]:
    """A view for members whose role has the right: it gets the membership, and shows times in the tenant's zone.

    A visitor is sent to log in, a person without any tenant gets a page that says so, anybody else a 404.
    """

    def decorate(view: MemberView[P]) -> Callable[..., HttpResponse]:
        @login_required
        @wraps(view)
        def guarded(request: HttpRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            member = current(request)
            if member is None:
                response = render(request, "tenants/none.html")
            elif not may(member, right):
                raise Http404
            else:
                with timezone.override(ZoneInfo(member.tenant.time_zone)):
                    response = view(request, member, *args, **kwargs)
            add_never_cache_headers(response)  # a shared computer's back button shows nothing after logging out
            return response

        return guarded

    return decorate


def current(request: HttpRequest) -> Member | None:
    """The membership whose tenant the person has chosen, else his first by the tenant's name; None where he has none."""
    mine = memberships(request)
    chosen = request.session.get(_CHOSEN)
    return next((member for member in mine if str(member.tenant_id) == chosen), mine[0] if mine else None)


def memberships(request: HttpRequest) -> list[Member]:
    """All of the person's memberships with their tenants, by name."""
    if request.user.pk is None:
        return []
    return list(Member.objects.filter(user_id=request.user.pk).select_related("tenant").order_by("tenant__name"))


def choose(request: HttpRequest, tenant_id: str) -> None:
    """Makes this tenant the current one; Http404 unless the person is a member of it."""
    if not any(str(member.tenant_id) == tenant_id for member in memberships(request)):
        raise Http404
    request.session[_CHOSEN] = tenant_id


def page(request: HttpRequest, member: Member, template: str, context: dict[str, Any]) -> HttpResponse:
    """A page of the console, with what its frame shows: whose it is and where else the person may go."""
    others = [other for other in memberships(request) if other.pk != member.pk]
    frame = {
        "member": member,
        "tenant": member.tenant,
        "other_memberships": others,
        "may": {right.value: may(member, right) for right in Right},
    }
    return render(request, template, {**frame, **context})
