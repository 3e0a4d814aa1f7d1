"""Who may do what in the database: its owner migrates; the application reads and writes, and only adds to the ledger.

A table with a trigger named `append_only` is append-only: the application's role gets SELECT and INSERT on it, nothing more.
Nobody gets TRUNCATE.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection, transaction
from psycopg import sql

# What later migrations make is granted by default, and all of this runs again after them.
_BEFORE: tuple[LiteralString, ...] = (
    "GRANT USAGE ON SCHEMA public TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT EXECUTE ON FUNCTIONS TO {role}",
)
# Extensions have tables and functions of their own, which are not ours to grant.
_OURS = """
    SELECT format('REVOKE ALL ON %%s %%s FROM %%I; GRANT %%s ON %%s %%s TO %%I', kind, name, role, rights, kind, name, role)
    FROM (
        SELECT 'TABLE' AS kind, c.oid::regclass::text AS name, CASE
            WHEN c.relname = 'django_migrations' THEN 'SELECT'
            WHEN EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'append_only') THEN 'SELECT, INSERT'
            ELSE 'SELECT, INSERT, UPDATE, DELETE' END AS rights
        FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relnamespace = 'public'::regnamespace
            AND c.relowner = current_user::regrole
        UNION ALL
        SELECT 'SEQUENCE', c.oid::regclass::text, 'USAGE, SELECT' FROM pg_class c
        WHERE c.relkind = 'S' AND c.relnamespace = 'public'::regnamespace AND c.relowner = current_user::regrole
        UNION ALL
        SELECT 'FUNCTION', p.oid::regprocedure::text, 'EXECUTE' FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proowner = current_user::regrole
            AND p.prorettype <> 'trigger'::regtype
    ) x, (SELECT %s AS role) r"""
_APPEND_ONLY = """SELECT c.relname FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid
    WHERE t.tgname = 'append_only' AND c.relnamespace = 'public'::regnamespace ORDER BY 1"""


@contextmanager
def as_owner() -> Iterator[None]:
    """Django's connection enters as the database's owner, where DATABASE_OWNER_URL names one; its database stays."""
    place = connection.settings_dict
    before = {name: place[name] for name in ("HOST", "PORT", "USER", "PASSWORD")}
    _change(place, {name: settings.DATABASE_OWNER.get(name, before[name]) for name in before})
    try:
        yield
    finally:
        _change(place, before)


def apply() -> str:
    """Makes the application's role if it can, and grants it what it needs. Returns what the operator has to do, or "".

    Raises CommandError where the owner is a role of its own and the application's would be left without its grants.
    """
    if problem := _lacking_role():
        if settings.DATABASE_OWNER:
            raise CommandError(problem)
        return problem
    with transaction.atomic(), connection.cursor() as cursor:  # processes may be at work
        for statement in _BEFORE:
            cursor.execute(sql.SQL(statement).format(role=sql.Identifier(settings.DATABASE_APP_ROLE)))
        cursor.execute(_OURS, [settings.DATABASE_APP_ROLE])
        cursor.execute("; ".join(statement for (statement,) in cursor.fetchall()))
    return ""


def append_only_tables() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(_APPEND_ONLY)
        return [name for (name,) in cursor.fetchall()]


def _lacking_role() -> str:
    name = settings.DATABASE_APP_ROLE
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [name])
        if cursor.fetchone() is not None:
            return ""
        cursor.execute("SELECT rolcreaterole OR rolsuper, current_user FROM pg_roles WHERE rolname = current_user")
        may_make, who = cursor.fetchone()
        if may_make:
            cursor.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
            return ""
    return (
        f'The role "{name}" is missing, and "{who}" may not make it. As a role that may, run: '
        f'CREATE ROLE "{name}" NOLOGIN; then run `manage.py migrate` again.'
    )


def _change(place: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Nothing where it is so already: a transaction of a test would be cut off."""
    if {name: place[name] for name in wanted} != wanted:
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]  # Postgres has it
        place.update(wanted)
