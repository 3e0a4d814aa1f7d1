"""Keys: their shape, what is stored of them, and what they may never do."""

from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from tenants import keys, onboarding
from tenants.models import ApiKey, Environment

pytestmark = pytest.mark.django_db


@pytest.fixture
def environment() -> Environment:
    tenant, _, _ = onboarding.create_tenant(name="Acme")
    return tenant.environments.get(name="staging")


def test_a_key_says_its_environment_and_its_public_id_finds_the_row(environment: Environment) -> None:
    key, text = keys.issue(environment=environment)
    assert text.startswith(f"{key.prefix}_")
    assert key.prefix == f"aip_staging_{key.public_id}"
    assert keys.public_id(text) == key.public_id
    assert len(text) == len("aip_staging_") + 12 + 1 + 32 + 6


def test_only_a_keyed_hash_of_a_key_is_stored(environment: Environment, settings: pytest.FixtureRequest) -> None:
    key, text = keys.issue(environment=environment)
    key.refresh_from_db()
    secret = text.removeprefix(key.prefix)
    assert bytes(key.digest) == keys.digest(text)
    assert not any(secret[1:] in str(value) for value in vars(key).values())
    settings.KEY_PEPPER = b"another"  # type: ignore[attr-defined]  # pytest-django's wrapper
    assert bytes(key.digest) != keys.digest(text)


def test_any_single_typing_error_is_seen_without_asking_the_database(environment: Environment) -> None:
    _, text = keys.issue(environment=environment)
    for at, character in enumerate(text):
        other = "x" if character != "x" else "y"
        assert keys.public_id(text[:at] + other + text[at + 1 :]) is None
    assert keys.public_id(text[:-1]) is None
    assert keys.public_id(text + "0") is None
    assert keys.public_id(text + "\n") is None


@given(st.text())
def test_garbage_is_no_key(text: str) -> None:
    assert keys.public_id(text) is None
    assert keys.public_id(f"aip_prod_{text}") is None


def test_revoking_twice_keeps_the_first_time(environment: Environment) -> None:
    key, _ = keys.issue(environment=environment)
    first = keys.revoke(key).revoked_at
    assert first is not None
    assert keys.revoke(key).revoked_at == first
    assert not ApiKey.objects.usable().filter(pk=key.pk).exists()


def test_an_expired_key_is_not_usable_and_none_is_issued_that_is_expired_already(environment: Environment) -> None:
    key, _ = keys.issue(environment=environment, expires_at=timezone.now() + timedelta(hours=1))
    assert ApiKey.objects.usable().filter(pk=key.pk).exists()
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now())
    assert not ApiKey.objects.usable().filter(pk=key.pk).exists()
    with pytest.raises(keys.KeyRefused, match="expired"):
        keys.issue(environment=environment, expires_at=timezone.now() - timedelta(seconds=1))


def test_a_key_has_at_least_one_scope_and_none_that_is_unknown(environment: Environment) -> None:
    for scopes in ((), ("calls", "root")):
        with pytest.raises(keys.KeyRefused, match="scopes"):
            keys.issue(environment=environment, scopes=scopes)
