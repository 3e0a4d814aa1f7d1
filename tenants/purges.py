"""Takes back answers that would be given again: by environment, model or key, on every process within a second."""

from typing import Any

from django.utils import timezone

from tenants.models import ApiKey, CachePurge, Environment


def purge(*, environment: Environment, model: str = "", api_key: ApiKey | None = None) -> CachePurge:
    """Nothing is given again that was made until now: in the environment, for the model as it was asked for or served, or for
    calls of the key. What is made from now on is kept as before.
    """
    row, _ = CachePurge.objects.update_or_create(
        environment=environment, api_key=api_key, model=model, defaults={"at": timezone.now()}
    )
    return row


def as_json(row: CachePurge) -> dict[str, Any]:
    """Ready for JSON."""
    return {
        "environment": str(row.environment_id),
        "model": row.model or None,
        "key": row.api_key_id and str(row.api_key_id),
        "at": row.at.isoformat(),
    }
