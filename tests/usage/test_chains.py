"""A call is held at the dearest step of its chain, charged by the one that serves it, and what each try cost is owed to its provider."""

import uuid
from collections import Counter
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiplatform.gateway import catalogue
from aiplatform.gateway.catalogue import Place, Way
from aiplatform.gateway.chain import Priced, Route
from aiplatform.lib import postgres
from aiplatform.providers.base import Usage
from tests.usage.book import Book
from usage import audit, ledger, pricebook
from usage.ledger import Ending, Retry, Step
from usage.pricing import Bound, Rates

PRICES = (("0.15", "0.60"), ("3", "15"), ("15", "0.01"), ("0.01", "75"), ("0", "0"))


class Failure(NamedTuple):
    """How a try ended that is followed by another: at the same step or the next, and what it cost us and the tenant."""

    moves_on: bool
    cost: int
    charge: int


@pytest.fixture(scope="module")
def steps(django_db_setup: None, django_db_blocker: Any) -> list[Rates]:
    """The same model at five providers, each dearest in its own way."""
    model = f"chain-{uuid.uuid4().hex}"
    with django_db_blocker.unblock():
        for at, (usd_in, usd_out) in enumerate(PRICES):
            parts = pricebook.per_million({"input": Decimal(usd_in), "output": Decimal(usd_out)})
            pricebook.set_price(provider=f"chain-{at}", model=model, parts=parts)
        found = postgres.run("SELECT id FROM usage_price WHERE model = %s ORDER BY provider", [model])
        book = catalogue.load()
        return [book.by_id[row.id] for row in found]


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


def route(chain: list[Rates], bound: Bound) -> Route:
    places = [Place(one.provider, "openai", "http://localhost", frozenset()) for one in chain]
    ways = [Way(place, one.model, one) for place, one in zip(places, chain, strict=True)]
    return Route(tuple(Priced(way, *way.rates.bound(bound)) for way in ways), ())


chains = st.lists(st.integers(0, len(PRICES) - 1), min_size=1, max_size=5, unique=True)
failures = st.lists(st.builds(Failure, st.booleans(), st.integers(0, 10**6), st.integers(0, 10**5)), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chain=chains, failed=failures, bound=st.integers(1, 5000), wanted=st.integers(1, 4000), cap=st.none() | st.integers(1, 10**8),
    input_share=st.just(1.0) | st.floats(0, 1), output_share=st.just(1.0) | st.floats(0, 1), ending=st.sampled_from(["settled", "settled", "void", "unknown"]),
)  # fmt: skip
def test_whatever_fails_and_whoever_serves_a_charge_is_within_the_hold_and_every_cost_is_booked_where_it_arose(
    committed_db: None, steps: list[Rates], chain: list[int], failed: list[Failure], bound: int, wanted: int, cap: int | None,
    input_share: float, output_share: float, ending: str,
) -> None:  # fmt: skip
    book, ways = Book(), [steps[at] for at in chain]
    floor = min(16, wanted)
    base, output = route(ways, Bound(bound)).dearest(wanted, floor)
    if cap is not None:
        book.cap(cap, period="lifetime")
    ask = book.ask(
        base, pico=output, tokens=wanted, floor=floor, price_id=ways[0].price_id, provider=ways[0].provider,
        model=ways[0].model,
    )  # fmt: skip
    (row,) = book.hold(ask)
    if row.verdict != "held":
        assert cap is not None
        return
    assert book.claim(ask.call_id) == [ask.call_id]
    owed: Counter[str] = Counter()
    at, charges = 0, 0
    for number, failure in enumerate(failed, 1):
        owed[ways[at].provider] += failure.cost
        charges += failure.charge
        step = None
        if failure.moves_on and at + 1 < len(ways):
            at += 1
            step = Step(ways[at].provider, "openai", ways[at].model, ways[at].price_id, None)
        ended = Retry(
            ask.call_id, 0, "refused", "", 529, cost_nano=failure.cost, charge_nano=failure.charge, step=step, n=number
        )
        assert ledger.retry([ended], worker=book.worker) == {ask.call_id}
        assert ledger.retry([ended], worker=book.worker) == {ask.call_id}  # a COMMIT answered to nobody
    usage = Usage(input=int(bound * input_share), output=int(row.max_tokens * output_share))
    cost = ways[at].cost(usage)
    settled = ending == "settled"
    if settled:
        owed[ways[at].provider] += cost.provider_cost_nano
        done = Ending(ask.call_id, "settled", 200, evidence="provider", cost_nano=cost.charge_nano, list_nano=cost.list_nano,
                      provider_cost_nano=cost.provider_cost_nano, usage=usage, attempt_outcome="answered")  # fmt: skip
    else:
        done = Ending(ask.call_id, ending, 502, attempt_outcome="refused" if ending == "void" else "unknown")
    assert set(book.settle(done)) == {ask.call_id}
    if ending == "unknown":
        ledger.settle(None, [Ending(ask.call_id, "void", 502, exposure_nano=row.held_nano)], from_states=["unknown"])

    call = book.call(ask.call_id)
    assert (call.price_id, call.provider) == (ways[at].price_id, ways[at].provider)
    assert cost.charge_nano <= row.held_nano
    assert call.charged_nano == (min(cost.charge_nano + charges, row.held_nano) if settled else 0)
    booked: Counter[str] = Counter()
    for entry in postgres.run(
        "SELECT credit, amount_nano FROM usage_ledgerentry WHERE ref = %s AND kind = 'provider_cost'", [ask.call_id]
    ):
        booked[entry.credit.removeprefix("payable:")] += entry.amount_nano
    assert +booked == +owed
    tried = postgres.run(
        "SELECT provider, cost_nano, outcome FROM usage_attempt WHERE call_id = %s ORDER BY n", [ask.call_id]
    )
    assert len(tried) == len(failed) + 1 == call.tries
    assert [one.cost_nano for one in tried[:-1]] == [failure.cost for failure in failed]
    found = audit.verify(tenant_id=book.tenant.pk, with_seals=False)
    assert found.drift == []


