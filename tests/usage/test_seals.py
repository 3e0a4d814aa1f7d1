"""Seals of the ledger: every entry in exactly one block, whoever books meanwhile, and a tenant can check his own."""

import hashlib
import json
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.db import connection

from aiplatform.lib import postgres
from tests.usage.book import Book
from usage import grants, seals
from usage.ledger import Ending
from usage.models import HOUSE

ZEROS = "0" * 64


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


def chain(tenant: uuid.UUID) -> list[Any]:
    return postgres.run("SELECT * FROM usage_ledgerseal WHERE tenant_id = %s ORDER BY n", [tenant])


def canonical(row: Any) -> bytes:
    """The canonical line of an entry, by another hand than the database's."""

    def told(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return str(value) if isinstance(value, uuid.UUID) else value

    fields = {name: told(value) for name, value in row._asdict().items()}
    return (json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def test_a_block_covers_the_tenants_entries_and_the_block_before_it(book: Book) -> None:
    for nano in (100, 200):
        book.spend(nano, end_user='ü "\\\n\t\x01\x7f\u2028😀')
        assert seals.seal().is_complete
    first, second = chain(book.tenant.id)
    assert (first.n, first.prev_sha256, second.n, second.prev_sha256) == (1, ZEROS, 2, first.sha256)
    for block in (first, second):
        rows = postgres.run(
            """SELECT * FROM usage_ledgerentry WHERE tenant_id = %s AND kind = 'charge' AND number BETWEEN %s AND %s""",
            [book.tenant.id, block.first_number, block.last_number],
        )
        assert len(rows) == block.entries == 1
        lines = seals.lines(book.tenant.id, block.n)
        assert lines == b"".join(canonical(row) for row in rows)
        assert block.sha256 == hashlib.sha256(block.prev_sha256.encode() + b"\n" + lines).hexdigest()


def test_what_a_provider_bills_is_in_the_houses_chain_and_not_in_a_tenants(book: Book) -> None:
    book.spend(700, hold=500)
    seals.seal()
    (block,) = chain(book.tenant.id)
    assert [json.loads(line)["kind"] for line in seals.lines(book.tenant.id, block.n).splitlines()] == ["charge"]
    house = chain(HOUSE)[-1]
    ours = [json.loads(line) for line in seals.lines(HOUSE, house.n).splitlines()]
    assert {it["kind"] for it in ours if it["tenant_id"] == str(book.tenant.id)} == {"provider_cost", "platform_loss"}


def test_sealing_again_seals_nothing_twice(book: Book) -> None:
    book.spend(100)
    assert seals.seal().entries > 0
    again = seals.seal()
    assert (again.blocks, again.entries, again.is_complete) == (0, 0, True)


def test_while_one_sealer_works_another_leaves_it_to_that_one(book: Book) -> None:
    book.spend(100)
    with other_connection() as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(5702)")
        assert seals.seal() == seals.Sealed()
    assert seals.seal().entries > 0


def test_many_entries_are_sealed_in_blocks_of_at_most_so_many(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "AT_ONCE", 4)
    seals.seal()
    for _ in range(7):
        book.spend(100)
    done = seals.seal()
    assert (done.entries, done.is_complete) == (14, True)
    assert {block.entries for block in chain(book.tenant.id)} <= {1, 2, 3, 4}
    assert sum(block.entries for block in chain(book.tenant.id)) == 7


def test_an_open_transaction_that_drew_a_number_delays_the_sealer_and_leaves_no_gap(book: Book) -> None:
    call = book.held(100)
    book.claim(call)
    behind = book.held(100)
    book.claim(behind)
    seals.seal()
    with other_connection() as other:
        with other.transaction():
            book_by_hand(other, book, call)  # draws its number now, commits later
            book.settle(Ending(behind, "settled", 200, cost_nano=30))  # a higher number, committed first
            assert seals.seal(patience=0.2) == seals.Sealed()
            assert chain(book.tenant.id) == []
            began = time.monotonic()
            book.spend(50)  # nobody waits for the sealer
            assert time.monotonic() - began < 1
        assert seals.seal().is_complete
    (block,) = chain(book.tenant.id)
    numbers = [json.loads(line)["number"] for line in seals.lines(book.tenant.id, block.n).splitlines()]
    assert len(numbers) == block.entries == 3
    assert numbers == sorted(numbers)


def test_a_writer_that_ends_in_time_is_waited_for(book: Book) -> None:
    call = book.held(100)
    with other_connection() as other:
        inserted, finish = threading.Event(), threading.Event()

        def write() -> None:
            with other.transaction():
                book_by_hand(other, book, call)
                inserted.set()
                finish.wait(10)

        writer = threading.Thread(target=write)
        writer.start()
        inserted.wait(10)
        threading.Timer(0.3, finish.set).start()
        assert seals.seal().is_complete
        writer.join()
    assert sum(block.entries for block in chain(book.tenant.id)) == 1


def test_sealing_while_others_book_loses_no_entry_and_seals_none_twice(book: Book) -> None:
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            for turn in range(40):
                calls = [book.held(100) for _ in range(1 + turn % 3)]
                book.claim(*calls)
                book.settle(*(Ending(call, "settled", 200, cost_nano=50, provider_cost_nano=60) for call in calls))
        except BaseException as error:
            failures.append(error)
            raise

    def keep_sealing() -> None:
        try:
            while not stop.is_set():
                seals.seal()
        except BaseException as error:
            failures.append(error)
            raise

    writers = [threading.Thread(target=work) for _ in range(4)]
    sealers = [threading.Thread(target=keep_sealing) for _ in range(2)]
    for thread in (*writers, *sealers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in sealers:
        thread.join()
    assert not failures
    assert seals.seal().is_complete
    assert len(chain(book.tenant.id)) > 1
    (row,) = postgres.run(
        """SELECT count(*) AS entries, count(*) FILTER (WHERE blocks <> 1) AS wrong FROM (
               SELECT l.number, count(s.n) AS blocks FROM usage_ledgerentry l LEFT JOIN usage_ledgerseal s
               ON s.tenant_id = usage_ledger_chain(l) AND l.number BETWEEN s.first_number AND s.last_number
               WHERE l.tenant_id = %s GROUP BY l.number) x""",
        [book.tenant.id],
    )
    assert (row.entries, row.wrong) == (2 * 4 * sum(1 + turn % 3 for turn in range(40)), 0)
    sealed = sum(len(seals.lines(book.tenant.id, block.n).splitlines()) for block in chain(book.tenant.id))
    assert sealed == row.entries // 2
    postgres.close()


# --- Who may write ---------------------------------------------------------------------------------------------------


APPEND_ONLY = ["usage_ledgerentry", "usage_ledgerseal", "usage_creditconsumption", "usage_auditrun"]


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = NULL", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_application_may_not_and_the_owner_cannot_change_what_is_append_only(
    book: Book, table: str, statement: str
) -> None:
    book.grant(1000)
    book.spend(100)
    seals.seal()
    postgres.run(
        """INSERT INTO usage_auditrun (at, seconds, complete, upto_number, checked, drift, details)
           VALUES (now(), 0, false, 0, '{}', 0, '[]')"""
    )
    column = {"usage_ledgerseal": "sha256", "usage_auditrun": "drift"}.get(table, "amount_nano")
    change = statement.format(table, column)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        postgres.run(change)
    with owner() as connected, pytest.raises(psycopg.errors.RestrictViolation):
        connected.execute(change)


def test_the_application_has_no_more_than_it_needs(committed_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT table_name, array_agg(privilege_type::text ORDER BY privilege_type) FROM information_schema.table_privileges
               WHERE table_schema = 'public' AND grantee IN ('aiplatform_app', 'PUBLIC', current_user) GROUP BY 1"""
        )
        granted = dict(cursor.fetchall())
    append_only = set(grants.append_only_tables())
    assert set(APPEND_ONLY) <= append_only
    assert len([name for name in append_only if name.startswith("usage_ledgerentry_")]) >= 4
    assert len([name for name in append_only if name.startswith("usage_creditconsumption_")]) >= 4
    for table in append_only:
        assert set(granted.get(table, [])) <= {"INSERT", "SELECT"}, table
    assert granted["django_migrations"] == ["SELECT"]
    assert granted["usage_call"] == ["DELETE", "INSERT", "SELECT", "UPDATE"]
    assert not [name for name, privileges in granted.items() if "TRUNCATE" in privileges]


def test_a_partition_that_the_sweeper_opens_is_append_only_and_closed_to_the_application(committed_db: None) -> None:
    assert postgres.run("SELECT usage_open_partitions(4) AS opened")[0].opened == 10
    assert postgres.run("SELECT usage_open_partitions(4) AS opened")[0].opened == 0
    rows = postgres.run(
        """SELECT c.relname AS name, has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE') AS may,
               array_agg(t.tgname::text ORDER BY t.tgname) AS triggers
           FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid
           WHERE c.relname ~ '^usage_(ledgerentry|creditconsumption)_....' AND c.relkind = 'r' GROUP BY 1, 2"""
    )
    assert len(rows) == 2 * (5 + 1)
    assert {(*row.triggers,) for row in rows} == {("append_only", "no_truncate")}
    month = datetime.now(UTC).month
    new = f"_{(month + 4 - 1) % 12 + 1:02}"
    assert [row.may for row in rows if row.name.endswith(new)] == [False, False]


def owner() -> psycopg.Connection[Any]:
    with grants.as_owner():
        place = connection.get_connection_params()
    return psycopg.connect(
        **{name: value for name, value in place.items() if name in {"host", "port", "user", "password", "dbname"}},
        autocommit=True,
    )


def other_connection() -> psycopg.Connection[Any]:
    place = connection.get_connection_params()
    return psycopg.connect(
        **{name: value for name, value in place.items() if name in {"host", "port", "user", "password", "dbname"}},
        autocommit=True,
    )


def book_by_hand(other: psycopg.Connection[Any], book: Book, call: uuid.UUID) -> None:
    other.execute(
        """INSERT INTO usage_ledgerentry (ref, kind, seq, tenant_id, debit, credit, amount_nano, belongs_at)
           VALUES (%s, 'correction', 7, %s, 'receivable', 'revenue', 5, now())""",
        [call, book.tenant.id],
    )
