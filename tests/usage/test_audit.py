"""`ledger_verify` finds nothing in an honest book, and names whatever was changed behind the application's back."""

import json
import uuid
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone

from aiplatform.lib import postgres
from aiplatform.providers.base import Usage
from tests.usage.book import Book
from usage import audit, audits, grants, ledger, seals
from usage.ledger import Correction, Ending, Given, Retry
from usage.models import HOUSE, AuditRun

TABLES = ["usage_ledgerentry", "usage_ledgerseal", "usage_creditconsumption"]


class FullBook(Book):
    """A tenant with caps of every kind, who was charged, corrected, retried, refunded and given up on; in round figures, since
    an input token costs a nano-dollar.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.price = postgres.run(
            """WITH made AS (INSERT INTO usage_price (provider, model, valid_from, source, created_at)
                             VALUES (%s, 'm', '2000-01-01Z', 'test', now()) RETURNING id)
               INSERT INTO usage_pricecomponent (price_id, meter, usd, per) SELECT id, meter, 0.001, 1000000
               FROM made, unnest(ARRAY['input', 'output']) meter RETURNING price_id AS id""",
            [uuid.uuid4().hex],
        )[0].id
        self.cap(10**6)
        self.cap(10**6, period="day", environment=self.environment)
        self.cap(10**6, key=self.key, mode="shadow")
        self.cap(10**6, end_user="*", period="week")
        self.cap(10**6, end_user="u1", period="lifetime")
        self.first = self.spend(100, end_user="u1")
        self.spend(700, hold=500, end_user="u2")
        seals.seal()
        self.corrected = self.spend(300)
        self.correct(self.corrected, 200, 250)
        self.correct(self.spend(50, end_user="u1"), 80, 90, charge_tenant=True)
        retried = self.held(400)
        self.claim(retried)
        ledger.retry([Retry(retried, 0, "refused", "", 500, "", cost_nano=40, charge_nano=30)])
        self.end(retried, 60)
        unknown = self.held(300)
        self.claim(unknown)
        self.settle(Ending(unknown, "unknown", 502, attempt_outcome="unknown"))
        ledger.settle(None, [Ending(unknown, "void", 502, exposure_nano=300)], from_states=["unknown"])
        self.given, self.given_for_a_share = (
            self.again(self.first, 100),
            self.again(self.corrected, 300, share_bps=5000),
        )
        self.held(77, end_user="u3")
        seals.seal()
        self.granted = self.grant(1000)
        self.grant(500, expires=timezone.now() - timedelta(seconds=1))
        self.prepaid = self.spend(600)
        self.correct(self.prepaid, 550, 600)
        postgres.run("SELECT usage_expire_credit(100)")
        seals.seal()

    def spend(self, nano: int, *, hold: int | None = None, **changes: Any) -> uuid.UUID:
        call = self.held(hold or nano, **changes)
        self.claim(call)
        self.end(call, nano)
        return call

    def end(self, call: uuid.UUID, nano: int) -> None:
        self.settle(Ending(call, "settled", 200, evidence="provider", cost_nano=nano, list_nano=nano, provider_cost_nano=nano,
                           usage=Usage(input=nano), attempt_outcome="answered"))  # fmt: skip

    def again(self, source: uuid.UUID, cost: int, *, share_bps: int = 0) -> uuid.UUID:
        """A call that gets the answer of `source`, which was charged `cost`, for a share of that."""
        charged = cost * share_bps // 10_000
        asked = self.ask(charged, tokens=0, floor=0)
        given = Given(
            asked.call_id, self.tenant.id, self.environment.id, self.key.id, "", "", "openai", "chat", "m", "p", False,
            self.price, "exact", source, 5, cost - charged, charged, share_bps,
        )  # fmt: skip
        if charged:
            revision = postgres.run("SELECT revision FROM usage_catalogue")[0].revision
            (row,) = ledger.give(self.web, revision, [(asked, given)], [None])
            assert (row.verdict, row.held_nano) == ("held", charged)
        else:
            ledger.record(self.web, [given])
            ledger.record(self.web, [given])
        return asked.call_id

    def correct(self, call: uuid.UUID, charge: int, cost: int, *, charge_tenant: bool = False) -> None:
        ledger.correct([Correction(call, charge, cost)], reason="recount", charge_tenant=charge_tenant)


@pytest.fixture
def book(committed_db: None) -> Iterator[FullBook]:
    yield FullBook()
    connection.close()


def test_a_book_in_which_everything_happened_is_as_it_should_be(book: FullBook) -> None:
    found = audit.verify(tenant_id=book.tenant.id)
    assert (found.ok, found.drift) == (True, [])
    assert found.checked["calls"] == 10
    assert found.checked["credit_grants"] == 2
    assert found.checked["cap_periods"] >= 8
    assert found.checked["seals"] == 3
    assert found.checked["accounts"] >= 8


def test_a_cap_of_the_platform_is_recomputed_over_all_tenants(book: FullBook) -> None:
    (row,) = postgres.run(
        "SELECT usage_set_cap(NULL, NULL, NULL, '', 'month', 'shadow', 1000000000000000, NULL) AS cap"
    )
    try:
        book.spend(100)
        held = book.held(50)
        name = f"{row.cap} from"
        assert not [it for it in audit.verify().drift if it["subject"].startswith(name)]
        with behind_the_applications_back(
            "UPDATE usage_capbucket SET spent_nano = spent_nano - 1 WHERE cap_id = %s", row.cap
        ):
            assert [it["field"] for it in audit.verify().drift if it["subject"].startswith(name)] == ["spent_nano"]
            assert audit.verify(tenant_id=book.tenant.id).ok  # not his
        assert audit.verify(tenant_id=book.tenant.id).ok
        book.claim(held)
        book.settle(Ending(held, "void", 502))
    finally:
        postgres.run("SELECT usage_remove_cap(%s)", [row.cap])


CHARGE = "ref = %(first)s AND kind = 'charge'"  # {charge} below
BY_THE_BACK_DOOR = {
    "an entry's amount": ("UPDATE usage_ledgerentry SET amount_nano = amount_nano + 1 WHERE {charge}",
        {("call", "charged_nano"), ("cap", "spent_nano"), ("account", "receivable_nano"), ("account", "revenue_nano"), ("seal", "sha256")}),
    "an entry's reason": ("UPDATE usage_ledgerentry SET reason = 'another' WHERE ref = %(corrected)s AND kind = 'correction'", {("seal", "sha256")}),
    "an entry's accounts": ("UPDATE usage_ledgerentry SET debit = 'cash' WHERE {charge}",
        {("ledger", "accounts of its kind: cash to revenue by charge"), ("account", "receivable_nano"), ("seal", "sha256")}),
    "an entry's period": ("UPDATE usage_ledgerentry SET belongs_at = belongs_at - interval '1 year' WHERE {charge}",
        {("ledger", "entry of no call, or of another owner or time"), ("cap", "spent_nano"), ("seal", "sha256")}),
    "an entry removed": ("DELETE FROM usage_ledgerentry WHERE {charge}",
        {("call", "charged_nano"), ("cap", "spent_nano"), ("seal", "entries"), ("seal", "first_number"), ("seal", "sha256")}),
    "an entry added behind a seal": (
        """INSERT INTO usage_ledgerentry (number, ref, kind, seq, tenant_id, environment_id, api_key_id, end_user, debit, credit,
               amount_nano, price_id, evidence, belongs_at)
           SELECT number, ref, kind, 9, tenant_id, environment_id, api_key_id, end_user, debit, credit, amount_nano, price_id,
               evidence, belongs_at FROM usage_ledgerentry WHERE {charge}""",
        {("call", "charged_nano"), ("seal", "entries"), ("seal", "sha256"), ("seal", "entries booked after it was sealed")}),
    "a house's entry": ("UPDATE usage_ledgerentry SET amount_nano = 1 WHERE ref = %(first)s AND kind = 'provider_cost'",
        {("call", "provider_cost_nano"), ("seal", "sha256")}),
    "a block's hash": ("UPDATE usage_ledgerseal SET sha256 = repeat('a', 64) WHERE tenant_id = %(tenant)s AND n = 1",
        {("seal", "sha256"), ("seal", "prev_sha256")}),
    "a block's version": ("UPDATE usage_ledgerseal SET version = 2 WHERE tenant_id = %(tenant)s AND n = 1", {("seal", "version")}),
    "a block removed": ("DELETE FROM usage_ledgerseal WHERE tenant_id = %(tenant)s AND n = 2",
        {("seal", "n"), ("seal", "prev_sha256"), ("seal", "in no block")}),
    "what a cap spent": ("UPDATE usage_capbucket SET spent_nano = spent_nano + 1 WHERE id = (SELECT bucket_ids[1] FROM usage_call WHERE id = %(first)s)",
        {("cap", "spent_nano")}),
    "what a cap holds": ("UPDATE usage_capbucket SET held_nano = 0 WHERE id = (SELECT bucket_ids[1] FROM usage_call WHERE id = %(first)s)",
        {("cap", "held_nano")}),
    "a charge": ("UPDATE usage_call SET charged_nano = charged_nano - 1 WHERE id = %(first)s",
        {("call", "charged_nano"), ("account", "receivable_nano"), ("call", "charged_nano and platform_loss_nano")}),
    "a correction": ("UPDATE usage_call SET corrected_nano = 0 WHERE id = %(corrected)s", {("call", "corrected_nano"), ("account", "revenue_nano")}),
    "a provider's cost": ("UPDATE usage_call SET provider_cost_nano = 0 WHERE id = %(first)s", {("call", "provider_cost_nano")}),
    "a call's liveness": ("UPDATE usage_call SET is_live = true WHERE id = %(first)s", {("call", "is_live"), ("call", "ledger entries of a live call")}),
    "what an answer given again saved": ("UPDATE usage_call SET saved_nano = saved_nano + 1 WHERE id = %(given)s",
        {("call", "saved_nano by the source call")}),
    "an answer given again of another tenant": (
        "UPDATE usage_call SET cached_from = (SELECT id FROM usage_call WHERE tenant_id <> %(tenant)s AND charged_nano = 100 LIMIT 1) WHERE id = %(given)s",
        {("call", "saved_nano by the source call")}),
    "what a plan takes of what was saved": ("UPDATE usage_call SET cache_share_bps = 4000 WHERE id = %(given_for_a_share)s",
        {("call", "charged_nano of an answer given again")}),
    "an attempt removed": ("DELETE FROM usage_attempt WHERE call_id = %(first)s", {("call", "attempts")}),
    "an attempt added": ("INSERT INTO usage_attempt (call_id, n, provider, started_at) VALUES (%(first)s, 2, 'p', now())",
        {("call", "attempts"), ("call", "open attempts of an ended call")}),
    "burnt credit": ("UPDATE usage_creditgrant SET burnt_nano = burnt_nano - 1 WHERE id = %(granted)s",
        {("credit", "burnt_nano"), ("credit", "spent_nano of the balance"), ("account", "customer_credit_nano")}),
    "expired credit": ("UPDATE usage_creditgrant SET expired_nano = expired_nano + 1 WHERE id = %(granted)s",
        {("credit", "expired_nano"), ("credit", "limit_nano of the balance"), ("account", "breakage_nano")}),
    "a grant's amount": ("UPDATE usage_creditgrant SET amount_nano = amount_nano + 1 WHERE id = %(granted)s", {("credit", "amount_nano")}),
    "the balance's limit": ("UPDATE usage_spendingcap SET limit_nano = limit_nano + 1 WHERE tenant_id = %(tenant)s AND mode = 'credit'",
        {("credit", "limit_nano of the balance")}),
    "what a call burnt": ("UPDATE usage_creditconsumption SET amount_nano = amount_nano + 1 WHERE call_id = %(prepaid)s AND amount_nano > 0",
        {("credit", "burnt_nano"), ("call", "credit burnt_nano, by ledger and by grants"), ("call", "credit burnt_nano, by charge and by grants")}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tampered(django_db_setup: None, django_db_blocker: Any) -> Iterator[FullBook]:
    """One book for all of them: what they do to it is rolled back."""
    with django_db_blocker.unblock():
        FullBook()  # a neighbour, whose calls cost the same
        yield FullBook()
        connection.close()


@pytest.mark.parametrize("what", BY_THE_BACK_DOOR)
def test_what_is_changed_behind_the_applications_back_is_named(tampered: FullBook, what: str) -> None:
    statement, named = BY_THE_BACK_DOOR[what]
    before = {json.dumps(it, sort_keys=True, default=str) for it in audit.verify().drift}
    names = {"first": tampered.first, "corrected": tampered.corrected, "granted": tampered.granted,
             "prepaid": tampered.prepaid, "tenant": tampered.tenant.id, "given": tampered.given,
             "given_for_a_share": tampered.given_for_a_share}  # fmt: skip
    with behind_the_applications_back(statement.replace("{charge}", CHARGE), names):
        found = [it for it in audit.verify().drift if json.dumps(it, sort_keys=True, default=str) not in before]
        missing = named - {(it["what"], it["field"]) for it in found}
        assert not missing, found
        ours = {str(value) for value in names.values()} | {str(HOUSE)}
        assert all(it["what"] in {"cap", "ledger"} or any(name in it["subject"] for name in ours) for it in found), (
            found
        )
    assert audit.verify(tenant_id=tampered.tenant.id).ok


def test_the_command_says_what_it_found_and_ends_with_1(tampered: FullBook) -> None:
    arguments = ["ledger_verify", "--tenant", tampered.tenant.name, "--json"]
    assert command(*arguments)["ok"] is True
    assert "seals" not in command(*arguments, "--no-seals")["checked"]
    with behind_the_applications_back("UPDATE usage_call SET charged_nano = 0 WHERE id = %s", tampered.first):
        out = StringIO()
        with pytest.raises(SystemExit) as ended:
            call_command(*arguments, stdout=out)
        assert ended.value.code == 1
        assert json.loads(out.getvalue())["ok"] is False


def test_an_audit_by_the_clock_sees_what_moved_since_and_every_running_period(
    book: FullBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "MOST_KEPT", 10_000)  # other tests' books are not as honest
    audits.run(complete=True)
    later = FullBook()
    with behind_the_applications_back(
        "UPDATE usage_call SET charged_nano = charged_nano - 1 WHERE id = %s", later.first
    ):
        run = audited()
        assert (run.complete, str(later.first) in json.dumps(run.details)) == (False, True)
    bucket = postgres.run("SELECT bucket_ids[1] AS id FROM usage_call WHERE id = %s", [book.first])[0].id
    with behind_the_applications_back("UPDATE usage_capbucket SET spent_nano = spent_nano + 5 WHERE id = %s", bucket):
        assert "spent_nano" in {it["field"] for it in audited().details}
    run = audited()
    assert run.checked["calls"] > 0
    told = command("ledger_verify", "--last", "--json", code=None)
    assert told["drift"] == run.drift == AuditRun.objects.order_by("-id")[0].drift
    assert told["last_complete"]["complete"] is True


def audited() -> AuditRun:
    run = audits.run(complete=False)
    assert run
    return run


class behind_the_applications_back:  # noqa: N801 - reads as a phrase
    """A statement of the owner's with the triggers off, undone at the end."""

    def __init__(self, statement: str, parameters: Any) -> None:
        self.statement = statement
        self.parameters = parameters if isinstance(parameters, dict) else [parameters]

    def __enter__(self) -> None:
        postgres.close()
        self.owner = grants.as_owner()
        self.owner.__enter__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        with connection.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            cursor.execute(self.statement, self.parameters)
            assert cursor.rowcount >= 1

    def __exit__(self, *_: object) -> None:
        transaction.set_rollback(True)
        self.transaction.__exit__(None, None, None)
        self.owner.__exit__(None, None, None)


def command(*arguments: str, code: int | None = 0) -> dict[str, Any]:
    out = StringIO()
    try:
        call_command(*arguments, stdout=out)
    except SystemExit as ended:
        assert code is None or ended.code == code
    found: dict[str, Any] = json.loads(out.getvalue())
    return found
