"""How providers stand, as the workers share it in Redis: what their credentials may still send, breakers, retry budgets."""

import time
from typing import Any

from django.conf import settings

from aiplatform.lib import redis
from aiplatform.providers import backoff, breaker, headroom
from tenants.models import Provider, ProviderCredential


def status(only: Provider | None = None) -> list[dict[str, Any]]:
    """Each provider with its credentials and what is known of each of their models. Raises Unavailable where Redis is lost."""
    providers = [only] if only else list(Provider.objects.order_by("name"))
    try:
        lanes = _lanes()
        return [_provider(provider, lanes) for provider in providers]
    except redis.LOST as error:
        raise redis.unavailable() from error


def _provider(provider: Provider, lanes: dict[str, set[str]]) -> dict[str, Any]:
    credentials = list(provider.credentials.select_related("tenant").order_by("pk"))
    found: list[ProviderCredential | None] = [*credentials] or [None]
    return {
        "provider": provider.name,
        "enabled": provider.is_enabled,
        "retry_budget": _budget(provider.name),
        "credentials": [_credential(provider, one, lanes) for one in found],
    }


def _credential(
    provider: Provider, credential: ProviderCredential | None, lanes: dict[str, set[str]]
) -> dict[str, Any]:
    owner = str(credential.pk) if credential else provider.name
    return {
        "name": credential.name if credential else "",
        "tenant": credential.tenant.name if credential and credential.tenant else None,
        "enabled": credential is None or credential.is_enabled,
        "weight": credential.weight if credential else 1,
        "lanes": [_lane(owner, model) for model in sorted(lanes.get(owner, ()))],
    }


def _lane(owner: str, model: str) -> dict[str, Any]:
    name, now = f"{owner}:{model}", time.time() * 1000
    state = {field: float(value) for field, value in _hash(headroom.key(name)).items()}
    told = _hash(breaker.key(name))
    return {
        "model": model,
        "requests": _level(state, "r", now),
        "tokens": _level(state, "t", now),
        "closed_seconds": round(max(state.get("b", 0.0) - now, 0.0) / 1000, 1),
        "breakers": [_breaker(worker, said, now) for worker, said in sorted(told.items())],
    }


def _level(state: dict[str, float], what: str, now: float) -> dict[str, Any] | None:
    if what not in state or state[f"{what}x"] <= now:
        return None
    return {
        "left": int(state[what]),
        "limit": int(state[f"{what}l"]) or None,
        "full_in_seconds": round((state[f"{what}x"] - now) / 1000, 1),
    }


def _breaker(worker: str, said: str, now: float) -> dict[str, Any]:
    state, _, until = said.partition(" ")
    return {"worker": worker, "state": state, "probe_in_seconds": round(max(float(until) - now, 0) / 1000, 1)}


def _budget(provider: str) -> float:
    found = _hash(backoff.key(provider))
    if not found:
        return float(settings.RETRY_RESERVE)
    grown = float(found["left"]) + (time.time() - float(found["at"])) * backoff.RESERVE_PER_SECOND
    return round(min(grown, float(settings.RETRY_RESERVE)), 3)


def _hash(key: str) -> dict[str, str]:
    found: dict[Any, Any] = redis.client().hgetall(key)
    return {field.decode(): value.decode() for field, value in found.items()}


def _lanes() -> dict[str, set[str]]:
    """Models by credential or provider."""
    found: dict[str, set[str]] = {}
    for pattern, start in ((headroom.key("*"), "headroom:{"), (breaker.key("*"), "breaker:")):
        for key in redis.client().scan_iter(pattern, count=1000):
            name = key.decode().removeprefix(start).partition("}")[0]
            owner, _, model = name.partition(":")
            found.setdefault(owner, set()).add(model)
    return found
