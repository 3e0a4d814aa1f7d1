"""A new tenant's rows: its environments and their rate limits. What it may spend is `usage.onboarding`'s to say."""

from django.db import transaction

from tenants.models import Environment, RateLimit, Tenant

# A development environment starts low: what runs away, runs away there.
DEVELOPMENT_LIMITS = {"rpm": 60, "tpm": 60_000, "concurrency": 8}


@transaction.atomic
def create_tenant(*, name: str) -> tuple[Tenant, bool, list[Environment]]:
    """The tenant of this name with its four environments, whether it is new, and which environments are.

    What exists already stays as it is.
    """
    tenant, created = Tenant.objects.get_or_create(name=name)
    made = [create_environment(tenant=tenant, name=kind, kind=kind) for kind in Environment.Kind.values]
    return tenant, created, [environment for environment, is_new in made if is_new]


@transaction.atomic
def create_environment(*, tenant: Tenant, name: str, kind: str) -> tuple[Environment, bool]:
    """The environment of this name, and whether it is new; what exists already stays as it is."""
    environment, is_new = Environment.objects.get_or_create(tenant=tenant, name=name, defaults={"kind": kind})
    if is_new and kind == Environment.Kind.DEVELOPMENT:
        RateLimit.objects.get_or_create(
            tenant=tenant, environment=environment, api_key=None, defaults=DEVELOPMENT_LIMITS
        )
    return environment, is_new


def environment_ids(tenant: Tenant) -> dict[str, str]:
    """{name: id}, in the order of their creation."""
    return {it.name: str(it.pk) for it in tenant.environments.order_by("created_at", "pk")}
