"""The one way to a new tenant or environment: its rows, and the low caps that it starts with."""

from django.conf import settings
from django.db import transaction

from tenants import onboarding
from tenants.models import Environment, Tenant
from usage import caps
from usage.models import SpendingCap


@transaction.atomic
def open_tenant(*, name: str, capped: bool = True) -> tuple[Tenant, bool]:
    """The tenant of this name with its four environments, and whether it is new. What exists already stays as it is.

    A new one starts with NEW_TENANT_CAP_USD a month, and DEVELOPMENT_CAP_USD a day in dev; 0 there, or `capped` false, is
    no cap at all.
    """
    tenant, created, new_environments = onboarding.create_tenant(name=name)
    if capped and created:
        _cap(settings.NEW_TENANT_CAP_USD, SpendingCap.Period.MONTH, tenant)
    for environment in new_environments if capped else ():
        _cap_development(environment)
    return tenant, created


@transaction.atomic
def open_environment(*, tenant: Tenant, name: str, kind: str) -> tuple[Environment, bool]:
    """The environment of this name, and whether it is new; a new one of kind dev starts with DEVELOPMENT_CAP_USD a day."""
    environment, is_new = onboarding.create_environment(tenant=tenant, name=name, kind=kind)
    if is_new:
        _cap_development(environment)
    return environment, is_new


def _cap_development(environment: Environment) -> None:
    if environment.kind == Environment.Kind.DEVELOPMENT:
        _cap(settings.DEVELOPMENT_CAP_USD, SpendingCap.Period.DAY, environment.tenant, environment)


def _cap(usd: str, period: str, tenant: Tenant, environment: Environment | None = None) -> None:
    if limit_nano := caps.parse_usd(usd):
        caps.set_cap(tenant=tenant, environment=environment, period=period, limit_nano=limit_nano)
