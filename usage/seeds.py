"""What a fresh system starts with, and the tenant of the demo. Safe to repeat: what somebody changed stays changed."""

import hmac
import json
import secrets
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from aiplatform.lib import money
from aiplatform.lib.errors import ApiError
from aiplatform.lib.supervisor import write_private
from aiplatform.providers.base import SANDBOX
from tenants import keys, providers
from tenants.models import ApiKey, Environment, Member, Provider, RateLimit, Tenant, User
from tenants.onboarding import environment_ids
from usage import caps, onboarding, price_drafts, pricebook
from usage.models import Price, SpendingCap

GENEROUS = {"rpm": 10_000_000, "tpm": 100_000_000_000, "concurrency": 100_000}
SANDBOX_PRICE = {"input": Decimal("0.10"), "output": Decimal("0.40")}
LOCAL_MODEL = "smollm2-135m-instruct"
LOCAL_PRICE = {"input": Decimal("0.05"), "output": Decimal("0.20")}
LOCAL_KEY_VARIABLE = "LOCAL_MODEL_KEY"
LOCAL_PROVIDERS = ("local", "local-anthropic")
END_USER = "ada"
DEMO_CAPS = {  # USD by what they are on; low enough to see them move
    "tenant": (SpendingCap.Period.MONTH, 50),
    "environment": (SpendingCap.Period.DAY, 5),
    "key": (SpendingCap.Period.WEEK, 10),
    "end_user": (SpendingCap.Period.DAY, 1),
}


class NoDataFolder(ApiError):
    """DATA_DIR is not set: it names the folder in which the seed keeps its keys, readable by the owner only."""

    code = "no_data_folder"


def seed_stack() -> dict[str, Any]:
    """The tenant `Default` without caps, an admin key kept in DATA_DIR/admin.key, and the providers that there are."""
    # The tenant for trying out and for measuring: no cap may stand in the way of a benchmark.
    tenant, created = onboarding.open_tenant(name="Default", capped=False)
    if created:
        RateLimit.objects.filter(tenant=tenant).update(**GENEROUS)
        RateLimit.objects.get_or_create(tenant=tenant, environment=None, api_key=None, defaults=GENEROUS)
    for name, wire in (("sandbox", "openai"), ("sandbox-anthropic", "anthropic")):
        providers.set_provider(name=name, wire=wire, base_url=SANDBOX, model_names=["sandbox-1"])
        _price_if_none(name, "sandbox-1", SANDBOX_PRICE)
    _set_up_vendors()
    environment = tenant.environments.get(name=Environment.Kind.PRODUCTION)
    key = _kept_key(_folder() / "admin.key", environment, "bin/stack", list(ApiKey.Scope.values))
    return {"admin_key": key, "tenant": str(tenant.pk), "environments": environment_ids(tenant)}


def seed_demo() -> dict[str, Any]:
    """The tenant `Acme`: a person for each role, keys, limits, caps, and the local model where one runs."""
    _set_up_local_model()
    tenant, _ = onboarding.open_tenant(name="Acme")
    by_name = {it.name: it for it in tenant.environments.all()}
    RateLimit.objects.get_or_create(
        tenant=tenant, environment=None, api_key=None, defaults={"rpm": 6_000, "tpm": 10_000_000, "concurrency": 200}
    )
    texts = {
        name: _kept_key(_folder() / f"acme-{name}.key", by_name[name], f"Acme {name}", ["calls", "read"])
        for name in (Environment.Kind.PRODUCTION, Environment.Kind.DEVELOPMENT)
    }
    key = ApiKey.objects.get(public_id=keys.public_id(texts[Environment.Kind.PRODUCTION]))
    _cap_if_none("tenant", tenant=tenant)
    _cap_if_none("environment", tenant=tenant, environment=key.environment)
    _cap_if_none("key", tenant=tenant, api_key=key)
    _cap_if_none("end_user", tenant=tenant, end_user=END_USER)
    return {
        "tenant": str(tenant.pk),
        "name": tenant.name,
        "environments": environment_ids(tenant),
        "keys": texts,
        "end_user": END_USER,
        "password": _people(tenant),
        "users": {role: _email(role) for role in Member.Role.values},
        "models": {"sandbox": "sandbox-1", "local": LOCAL_MODEL},
    }


