"""The price book in the database: versions that cannot overlap nor change, drafts and who decides about them, tariffs, fixes."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiplatform.gateway import catalogue
from aiplatform.lib import postgres
from aiplatform.providers.base import Usage
from tests.usage.book import Book
from usage import audit, ledger, plans, price_drafts, price_sources, pricebook, receipt_text, receipts
from usage.ledger import Ending
from usage.models import Plan, Price, PriceComponent, PriceDraft, PriceFix
from usage.price_sources import Source
from usage.pricing import FEE_METERS, STANDARD, VARIANTS, Bound, Part, Rates

MILLION = 1_000_000


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


@pytest.fixture
def model(committed_db: None) -> str:
    return f"m-{uuid.uuid4().hex}"


def flat(usd_in: str, usd_out: str, **more: str) -> list[Part]:
    return pricebook.per_million(
        {"input": Decimal(usd_in), "output": Decimal(usd_out), **{k: Decimal(v) for k, v in more.items()}}
    )


def priced(model: str, parts: list[Part], **more: Any) -> Price:
    price, _ = pricebook.set_price(provider="openai", model=model, parts=parts, **more)
    return price


def manage(*words: str) -> Any:
    out = StringIO()
    call_command(*words, "--json", stdout=out)
    return json.loads(out.getvalue().splitlines()[-1])


# --- versions ---------------------------------------------------------------------------------------------------------
def test_a_price_is_succeeded_and_never_edited(model: str) -> None:
    first, second = priced(model, flat("1", "2")), priced(model, flat("1", "3"))
    first.refresh_from_db()
    assert first.valid_to == second.valid_from
    for statement in (
        "UPDATE usage_price SET source = 'x' WHERE id = %s",
        "UPDATE usage_price SET valid_from = valid_from - interval '1 day' WHERE id = %s",
        "UPDATE usage_price SET valid_to = NULL WHERE id = %s",
        "UPDATE usage_price SET valid_to = now() + interval '1 day' WHERE id = %s",
        "UPDATE usage_price SET valid_to = now() - interval '1 day' WHERE id = %s",
        "UPDATE usage_pricecomponent SET usd = 0 WHERE price_id = %s",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation):
            postgres.run(statement, [first.pk])


def test_overlapping_ranges_are_impossible_in_the_database(book: Book, model: str) -> None:
    price = priced(model, flat("1", "2"))
    with pytest.raises(psycopg.errors.ExclusionViolation):
        postgres.run(
            "INSERT INTO usage_price (provider, model, valid_from, source, created_at) VALUES ('openai', %s, now(), 'x', now())",
            [price.model],
        )
    plan = Plan.objects.create(name=model)
    plans.assign_plan(tenant=book.tenant, plan=plan)
    plans.set_tariff(tenant=book.tenant, markup_bps=5)
    for statement in (
        """INSERT INTO usage_planassignment (tenant_id, plan_id, valid_from) SELECT tenant_id, plan_id, now()
           FROM usage_planassignment WHERE tenant_id = %s""",
        """INSERT INTO usage_tariff (tenant_id, provider, model, components, valid_from, created_at)
           SELECT tenant_id, '', '', '[]', now(), now() FROM usage_tariff WHERE tenant_id = %s""",
    ):
        with pytest.raises(psycopg.errors.ExclusionViolation):
            postgres.run(statement, [book.tenant.pk])


def test_one_figure_for_each_meter_variant_and_tier(model: str) -> None:
    price = priced(model, flat("1", "2"))
    row = {"price": price, "variant": "standard", "meter": "input", "usd": 1, "per": MILLION}
    PriceComponent.objects.create(**row, tier_from=1000)
    for changes, violation in (
        ({"tier_from": 1000}, psycopg.errors.UniqueViolation),
        ({"tier_from": 2, "usd": -1}, psycopg.errors.CheckViolation),
        ({"tier_from": 2, "per": 3}, psycopg.errors.CheckViolation),
    ):
        values = {**row, "price": price.pk, **changes}
        with pytest.raises(violation):
            postgres.run(
                "INSERT INTO usage_pricecomponent (price_id, variant, meter, usd, per, tier_from) VALUES (%s, %s, %s, %s, %s, %s)",
                list(values.values()),
            )


def test_a_price_that_calls_were_held_by_stays(book: Book, model: str) -> None:
    unused, used = priced(model, flat("1", "2")), priced(f"{model}-used", flat("1", "2"))
    book.held(price_id=used.pk)
    for table in ("usage_pricecomponent WHERE price_id", "usage_price WHERE id"):
        postgres.run(f"DELETE FROM {table} = %s", [unused.pk])  # noqa: S608 - one of two
        with pytest.raises((psycopg.errors.RestrictViolation, psycopg.errors.ForeignKeyViolation)):
            postgres.run(f"DELETE FROM {table} = %s", [used.pk])  # noqa: S608 - one of two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "A price needs a figure"),
        (["--input", "1", "--output", "2", "--component", "inputs=3"], "Unknown: inputs"),
        (["--input", "1", "--output", "2", "--component", "input/ultra=3"], "Unknown variant: ultra"),
        (["--input", "1", "--output", "2", "--component", "input/batch=3"], "for batch, too; output"),
        (["--input", "1", "--output", "2", "--component", "input=3"], "given 2 times"),
        (["--input", "1", "--output", "2", "--component", "input_audio@5=3"], "but none below"),
        (["--input", "1", "--output", "2", "--component", "input"], "is no component"),
        (["--input", "-1", "--output", "2"], "is no price"),
    ],
)
def test_a_price_that_cannot_be_is_refused_with_its_reason(model: str, words: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call_command("price_set", "openai", model, *words, stdout=StringIO())
    assert not Price.objects.filter(model=model).exists()


def test_price_set_takes_tiers_variants_and_fees(model: str) -> None:
    words = ["input@200000=4", "output@200000=9", "input/batch=1", "output/batch=3", "web_search=10/1k"]
    result = manage("price_set", "openai", model, "--input", "2", "--output", "6",
                    *(each for word in words for each in ("--component", word)))  # fmt: skip
    rates = catalogue.load().by_id[result["price"]]
    assert rates.cost(Usage(input=200_000)).list_nano == 400_000_000
    assert rates.cost(Usage(input=200_001, output=1)).list_nano == 200_001 * 4000 + 9000
    assert (
        rates.cost(Usage(input=1, output=1, meters={"web_search": 2}, variant="batch")).list_nano == 4000 + 20_000_000
    )
    assert manage("price_set", "openai", model, "--input", "2", "--output", "6",
                                     *(each for word in words for each in ("--component", word)))["created"] is False  # fmt: skip


# --- drafts -----------------------------------------------------------------------------------------------------------
def source(name: str, model: str, parts: list[Part]) -> Source:
    return Source(name, "1", {("openai", model): parts}, {})


def imported(monkeypatch: pytest.MonkeyPatch, model: str, first: list[Part], second: list[Part]) -> str:
    """Which list of the import the model is in."""
    monkeypatch.setattr(price_sources, "genai_prices", lambda _: source("genai-prices", model, first))
    done = price_drafts.import_prices(second=source("other", model, second))
    return next(name for name in ("approved", "waiting", "unchanged") if f"openai/{model}" in getattr(done, name))


def test_two_sources_that_agree_put_a_price_in_force(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    parts = [
        *flat("1", "2"),
        Part("batch", "input", 0, Decimal("0.5"), MILLION),
        Part("batch", "output", 0, Decimal(1), MILLION),
    ]
    assert imported(monkeypatch, model, parts, flat("1.0", "2.00", cache_read="0.1")) == "approved"
    draft = PriceDraft.objects.get(model=model)
    assert (draft.decision, draft.decided_by) == ("accepted", "two sources: genai-prices 1, other 1")
    assert pricebook.same(pricebook.parts_of(Price.objects.get(model=model)), parts)
    assert imported(monkeypatch, model, parts, flat("1", "2")) == "unchanged"


@pytest.mark.parametrize(
    "second",
    [
        flat("1", "2.1"),
        flat("1", "2", cache_read="0.3"),
        [*flat("1", "2"), Part(STANDARD, "input", 1000, Decimal(3), MILLION)],
        flat("1", "2")[:1],
        [],
    ],
    ids=["another figure", "another cache", "tiers", "no output", "unknown"],
)
def test_all_else_waits_for_a_person(monkeypatch: pytest.MonkeyPatch, model: str, second: list[Part]) -> None:
    assert imported(monkeypatch, model, flat("1", "2", cache_read="0.2"), second) == "waiting"
    assert not Price.objects.filter(model=model).exists()
    (draft,) = [one for one in manage("prices_review")["drafts"] if one["model"] == model]
    assert [one["draft"] for one in draft["changes"]] == ["0.2", "1", "2"]
    manage("price_approve", str(draft["draft"]), "--by", "ada@acme.example")
    assert Price.objects.get(model=model).source == "genai-prices 1"
    with pytest.raises(CommandError, match="no open draft"):
        manage("price_approve", str(draft["draft"]), "--by", "ada@acme.example")


def test_a_price_set_by_hand_is_only_changed_by_hand(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    mine = priced(model, flat("7", "8"))
    assert imported(monkeypatch, model, flat("1", "2"), flat("1", "2")) == "waiting"
    draft = PriceDraft.objects.get(model=model)
    assert (draft.reason, pricebook.current("openai", model)) == ("its price is set by hand", mine)
    manage("price_reject", str(draft.pk), "--by", "ada@acme.example", "--reason", "ours is agreed")
    assert imported(monkeypatch, model, flat("1", "2"), flat("1", "2")) == "waiting"
    assert PriceDraft.objects.filter(model=model, decision="").count() == 0
    assert imported(monkeypatch, model, flat("1", "3"), flat("1", "3")) == "waiting"
    assert PriceDraft.objects.filter(model=model, decision="").count() == 1


def test_newer_figures_supersede_a_draft_that_nobody_decided_about(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    imported(monkeypatch, model, flat("1", "2"), [])
    imported(monkeypatch, model, flat("1", "2"), [])
    imported(monkeypatch, model, flat("1", "3"), [])
    assert sorted(PriceDraft.objects.filter(model=model).values_list("decision", flat=True)) == ["", "superseded"]


# --- tariffs ----------------------------------------------------------------------------------------------------------
def contract(book: Book, model: str) -> Rates:
    found = catalogue.load()
    (price,) = [one for one in found.prices["openai", model] if one.covers(datetime.now(UTC))]
    tariff = found.tariffs.tariff(book.tenant.pk, "openai", model, datetime.now(UTC))
    return found._under(price, tariff) if tariff else price


ONE_OF_EACH = Usage(input=MILLION, output=MILLION)


def charge(book: Book, model: str) -> Decimal:
    return Decimal(contract(book, model).cost(ONE_OF_EACH).charge_nano).scaleb(-9)


def test_fixed_goes_before_the_tenants_markup_that_before_the_plans_and_that_before_the_list(
    book: Book, model: str
) -> None:
    priced(model, flat("1", "10"))
    assert charge(book, model) == 11
    assert contract(book, model).tariff_id is None
    plan, _ = plans.set_plan(name=model, markup_bps=1000)
    assert charge(book, model) == 11
    plans.assign_plan(tenant=book.tenant, plan=plan)
    assert charge(book, model) == Decimal("12.1")
    plans.set_tariff(plan=plan, provider="openai", model=model, parts=flat("2", "1")[:1])
    assert charge(book, model) == 2 + 11
    plans.set_tariff(tenant=book.tenant, markup_bps=-5000)
    assert charge(book, model) == Decimal("5.5")
    plans.set_tariff(tenant=book.tenant, provider="openai", markup_bps=0)
    assert charge(book, model) == 11
    plans.set_tariff(tenant=book.tenant, provider="openai", model=model, markup_bps=2000)
    assert charge(book, model) == Decimal("13.2")
    plans.set_tariff(tenant=book.tenant, provider="openai", model=model, markup_bps=2000, parts=flat("3", "1")[:1])
    assert charge(book, model) == 3 + 12
    cost = contract(book, model).cost(ONE_OF_EACH)
    assert (cost.list_nano, cost.provider_cost_nano) == (11 * 10**9, 11 * 10**9)


def test_a_plan_that_charges_retries_says_so_in_the_frozen_rates(book: Book, model: str) -> None:
    price = priced(model, flat("1", "10"))
    plan, _ = plans.set_plan(name=model, charges_retries=True)
    plans.assign_plan(tenant=book.tenant, plan=plan)
    rates = contract(book, model)
    assert rates.charges_retries
    assert rates.tariff_id is not None
    assert catalogue.load().frozen(price.pk, rates.tariff_id).charges_retries
    plans.assign_plan(tenant=book.tenant, plan=None)
    assert not contract(book, model).charges_retries


def test_the_same_tariff_is_frozen_once_and_never_changes(book: Book, model: str) -> None:
    priced(model, flat("1", "10"))
    plans.set_tariff(tenant=book.tenant, markup_bps=123)
    first = contract(book, model).tariff_id
    other = Book()
    plans.set_tariff(tenant=other.tenant, markup_bps=123)
    assert contract(other, model).tariff_id == first
    for statement in ("UPDATE usage_frozentariff SET markup_bps = 0", "DELETE FROM usage_frozentariff"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            postgres.run(statement)


def settled(book: Book, rates: Rates, usage: Usage, **changes: Any) -> uuid.UUID:
    """A call held and settled as the gateway does it."""
    base, _ = rates.bound(Bound(10 * MILLION, dict.fromkeys(usage.meters, 9), variants=(usage.variant,)))
    call = book.held(base * 100, price_id=rates.price_id, tariff_id=rates.tariff_id, provider="openai", **changes)
    book.claim(call)
    cost = rates.cost(usage)
    book.settle(
        Ending(call, "settled", 200, evidence="provider", attempt_outcome="answered", cost_nano=cost.charge_nano, list_nano=cost.list_nano,
               provider_cost_nano=cost.provider_cost_nano, usage=usage)
    )  # fmt: skip
    return call


def test_a_tariff_that_changes_in_mid_call_does_not_change_its_charge(book: Book, model: str) -> None:
    priced(model, flat("1", "10"))
    plans.set_tariff(tenant=book.tenant, markup_bps=1000)
    held_by = contract(book, model)
    call = book.held(10**12, price_id=held_by.price_id, tariff_id=held_by.tariff_id, provider="openai")
    plans.set_tariff(tenant=book.tenant, markup_bps=9000)
    priced(model, flat("5", "50"))
    (row,) = ledger.claim(book.worker, [call])
    rates = catalogue.load().frozen(row.price_id, row.tariff_id)
    cost = rates.cost(Usage(input=MILLION))
    assert (cost.charge_nano, cost.list_nano) == (1_100_000_000, 1_000_000_000)
    book.settle(Ending(call, "settled", 200, evidence="provider", attempt_outcome="answered", cost_nano=cost.charge_nano, list_nano=cost.list_nano,
                       provider_cost_nano=cost.provider_cost_nano, usage=Usage(input=MILLION)))  # fmt: skip
    receipt = receipts.receipt(call)
    assert (receipt["charged_usd"], receipt["list_usd"]) == ("1.100000000", "1.000000000")
    assert receipt["price"]["tariff"]["markup_percent"] == "+10.00"
    assert receipt["lines"] == [{"item": "input", "tokens": MILLION, "usd_per_million": "1.1", "usd": "1.100000000"}]
    assert "tariff" in receipt_text.text(receipt)
    assert audit.verify(tenant_id=book.tenant.pk).drift == []


@pytest.mark.parametrize(
    "changes",
    [
        {"markup_bps": -10_001}, {"provider": "", "model": "x", "markup_bps": 1}, {}, {"parts": flat("1", "2")},
        {"markup_bps": 1, "valid_from": datetime(2026, 1, 1, tzinfo=UTC)}, {"provider": "openai", "model": "none", "markup_bps": 1},
    ],
)  # fmt: skip
def test_a_tariff_that_cannot_be_is_refused(book: Book, changes: dict[str, Any]) -> None:
    with pytest.raises(plans.TariffRefused):
        plans.set_tariff(tenant=book.tenant, **changes)


def test_a_tariff_may_begin_later_and_the_commands_set_what_they_say(book: Book, model: str) -> None:
    priced(model, flat("1", "10"))
    day = (datetime.now(UTC) + timedelta(days=3)).date().isoformat()
    manage("plan_set", model, "--markup-bps", "500", "--charges-retries")
    manage("plan_assign", book.tenant.name, model)
    assert charge(book, model) == Decimal("11.55")
    manage("tariff_set", "--tenant", book.tenant.name, "--provider", "openai", "--model", model, "--component", "input=9",
           "--from", day)  # fmt: skip
    assert charge(book, model) == Decimal("11.55")
    found = catalogue.load().tariffs.tariff(book.tenant.pk, "openai", model, datetime.now(UTC) + timedelta(days=4))
    assert found is not None
    assert found.markup_bps == 500
    assert found.parts == (Part(STANDARD, "input", 0, Decimal(9), MILLION),)
    manage("plan_assign", book.tenant.name, "none")
    assert charge(book, model) == 11


# --- the second rating ------------------------------------------------------------------------------------------------
usd = st.decimals(min_value=0, max_value=600, places=12)


@st.composite
def prices(draw: st.DrawFn) -> list[Part]:
    parts = []
    for variant in [STANDARD, *draw(st.lists(st.sampled_from(VARIANTS[1:]), max_size=2, unique=True))]:
        meters = ["input", "output", *draw(st.lists(st.sampled_from(["cache_read", "cache_write_1h", "input_audio",
                  "cache_audio_read", "output_audio", "web_search"]), unique=True))]  # fmt: skip
        for meter in meters:
            per = draw(st.sampled_from([1000, 1])) if meter in FEE_METERS else MILLION
            parts += [
                Part(variant, meter, tier, draw(usd), per)
                for tier in [0, *draw(st.lists(st.sampled_from([100, 1000]), max_size=2, unique=True))]
            ]
    return parts


used = st.builds(
    Usage, *[st.integers(0, 500)] * 6, st.dictionaries(st.sampled_from(["input_audio", "cache_audio_read", "input_image",
    "output_audio", "output_image", "web_search", "file_search", "odd"]), st.integers(0, 600), max_size=3),
    st.sampled_from(VARIANTS),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20, database=None)
@given(prices(), st.lists(used, min_size=10, max_size=10))
def test_sql_rates_every_call_as_python_does(committed_db: None, parts: list[Part], usages: list[Usage]) -> None:
    price = priced(f"m-{uuid.uuid4().hex}", parts)
    rates = Rates((price.pk, "openai", "m", price.valid_from, None), parts)  # type: ignore[arg-type]
    for usage in usages:
        (row,) = postgres.run(
            "SELECT x AS exact, CASE WHEN x %% 1 = 0.5 THEN 2 * round(x / 2) ELSE round(x) END AS nano FROM usage_rated("
            "%s, %s, %s, %s, %s, %s, %s, %s::jsonb) x",
            [price.pk, usage.variant, usage.input, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.output,
             json.dumps(usage.meters)],
        )  # fmt: skip
        assert int(row.nano) == rates.cost(usage).list_nano
        assert sum((line.nano for line in rates.lines(usage)), Decimal(0)) == row.exact


def misrated(book: Book) -> list[dict[str, Any]]:
    """What `ledger_verify` says about calls' list prices."""
    drift = audit.verify(tenant_id=book.tenant.pk).drift
    return [one for one in drift if one["field"] == "list_nano by tokens and price"]


