"""One number: what the console sums up is what the ledger says and what the caps count."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.db.models import Sum
from django.utils import timezone

from aiplatform.providers.base import Usage
from tests.usage import sample
from tests.usage.sample import Company, Plan
from usage import charts, filters, receipts, reports, transcripts
from usage.models import Call, CapBucket, FrozenTariff, LedgerEntry, PriceComponent
from usage.pricing import Tariff
from usage.reports import DaySpend
from usage.standings import Standing

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme() -> Company:
    return sample.company("Acme", people=False)


def test_what_caching_saved_is_the_sum_of_the_receipts_by_tier_and_contract(acme: Company) -> None:
    sample.price_book()
    sonnet = PriceComponent.objects.filter(price__model="claude-sonnet-5-5", price__source="sample")
    for part in list(sonnet):
        part.price.components.create(meter=part.meter, usd=3 * part.usd, per=part.per, tier_from=30_000)
    sample.month_of_calls(acme, a_day=6)
    cached = Call.objects.filter(tenant=acme.tenant, state="settled", cache_read_tokens__gt=0)
    tariff = FrozenTariff.objects.create(sha256="a" * 64, markup_bps=-2500, components=[], charges_retries=False)
    under = set(cached.order_by("input_tokens").values_list("pk", flat=True)[::2])
    Call.objects.filter(pk__in=under).update(tariff_id=tariff.pk)
    month, listed = _month(acme), sample.price_book()["claude-sonnet-5-5"]
    contract = listed.under(Tariff(tariff.pk, -2500))
    found = [receipts.cache_saving_nano(one, contract if one.pk in under else listed) for one in cached]
    saved = reports.cache_saving(tenant_id=acme.tenant.pk, starts_at=month.starts_at, ends_at=month.ends_at)
    assert len(set(found)) >= 4, "both tiers, with and without a contract"
    assert abs(saved - sum(found)) <= len(found) / 2
    assert saved > 0


def _month(company: Company) -> reports.Month:
    return reports.month(tenant_id=company.tenant.pk, now=timezone.now())


def test_the_month_is_the_sum_of_the_ledger_and_what_the_monthly_cap_counts(acme: Company) -> None:
    sample.month_of_calls(acme, a_day=3)
    month = _month(acme)
    charges = LedgerEntry.objects.filter(tenant_id=acme.tenant.pk, kind="charge", belongs_at__gte=month.starts_at)
    assert month.spent_nano == charges.aggregate(nano=Sum("amount_nano"))["nano"] > 0
    bucket = CapBucket.objects.get(cap__tenant=acme.tenant, cap__environment=None, cap__period="month")
    assert (month.spent_nano, month.held_nano) == (bucket.spent_nano, bucket.held_nano)
    assert month.held_nano > 0
    assert month.drift_nano == 0


def test_the_days_sum_to_the_month_to_the_nano_dollar(acme: Company) -> None:
    sample.month_of_calls(acme, a_day=3)
    month = _month(acme)
    days = reports.spend_by_day(
        tenant_id=acme.tenant.pk, zone="Europe/Berlin", starts_at=month.starts_at, ends_at=month.ends_at
    )
    assert sum(day.amount_nano for day in days) == month.spent_nano


def test_another_tenants_money_is_in_no_figure(acme: Company) -> None:
    rival = sample.company("Rival", people=False)
    sample.set_cap(rival.tenant, "5")
    sample.make(Plan(rival.key("prod")), Plan(rival.key("prod"), until="inflight"))
    month = _month(acme)
    assert (month.spent_nano, month.held_nano, month.live_calls, month.cap_spent_nano) == (0, 0, 0, None)
    assert reports.caps(tenant_id=acme.tenant.pk, now=timezone.now()).count == 0
    assert reports.traffic(tenant_id=acme.tenant.pk, since=month.starts_at).calls == 0
    assert (
        reports.spend_by_day(tenant_id=acme.tenant.pk, zone="UTC", starts_at=month.starts_at, ends_at=month.ends_at)
        == []
    )


def test_a_correction_lowers_the_month_and_is_a_line_of_its_own(acme: Company) -> None:
    (call,) = sample.make(Plan(acme.key("prod")))
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO usage_ledgerentry (ref, kind, tenant_id, debit, credit, amount_nano, belongs_at)
               VALUES (usage_uuid_at(now()), 'correction', %s, 'revenue', 'receivable', 700, now())""",
            [acme.tenant.pk],
        )
    month = _month(acme)
    assert month.spent_nano == call.charged_nano - 700
    days = reports.spend_by_day(tenant_id=acme.tenant.pk, zone="UTC", starts_at=month.starts_at, ends_at=month.ends_at)
    assert {day.model: day.amount_nano for day in days} == {"": -700, "gpt-5-mini": call.charged_nano}


