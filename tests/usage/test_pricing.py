"""Rating is exact, and no usage within a call's bounds ever costs more than its hold."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.providers.base import Usage
from usage.pricing import Bound, NotBounded, Rates, rates

NOW = datetime(2026, 11, 24, tzinfo=UTC)
# USD per million, as providers state them: up to four decimals.
usd = st.decimals(min_value=0, max_value=600, places=4)


def priced(**usd_per_million: Decimal | str) -> Rates:
    (one,) = rates(
        (1, "p", "m", NOW, None, "standard", meter, 0, Decimal(price), 1_000_000)
        for meter, price in usd_per_million.items()
    )
    return one


def test_a_call_costs_the_exact_sum_quantised_once_half_to_even() -> None:
    rate = priced(input="0.0125", output="0.0005")  # 12.5 and 0.5 nano a token
    assert rate.cost(Usage(input=1)).charge_nano == 12
    assert rate.cost(Usage(input=3)).charge_nano == 38
    assert rate.cost(Usage(input=1, output=1)).charge_nano == 13


def test_cache_classes_without_a_price_cost_what_input_costs() -> None:
    rate = priced(input="1", output="2", cache_read="0.1")
    usage = Usage(input=1, cache_read=10, cache_write_5m=100, cache_write_1h=1000, output=1)
    assert rate.cost(usage).charge_nano == 1000 + 1000 + 100_000 + 1_000_000 + 2000


def test_reasoning_is_a_part_of_output_and_not_paid_twice() -> None:
    rate = priced(input="1", output="2")
    assert rate.cost(Usage(output=10, reasoning=7)).charge_nano == rate.cost(Usage(output=10)).charge_nano


def test_a_price_with_no_standard_figure_is_no_price() -> None:
    assert rates([(1, "p", "m", NOW, None, "batch", "input", 0, Decimal(1), 1_000_000)]) == []


def test_a_price_of_input_alone_serves_what_has_no_output_and_nothing_else() -> None:
    (rate,) = rates([(1, "p", "m", NOW, None, "standard", "input", 0, Decimal(1), 1_000_000)])
    assert rate.bound(Bound(10, output_meters=())) == (10_000, 0)
    with pytest.raises(NotBounded):
        rate.bound(Bound(10))


@given(
    st.fixed_dictionaries(
        {"input": usd, "output": usd},
        optional=dict.fromkeys(("cache_read", "cache_write_5m", "cache_write_1h"), usd),
    ),
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
    st.integers(1, 10**6),
    st.integers(1, 128),
    st.data(),
)
def test_no_usage_within_its_bounds_costs_more_than_its_hold(
    prices: dict[str, Decimal], inputs: list[int], max_tokens: int, choices: int, data: st.DataObject
) -> None:
    rate = priced(**prices)
    output = data.draw(st.integers(0, max_tokens * choices))
    base, pico = rate.bound(Bound(sum(inputs), choices=choices))
    hold = base + -(-pico * max_tokens // 1000)
    assert rate.cost(Usage(inputs[0], inputs[1], inputs[2], inputs[3], output)).charge_nano <= hold
