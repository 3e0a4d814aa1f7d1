"""Each threshold is told once, by mail to the right people, whoever races and whatever the mail server does."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from aiplatform.lib import postgres
from tenants.models import Member, User
from tests.fakes.mailbox import Mailbox
from tests.usage.book import Book
from tests.waiting import wait_for
from usage import cap_notices, caps, credit
from usage.ledger import Ending
from usage.models import CapNotice, SpendingCap


@pytest.fixture
def mailbox(settings: Any) -> Iterator[Mailbox]:
    with Mailbox() as box:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", box.port
        yield box


@pytest.fixture
def book(committed_db: None) -> Book:
    CapNotice.objects.filter(notified_at=None).update(notified_at=timezone.now())  # what other tests left
    made = Book()
    for role in Member.Role:
        user = User.objects.create(email=f"{role}-{uuid.uuid4().hex[:8]}@example.com")
        Member.objects.create(tenant=made.tenant, user=user, role=role)
    return made


def tell_all() -> None:
    while cap_notices.tell_notices():
        pass


def percents(book: Book) -> list[int]:
    notices = CapNotice.objects.filter(bucket__cap__tenant=book.tenant)
    return sorted(notices.values_list("percent", flat=True))


def of(book: Book, box: Mailbox) -> list[str]:
    return [subject for subject in box.subjects if book.tenant.name in subject]


def test_each_threshold_is_mailed_once_while_eight_threads_spend_and_four_tell(book: Book, mailbox: Mailbox) -> None:
    cap = book.cap(100_000)
    done = threading.Event()
    with ThreadPoolExecutor(12) as pool:
        tellers = [pool.submit(_tell_until, done) for _ in range(4)]
        for spender in [pool.submit(_spend_all, book) for _ in range(8)]:
            spender.result()
        wait_for(lambda: not CapNotice.objects.filter(bucket__cap=cap, notified_at=None).exists())
        done.set()
        for teller in tellers:
            teller.result()
    postgres.close()
    spent = book.bucket(cap)[1]
    assert spent > 90_000
    reached = [percent for percent in (50, 80, 100) if spent * 100 >= percent * 100_000]
    assert percents(book) == reached
    assert sorted(of(book, mailbox)) == sorted(
        f"{percent} % of the monthly cap of {book.tenant.name} is spent" for percent in reached
    )


def _spend_all(book: Book) -> None:
    while book.hold(ask := book.ask(1000))[0].verdict != "cap_exceeded":
        book.settle(
            *(Ending(it, "settled", 200, cost_nano=1000, list_nano=1000) for it in book.claim(ask.call_id))
        )  # fmt: skip


def _tell_until(done: threading.Event) -> None:
    while not done.is_set():
        cap_notices.tell_notices()
    connection.close()


def test_owners_admins_and_finance_are_told_and_nobody_else(book: Book, mailbox: Mailbox) -> None:
    gone = Member.objects.get(tenant=book.tenant, role="admin").user
    User.objects.filter(pk=gone.pk).update(is_active=False)
    book.cap(1_000_000_000, environment=book.environment, thresholds=[50])
    book.spend(600_000_000)
    tell_all()
    (message,) = [it for it in mailbox.messages if book.tenant.name in str(it["subject"])]
    told = sorted(address.partition("-")[0].strip() for address in str(message["to"]).split(","))
    assert told == ["finance", "owner"]
    text = message.get_content()
    assert f"tenant {book.tenant.name}, environment prod" in text
    assert "0.600000000 USD" in text
    assert "1.000000000 USD, monthly" in text


def test_a_refusing_mail_server_delays_a_notice_and_loses_none(book: Book, mailbox: Mailbox) -> None:
    book.cap(1000, thresholds=[50])
    book.spend(600)
    mailbox.refuses = True
    assert cap_notices.tell_notices() == 0
    notice = CapNotice.objects.get(bucket__cap__tenant=book.tenant)
    assert (notice.tries, notice.notified_at) == (1, None)
    mailbox.refuses = False
    assert cap_notices.tell_notices() == 0, "not before its time"
    CapNotice.objects.filter(pk=notice.pk).update(next_try_at=timezone.now())
    assert cap_notices.tell_notices() == 1
    assert cap_notices.tell_notices() == 0
    assert len(of(book, mailbox)) == 1


def test_a_mail_server_that_is_not_there_stops_nothing(book: Book, settings: Any) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    book.cap(1000, thresholds=[10, 20])
    book.spend(600)
    assert cap_notices.tell_notices() == 0
    assert CapNotice.objects.filter(bucket__cap__tenant=book.tenant, tries=1).count() == 2


def test_a_process_that_dies_after_taking_a_notice_leaves_it_for_another(book: Book, mailbox: Mailbox) -> None:
    book.cap(1000, thresholds=[50])
    book.spend(600)
    (taken,) = cap_notices._take()
    assert cap_notices.tell_notices() == 0
    CapNotice.objects.filter(pk=taken).update(next_try_at=timezone.now() - timedelta(seconds=1))
    tell_all()
    assert len(of(book, mailbox)) == 1


def test_a_threshold_is_told_once_a_period_whatever_becomes_of_the_limit(book: Book, mailbox: Mailbox) -> None:
    cap = SpendingCap.objects.get(pk=book.cap(1000, thresholds=[50, 80]))
    book.spend(600)
    assert percents(book) == [50]
    caps.set_cap(tenant=book.tenant, period="month", limit_nano=700)  # a lower limit reaches more
    assert percents(book) == [50, 80]
    caps.raise_cap(cap, by_nano=10_000, until=timezone.now() + timedelta(hours=1))
    book.spend(100)
    caps.raise_cap(cap, by_nano=0, until=timezone.now() + timedelta(hours=1))
    caps.set_cap(tenant=book.tenant, period="month", limit_nano=2000)
    book.spend(1000)
    assert percents(book) == [50, 80]
    tell_all()
    assert len(of(book, mailbox)) == 2


def test_a_cap_without_thresholds_tells_nothing(book: Book) -> None:
    book.cap(1000, thresholds=[])
    book.spend(1000)
    assert percents(book) == []


def test_prepaid_credit_and_shadow_caps_tell_as_well(book: Book, mailbox: Mailbox) -> None:
    book.cap(1000, mode="shadow", thresholds=[100])
    credit.grant(tenant=book.tenant, amount_nano=1500, category="paid")
    book.spend(1200)
    tell_all()
    texts = {str(it["subject"]): it.get_content() for it in mailbox.messages if book.tenant.name in str(it["subject"])}
    name = book.tenant.name
    assert set(texts) == {
        f"100 % of the monthly cap of {name} is spent", f"50 % of the prepaid credit of {name} is spent",
        f"80 % of the prepaid credit of {name} is spent",
    }  # fmt: skip
    assert "only counts" in texts[f"100 % of the monthly cap of {name} is spent"]
    assert "until more is granted" in texts[f"80 % of the prepaid credit of {name} is spent"]


def test_platform_caps_are_the_operators_and_no_tenants(book: Book, mailbox: Mailbox, settings: Any) -> None:
    settings.OPERATOR_EMAIL = "operator@example.com"
    cap = SpendingCap.objects.get(pk=caps.set_cap(tenant=None, period="lifetime", limit_nano=10**17, thresholds=[1]))
    try:
        caps.set_cap(tenant=None, period="lifetime", limit_nano=100)
        tell_all()
        (message,) = mailbox.messages
        assert message["to"] == "operator@example.com"
        assert "the whole platform" in message.get_content()
        assert cap_notices.latest(tenant_id=book.tenant.pk, limit=9) == []
        assert cap_notices.standing(tenant_id=book.tenant.pk, now=timezone.now()) == []
    finally:
        caps.remove_cap(cap)


def test_an_end_user_with_an_evil_name_writes_no_headers(book: Book, mailbox: Mailbox) -> None:
    book.cap(1000, end_user="*", thresholds=[50])
    book.spend(600, end_user="ada\nBcc: all@example.com\x1b[2J")
    tell_all()
    (message,) = [it for it in mailbox.messages if book.tenant.name in str(it["subject"])]
    assert message["bcc"] is None
    assert "end user ada Bcc: all@example.com [2J" in message.get_content()


def test_without_a_mail_server_a_notice_is_logged_and_done(book: Book) -> None:
    book.cap(1000, thresholds=[50])
    book.spend(600)
    tell_all()
    assert CapNotice.objects.get(bucket__cap__tenant=book.tenant).notified_at


def test_the_overview_names_the_highest_threshold_of_each_running_period(book: Book) -> None:
    book.cap(1000, environment=book.environment)
    book.cap(10_000, end_user="*", thresholds=[5])
    book.spend(850, end_user="ada")
    found = cap_notices.standing(tenant_id=book.tenant.pk, now=timezone.now())
    assert {(it.notice.percent, it.named["end_user"]) for it in found} == {(80, ""), (5, "ada")}
    later = timezone.now() + timedelta(days=40)
    assert cap_notices.standing(tenant_id=book.tenant.pk, now=later) == []
