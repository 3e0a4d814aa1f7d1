"""An environment's policies: how its calls are carried out."""

from typing import Any

from tenants.models import Environment


def change(environment: Environment, **wanted: Any) -> None:
    """Sets the policies that are not None; web processes follow within PRINCIPAL_CACHE_SECONDS."""
    changes = {name: value for name, value in wanted.items() if value is not None}
    for name, value in changes.items():
        setattr(environment, name, value)
    environment.save(update_fields=list(changes))


def as_json(environment: Environment) -> dict[str, Any]:
    return {
        "environment": str(environment.pk),
        "name": environment.name,
        "kind": environment.kind,
        "prompt_cache": environment.prompt_cache,
        "on_disconnect": environment.on_disconnect,
        "cache": environment.cache,
        "cache_ttl_seconds": environment.cache_ttl_seconds,
        "cache_normalises": environment.cache_normalises,
    }
