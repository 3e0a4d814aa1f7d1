"""Finds a tenant, an environment or a key by its name or id, as operators type them."""

import uuid

from aiplatform.lib.errors import ApiError
from tenants import keys
from tenants.models import ApiKey, Environment, Provider, Tenant


class NotFound(ApiError):
    """There is no such thing here."""

    status = 404
    code = "not_found"


def tenant(text: str) -> Tenant:
    """By id or exact name; raises NotFound."""
    found = Tenant.objects.filter(pk=_uuid(text)).first() or Tenant.objects.filter(name=_clean(text)).first()
    if found:
        return found
    names = _known("tenants", Tenant.objects.order_by("name").values_list("name", flat=True))
    raise NotFound(f"There is no tenant {_shown(text)}; {names}")


def provider(text: str) -> Provider:
    """By exact name; raises NotFound."""
    found = Provider.objects.filter(name=_clean(text)).first()
    if found:
        return found
    names = _known("providers", Provider.objects.order_by("name").values_list("name", flat=True))
    raise NotFound(f"There is no provider {_shown(text)}; {names}")


def environment(owner: Tenant, text: str) -> Environment:
    """One of this tenant's, by id or exact name; raises NotFound."""
    its = owner.environments.order_by("created_at")
    found = its.filter(pk=_uuid(text)).first() or its.filter(name=_clean(text)).first()
    if found:
        return found
    names = _known("environments", its.values_list("name", flat=True))
    raise NotFound(f"The tenant {owner.name!r} has no environment {_shown(text)}; {names}")


def api_key(text: str, *, owner: Tenant | None = None) -> ApiKey:
    """By id, public id or shown prefix, of `owner` only if given; raises NotFound, and never repeats a whole key."""
    if keys.public_id(text):
        raise NotFound("That is the key itself, which belongs in no shell history; give its id or its prefix.")
    its = ApiKey.objects.filter(tenant=owner) if owner else ApiKey.objects.all()
    its = its.select_related("tenant", "environment")
    found = its.filter(pk=_uuid(text)).first() or its.filter(public_id=_clean(text).rpartition("_")[2]).first()
    if found:
        return found
    whose = f"The tenant {owner.name!r} has" if owner else "There is"
    raise NotFound(f"{whose} no key {_shown(text)}; give the id or public id that key_issue printed.")


def scope(
    tenant_text: str, environment_text: str | None, key_text: str | None
) -> tuple[Tenant, Environment | None, ApiKey | None]:
    """What a cap or limit is for: a tenant, an environment of it, or a key of it; raises NotFound.

    A key is in one environment anyway: given with it, the environment is checked and then left out.
    """
    owner = tenant(tenant_text)
    place = environment(owner, environment_text) if environment_text is not None else None
    if key_text is None:
        return owner, place, None
    key = api_key(key_text, owner=owner)
    if place and key.environment_id != place.pk:
        raise NotFound(f"The key {key.prefix} is in the environment {key.environment.name!r}, not in {place.name!r}.")
    return owner, None, key


def narrowest(tenant_text: str, environment_text: str | None, key_text: str | None) -> Tenant | Environment | ApiKey:
    """The narrowest of what was named; raises NotFound."""
    owner, place, key = scope(tenant_text, environment_text, key_text)
    return key or place or owner


def _uuid(text: str) -> uuid.UUID:
    """The id, or one that nothing has."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return uuid.UUID(int=0)


def _clean(text: str) -> str:
    """What Postgres can compare with: no NUL, no broken bytes of a terminal."""
    return text if text.isprintable() else ""


def _shown(text: str) -> str:
    return ascii(text[:60])


def _known(what: str, names: object) -> str:
    listed = [repr(name) for name in names[:20]]  # type: ignore[index]  # any query of names
    return f"{what} are {', '.join(listed)}." if listed else f"there are no {what} yet."
