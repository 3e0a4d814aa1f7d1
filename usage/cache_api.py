"""Answers that are given again, over REST: how an environment keeps them, and taking them back."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from tenants import api, environments, lookup, purges
from tenants.api import BadParameter
from tenants.models import Environment
from usage.caps_api import Steering

_MOST_SECONDS = 30 * 24 * 3600


class EnvironmentCache(Steering):
    """`/api/environments/E/cache`: GET how it keeps answers, PATCH that (`cache`, `cache_ttl_seconds`, `cache_normalises`)."""

    members = frozenset({"cache", "cache_ttl_seconds", "cache_normalises"})

    def get(self, request: Request, environment: str) -> Response:
        return Response(_shown(self.environment(request, environment)))

    def patch(self, request: Request, environment: str) -> Response:
        found = self.environment(request, environment)
        environments.change(found, **_wanted(api.fields(request, self.members)))
        return Response(_shown(found))

    def environment(self, request: Request, name: str) -> Environment:
        """One that the key may see, by name or id; raises NotFound."""
        holder = self.holder(request)
        found = lookup.environment(lookup.tenant(str(holder.tenant_id)), name)
        if holder.environment_id not in {None, found.pk}:
            raise lookup.NotFound(f"There is no environment {name[:40]!a} here.")
        return found


class Purge(EnvironmentCache):
    """`POST /api/environments/E/cache/purge`: takes back all answers, or those of a `model` or of a `key`'s calls."""

    members = frozenset({"model", "key"})
    http_method_names = ("post", "options")

    def post(self, request: Request, environment: str) -> Response:
        found, body = self.environment(request, environment), api.fields(request, self.members)
        key = lookup.api_key(api.text(body, "key"), owner=found.tenant) if body.get("key") is not None else None
        row = purges.purge(environment=found, model=api.text(body, "model", "")[:200], api_key=key)
        return Response(purges.as_json(row))


def _wanted(body: dict[str, Any]) -> dict[str, Any]:
    """What the body changes; raises BadParameter."""
    if "cache" in body and body["cache"] not in Environment.Cache.values:
        raise BadParameter(f"`cache` is one of {', '.join(Environment.Cache.values)}.")
    seconds = body.get("cache_ttl_seconds")
    if "cache_ttl_seconds" in body and not (type(seconds) is int and 1 <= seconds <= _MOST_SECONDS):
        raise BadParameter(f"`cache_ttl_seconds` is a whole number from 1 to {_MOST_SECONDS}.")
    if "cache_normalises" in body and not isinstance(body["cache_normalises"], bool):
        raise BadParameter("`cache_normalises` is true or false.")
    return body


def _shown(environment: Environment) -> dict[str, Any]:
    told = environments.as_json(environment)
    return {name: told[name] for name in ("environment", "name", *sorted(EnvironmentCache.members))}
