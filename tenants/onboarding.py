"""A new tenant and what it starts with."""

from django.db import transaction

from tenants.models import Environment, RateLimit, Tenant

# A development environment starts low: what runs away, runs away there.
DEVELOPMENT_LIMITS = {"rpm": 60, "tpm": 60_000, "concurrency": 8}


@transaction.atomic
def create_tenant(*, name: str) -> tuple[Tenant, bool]:
    """The tenant of this name with its four environments, and whether it is new. What exists already stays as it is."""
    tenant, created = Tenant.objects.get_or_create(name=name)
    for kind in Environment.Kind.values:
        environment, is_new = Environment.objects.get_or_create(tenant=tenant, name=kind, defaults={"kind": kind})
        if is_new and kind == Environment.Kind.DEVELOPMENT:
            RateLimit.objects.get_or_create(
                tenant=tenant, environment=environment, api_key=None, defaults=DEVELOPMENT_LIMITS
            )
    return tenant, created


def environment_ids(tenant: Tenant) -> dict[str, str]:
    """{name: id}, in the order of their creation."""
    return {it.name: str(it.pk) for it in tenant.environments.order_by("created_at", "pk")}
