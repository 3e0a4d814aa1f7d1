"""A proof that cannot fail proves nothing: each hand-made mistake in the money code is noticed by the proof made for it."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from django.db import connection
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.reliability import scratch, test_interleavings
from tests.reliability.interleaving import teach_to_yield
from tests.reliability.machine import MoneyMachine
from tests.reliability.mutants import MUTANTS, SHORT, Mutant
from tests.reliability.test_interleavings import Theatre, admit, new_cap, play_all, settle
from tests.reliability.test_model import SHORT_FORM
from usage import grants

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "aiplatform",
    "tenants",
    "usage",
    "moderation",
    "templates",
    "tests",
    "manage.py",
    "pyproject.toml",
    "Procfile",
    ".env",
)
OUR_MISTAKE = (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.UndefinedFunction)


@pytest.mark.parametrize("mutant", [it for it in MUTANTS if it.name in SHORT], ids=lambda mutant: mutant.name)
def test_a_mistake_in_the_money_code_is_noticed(committed_db: None, mutant: Mutant) -> None:
    assert is_noticed(mutant)


@pytest.mark.parametrize("mutant", [it for it in MUTANTS if it.is_python], ids=lambda mutant: mutant.name)
def test_a_mistake_in_python_can_be_made(mutant: Mutant) -> None:
    assert (ROOT / mutant.place).read_text().count(mutant.old) == 1


@pytest.mark.campaign("money")
@pytest.mark.timeout(900)
def test_every_mistake_in_the_money_code_is_noticed(committed_db: None, tmp_path: Path) -> None:
    noticed = {
        mutant.name: noticed_in_a_copy(mutant, tmp_path) if mutant.is_python else is_noticed(mutant)
        for mutant in MUTANTS
    }
    print(f"mutants: {sum(noticed.values())}/{len(noticed)} noticed")
    assert all(noticed.values()), [name for name, seen in noticed.items() if not seen]


@pytest.mark.parametrize("proof", ["lock order", "ledger"])
def test_the_smaller_proofs_find_nothing_in_the_code_as_it_is(committed_db: None, proof: str) -> None:
    """The model and the interleavings have their own tests."""
    with scratch.scratch_database():
        PROOFS[proof]()


def is_noticed(mutant: Mutant) -> bool:
    change = () if mutant.place == "usage_ledgerentry" else ((mutant.place, mutant.old, mutant.new),)
    with scratch.scratch_database(*change):
        if not change:
            scratch.rows("ALTER TABLE usage_ledgerentry DROP CONSTRAINT usage_ledgerentry_pkey")
        try:
            PROOFS[mutant.proof]()
        except OUR_MISTAKE:
            raise
        except (AssertionError, pytest.fail.Exception, psycopg.Error):
            return True
    return False


def noticed_in_a_copy(mutant: Mutant, folder: Path) -> bool:
    """The long form of the model, until it fails, in a copy of the source tree with the mistake in it."""
    copy = folder / uuid.uuid4().hex
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy / name)
    text = (copy / mutant.place).read_text()
    assert text.count(mutant.old) == 1, mutant.name
    (copy / mutant.place).write_text(text.replace(mutant.old, mutant.new))
    with database_of_a_copy() as environ:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--campaign", "money",
             "tests/reliability/test_model.py"],
            cwd=copy, env=environ, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert done.returncode in {0, 1}, done.stdout[-2000:]
    assert done.returncode == 0 or "1 failed" in done.stdout, done.stdout[-2000:]
    return done.returncode == 1


class database_of_a_copy:  # noqa: N801 - a context manager
    """An environment whose DATABASE_URL names a database of its own on the same server."""

    def __enter__(self) -> dict[str, str]:
        self.name = f"copy_{uuid.uuid4().hex[:12]}"
        self._administer(f'CREATE DATABASE "{self.name}"')
        settings_dict = connection.settings_dict
        place = "{USER}:{PASSWORD}@{HOST}:{PORT}".format(**settings_dict)
        return {**os.environ, "DATABASE_URL": f"postgresql://{place}/{self.name}", "PYTHONPATH": "."}

    def __exit__(self, *_: object) -> None:
        self._administer(f'DROP DATABASE "{self.name}" WITH (FORCE)')

    @staticmethod
    def _administer(statement: str) -> None:
        with grants.as_owner(), scratch.administrator() as admin:
            admin.execute(statement)


def the_model() -> None:
    """As many examples as it takes: a mistake ends it."""
    run_state_machine_as_test(MoneyMachine, settings=settings(SHORT_FORM, max_examples=600))


def interleaving(*pair: test_interleavings.Actor) -> Callable[[], None]:
    def proof() -> None:
        teach_to_yield()
        for theatre in stage():
            play_all(theatre, (pair[0], pair[1]))

    return proof


def the_lock_order() -> None:
    """Admission and settlement yield between the locks of one cap and the next."""
    teach_to_yield(functions=())
    scratch.rows(
        """CREATE FUNCTION scratch_yielding(passed text) RETURNS text LANGUAGE plpgsql AS
           'BEGIN PERFORM scratch_yield(); RETURN passed; END'"""
    )
    scratch.change_function(
        "usage_hold", "c.id AS cap_id, b.end_user,", "c.id AS cap_id, scratch_yielding(b.end_user) AS end_user,"
    )
    scratch.change_function(
        "usage_settle", "PERFORM 1 FROM usage_capbucket b\n", "PERFORM scratch_yield() FROM usage_capbucket b\n"
    )
    for theatre in stage():
        play_all(theatre, (admit, settle))


def the_ledger() -> None:
    """It refuses the same entry twice, whoever writes it."""
    entry = """INSERT INTO usage_ledgerentry (ref, kind, tenant_id, debit, credit, amount_nano, belongs_at)
               VALUES ('00000000-0000-7000-8000-000000000001', 'charge', gen_random_uuid(), 'receivable', 'revenue', 1, now())"""
    scratch.rows(entry)
    with pytest.raises(psycopg.errors.UniqueViolation):
        scratch.rows(entry)


def stage() -> Iterator[Theatre]:
    theatre = Theatre()
    try:
        yield theatre
    finally:
        theatre.close()


PROOFS: dict[str, Callable[[], None]] = {
    "model": the_model,
    "ledger": the_ledger,
    "lock order": the_lock_order,
    "admit and new_cap": interleaving(admit, new_cap),
    "settle and new_cap": interleaving(settle, new_cap),
}
