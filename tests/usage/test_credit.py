"""Prepaid credit: the order in which it burns, what pays for which call, and a balance that is never passed."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from aiplatform.lib import money, postgres
from tests.usage.book import Book
from tests.usage.drift import drift
from usage import caps, credit, ledger, receipts, reports
from usage.caps import CapRefused
from usage.credit import GrantRefused
from usage.ledger import Correction, Ending
from usage.models import CreditConsumption, CreditGrant, LedgerEntry, SpendingCap


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


def grant(book: Book, nano: int, **changes: Any) -> CreditGrant:
    return credit.grant(tenant=book.tenant, amount_nano=nano, **{"category": "paid", **changes})


def burnt(*grants: CreditGrant) -> list[int]:
    for it in grants:
        it.refresh_from_db()
    return [it.burnt_nano for it in grants]


def balance(book: Book) -> credit.Balance:
    found = credit.balance(tenant_id=book.tenant.pk)
    assert found is not None
    return found


def age(book: Book, it: CreditGrant, moment: datetime) -> None:
    CreditGrant.objects.filter(pk=it.pk).update(expires_at=moment)


def test_credit_burns_by_priority_then_earliest_expiry_then_age(book: Book) -> None:
    now = timezone.now()
    last = grant(book, 100, priority=200, expires_at=now + timedelta(days=1))
    never = grant(book, 100)
    younger = grant(book, 100)
    later = grant(book, 100, expires_at=now + timedelta(days=9))
    sooner = grant(book, 100, expires_at=now + timedelta(days=2), category="promotional")
    first = grant(book, 100, priority=1)
    order = [first, sooner, later, never, younger, last]
    assert credit.grants(tenant_id=book.tenant.pk) == order
    for n, it in enumerate(order, 1):
        book.spend(100)
        assert burnt(*order) == [100] * n + [0] * (len(order) - n), it
    assert drift(book) == []


def test_a_call_may_be_paid_by_two_grants_and_its_receipt_says_by_which(book: Book) -> None:
    first, second = grant(book, 100, priority=1, category="promotional"), grant(book, 1000)
    call = book.spend(250)
    assert burnt(first, second) == [100, 150]
    paid = receipts.receipt(call)["credit"]
    assert [(it["grant"], it["category"], it["usd"]) for it in paid] == [
        (str(first.pk), "promotional", money.usd(100)), (str(second.pk), "paid", money.usd(150)),
    ]  # fmt: skip
    assert book.entries(call)["charge"] == 250
    (entry,) = LedgerEntry.objects.filter(ref=call, kind="charge")
    assert (entry.debit, entry.credit) == ("customer_credit", "revenue")


def test_a_balance_is_a_cap_and_used_up_refuses_by_the_scope_credit(book: Book) -> None:
    grant(book, 1000)
    book.spend(900)
    (row,) = book.hold(book.ask(200))
    assert (row.verdict, row.cap_scope, row.cap_period, row.limit_nano, row.spent_nano) == (
        "cap_exceeded", "credit", "lifetime", 1000, 900,
    )  # fmt: skip
    grant(book, 100)
    assert book.hold(book.ask(200))[0].verdict == "held"
    assert (balance(book).left_nano, balance(book).held_nano, balance(book).available_nano) == (200, 200, 0)


def test_the_other_caps_bind_a_prepaid_tenant_as_well(book: Book) -> None:
    cap = book.cap(500)
    grant(book, 1000)
    book.spend(450)
    assert book.hold(book.ask(100))[0].cap_id == cap


def test_what_was_spent_before_the_first_grant_is_owed_and_burns_nothing(book: Book) -> None:
    book.spend(300)
    before = book.held(200)
    it = grant(book, 1000)
    book.claim(before)
    book.settle(Ending(before, "settled", 200, cost_nano=200, list_nano=200))
    book.spend(100)
    assert burnt(it) == [100]
    assert balance(book).left_nano == 900
    assert reports.month(tenant_id=book.tenant.pk, now=timezone.now()).spent_nano == 600
    assert drift(book) == []


def test_what_expired_is_forfeited_but_for_what_calls_in_flight_hold(book: Book) -> None:
    it = grant(book, 1000, expires_at=timezone.now() + timedelta(hours=1))
    call = book.held(300)
    book.claim(call)
    age(book, it, timezone.now() + timedelta(seconds=0.05))
    postgres.run("SELECT pg_sleep(0.1)")
    assert book.hold(book.ask(1))[0].verdict == "cap_exceeded"
    assert credit.expire() >= 1
    it.refresh_from_db()
    assert (it.expired_nano, it.burnt_nano) == (700, 0)
    book.settle(Ending(call, "settled", 200, cost_nano=250, list_nano=250))
    assert burnt(it) == [250]
    credit.expire()
    it.refresh_from_db()
    assert it.amount_nano == it.burnt_nano + it.expired_nano
    assert balance(book).left_nano == 0
    expiries = LedgerEntry.objects.filter(ref=it.pk, kind="credit_expiry").order_by("seq")
    assert [(entry.debit, entry.credit, entry.amount_nano) for entry in expiries] == [
        ("customer_credit", "breakage", 700), ("customer_credit", "breakage", 50),
    ]  # fmt: skip
    assert drift(book) == []


def test_an_expired_grant_does_not_pay_while_another_can(book: Book) -> None:
    old, good = grant(book, 1000, priority=1, expires_at=timezone.now() + timedelta(hours=1)), grant(book, 1000)
    age(book, old, timezone.now() - timedelta(seconds=1))
    book.spend(400)
    assert burnt(old, good) == [0, 400]
    assert balance(book).available_nano == 600


def test_a_correction_in_his_favour_gives_credit_back_to_the_grant_that_paid_last(book: Book) -> None:
    first, second = grant(book, 100, priority=1), grant(book, 1000)
    call = book.spend(250)
    ledger.correct([Correction(call, 120, 250)], reason="billed less")
    assert burnt(first, second) == [100, 20]
    ledger.correct([Correction(call, 50, 250)], reason="billed even less")
    assert burnt(first, second) == [50, 0]
    assert balance(book).left_nano == 1050
    assert sum(CreditConsumption.objects.filter(call_id=call).values_list("amount_nano", flat=True)) == 50
    month = reports.month(tenant_id=book.tenant.pk, now=timezone.now())
    assert month.spent_nano == 50
    assert drift(book) == []


def test_eight_threads_never_pass_the_balance_and_every_nano_dollar_has_its_grant(book: Book) -> None:
    grants = [grant(book, 7_001, priority=n) for n in range(6)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                calls = [book.ask(500 + 7 * number + turn) for _ in range(3)]
                held = [ask.call_id for ask, row in zip(calls, book.hold(*calls), strict=True) if row.verdict == "held"]
                book.settle(
                    *(
                        Ending(call, "settled", 200, cost_nano=400 + turn, list_nano=400 + turn)
                        for call in book.claim(*held)
                    )
                )
                if number == 0 and turn == 10:
                    grants.append(grant(book, 3_000, priority=50))
                if number == 1:
                    credit.expire()
                now = balance(book)
                assert now.left_nano >= 0
                assert now.available_nano >= 0
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    postgres.close()
    assert not failures
    consumed = dict.fromkeys([it.pk for it in grants], 0)
    for row in CreditConsumption.objects.filter(grant_id__in=consumed):
        consumed[row.grant_id] += row.amount_nano
    assert burnt(*grants) == list(consumed.values())
    charged = reports.month(tenant_id=book.tenant.pk, now=timezone.now()).spent_nano
    assert sum(consumed.values()) == charged == balance(book).burnt_nano > 40_000
    assert drift(book) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount_nano": 0}, {"amount_nano": -1}, {"amount_nano": 2**63}, {"category": "gift"}, {"priority": 40_000},
        {"expires_at": datetime.fromisoformat("2020-01-01T00:00Z")}, {"note": "x" * 201}, {"note": "a\nb"},
    ],
)  # fmt: skip
def test_a_grant_that_makes_no_sense_is_refused(book: Book, wrong: dict[str, Any]) -> None:
    with pytest.raises(GrantRefused):
        credit.grant(**{"tenant": book.tenant, "amount_nano": 1, "category": "paid", **wrong})
    assert credit.balance(tenant_id=book.tenant.pk) is None


def test_a_balance_can_neither_be_raised_for_a_time_nor_removed(book: Book) -> None:
    grant(book, 1000)
    cap = SpendingCap.objects.get(tenant=book.tenant, mode="credit")
    with pytest.raises(CapRefused):
        caps.raise_cap(cap, by_nano=1, until=timezone.now() + timedelta(1))
    with pytest.raises(CapRefused):
        caps.remove_cap(cap)


def test_what_a_grant_paid_is_paged_newest_first(book: Book) -> None:
    it = grant(book, 1000)
    calls = [book.spend(n) for n in (10, 20, 30)]
    ledger.correct([Correction(calls[2], 25, 30)], reason="less")
    first = credit.consumption(it, before=None, limit=2)
    assert [(row.call_id, row.amount_nano) for row in first] == [(calls[2], -5), (calls[2], 30)]
    rest = credit.consumption(it, before=(first[-1].call_id, first[-1].seq), limit=9)
    assert [(row.call_id, row.amount_nano) for row in rest] == [(calls[1], 20), (calls[0], 10)]