@given(chain=chains, bound=st.integers(1, 5000), wanted=st.integers(1, 4000), data=st.data())
def test_what_is_held_covers_every_step_at_every_output_limit_that_may_be_granted(
    steps: list[Rates], chain: list[int], bound: int, wanted: int, data: st.DataObject
) -> None:
    found, floor = route([steps[at] for at in chain], Bound(bound)), min(16, wanted)
    base, output = found.dearest(wanted, floor)
    granted = data.draw(st.sampled_from([floor, wanted]) | st.integers(floor, wanted))
    for step in found.steps:
        assert base - (-output * granted // 1000) >= step.base_nano - (-step.output_pico * granted // 1000)
    if len(chain) == 1:
        assert (base, output) == (found.steps[0].base_nano, found.steps[0].output_pico)


def test_a_retry_of_another_workers_call_or_of_an_ended_one_does_not_go_on(book: Book) -> None:
    call = book.held(100)
    book.claim(call)
    assert ledger.retry([Retry(call, 0, "refused", "", 429, n=1)], worker=uuid.uuid4()) == set()
    book.settle(Ending(call, "unknown", 502, attempt_outcome="unknown"))
    assert ledger.retry([Retry(call, 0, "refused", "", 429, n=1)], worker=book.worker) == set()
    assert len(postgres.run("SELECT 1 FROM usage_attempt WHERE call_id = %s", [call])) == 1


def test_a_cost_booked_to_the_wrong_provider_is_drift(book: Book, steps: list[Rates]) -> None:
    ask = book.ask(10_000, price_id=steps[0].price_id, provider=steps[0].provider)
    book.hold(ask)
    book.claim(ask.call_id)
    step = Step(steps[1].provider, "openai", steps[1].model, steps[1].price_id, None)
    ledger.retry([Retry(ask.call_id, 0, "broken", "", 200, cost_nano=40, step=step, n=1)], worker=book.worker)
    book.settle(Ending(ask.call_id, "void", 502, attempt_outcome="refused"))
    assert audit.verify(tenant_id=book.tenant.pk, with_seals=False).drift == []
    postgres.run("UPDATE usage_attempt SET provider = 'somebody' WHERE call_id = %s AND n = 1", [ask.call_id])
    assert audit.verify(tenant_id=book.tenant.pk, with_seals=False).drift
    postgres.run(
        "UPDATE usage_attempt SET provider = %s WHERE call_id = %s AND n = 1", [steps[0].provider, ask.call_id]
    )