def test_drift_between_cap_and_ledger_is_reported_not_hidden(acme: Company) -> None:
    sample.set_cap(acme.tenant, "5")
    sample.make(Plan(acme.key("prod")))
    CapBucket.objects.filter(cap__tenant=acme.tenant).update(spent_nano=1)
    month = _month(acme)
    assert month.drift_nano == 1 - month.spent_nano


def test_a_day_is_a_day_of_the_tenants_calendar(acme: Company) -> None:
    late = datetime.combine(timezone.localdate(), datetime.min.time(), ZoneInfo("UTC")) - timedelta(minutes=30)
    sample.make(Plan(acme.key("prod"), at=late))
    span = {"starts_at": late - timedelta(days=1), "ends_at": late + timedelta(days=1)}
    in_berlin = reports.spend_by_day(tenant_id=acme.tenant.pk, zone="Europe/Berlin", **span)
    in_london = reports.spend_by_day(tenant_id=acme.tenant.pk, zone="UTC", **span)
    assert in_london[0].day == late.date()
    assert in_berlin[0].day == late.date() + timedelta(days=1)


def test_a_cap_shows_its_bucket_and_an_untouched_one_its_whole_limit(acme: Company) -> None:
    sample.set_cap(acme.tenant, "5", environment=acme.environments["prod"])
    sample.set_cap(acme.tenant, "1", "day", end_user="nobody")
    settled, live = sample.make(Plan(acme.key("prod")), Plan(acme.key("prod"), until="inflight"))
    prod, nobody = reports.caps(tenant_id=acme.tenant.pk, now=timezone.now()).tightest
    assert (prod.environment, prod.spent_nano, prod.held_nano) == ("prod", settled.charged_nano, live.held_nano)
    assert prod.left_nano == 5 * 10**9 - settled.charged_nano - live.held_nano
    assert (nobody.end_user, nobody.left_nano) == ("nobody", 10**9)


def test_only_the_tightest_caps_are_listed_and_the_rest_are_counted(acme: Company) -> None:
    for n in range(5):
        sample.set_cap(acme.tenant, str(n + 1), end_user=f"u{n}")
    sample.make(*(Plan(acme.key("prod"), end_user=f"u{n}") for n in range(5)))
    found = reports.caps(tenant_id=acme.tenant.pk, now=timezone.now(), limit=2)
    assert [cap.end_user for cap in found.tightest] == ["u0", "u1"]
    assert found.count == 5


def test_what_is_left_is_said_by_the_tenants_cap_that_refuses_first(acme: Company) -> None:
    assert reports.tenant_cap(tenant_id=acme.tenant.pk, now=timezone.now()) is None
    sample.set_cap(acme.tenant, "5")
    sample.set_cap(acme.tenant, "2", "day")
    sample.set_cap(acme.tenant, "1", environment=acme.environments["prod"])
    cap = reports.tenant_cap(tenant_id=acme.tenant.pk, now=timezone.now())
    assert cap is not None
    assert cap.period == "day"


def _standing(*, limit: int, spent: int, held: int) -> Standing:
    nobody = (None, None, None, None, None, None, "", "", 0)
    return Standing(
        1, "tenant", "day", "enforce", *nobody, timezone.now(), None, limit, limit, 0, None, spent, held, [], 0, 0
    )


def test_the_shares_of_a_bar_never_pass_the_whole_of_it() -> None:
    cap = _standing(limit=100, spent=90, held=40)
    assert cap.spent_share + cap.held_share == pytest.approx(1)
    assert (cap.left_nano, cap.over_nano, cap.is_tight) == (-30, 30, True)


def test_a_cap_of_zero_is_drawn_without_dividing_by_it() -> None:
    cap = _standing(limit=0, spent=0, held=0)
    assert (cap.spent_share, cap.held_share) == (0, 0)


def test_the_hour_counts_calls_failures_and_live_ones(acme: Company) -> None:
    sample.make(
        Plan(acme.key("prod")),
        Plan(acme.key("prod"), until="inflight"),
        Plan(acme.key("prod"), until="void", status=503, error_code="x", usage=Usage()),
        Plan(acme.key("prod"), at=timezone.now() - timedelta(hours=2)),
    )
    hour = reports.traffic(tenant_id=acme.tenant.pk, since=timezone.now() - timedelta(hours=1))
    assert (hour.calls, hour.failed, hour.live) == (3, 1, 1)
    assert hour.median_first_byte is not None