def _set_up_vendors() -> None:
    """OpenAI and Anthropic where the settings' environment says so, with every model that has a price."""
    wanted = {name: vendor for name, vendor in settings.VENDORS.items() if vendor["is_wanted"]}
    for name, vendor in wanted.items():
        providers.set_provider(
            name=name,
            wire=name,
            base_url=str(vendor["base_url"]),
            key_env=str(vendor["key_env"]) if vendor["has_key"] else "",
        )
    # Imported once for each vendor; from then on prices_import is the operator's decision.
    if any(not Price.objects.filter(provider=name).exists() for name in wanted):
        price_drafts.import_prices()


def _set_up_local_model() -> None:
    root = settings.LOCAL_MODEL_URL.rstrip("/")
    if not root:
        Provider.objects.filter(name__in=LOCAL_PROVIDERS, is_enabled=True).update(is_enabled=False)
        return
    for name, wire, url in zip(LOCAL_PROVIDERS, ("openai", "anthropic"), (f"{root}/v1", root), strict=True):
        _price_if_none(name, LOCAL_MODEL, LOCAL_PRICE)
        providers.set_provider(
            name=name,
            wire=wire,
            base_url=url,
            key_env=LOCAL_KEY_VARIABLE,
            model_names=[LOCAL_MODEL],
            has_responses=False,
        )
    Provider.objects.filter(name__in=LOCAL_PROVIDERS, is_enabled=False).update(is_enabled=True)


def _price_if_none(provider: str, model: str, usd_per_million: Mapping[str, Decimal]) -> None:
    if not Price.objects.filter(provider=provider, model=model).exists():
        pricebook.set_price(provider=provider, model=model, parts=pricebook.per_million(usd_per_million))


def _cap_if_none(which: str, **scope: Any) -> None:
    period, usd = DEMO_CAPS[which]
    wanted = {"environment": None, "api_key": None, "end_user": "", **scope}
    nulls = Q(**{f"{name}__isnull": True for name, value in wanted.items() if value is None})
    values = {name: value for name, value in wanted.items() if value is not None}
    if not SpendingCap.objects.filter(nulls, period=period, **values).exists():
        caps.set_cap(**scope, period=period, limit_nano=usd * money.NANO)


@transaction.atomic
def _people(tenant: Tenant) -> str:
    """One person for each role; returns everyone's password, which was made once and is kept beside the data."""
    password = _kept_password(_folder() / "demo.json")
    owner = User.objects.filter(email=_email(Member.Role.OWNER)).first()
    is_right = owner is not None and owner.check_password(password)  # slow by design, so it is asked of one only
    for role in Member.Role.values:
        user, created = User.objects.get_or_create(email=_email(role), defaults={"name": f"Acme's {role}"})
        if created or not is_right:
            user.set_password(password)
            user.save(update_fields=["password"])
        Member.objects.get_or_create(tenant=tenant, user=user, defaults={"role": role})
    return password


def _email(role: str) -> str:
    return f"{role}@acme.example"


def _kept_password(file: Path) -> str:
    try:
        password = json.loads(file.read_text())["password"]
    except (OSError, ValueError, KeyError, TypeError):
        password = secrets.token_urlsafe(12)
        write_private(file, json.dumps({"password": password}) + "\n")
    return str(password)


def _kept_key(file: Path, environment: Environment, name: str, scopes: list[str]) -> str:
    """The key in this file if it still opens what it should, else a new one, which is put there."""
    text = _read(file)
    key = ApiKey.objects.usable().filter(public_id=keys.public_id(text), environment=environment).first()
    if key and hmac.compare_digest(bytes(key.digest), keys.digest(text)) and set(scopes) <= set(key.scopes):
        return text
    _, text = keys.issue(environment=environment, name=name, scopes=scopes)
    write_private(file, f"{text}\n")
    return text


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""


def _folder() -> Path:
    if not settings.DATA_DIR:
        raise NoDataFolder
    return Path(settings.DATA_DIR)
