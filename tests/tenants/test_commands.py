"""The operator's commands on tenants, keys, limits and providers, as scripts use them."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from tenants import keys
from tenants.models import ApiKey, Provider, ProviderCredential, RateLimit, Tenant

pytestmark = pytest.mark.django_db


def manage(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command(arguments[0], *arguments[1:], "--json", stdout=out)
    answer: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return answer


def refusal(*arguments: str) -> str:
    """The message of a refused command, which must also be the JSON on its last line."""
    out = StringIO()
    with pytest.raises(CommandError) as refused:
        call_command(arguments[0], *arguments[1:], "--json", stdout=out)
    if out.getvalue():  # wrong arguments are told by run_from_argv
        assert json.loads(out.getvalue().splitlines()[-1]) == {"error": str(refused.value)}
    return str(refused.value)


def test_a_tenant_is_created_once_with_its_four_environments() -> None:
    first, second = manage("tenant_create", "Acme"), manage("tenant_create", " Acme ")
    assert first["created"] is True
    assert second == first | {"created": False}
    assert list(first["environments"]) == ["dev", "staging", "prod", "sandbox"]
    limits = RateLimit.objects.filter(tenant_id=first["tenant"], api_key=None)
    assert {limit.environment.name: (limit.rpm, limit.tpm, limit.concurrency) for limit in limits if limit.environment} == {
        "dev": (60, 60_000, 8), "staging": (600, 1_000_000, 64), "sandbox": (600, 1_000_000, 64),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", "  ", "a" * 101, "a\0b", "a\nb", "\udcff"])
def test_a_tenant_needs_a_printable_name(name: str) -> None:
    assert "must be 1 to 100 printable characters" in refusal("tenant_create", name)
    assert not Tenant.objects.exists()


def test_a_key_is_issued_by_names_or_ids_and_revoked_by_any_id() -> None:
    acme = manage("tenant_create", "Acme")
    by_name = manage("key_issue", "--tenant", "Acme", "--environment", "prod", "--name", "n", "--scope", "read")
    by_id = manage("key_issue", "--tenant", acme["tenant"], "--environment", acme["environments"]["prod"])
    assert by_name["environment"] == by_id["environment"] == acme["environments"]["prod"]
    assert by_name["scopes"] == ["read"]
    assert by_id["scopes"] == ["calls", "read"]
    assert keys.public_id(by_id["key"]) == by_id["public_id"]
    revoked = manage("key_revoke", by_name["id"])
    assert manage("key_revoke", by_name["public_id"]) == manage("key_revoke", by_name["prefix"]) == revoked


def test_a_key_itself_is_refused_as_an_argument_and_not_repeated() -> None:
    manage("tenant_create", "Acme")
    key = manage("key_issue", "--tenant", "Acme", "--environment", "prod")["key"]
    message = refusal("key_revoke", key)
    assert "give its id" in message
    assert key not in message
    assert not ApiKey.objects.exclude(revoked_at=None).exists()


def test_what_is_not_found_is_named_together_with_what_there_is() -> None:
    manage("tenant_create", "Acme")
    assert "'Nope'" in (message := refusal("key_issue", "--tenant", "Nope", "--environment", "prod"))
    assert "'Acme'" in message
    assert "'dev', 'staging', 'prod', 'sandbox'" in refusal("key_issue", "--tenant", "Acme", "--environment", "live")
    assert "no key" in refusal("key_revoke", "\udcff")


@pytest.mark.parametrize("date", ["tomorrow", "2020-01-01", "2027-13-01"])
def test_a_wrong_or_past_expiry_is_refused(date: str) -> None:
    manage("tenant_create", "Acme")
    refusal("key_issue", "--tenant", "Acme", "--environment", "prod", "--expires", date)
    assert not ApiKey.objects.exists()


def test_a_limit_changes_only_the_figures_given() -> None:
    manage("tenant_create", "Acme")
    manage("limit_set", "--tenant", "Acme", "--rpm", "10", "--tpm", "1000")
    changed = manage("limit_set", "--tenant", "Acme", "--rpm", "none", "--concurrency", "3")
    assert (changed["rpm"], changed["tpm"], changed["concurrency"]) == (None, 1000, 3)
    assert RateLimit.objects.filter(tenant__name="Acme", environment=None, api_key=None).count() == 1


@pytest.mark.parametrize("figure", ["0", "-1", "1.5", "1e3", "ten", "", "9" * 30])
def test_a_limit_is_a_whole_number_from_one(figure: str) -> None:
    manage("tenant_create", "Acme")
    assert "whole number" in refusal("limit_set", "--tenant", "Acme", f"--rpm={figure}")


def test_a_limit_without_a_figure_is_refused() -> None:
    manage("tenant_create", "Acme")
    assert "at least one" in refusal("limit_set", "--tenant", "Acme")


def test_a_key_of_another_tenant_or_environment_is_not_found() -> None:
    for name in ("Acme", "Rival"):
        manage("tenant_create", name)
    key = manage("key_issue", "--tenant", "Rival", "--environment", "prod")["id"]
    assert "has no key" in refusal("limit_set", "--tenant", "Acme", "--key", key, "--rpm", "1")
    in_dev = ("limit_set", "--tenant", "Rival", "--environment", "dev", "--key", key, "--rpm", "1")
    assert "is in the environment 'prod'" in refusal(*in_dev)


def test_a_provider_is_created_then_changed_then_left_alone() -> None:
    first = ("provider_set", "own", "--wire", "openai", "--base-url", "http://127.0.0.1:8000/v1/", "--models", "a,b")
    assert manage(*first)["change"] == "created"
    assert manage(*first)["change"] == "unchanged"
    changed = manage(*first, "--key-env", "OWN_KEY")
    assert (changed["change"], changed["secret_ref"]) == ("changed", "env:OWN_KEY")
    assert changed["base_url"] == "http://127.0.0.1:8000/v1"
    every_model = manage(*first[:6], "--models", "")
    assert every_model["models"] == []
    assert every_model["secret_ref"] == "env:OWN_KEY"
    assert Provider.objects.filter(name="own").count() == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/v1", "https://hunter2@host/v1", "https://host/v1?key=hunter2", "https://host/#hunter2",
        "ftp://host", "file:///etc/passwd", "//host/v1", "host/v1", "https://", "https://host:99999", "http://ho st/",
        "http://höst/", "http://host\n/", "sandbox:x", "",
    ],
)  # fmt: skip
def test_a_base_url_that_could_hide_or_leak_something_is_refused_and_not_repeated(url: str) -> None:
    message = refusal("provider_set", "own", "--wire", "openai", "--base-url", url)
    assert "base URL" in message
    assert "hunter2" not in message
    assert not Provider.objects.exists()


@pytest.mark.parametrize("secret", ["sk-hunter2", "hunter2", "s3cr3t value", "A=B", "1A"])
def test_a_secret_given_for_its_variables_name_is_refused_and_not_repeated(secret: str) -> None:
    message = refusal("provider_set", "own", "--wire", "openai", "--base-url", "https://h", "--key-env", secret)
    assert "environment variable" in message
    assert secret not in message
    assert not Provider.objects.exists()
    assert not ProviderCredential.objects.exists()


def test_the_built_in_providers_name_keeps_its_meaning() -> None:
    assert "built-in" in refusal("provider_set", "sandbox", "--wire", "openai", "--base-url", "https://h")
    assert manage("provider_set", "sandbox", "--wire", "openai", "--base-url", "sandbox:")["change"] == "created"
