"""The money functions on real Postgres: what is held, claimed and settled, once, whatever is repeated or raced."""

import threading
import uuid

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiplatform.lib import postgres
from tests.usage.book import Book
from usage import ledger
from usage.ledger import Ending


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


def test_a_hold_counts_against_every_cap_that_matches_and_no_other(book: Book) -> None:
    matching = [
        book.cap(1000),
        book.cap(1000, period="day", environment=book.environment),
        book.cap(1000, period="week", key=book.key),
        book.cap(1000, period="lifetime", end_user="u1"),
    ]
    others = [book.cap(1000, end_user="u2"), book.cap(1000, key=book.another_key())]
    book.held(100, end_user="u1")
    assert [book.bucket(cap) for cap in matching] == [(100, 0)] * 4
    assert [book.bucket(cap) for cap in others] == [(0, 0)] * 2


def test_a_batch_is_admitted_in_order_until_the_cap_is_full(book: Book) -> None:
    book.cap(250)
    rows = book.hold(*(book.ask(100) for _ in range(4)))
    assert [row.verdict for row in rows] == ["held", "held", "cap_contended", "cap_contended"]
    assert [row.remaining_nano for row in rows[:2]] == [150, 50]


def test_a_smaller_call_passes_where_a_larger_one_does_not(book: Book) -> None:
    book.cap(250)
    rows = book.hold(book.ask(200), book.ask(100), book.ask(50))
    assert [row.verdict for row in rows] == ["held", "cap_contended", "held"]


def test_output_is_clamped_to_what_every_cap_affords_down_to_the_floor(book: Book) -> None:
    book.cap(1000)
    cap = book.cap(500, environment=book.environment)
    (row,) = book.hold(book.ask(100, pico=10_000, tokens=100))  # 10 nano a token
    assert (row.verdict, row.max_tokens, row.held_nano) == ("held", 40, 500)
    assert book.bucket(cap) == (500, 0)
    (refused,) = book.hold(book.ask(0, pico=10_000, tokens=100))
    assert (refused.verdict, refused.affordable_tokens, refused.cap_id) == ("cap_contended", 0, cap)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(room=st.integers(0, 10**7), base=st.integers(0, 10**6), pico=st.integers(0, 10**7), tokens=st.integers(1, 10**5))
