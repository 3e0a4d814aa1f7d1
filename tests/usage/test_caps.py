"""Caps of every scope and period: what they count, refuse and only note, through edits, raises and changes of the clock."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from aiplatform.lib import money
from tests.usage.book import Book
from tests.usage.drift import drift
from usage import caps, grants, ledger, reports, standings
from usage.caps import CapRefused
from usage.ledger import Correction, Ending
from usage.models import CapBucket, SpendingCap
from usage.standings import Standing

Clock = Callable[[str], datetime]


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


@pytest.fixture
def clock(committed_db: None) -> Iterator[Clock]:
    """Moves the clock by which calls belong to periods."""

    def move(moment: str) -> datetime:
        _tells_the_time(f"timestamptz '{moment}'")
        return datetime.fromisoformat(moment)

    yield move
    _tells_the_time("clock_timestamp()")


def _tells_the_time(expression: str) -> None:
    with grants.as_owner(), connection.cursor() as cursor:
        cursor.execute(
            f"CREATE OR REPLACE FUNCTION usage_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT {expression} $$"
        )


@pytest.fixture
def platform_cap(committed_db: None) -> Iterator[Callable[..., SpendingCap]]:
    made: list[SpendingCap] = []

    def make(**changes: Any) -> SpendingCap:
        fields = {"tenant": None, "period": "lifetime", "mode": "enforce", **changes}
        made.append(SpendingCap.objects.get(pk=caps.set_cap(**fields)))
        return made[-1]

    yield make
    for cap in made:  # or it would bind every other test
        caps.remove_cap(cap)


def stand(cap: int, now: datetime | None = None) -> Standing:
    found = standings.standing(cap, now=now or timezone.now())
    assert found is not None
    return found


def test_a_cap_binds_any_combination_of_environment_key_and_end_user(book: Book) -> None:
    other_key = book.another_key()
    bound = [
        book.cap(1000, environment=book.environment, end_user="ada"),
        book.cap(1000, key=book.key, end_user="ada", period="day"),
        book.cap(1000, environment=book.environment, key=book.key, end_user="ada", period="week"),
    ]
    free = [book.cap(1000, key=other_key, end_user="ada"), book.cap(1000, key=book.key, end_user="bob")]
    book.spend(300, end_user="ada")
    assert [book.bucket(cap) for cap in bound] == [(0, 300)] * 3
    assert [book.bucket(cap) for cap in free] == [(0, 0)] * 2
    assert book.hold(book.ask(701, end_user="ada"))[0].cap_id in bound
    assert drift(book) == []


def test_a_cap_on_each_end_user_bounds_every_one_by_himself_and_nobody_who_is_not_named(book: Book) -> None:
    cap = book.cap(1000, end_user="*")
    book.spend(900, end_user="ada")
    book.spend(200, end_user="bob")
    book.spend(5000)
    assert book.hold(book.ask(200, end_user="ada"))[0].verdict == "cap_exceeded"
    assert book.hold(book.ask(800, end_user="bob"))[0].verdict == "held"
    users = {it.end_user: it.spent_nano for it in CapBucket.objects.filter(cap=cap)}
    assert users == {"ada": 900, "bob": 200}
    assert drift(book) == []


def test_the_standing_of_each_end_user_shows_the_fullest_or_the_one_who_is_asked_for(book: Book) -> None:
    cap = book.cap(1000, end_user="*")
    book.spend(100, end_user="ada")
    book.spend(700, end_user="bob")
    assert (stand(cap).fullest_end_user, stand(cap).spent_nano, stand(cap).end_users) == ("bob", 700, 2)
    now = timezone.now()
    (ada,) = standings.standings(tenant_id=book.tenant.pk, now=now, end_user="ada")
    assert (ada.fullest_end_user, ada.spent_nano, ada.left_nano) == ("ada", 100, 900)
    (nobody,) = standings.standings(tenant_id=book.tenant.pk, now=now, end_user="eve")
    assert (nobody.spent_nano, nobody.left_nano) == (0, 1000)


def test_a_cap_on_each_end_user_that_is_set_later_counts_each_of_them(book: Book) -> None:
    book.spend(100, end_user="ada")
    held = book.held(50, end_user="ada")
    book.spend(300, end_user="bob")
    book.spend(1000)
    cap = book.cap(1000, end_user="*")
    assert {it.end_user: (it.held_nano, it.spent_nano) for it in CapBucket.objects.filter(cap=cap)} == {
        "ada": (50, 100), "bob": (0, 300),
    }  # fmt: skip
    book.claim(held)
    book.settle(Ending(held, "settled", 200, cost_nano=40, list_nano=40))
    assert drift(book) == []


@pytest.mark.parametrize("period", SpendingCap.Period.values)
def test_a_cap_that_is_edited_in_mid_period_keeps_its_usage(book: Book, period: str) -> None:
    scope: dict[str, Any] = {"tenant": book.tenant, "period": period, "limit_nano": 1000}
    cap = caps.set_cap(**scope)
    book.spend(600)
    assert caps.set_cap(**scope | {"limit_nano": 500, "thresholds": [90]}) == cap
    assert (stand(cap).spent_nano, stand(cap).left_nano, stand(cap).thresholds) == (600, -100, [90])
    assert book.hold(book.ask(1))[0].verdict == "cap_exceeded"
    assert caps.set_cap(**scope | {"limit_nano": 700}) == cap
    assert stand(cap).thresholds == [90]
    assert book.hold(book.ask(100))[0].verdict == "held"
    assert drift(book) == []


def test_a_raise_binds_until_its_end_and_not_after(book: Book, clock: Clock) -> None:
    cap = SpendingCap.objects.get(pk=book.cap(1000, period="lifetime"))
    book.spend(900)
    until = timezone.now() + timedelta(hours=4)
    caps.raise_cap(cap, by_nano=500, until=until)
    assert (stand(cap.pk).limit_nano, stand(cap.pk).base_limit_nano, stand(cap.pk).raise_until) == (1500, 1000, until)
    assert book.hold(book.ask(600))[0].verdict == "held"
    after = clock((until + timedelta(seconds=1)).isoformat())
    assert book.hold(book.ask(1))[0].verdict == "cap_contended"
    assert (stand(cap.pk, after).limit_nano, stand(cap.pk, after).raise_until) == (1000, None)
    assert caps.end_raises() >= 1
    cap.refresh_from_db()
    assert (cap.raise_nano, cap.raise_until) == (0, None)


def test_a_raise_of_zero_ends_it_now_and_another_replaces_it(book: Book) -> None:
    cap = SpendingCap.objects.get(pk=book.cap(1000))
    until = timezone.now() + timedelta(days=2)
    for by, limit in ((500, 1500), (100, 1100), (0, 1000)):
        caps.raise_cap(cap, by_nano=by, until=until)
        assert stand(cap.pk).limit_nano == limit


@pytest.mark.parametrize("until", [timedelta(seconds=-1), timedelta(), timedelta(days=4000)])
def test_a_raise_ends_in_the_future_and_within_ten_years(book: Book, until: timedelta) -> None:
    cap = SpendingCap.objects.get(pk=book.cap(1000))
    with pytest.raises(CapRefused, match="future"):
        caps.raise_cap(cap, by_nano=1, until=timezone.now() + until)


def test_a_raise_beyond_what_can_be_stored_is_refused(book: Book) -> None:
    cap = SpendingCap.objects.get(pk=book.cap(1000))
    with pytest.raises(CapRefused, match="together"):
        caps.raise_cap(cap, by_nano=caps.MOST_USD * money.NANO, until=timezone.now() + timedelta(1))


def test_shadow_never_refuses_and_counts_exactly_what_it_would_have(book: Book) -> None:
    """The same asks against an enforcing twin: what that refuses is what shadow notes, call by call."""
    twin = Book()
    twin.cap(1000)
    cap = book.cap(1000, mode="shadow")
    asks = [300, 300, 300, 200, 100, 400]
    refused = []
    for nano in asks:
        if twin.hold(twin.ask(nano))[0].verdict != "held":
            refused.append(nano)
        assert book.hold(book.ask(nano))[0].verdict == "held"
    # What shadow lets pass counts from then on, so the twin's later small call would pass and shadow's not.
    assert refused == [200, 400]
    assert (stand(cap).shadow_refused_calls, stand(cap).shadow_refused_nano) == (3, 200 + 100 + 400)
    assert stand(cap).held_nano == sum(asks)
    assert drift(book) == []


def test_shadow_stands_beside_the_cap_that_refuses_and_does_not_count_what_that_refused(book: Book) -> None:
    shadow, strict = book.cap(100, mode="shadow"), book.cap(1000)
    assert shadow != strict
    book.held(900)
    assert book.hold(book.ask(200))[0].verdict == "cap_contended"
    assert (stand(shadow).shadow_refused_calls, stand(shadow).shadow_refused_nano) == (1, 900)


def test_a_platform_cap_bounds_all_tenants_together_and_shows_itself_to_none(
    book: Book, platform_cap: Callable[..., SpendingCap]
) -> None:
    other = Book()
    cap = platform_cap(limit_nano=10**15)
    spent = stand(cap.pk).spent_nano
    cap = platform_cap(limit_nano=spent + stand(cap.pk).held_nano + 1000)
    own = book.cap(10**6)
    call = book.spend(600)
    other.spend(300)
    (row,) = other.hold(other.ask(200))
    assert (row.cap_scope, row.verdict[:4]) == ("platform", "cap_")
    assert stand(cap.pk).spent_nano == spent + 900
    now = timezone.now()
    assert [it.cap_id for it in standings.standings(tenant_id=book.tenant.pk, now=now)] == [own]
    buckets = book.call(call).bucket_ids
    assert [it.cap_id for it in standings.standings_of(buckets, tenant_id=book.tenant.pk, now=now)] == [own]
    assert reports.caps(tenant_id=book.tenant.pk, now=now).count == 1
    assert cap.pk in {it.cap_id for it in standings.standings(tenant_id=None, now=now)}


def test_a_removed_cap_binds_no_more_and_its_live_calls_settle(book: Book) -> None:
    cap, other = book.cap(1000), book.cap(5000, period="week")
    call = book.held(900)
    book.claim(call)
    caps.remove_cap(SpendingCap.objects.get(pk=cap))
    assert book.hold(book.ask(2000))[0].verdict == "held"
    book.settle(Ending(call, "settled", 200, cost_nano=800, list_nano=800))
    assert book.bucket(other) == (2000, 800)
    assert drift(book) == []


def test_cap_dashboard_and_ledger_say_the_same_through_corrections(book: Book) -> None:
    cap = book.cap(10_000)
    first, second = book.spend(700), book.spend(500)
    ledger.correct([Correction(first, 400, 700)], reason="the provider billed less")
    ledger.correct([Correction(second, 600, 600)], reason="more tokens", charge_tenant=True)
    now = timezone.now()
    month = reports.month(tenant_id=book.tenant.pk, now=now)
    days = reports.spend_by_day(
        tenant_id=book.tenant.pk, zone="UTC", starts_at=month.starts_at, ends_at=month.ends_at
    )  # fmt: skip
    assert stand(cap).spent_nano == month.spent_nano == sum(day.amount_nano for day in days) == 1000
    assert month.drift_nano == 0
    assert drift(book) == []


def test_a_change_of_zone_resets_nothing(book: Book, clock: Clock) -> None:
    clock("2027-11-24T03:00:00+00:00")  # the 23rd in New York
    cap = book.cap(1000, period="day")
    book.spend(600)
    clock("2027-11-24T03:00:01+00:00")
    caps.set_time_zone(book.tenant, "America/New_York")
    assert book.hold(book.ask(500))[0].verdict == "cap_exceeded"
    now = clock("2027-11-24T04:00:00+00:00")
    assert stand(cap, now).spent_nano == 600
    assert drift(book) == []
    clock("2027-11-24T05:00:00+00:00")  # the 24th in New York as well
    assert book.hold(book.ask(500))[0].verdict == "held"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe/Berlin\0", "x" * 300, "posixrules-"])
def test_a_zone_that_nobody_knows_is_refused(book: Book, zone: str) -> None:
    with pytest.raises(CapRefused, match="time zone"):
        caps.set_time_zone(book.tenant, zone)
    assert book.tenant.time_zone == "UTC"


@pytest.mark.parametrize(
    ("period", "zone", "last", "first"),
    [
        ("day", "Asia/Kathmandu", "2027-11-24T18:14:59+00:00", "2027-11-24T18:15:00+00:00"),  # +05:45
        ("day", "Europe/Berlin", "2027-10-31T22:59:59+00:00", "2027-10-31T23:00:00+00:00"),  # a day of 25 hours
        ("day", "Europe/Berlin", "2027-03-28T21:59:59+00:00", "2027-03-28T22:00:00+00:00"),  # a day of 23 hours
        ("day", "America/Santiago", "2027-09-05T03:59:59+00:00", "2027-09-05T04:00:00+00:00"),  # no midnight at all
        ("week", "Europe/Berlin", "2027-10-31T22:59:59+00:00", "2027-10-31T23:00:00+00:00"),  # from Monday on
        ("month", "Pacific/Auckland", "2027-01-31T10:59:59+00:00", "2027-01-31T11:00:00+00:00"),
        ("month", "UTC", "2028-02-29T23:59:59+00:00", "2028-03-01T00:00:00+00:00"),
    ],
)
def test_a_period_ends_at_the_tenants_midnight_to_the_second(
    clock: Clock, period: str, zone: str, last: str, first: str
) -> None:
    book = Book(time_zone=zone)
    clock(last)
    cap = book.cap(1000, period=period)
    before = stand(cap, datetime.fromisoformat(last))
    assert before.resets_at == datetime.fromisoformat(first)
    book.spend(900)
    assert book.hold(book.ask(200))[0].verdict == "cap_exceeded"
    clock(first)
    assert book.hold(book.ask(200))[0].verdict == "held"
    after = stand(cap, datetime.fromisoformat(first))
    assert (after.spent_nano, after.held_nano, after.starts_at) == (0, 200, before.resets_at)
    assert drift(book) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"period": "year"}, {"mode": "credit"}, {"mode": "off"}, {"limit_nano": -1}, {"limit_nano": 2**63},
        {"end_user": "x" * 257}, {"end_user": "a\0b"}, {"thresholds": [0]}, {"thresholds": [101]}, {"thresholds": [80, 50]},
        {"thresholds": [50, 50]}, {"thresholds": [*range(1, 22)]}, {"tenant": None, "end_user": "ada"},
    ],
)  # fmt: skip
def test_a_cap_that_makes_no_sense_is_refused(book: Book, wrong: dict[str, Any]) -> None:
    with pytest.raises(CapRefused):
        caps.set_cap(**{"tenant": book.tenant, "period": "day", "limit_nano": 1, **wrong})
    assert not SpendingCap.objects.filter(tenant=book.tenant).exists()


def test_a_key_of_another_tenant_is_refused(book: Book) -> None:
    with pytest.raises(CapRefused, match="own"):
        caps.set_cap(tenant=book.tenant, api_key=Book().key, period="day", limit_nano=1)


@pytest.mark.parametrize(
    ("text", "percents"), [("50,80,100", [50, 80, 100]), (" 5 , 7", [5, 7]), ("", []), ("  ", []), ("100", [100])]
)
def test_thresholds_are_read_from_text(text: str, percents: list[int]) -> None:
    assert caps.parse_thresholds(text) == percents


@pytest.mark.parametrize("text", ["50,", "a", "1.5", "-1", "50;80", "1000", "٥"])
def test_what_are_no_thresholds_is_refused(text: str) -> None:
    with pytest.raises(CapRefused):
        caps.parse_thresholds(text)


def test_the_end_of_a_raise_is_read_from_text() -> None:
    assert caps.parse_until("2027-01-31") == datetime(2027, 1, 31, tzinfo=UTC)
    assert caps.parse_until("2027-01-31T12:00+01:00") == datetime(2027, 1, 31, 11, tzinfo=UTC)
    for text, span in (("+4h", timedelta(hours=4)), ("+2d", timedelta(days=2))):
        assert abs(caps.parse_until(text) - timezone.now() - span) < timedelta(seconds=5)
    for text in ("tomorrow", "4h", "+4", "+4m", "+99999d", ""):
        with pytest.raises(CapRefused):
            caps.parse_until(text)
