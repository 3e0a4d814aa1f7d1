"""Routes: what a name means in an environment, a tenant, or everywhere. A change is in force with the next call."""

import re
from collections.abc import Sequence
from typing import Any

from django.db import transaction

from aiplatform.lib.errors import ApiError
from tenants.models import Environment, Provider, Route, Tenant

MOST_STEPS = 8
MOST_SIBLINGS = 8
MOST_WEIGHT = 1000
_NAME = re.compile(r"[!-~]{1,200}")
Steps = list[list[dict[str, Any]]]


class RouteRefused(ApiError):
    """A route cannot be set like this."""


class RouteNotFound(ApiError):
    """There is no such route."""

    status = 404
    code = "not_found"


@transaction.atomic
def set_route(*, tenant: Tenant | None, environment: Environment | None, alias: str, steps: Steps) -> tuple[Route, str]:
    """Creates or changes a route; returns it and `created`, `changed` or `unchanged`. Raises RouteRefused."""
    if not _NAME.fullmatch(alias):
        raise RouteRefused("The name of a route is 1 to 200 printable ASCII characters without blanks.")
    if not 1 <= len(steps) <= MOST_STEPS or any(not 1 <= len(step) <= MOST_SIBLINGS for step in steps):
        raise RouteRefused(f"A route has 1 to {MOST_STEPS} steps of 1 to {MOST_SIBLINGS} siblings.")
    route, created = Route.objects.select_for_update().get_or_create(
        tenant=tenant, environment=environment, alias=alias, defaults={"steps": steps}
    )
    if created:
        return route, "created"
    if route.steps == steps:
        return route, "unchanged"
    route.steps = steps
    route.save(update_fields=["steps"])
    return route, "changed"


def remove_route(*, tenant: Tenant | None, environment: Environment | None, alias: str) -> None:
    """Calls that are held keep their chain. Raises RouteNotFound."""
    removed, _ = Route.objects.filter(tenant=tenant, environment=environment, alias=alias).delete()
    if not removed:
        raise RouteNotFound(f"There is no route {alias[:200]!r} there.")


def read_steps(texts: Sequence[str]) -> Steps:
    """Steps as operators write them, each `MODEL[@PROVIDER][=WEIGHT]`, siblings apart by commas. Raises RouteRefused."""
    return [[_sibling(one.strip()) for one in text.split(",")] for text in texts]


def _sibling(text: str) -> dict[str, Any]:
    name, equals, weight = text.rpartition("=")
    if equals and weight.isascii() and weight.isdecimal():
        text = name
    else:
        weight = "1"
    if not 1 <= int(weight[:9]) <= MOST_WEIGHT:
        raise RouteRefused(f"A weight is a whole number from 1 to {MOST_WEIGHT}.")
    model, at, provider = text.rpartition("@")
    if not at:
        model, provider = text, ""
    elif not Provider.objects.filter(name=provider).exists():
        if not Provider.objects.filter(model_names__contains=[text]).exists():
            raise RouteRefused(f"There is no provider {provider[:60]!a}; the operator sets one up with provider_set.")
        model, provider = text, ""  # some models have an @ in their name
    if not _NAME.fullmatch(model):
        raise RouteRefused(f"{model[:60]!a} is no model's name.")
    return {"model": model, "provider": provider, "weight": int(weight)}


def as_json(route: Route) -> dict[str, Any]:
    return {
        "route": route.alias,
        "tenant": route.tenant and route.tenant.name,
        "environment": route.environment and route.environment.name,
        "steps": route.steps,
    }


def told(steps: Steps) -> str:
    """`smart@one=3,smart@two then small`, as people read it."""
    return " then ".join(",".join(_told(one) for one in siblings) for siblings in steps)


def _told(one: dict[str, Any]) -> str:
    provider = f"@{one['provider']}" if one["provider"] else ""
    return f"{one['model']}{provider}" + (f"={one['weight']}" if one["weight"] != 1 else "")