def test_the_chart_stacks_every_nano_dollar_and_folds_the_smallest_models() -> None:
    spend = [DaySpend(date(2026, 11, 2), name, nano) for name, nano in zip("abcde", [50, 40, 30, 20, 10], strict=True)]
    chart = charts.by_day(spend, first=date(2026, 11, 1), last=date(2026, 11, 30))
    assert chart.names == ["a", "b", "c", "other models"]
    assert chart.totals_nano == [50, 40, 30, 30]
    assert (chart.total_nano, len(chart.columns)) == (150, 30)
    heights = sum(float(piece.height) for piece in chart.columns[1].pieces)
    assert heights == pytest.approx(charts.HEIGHT * 150 / 200, abs=0.1)


def test_an_empty_month_is_a_chart_of_empty_days() -> None:
    chart = charts.by_day([], first=date(2026, 11, 1), last=date(2026, 11, 30))
    assert (chart.names, chart.total_nano) == ([], 0)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=BERLIN), datetime(2026, 11, 24, tzinfo=BERLIN)),
        ("2026-12", datetime(2026, 12, 1, tzinfo=BERLIN), datetime(2027, 1, 1, tzinfo=BERLIN)),
        ("2026-W48", datetime(2026, 11, 23, tzinfo=BERLIN), datetime(2026, 11, 30, tzinfo=BERLIN)),
    ],
)
def test_a_span_in_the_url_is_one_of_the_tenants_calendar(text: str, first: datetime, last: datetime) -> None:
    span = filters.span(text, zone=BERLIN, now=timezone.now())
    assert (span.starts_at, span.ends_at) == (first, last)


@pytest.mark.parametrize("text", ["2026", "2026-13", "2026-11-31", "2026-W60", "9999-12", "yesterday", "20261123T00"])
def test_a_span_that_is_none_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        filters.span(text, zone=BERLIN, now=timezone.now())


@pytest.mark.parametrize(
    ("body", "turns"),
    [
        (b'{"messages": [{"role": "user", "content": "Hi"}]}', [("user", "Hi")]),
        (
            b'{"system": "S", "messages": [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "image"}]}]}',
            [("system", "S"), ("user", "A\n[image]")],
        ),
        (b'{"type": "message", "role": "assistant", "content": [{"type": "text", "text": "B"}]}', [("assistant", "B")]),
        (b'{"error": {"message": "no"}}', [("error", "no")]),
        (b'{"model": "m", "instructions": "S", "input": "Hi"}', [("system", "S"), ("user", "Hi")]),
        (
            (
                b'{"input": [{"role": "user", "content": [{"type": "input_text", "text": "A"}]}, {"type": "item_reference", "id": "i"},'
                b' {"type": "function_call_output", "call_id": "c", "output": "mild"}]}'
            ),
            [("user", "A"), ("", "[item_reference]"), ("tool", "\u2190 mild")],
        ),
        (
            (
                b'{"object": "response", "error": null, "output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},'
                b' {"type": "function_call", "name": "f", "arguments": "{}"},'
                b' {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "B"}]}]}'
            ),
            [("assistant", "(reasoning) hm"), ("assistant", "\u2192 f({})"), ("assistant", "B")],
        ),
        (
            (
                b'event: response.created\ndata: {"type": "response.created", "response": {}}\n\n'
                b'data: {"type": "response.output_text.delta", "output_index": 0, "delta": "a"}\n\n'
                b'data: {"type": "response.output_text.delta", "output_index": 0, "delta": "b"}\n\n'
            ),
            [("assistant", "ab")],
        ),
        (
            b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\ndata: {"choices": []}\n\ndata: [DONE]\n\n',
            [("assistant", "a")],
        ),
        (
            b'event: content_block_delta\ndata: {"type": "content_block_delta", "delta": {"text": "c"}}\n\ndata: {"cut',
            [("assistant", "c")],
        ),
        (b"\xff\xfe no JSON", []),
        (b"[1, 2]", []),
        (b'{"messages": [7]}', []),
    ],
)
def test_a_body_of_either_wire_is_read_and_any_other_is_shown_as_it_is(
    body: bytes, turns: list[tuple[str, str]]
) -> None:
    found = transcripts.read(body, len(body))
    assert [(turn.role, turn.text) for turn in found.turns] == turns
    assert found.raw == body.decode(errors="replace")