def test_ledger_verify_finds_a_list_price_that_is_a_nano_dollar_off(book: Book, model: str) -> None:
    price = priced(model, flat("1", "10"))
    rates = catalogue.load().by_id[price.pk]
    call = settled(book, rates, Usage(input=1001, output=7))
    assert audit.verify(tenant_id=book.tenant.pk).drift == []
    postgres.run("UPDATE usage_call SET list_nano = list_nano + 1 WHERE id = %s", [call])
    assert [one["found"] for one in misrated(book)] == ["0.001071001"]
    postgres.run("UPDATE usage_call SET list_nano = list_nano - 1 WHERE id = %s", [call])


# --- late fixes -------------------------------------------------------------------------------------------------------
def fixed(model: str, component: str, *more: str) -> Any:
    now = datetime.now(UTC)
    return manage(
        "price_fix", "openai", model, "--from", (now - timedelta(hours=1)).isoformat(), "--to",
        (now + timedelta(hours=1)).isoformat(), "--component", component, "--reason", "the list was wrong", "--by",
        "ada@acme.example", *more,
    )  # fmt: skip


def test_a_late_fix_gives_back_what_was_too_much_once_with_its_reason(book: Book, model: str) -> None:
    cap = book.cap(10**14)
    price = priced(model, flat("2", "10"))
    plans.set_tariff(tenant=book.tenant, markup_bps=1000)
    call = settled(book, contract(book, model), Usage(input=MILLION, output=MILLION))
    assert book.bucket(cap) == (0, 13_200_000_000)
    assert fixed(model, "input=1", "--dry-run")["charge_delta_usd"] == "-1.100000000"
    assert PriceFix.objects.filter(price=price).count() == 0
    done = fixed(model, "input=1")
    assert (done["corrected_calls"], done["charge_delta_usd"], done["cost_delta_usd"]) == (
        1,
        "-1.100000000",
        "-1.000000000",
    )
    assert book.bucket(cap) == (0, 12_100_000_000)
    again = fixed(model, "input=1")
    assert (again["calls"], again["corrected_calls"], again["charge_delta_usd"]) == (1, 0, "0.000000000")
    record = PriceFix.objects.get(price=price)
    assert (record.decided_by, record.corrected_calls, record.charge_delta_nano) == (
        "ada@acme.example",
        1,
        -1_100_000_000,
    )
    receipt = receipts.receipt(call)
    assert (receipt["charged_usd"], receipt["to_pay_usd"]) == ("13.200000000", "12.100000000")
    assert [(one["usd"], one["reason"]) for one in receipt["corrections"]] == [
        ("-1.100000000", f"price fix {record.pk}: the list was wrong")
    ]
    assert sum(Decimal(line["usd"]) for line in receipt["lines"]) == Decimal("13.2")
    assert "price fix" in receipt_text.text(receipt)
    assert pricebook.same(pricebook.parts_of(price), flat("2", "10"))
    assert audit.verify(tenant_id=book.tenant.pk).drift == []