def test_a_clamped_hold_fits_and_one_token_more_would_not(
    book: Book, room: int, base: int, pico: int, tokens: int
) -> None:
    cap = book.cap(room, period="day", end_user=uuid.uuid4().hex)
    user = postgres.run("SELECT end_user FROM usage_spendingcap WHERE id = %s", [cap])[0].end_user
    (row,) = book.hold(book.ask(base, pico=pico, tokens=tokens, floor=1, end_user=user))
    if row.verdict != "held":
        assert base + -(-pico // 1000) > room
        return
    assert row.held_nano == base + -(-pico * row.max_tokens // 1000) <= room
    assert row.max_tokens == tokens or base + -(-pico * (row.max_tokens + 1) // 1000) > room


def test_what_is_spent_refuses_for_good_and_what_is_only_held_for_a_while(book: Book) -> None:
    book.cap(250)
    book.spend(200)
    (row,) = book.hold(book.ask(100))
    assert (row.verdict, row.spent_nano, row.cap_held_nano, row.limit_nano) == ("cap_exceeded", 200, 0, 250)
    book.held(50)
    (row,) = book.hold(book.ask(50))
    assert row.verdict == "cap_contended"


def test_a_batch_that_is_sent_twice_is_held_once(book: Book) -> None:
    cap = book.cap(1000)
    ask = book.ask(100)
    first, again = book.hold(ask)[0], book.hold(ask)[0]
    assert (first.verdict, again.verdict, again.held_nano) == ("held", "held", 100)
    assert book.bucket(cap) == (100, 0)


def test_a_revoked_expired_or_suspended_key_holds_nothing(book: Book) -> None:
    for change in (
        "UPDATE tenants_apikey SET revoked_at = now() WHERE id = %s",
        "UPDATE tenants_apikey SET revoked_at = NULL, expires_at = now() WHERE id = %s",
        "UPDATE tenants_environment e SET suspended_at = now() FROM tenants_apikey k WHERE e.id = k.environment_id AND k.id = %s",
    ):
        postgres.run(change, [book.key.id])
        assert book.hold(book.ask())[0].verdict == "key_invalid"
    assert book.hold(book.ask(key_id=uuid.uuid4()))[0].verdict == "key_invalid"


def test_a_claim_is_given_once_and_only_to_a_live_worker(book: Book) -> None:
    call = book.held()
    postgres.run("UPDATE usage_processlease SET state = 'fenced' WHERE id = %s", [book.worker])
    assert book.claim(call) == []
    postgres.run("UPDATE usage_processlease SET state = 'alive' WHERE id = %s", [book.worker])
    assert book.claim(call) == [call]
    assert book.claim(call) == []
    assert [row.outcome for row in postgres.run("SELECT outcome FROM usage_attempt WHERE call_id = %s", [call])] == [
        "sent"
    ]


def test_a_call_that_is_too_late_to_start_is_not_claimed(book: Book) -> None:
    call = book.held()
    postgres.run("UPDATE usage_call SET start_by = now() WHERE id = %s", [call])
    assert book.claim(call) == []


def test_settling_frees_the_hold_charges_once_and_books_both_sides(book: Book) -> None:
    cap = book.cap(1000)
    call = book.held(500)
    book.claim(call)
    ending = Ending(call, "settled", 200, evidence="provider", cost_nano=120, provider_cost_nano=100)
    assert book.settle(ending)[call].remaining_nano == 880
    assert book.settle(ending) == {}
    assert book.bucket(cap) == (0, 120)
    assert book.entries(call) == {"charge": 120, "provider_cost": 100}


def test_only_the_owner_settles(book: Book) -> None:
    call = book.held()
    book.claim(call)
    assert book.settle(Ending(call, "void", 502), worker=uuid.uuid4()) == {}
    assert book.call(call).state == "inflight"


def test_what_costs_more_than_its_hold_is_the_houses_loss(book: Book) -> None:
    cap = book.cap(1000)
    call = book.spend(700, hold=500)
    row = book.call(call)
    assert (row.charged_nano, row.platform_loss_nano, row.list_nano) == (500, 200, 700)
    assert book.entries(call) == {"charge": 500, "provider_cost": 700, "platform_loss": 200}
    assert book.bucket(cap) == (0, 500)


def test_an_unknown_outcome_keeps_its_hold_and_books_nothing_until_it_is_finalised(book: Book) -> None:
    cap = book.cap(1000)
    call = book.held(300)
    book.claim(call)
    book.settle(Ending(call, "unknown", 502, attempt_outcome="unknown"))
    assert (book.bucket(cap), book.entries(call)) == ((300, 0), {})
    ledger.settle(None, [Ending(call, "void", 502, exposure_nano=300)], from_states=["unknown"])
    assert (book.bucket(cap), book.entries(call)) == ((0, 0), {"exposure": 300})


def test_a_new_cap_counts_what_its_period_has_already_spent_and_holds(book: Book) -> None:
    book.spend(200)
    flying = book.held(70)
    book.claim(flying)
    cap = book.cap(1000, key=book.key)
    assert book.bucket(cap) == (70, 200)
    book.settle(Ending(flying, "settled", 200, cost_nano=30))
    assert book.bucket(cap) == (0, 230)


def test_a_cap_edited_in_mid_period_keeps_its_usage(book: Book) -> None:
    cap = book.cap(1000)
    book.spend(200)
    assert book.cap(100) == cap
    assert book.bucket(cap) == (0, 200)
    assert book.hold(book.ask(1))[0].verdict == "cap_exceeded"
    book.cap(300)
    assert book.hold(book.ask(100))[0].verdict == "held"


def test_a_new_period_begins_empty_and_an_old_hold_settles_in_its_own(book: Book) -> None:
    cap = book.cap(1000, period="day")
    call = book.held(600)
    book.claim(call)
    # Yesterday's call: its bucket is moved a day back, as if midnight had passed.
    postgres.run(
        "UPDATE usage_capbucket SET starts_at = starts_at - interval '1 day', ends_at = ends_at - interval '1 day' WHERE cap_id = %s",
        [cap],
    )
    assert book.hold(book.ask(900))[0].verdict == "held"
    book.settle(Ending(call, "settled", 200, cost_nano=500))
    rows = postgres.run("SELECT held_nano, spent_nano FROM usage_capbucket WHERE cap_id = %s ORDER BY starts_at", [cap])
    assert [(row.held_nano, row.spent_nano) for row in rows] == [(0, 500), (900, 0)]


@pytest.mark.parametrize(
    ("period", "zone", "moment", "starts", "ends"),
    [
        ("day", "UTC", "2026-11-24 13:00Z", "2026-11-24 00:00Z", "2026-11-25 00:00Z"),
        ("day", "Europe/Berlin", "2026-10-25 12:00Z", "2026-10-24 22:00Z", "2026-10-25 23:00Z"),
        ("day", "America/New_York", "2026-03-08 12:00Z", "2026-03-08 05:00Z", "2026-03-09 04:00Z"),
        ("week", "Asia/Kolkata", "2026-11-22 19:00Z", "2026-11-22 18:30Z", "2026-11-29 18:30Z"),
        ("month", "Pacific/Auckland", "2026-02-28 10:59Z", "2026-01-31 11:00Z", "2026-02-28 11:00Z"),
        ("month", "UTC", "2028-02-29 23:59Z", "2028-02-01 00:00Z", "2028-03-01 00:00Z"),
    ],
)
def test_periods_are_the_calendars_of_the_tenants_time_zone(
    book: Book, period: str, zone: str, moment: str, starts: str, ends: str
) -> None:
    (row,) = postgres.run(
        "SELECT p.starts_at = %s::timestamptz AND p.ends_at = %s::timestamptz AS right_, p.* FROM usage_period(%s, %s, %s) p",
        [starts, ends, period, zone, moment],
    )
    assert row.right_, row


def test_prices_of_one_model_cannot_overlap(book: Book) -> None:
    with pytest.raises(psycopg.errors.ExclusionViolation):
        postgres.run(
            "INSERT INTO usage_price (provider, model, valid_from, source, created_at) VALUES ('sandbox', '*', now(), 'x', now())"
        )


def test_racing_processes_never_pass_a_cap_and_lose_no_nano_dollar(book: Book) -> None:
    """Eight threads hold, settle, void and edit caps at once; the buckets end as the rows say."""
    caps = [
        book.cap(100_000),
        book.cap(60_000, period="day", environment=book.environment),
        book.cap(30_000, period="week", end_user="u3"),
    ]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(25):
                asks = [
                    book.ask(700 + 13 * number + turn, end_user=f"u{(number + turn) % 5}") for _ in range(1 + turn % 4)
                ]
                held = [ask.call_id for ask, row in zip(asks, book.hold(*asks), strict=True) if row.verdict == "held"]
                claimed = book.claim(*held)
                book.settle(
                    *(
                        Ending(call, "settled" if at % 3 else "void", 200, cost_nano=(400 + turn) if at % 3 else 0)
                        for at, call in enumerate(claimed)
                    )
                )
                if number == 0 and turn == 12:
                    caps.append(book.cap(99_000, period="lifetime", end_user="u1"))
                over = postgres.run(
                    "SELECT count(*) AS n FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id WHERE c.tenant_id = %s AND b.held_nano + b.spent_nano > c.limit_nano",
                    [book.tenant.id],
                )
                assert over[0].n == 0
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    postgres.close()
    assert not failures
    for cap in caps:
        (row,) = postgres.run(
            """SELECT coalesce(sum(x.charged_nano) FILTER (WHERE x.state = 'settled'), 0) AS spent,
                      coalesce(sum(x.held_nano) FILTER (WHERE x.state IN ('held', 'inflight', 'unknown')), 0) AS held
               FROM usage_spendingcap c JOIN usage_call x ON x.tenant_id = c.tenant_id AND c.end_user IN ('', x.end_user) WHERE c.id = %s""",
            [cap],
        )
        assert book.bucket(cap) == (row.held, row.spent)


def test_a_batch_whose_commit_was_answered_to_nobody_stands_though_its_own_hold_fills_the_cap(book: Book) -> None:
    cap = book.cap(100)
    ask = book.ask(100)
    assert [row.verdict for row in book.hold(ask)] == ["held"]
    (again,) = book.hold(ask)
    assert (again.verdict, again.call_id, again.held_nano) == ("held", ask.call_id, 100)
    assert book.bucket(cap) == (100, 0)


def test_an_unknown_call_shows_no_figure_that_is_not_booked_and_a_void_one_charges_nothing(book: Book) -> None:
    book.cap(1000)
    call = book.held(100)
    book.claim(call)
    ledger.retry([ledger.Retry(call, 5, "refused", "", 529, "", cost_nano=10, charge_nano=7)])
    book.settle(Ending(call, "unknown", 502))
    row = book.call(call)
    assert (row.charged_nano, row.provider_cost_nano, row.platform_loss_nano, book.entries(call)) == (0, 0, 0, {})
    ledger.settle(None, [Ending(call, "void", 502)], from_states=["unknown"])
    assert book.entries(call) == {"provider_cost": 10}


def test_what_an_earlier_try_cost_is_provider_cost_and_charged_as_the_plan_says(book: Book) -> None:
    cap = book.cap(1000)
    call = book.held(100)
    book.claim(call)
    ledger.retry([ledger.Retry(call, 5, "broken", "", 200, "", cost_nano=30, charge_nano=20)])
    book.settle(Ending(call, "settled", 200, cost_nano=90, list_nano=90, provider_cost_nano=80))
    assert book.entries(call) == {"charge": 100, "provider_cost": 110, "platform_loss": 10}
    assert book.bucket(cap) == (0, 100)
    tries = postgres.run("SELECT n, outcome, cost_nano FROM usage_attempt WHERE call_id = %s ORDER BY n", [call])
    assert [tuple(row) for row in tries] == [(1, "broken", 30), (2, "sent", 0)]
