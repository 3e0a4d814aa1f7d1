"""Sets up the places that serve models. A secret is never stored here: a provider names the variable that holds it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.db import transaction

from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import SANDBOX
from tenants.models import Provider, ProviderCredential

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")  # no small letters: nearly every secret pasted by mistake has some
_MODEL = re.compile(r"[!-~]{1,200}")
_VERSION = re.compile(r"[A-Za-z0-9.-]{0,40}")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,59}")
_VALUE = re.compile(r"[ -~]{1,500}")
# What carries secrets, or is the connection's own.
_NOT_SET = frozenset(
    ("authorization", "x-api-key", "api-key", "cookie", "host", "content-length", "content-type", "transfer-encoding")
)
DEFAULT = "default"


class ProviderRefused(ApiError):
    """A provider cannot be set up like this."""


@transaction.atomic
def set_provider(
    *,
    name: str,
    wire: str,
    base_url: str,
    key_env: str | None = None,
    model_names: Sequence[str] | None = None,
    api_version: str | None = None,
    key_header: str | None = None,
    headers: Mapping[str, str] | None = None,
    limit_field: str | None = None,
    has_responses: bool | None = None,
) -> tuple[Provider, str]:
    """Creates or changes a provider; returns it and `created`, `changed` or `unchanged`. Raises ProviderRefused.

    None leaves the key's variable, the models, the headers or the limit's field as they are; an empty one takes them away.
    """
    if not _NAME.fullmatch(name):
        raise ProviderRefused(f"The name {name[:60]!a} is not allowed; use at most 60 small letters, digits and . _ -")
    if wire not in Provider.Wire.values:
        raise ProviderRefused(f"The wire {wire[:60]!a} is unknown; it is one of {', '.join(Provider.Wire.values)}.")
    wanted: dict[str, Any] = {"wire": wire, "base_url": checked_base_url(base_url)}
    if name == "sandbox" and base_url != SANDBOX:
        raise ProviderRefused(
            f"`sandbox` is the built-in provider, whose base URL is `{SANDBOX}`; choose another name."
        )
    if model_names is not None:
        wanted["model_names"] = _checked_models(model_names)
    wanted |= _checked_door(api_version, key_header, headers) | _checked_dialect(limit_field, has_responses)
    provider, created = Provider.objects.select_for_update().get_or_create(name=name, defaults=wanted)
    before = {field: getattr(provider, field) for field in wanted}
    if before != wanted:
        Provider.objects.filter(pk=provider.pk).update(**wanted)
        provider.refresh_from_db()
    has_other_secret = key_env is not None and _name_secret(provider, key_env)
    if created:
        return provider, "created"
    return provider, "changed" if before != wanted or has_other_secret else "unchanged"


def checked_base_url(text: str) -> str:
    """The URL without a slash at its end. Raises ProviderRefused, without repeating what may hold a secret."""
    if text == SANDBOX:
        return text
    try:
        url = urlsplit(text)
        port_is_right = url.port is None or url.port > 0
    except ValueError:
        raise ProviderRefused("The base URL cannot be read; write https://HOST[:PORT]/PATH.") from None
    if url.username is not None or url.password is not None:
        raise ProviderRefused("The base URL holds a user name or password; name the secret's variable with --key-env.")
    if url.query or url.fragment or "?" in text or "#" in text:
        raise ProviderRefused("The base URL must have no query and no fragment; write https://HOST[:PORT]/PATH.")
    if url.scheme not in {"http", "https"} or not url.hostname or not port_is_right:
        raise ProviderRefused(f"The base URL must begin with https:// or http:// and name a host, or be `{SANDBOX}`.")
    if not text.isascii() or any(character.isspace() or not character.isprintable() for character in text):
        raise ProviderRefused("The base URL must be plain ASCII without blanks; write international names in punycode.")
    return text.rstrip("/")


def _checked_door(api_version: str | None, key_header: str | None, headers: Mapping[str, str] | None) -> dict[str, Any]:
    """How the place is entered, where it is not as its wire does."""
    wanted: dict[str, Any] = {}
    if api_version is not None:
        if not _VERSION.fullmatch(api_version):
            raise ProviderRefused(
                "An API version is at most 40 letters, digits, `.` and `-`, such as 2026-10-21-preview."
            )
        wanted["api_version"] = api_version
    if key_header is not None:
        if key_header and not _HEADER.fullmatch(key_header):
            raise ProviderRefused(f"{key_header[:60]!a} is no header's name.")
        wanted["key_header"] = key_header.lower()
    if headers is not None:
        for name, value in headers.items():
            if not _HEADER.fullmatch(name) or name.lower() in _NOT_SET or not _VALUE.fullmatch(value):
                raise ProviderRefused(f"The header {name[:60]!a} cannot be set; secrets are named by --key-env.")
        wanted["headers"] = {name.lower(): value for name, value in headers.items()}
    return wanted


def _checked_dialect(limit_field: str | None, has_responses: bool | None) -> dict[str, Any]:
    """What it speaks of its wire."""
    if limit_field and limit_field not in Provider.LimitField.values:
        raise ProviderRefused(f"The field of a limit is one of {', '.join(Provider.LimitField.values)}.")
    said = {"limit_field": limit_field, "has_responses": has_responses}
    return {field: value for field, value in said.items() if value is not None}


def _checked_models(names: Sequence[str]) -> list[str]:
    wrong = [name for name in names if not _MODEL.fullmatch(name)]
    if wrong:
        raise ProviderRefused(
            f"The model name {wrong[0][:60]!a} is not allowed; use 1 to 200 printable ASCII characters."
        )
    return list(dict.fromkeys(names))


def _name_secret(provider: Provider, variable: str) -> bool:
    """Points the operator's own credential at an environment variable; whether that changed anything."""
    its = ProviderCredential.objects.filter(provider=provider, tenant=None, name=DEFAULT)
    if not variable:
        return bool(its.delete()[0])
    reference = reference_to(variable)
    if its.filter(secret_ref=reference).exists():
        return False
    ProviderCredential.objects.update_or_create(
        provider=provider, tenant=None, name=DEFAULT, defaults={"secret_ref": reference}
    )
    return True


def reference_to(variable: str) -> str:
    """The reference of a secret in this environment variable. Raises ProviderRefused."""
    if not _VARIABLE.fullmatch(variable):
        raise ProviderRefused(
            "--key-env takes the name of an environment variable in capitals (OPENAI_API_KEY), not the secret; "
            "what was given is not repeated here. If it was a secret, it is in your shell's history now."
        )
    return f"env:{variable}"