def test_what_was_too_little_is_the_houses_unless_the_tenant_is_to_pay(book: Book, model: str) -> None:
    priced(model, flat("2", "10"))
    call = settled(book, contract(book, model), Usage(input=MILLION))
    done = fixed(model, "input=3")
    assert (done["charge_delta_usd"], done["cost_delta_usd"], done["house_delta_usd"]) == (
        "0.000000000", "1.000000000", "1.000000000",
    )  # fmt: skip
    assert fixed(model, "input=3")["corrected_calls"] == 0
    assert receipts.receipt(call)["to_pay_usd"] == "2.000000000"
    done = fixed(model, "input=4", "--charge-tenant")
    assert (done["charge_delta_usd"], done["house_delta_usd"]) == ("2.000000000", "-1.000000000")
    assert receipts.receipt(call)["to_pay_usd"] == "4.000000000"
    assert fixed(model, "input=4", "--charge-tenant")["corrected_calls"] == 0
    assert audit.verify(tenant_id=book.tenant.pk).drift == []


def test_a_second_fix_of_another_figure_keeps_the_first(book: Book, model: str) -> None:
    priced(model, flat("2", "10"))
    call = settled(book, contract(book, model), Usage(input=MILLION, output=MILLION))
    fixed(model, "input=1")
    fixed(model, "output=9")
    assert receipts.receipt(call)["to_pay_usd"] == "10.000000000"
