"""Providers' credentials: several for each provider, the platform's or a tenant's own; a secret is only named here."""

from typing import Any

from django.db import transaction

from aiplatform.lib.errors import ApiError
from tenants.models import Provider, ProviderCredential, Tenant
from tenants.providers import ProviderRefused, reference_to

FIGURES = ("rpm", "tpm", "concurrency")
MOST_WEIGHT = 1000


class CredentialNotFound(ApiError):
    """There is no such credential."""

    status = 404
    code = "not_found"


@transaction.atomic
def set_credential(
    *, provider: Provider, tenant: Tenant | None, name: str, key_env: str | None, changes: dict[str, Any]
) -> tuple[ProviderCredential, bool]:
    """Creates or changes a credential; returns it and whether it is new. What `changes` leaves out stays as it is.

    `changes` may hold weight, is_enabled, rpm, tpm and concurrency (None lifts it). Raises ProviderRefused.
    """
    if not 1 <= changes.get("weight", 1) <= MOST_WEIGHT:
        raise ProviderRefused(f"A weight is a whole number from 1 to {MOST_WEIGHT}.")
    wanted = changes | ({} if key_env is None else {"secret_ref": reference_to(key_env)})
    its = ProviderCredential.objects.select_for_update().filter(provider=provider, tenant=tenant, name=name)
    found = its.first()
    if found is None:
        if key_env is None:
            raise ProviderRefused("A new credential needs --key-env, the workers' variable that holds its secret.")
        return ProviderCredential.objects.create(provider=provider, tenant=tenant, name=name, **wanted), True
    if any(getattr(found, field) != value for field, value in wanted.items()):
        its.update(**wanted)
        found.refresh_from_db()
    return found, False


def remove_credential(*, provider: Provider, tenant: Tenant | None, name: str) -> None:
    """Calls in flight end with it; raises CredentialNotFound."""
    removed, _ = ProviderCredential.objects.filter(provider=provider, tenant=tenant, name=name).delete()
    if not removed:
        raise CredentialNotFound(f"{provider.name} has no credential {name!r} of {tenant or 'the platform'}.")


def as_json(credential: ProviderCredential) -> dict[str, Any]:
    """Everything but the secret, which is not known here."""
    return {
        "id": credential.pk,
        "provider": credential.provider.name,
        "tenant": credential.tenant and credential.tenant.name,
        "name": credential.name,
        "secret_ref": credential.secret_ref,
        "weight": credential.weight,
        "enabled": credential.is_enabled,
        **{figure: getattr(credential, figure) for figure in FIGURES},
    }
