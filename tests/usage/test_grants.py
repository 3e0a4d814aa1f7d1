"""The application's role and the owner's: who is made, who is warned, who is refused."""

import uuid
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from usage import grants
from usage.checks import the_application_may_only_add_to_the_ledger as check

pytestmark = pytest.mark.usefixtures("committed_db")


@pytest.fixture
def narrow() -> Iterator[str]:
    """The name of a role that is not there yet, and not there any more afterwards."""
    name = f"narrow_{uuid.uuid4().hex[:8]}"
    yield name
    with grants.as_owner(), connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [name])
        if cursor.fetchone():
            cursor.execute(f'DROP OWNED BY "{name}"')
            cursor.execute(f'DROP ROLE "{name}"')
    connection.close()


def test_one_role_for_everything_is_warned_of_and_two_are_not() -> None:
    assert check(databases=["default"]) == []
    with grants.as_owner():
        (warning,) = check(databases=["default"])
    assert (warning.id, "triggers alone" in warning.msg) == ("usage.W001", True)
    assert check() == []  # without the database nothing is asked
    connection.close()


def test_a_login_that_owns_nothing_is_told_who_migrates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DATABASE_OWNER", {})
    with pytest.raises(CommandError, match="DATABASE_OWNER_URL"):
        call_command("migrate", verbosity=0)
    connection.close()


def test_migrating_makes_a_missing_role_and_takes_back_what_is_too_much(
    monkeypatch: pytest.MonkeyPatch, narrow: str
) -> None:
    monkeypatch.setattr(settings, "DATABASE_APP_ROLE", narrow)
    call_command("migrate", verbosity=0)
    with grants.as_owner(), connection.cursor() as cursor:
        cursor.execute(f"GRANT ALL ON usage_ledgerentry, usage_call TO {narrow}")
    call_command("migrate", verbosity=0)
    with grants.as_owner(), connection.cursor() as cursor:
        cursor.execute(
            """SELECT c.relname, array_agg(x.privilege_type::text) FROM pg_class c, aclexplode(c.relacl) x
               WHERE x.grantee = %s::regrole AND c.relname IN ('usage_ledgerentry', 'usage_call') GROUP BY 1""",
            [narrow],
        )
        rights = {name: set(privileges) for name, privileges in cursor.fetchall()}
    connection.close()
    assert rights == {"usage_ledgerentry": {"SELECT", "INSERT"}, "usage_call": {"SELECT", "INSERT", "UPDATE", "DELETE"}}


def test_a_table_of_a_later_migration_is_granted_at_once(narrow: str) -> None:
    with grants.as_owner(), connection.cursor() as cursor:
        cursor.execute("CREATE TABLE later (id bigserial PRIMARY KEY)")
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO later DEFAULT VALUES RETURNING id")
            assert cursor.fetchone() == (1,)
    finally:
        with grants.as_owner(), connection.cursor() as cursor:
            cursor.execute("DROP TABLE later")
    connection.close()


def test_where_the_role_is_missing_and_cannot_be_made_the_operator_is_told_what_to_run(
    monkeypatch: pytest.MonkeyPatch, narrow: str
) -> None:
    """As on a managed server whose owner has no CREATEROLE."""
    plain = f"{narrow}_owner"
    with grants.as_owner(), connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {plain}")
        try:
            cursor.execute(f"SET ROLE {plain}")
            monkeypatch.setattr(settings, "DATABASE_APP_ROLE", narrow)
            with pytest.raises(CommandError, match=f'CREATE ROLE "{narrow}" NOLOGIN'):
                grants.apply()
            monkeypatch.setattr(settings, "DATABASE_OWNER", {})
            assert f'CREATE ROLE "{narrow}" NOLOGIN' in grants.apply()
        finally:
            cursor.execute("RESET ROLE")
            cursor.execute(f"DROP ROLE {plain}")
    connection.close()
