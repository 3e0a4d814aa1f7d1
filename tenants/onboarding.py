"""A new tenant's rows: its environments and their rate limits. What it may spend is `usage.onboarding`'s to say."""

from django.db import transaction

from tenants import rate_limits
from tenants.models import Environment, Tenant


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
    """The environment of this name, and whether it is new; what exists already stays as it is.

    A new one starts with the rate limit of its kind (RATE_LIMIT_…): low in dev, since what runs away, runs away there.
    """
    environment, is_new = Environment.objects.get_or_create(tenant=tenant, name=name, defaults={"kind": kind})
    if is_new and (figures := rate_limits.defaults(kind)):
        rate_limits.add(tenant=tenant, environment=environment, figures=figures)
    return environment, is_new


def environment_ids(tenant: Tenant) -> dict[str, str]:
    """{name: id}, in the order of their creation."""
    return {it.name: str(it.pk) for it in tenant.environments.order_by("created_at", "pk")}
