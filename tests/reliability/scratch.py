"""A database of one test's own, copied from the migrated one: its clock can be set, its functions changed, its rows removed."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import psycopg
from django.db import connection
from psycopg import sql
from psycopg.rows import namedtuple_row

from aiplatform.lib import postgres
from usage import grants


@contextlib.contextmanager
def scratch_database(*changes: tuple[str, str, str]) -> Iterator[None]:
    """A copy of the test database in the place of it; `changes` are (function, text in it, text in its place)."""
    original = str(connection.settings_dict["NAME"])
    name = f"scratch_{uuid.uuid4().hex[:12]}"
    _let_go()
    with grants.as_owner(), administrator() as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(original)))
        connection.settings_dict["NAME"] = name
        try:
            _own_clock()
            # Foreign keys are looked at when it commits, so any order will do.
            statements = "; ".join(f"DELETE FROM {table}" for table in _tables())  # noqa: S608 - a table's name
            postgres.run(f"CREATE FUNCTION scratch_empty() RETURNS void LANGUAGE sql AS $${statements}$$")
            _forget_append_only()
            for function, old, new in changes:
                change_function(function, old, new)
            yield
        finally:
            _let_go()
            connection.settings_dict["NAME"] = original
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def change_function(function: str, old: str, new: str) -> None:
    """Replaces a function's text, which must be there exactly once, by another."""
    (row,) = postgres.run("SELECT pg_get_functiondef(oid) AS text FROM pg_proc WHERE proname = %s", [function])
    assert row.text.count(old) == 1, f"{function} has {row.text.count(old)} times: {old}"
    postgres.run(row.text.replace(old, new).replace("%", "%%"))
    postgres.close()  # no plan of the old function stays


def set_clock(moment: datetime) -> None:
    postgres.run("UPDATE scratch_clock SET moment = %s", [moment])


def let_the_clock_tick() -> None:
    """By a microsecond whenever it is looked at, so that no two things happen at the very same moment."""
    postgres.run("CREATE SEQUENCE scratch_tick")
    postgres.run(
        "CREATE OR REPLACE FUNCTION usage_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
        "$$SELECT moment + nextval('scratch_tick') * interval '1 microsecond' FROM scratch_clock$$"
    )


def empty() -> None:
    """Removes all rows but the catalogue's."""
    postgres.run("SELECT scratch_empty()")


def remember() -> None:
    """From now on `recall` brings the rows back that there are now."""
    for table in _tables():
        postgres.run(f"CREATE TABLE scratch_of_{table} AS SELECT * FROM {table}")  # noqa: S608 - a table's name
    filled = [name for name in _tables() if postgres.run(f"SELECT 1 FROM {name} LIMIT 1")]  # noqa: S608 - a table's name
    statements = "; ".join(f"INSERT INTO {table} SELECT * FROM scratch_of_{table}" for table in filled)  # noqa: S608
    postgres.run(f"""CREATE FUNCTION scratch_recall() RETURNS void LANGUAGE sql AS $$
        SELECT scratch_empty(); {statements}$$""")


def recall() -> None:
    postgres.run("SELECT scratch_recall()")


def _tables() -> list[str]:
    """An example's own: all but the catalogue, whose every change raises its revision."""
    found = postgres.run(
        """SELECT c.relname AS name FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND c.relname ~ '^(usage|tenants|moderation)_' AND c.relname <> 'usage_catalogue'
           AND NOT EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'catalogue_changed') ORDER BY 1"""
    )
    return [row.name for row in found]


def connect() -> psycopg.Connection[Any]:
    """A connection to the database in use, in autocommit."""
    return psycopg.connect(**_place(str(connection.settings_dict["NAME"])), autocommit=True, row_factory=namedtuple_row)


def rows(statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
    return postgres.run(statement, parameters)


def _own_clock() -> None:
    """The functions' clock is a row; it stands still until it is set."""
    postgres.run("CREATE TABLE scratch_clock (moment timestamptz)")
    postgres.run("INSERT INTO scratch_clock VALUES (clock_timestamp())")
    postgres.run(
        "CREATE OR REPLACE FUNCTION usage_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
        "'SELECT moment FROM scratch_clock'"
    )


def _forget_append_only() -> None:
    """Here, and nowhere else, an example's entries are removed when the next begins."""
    for row in postgres.run(
        """SELECT t.tgname AS name, t.tgrelid::regclass::text AS place FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
           WHERE p.proname = 'usage_ledger_is_append_only' AND t.tgparentid = 0"""
    ):
        postgres.run(f"DROP TRIGGER {row.name} ON {row.place}")


def administrator() -> psycopg.Connection[Any]:
    """A connection to the server that is in no test's way."""
    return psycopg.connect(**_place("postgres"), autocommit=True)


def _place(name: str) -> dict[str, Any]:
    settings = connection.settings_dict
    return {
        "dbname": name,
        **{key.lower(): settings[key] for key in ("HOST", "PORT", "USER", "PASSWORD") if settings[key]},
    }


def _let_go() -> None:
    """Nobody is connected to the database in use any more, so that it can be copied or dropped."""
    postgres.close()
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]  # Postgres has it
