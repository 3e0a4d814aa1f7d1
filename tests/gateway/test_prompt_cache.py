"""A long stable beginning is marked for the provider's cache once it comes back, where the price says that this is cheaper."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.gateway import prompt_cache
from aiplatform.gateway.prompt_cache import Beginning, Sighting
from aiplatform.lib import redis
from aiplatform.providers.base import Usage
from tests.system import System
from usage.pricing import Rates, rates

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LONG = "stable words " * 500  # about 1,600 tokens
TOOL = {"name": "look", "description": LONG, "input_schema": {"type": "object"}}


def priced(**usd_per_million: str) -> Rates:
    (one,) = rates(
        (1, "p", "m", NOW, None, "standard", meter, 0, Decimal(price), 1_000_000)
        for meter, price in usd_per_million.items()
    )
    return one


def asked(**fields: Any) -> dict[str, Any]:
    return {
        "model": "claude-sonnet-4-5",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "Hello"}],
        **fields,
    }


ANTHROPIC = priced(input="3", output="15", cache_read="0.3", cache_write_5m="3.75")


@pytest.fixture
def forgetful() -> Iterator[None]:
    redis.client().flushdb()
    yield
    redis.forget_client()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asked(system=LONG), "system"),
        (asked(system=[{"type": "text", "text": LONG}]), "system"),
        (asked(system="short", tools=[TOOL]), "system"),  # a marker there covers the tools, which come before it
        (asked(tools=[TOOL]), "tools"),
    ],
)
def test_the_last_stable_block_carries_the_only_marker(request_: dict[str, Any], field: str) -> None:
    found = prompt_cache.beginning(request_)
    assert found is not None
    changed = prompt_cache.marked(request_, found)
    assert list(changed) == [field]
    assert changed[field][-1]["cache_control"] == {"type": "ephemeral"}
    assert str(changed).count("cache_control") == 1
    assert "cache_control" not in str(request_)


@pytest.mark.parametrize(
    "request_",
    [
        asked(),
        asked(system="short"),
        asked(system=[]),
        asked(system=LONG, cache_control={"type": "ephemeral"}),
        asked(system=[{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]),
        asked(system=LONG, tools=[TOOL | {"cache_control": {"type": "ephemeral", "ttl": "1h"}}]),
        asked(
            system=LONG,
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
            ],
        ),
        asked(model="claude-haiku-4-5", system=LONG),  # caches nothing below 4,096 tokens
        asked(system=[{"type": "text", "text": LONG}, "no block"]),
    ],
)
def test_what_is_short_or_marked_by_its_caller_is_left_alone(request_: dict[str, Any]) -> None:
    assert prompt_cache.beginning(request_) is None


def test_only_the_stable_part_and_the_model_decide_which_beginning_it_is() -> None:
    one = prompt_cache.beginning(asked(system=LONG))
    assert one == prompt_cache.beginning(asked(system=LONG, max_tokens=99, messages=[]))
    assert one != prompt_cache.beginning(asked(system=LONG + "."))
    assert one != prompt_cache.beginning(asked(system=LONG, model="claude-sonnet-4-6x"))
    assert one != prompt_cache.beginning(asked(system=LONG, tools=[TOOL]))


def test_a_beginning_pays_from_the_share_of_reads_at_which_both_ways_cost_the_same() -> None:
    share = prompt_cache.break_even(ANTHROPIC, 2000)
    assert share == pytest.approx(0.25 / 1.15)
    # A cache without a price of its own saves nothing.
    assert prompt_cache.break_even(priced(input="3", output="15"), 2000) is None
    assert prompt_cache.break_even(priced(input="3", output="1", cache_read="1"), 2000) == 0


@given(st.integers(2, 400), st.data())
def test_marking_above_the_break_even_is_cheaper_and_below_it_dearer(calls: int, data: st.DataObject) -> None:
    again = data.draw(st.integers(0, calls - 1))
    share = prompt_cache.break_even(ANTHROPIC, 2000)
    assert share is not None
    written, read = Usage(cache_write_5m=2000, output=1), Usage(cache_read=2000, output=1)
    with_cache = again * ANTHROPIC.cost(read).charge_nano + (calls - again) * ANTHROPIC.cost(written).charge_nano
    without = calls * ANTHROPIC.cost(Usage(input=2000, output=1)).charge_nano
    assert (Sighting(calls, again).reuse > share) == (with_cache < without)


def test_the_saving_is_what_the_same_tokens_would_have_cost_uncached() -> None:
    assert ANTHROPIC.cache_saving(Usage(input=10, cache_read=1000, output=5)) == 1000 * 2700
    assert ANTHROPIC.cache_saving(Usage(cache_write_5m=1000)) == -1000 * 750
    assert ANTHROPIC.cache_saving(Usage(input=1000, output=5)) == 0


def test_a_beginning_is_counted_for_each_environment_by_itself(forgetful: None) -> None:
    one, other, found = uuid.uuid4(), uuid.uuid4(), Beginning(b"x" * 16, "system", 2000)
    assert prompt_cache.look([(one, found)]) == [Sighting(1, 0)]
    assert prompt_cache.look([(one, found), (one, found), (other, found)]) == [
        Sighting(2, 1),
        Sighting(3, 2),
        Sighting(1, 0),
    ]


def test_what_comes_back_after_the_cache_has_forgotten_it_does_not_count_as_again(forgetful: None) -> None:
    environment, found = uuid.uuid4(), Beginning(b"x" * 16, "system", 2000)
    prompt_cache.look([(environment, found)])
    key = f"prefix:{environment}:{found.digest.hex()}"
    before = int(redis.client().time()[0]) - prompt_cache.LIFETIME_SECONDS - 1
    redis.client().hset(key, "last", before)
    assert prompt_cache.look([(environment, found)]) == [Sighting(2, 0)]
    assert 0 < redis.client().ttl(key) <= prompt_cache.REMEMBERED_SECONDS


def test_a_beginning_that_comes_back_is_marked_and_told_and_nothing_else_of_the_body_changes(forgetful: None) -> None:
    environment, marker = uuid.uuid4(), prompt_cache.Marker()
    source = json.dumps(asked(system=LONG, odd={"b": 1, "a": 1.50})).encode()

    async def thrice() -> list[tuple[bytes, str]]:
        return [await marker.mark(environment, source, ANTHROPIC) for _ in range(3)]

    first, second, third = asyncio.run(thrice())
    assert first[0] == source
    assert first[1].startswith("not-marked; ")
    assert second[1].startswith("marked; ")
    assert "seen=3; reuse=0.667; break-even=0.217" in third[1]
    changed = json.loads(second[0])
    assert changed["system"] == [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    assert b'"odd": {"b": 1, "a": 1.5}' in second[0]
    assert changed | {"system": LONG} == json.loads(source)


def test_where_caching_saves_nothing_a_beginning_is_never_marked(forgetful: None) -> None:
    environment, marker = uuid.uuid4(), prompt_cache.Marker()
    source = json.dumps(asked(system=LONG)).encode()

    async def often() -> set[tuple[bytes, str]]:
        return {await marker.mark(environment, source, priced(input="3", output="15")) for _ in range(5)}

    told = asyncio.run(often())
    assert {body for body, _ in told} == {source}
    assert all("break-even=never" in said for _, said in told)


def test_an_environment_that_wants_it_has_its_beginnings_marked_and_sees_what_that_saved(system: System) -> None:
    customer = system.tenant()
    system.manage("environment_set", "--tenant", customer.name, "--environment", "prod", "--prompt-cache", "auto")
    usage = {"input_tokens": 8, "output_tokens": 8, "cache_read_input_tokens": 1600, "cache_creation_input_tokens": 0}
    words = f"{uuid.uuid4()} " + LONG
    system.far_end.script(match=words[:36], usage=usage)
    client = system.anthropic(customer.key)
    replies = [
        client.messages.with_raw_response.create(
            model="fake-1", max_tokens=16, system=words, messages=[{"role": "user", "content": "Hello"}]
        )
        for _ in range(2)
    ]
    assert [reply.headers["x-prompt-cache"].split(";")[0] for reply in replies] == ["not-marked", "marked"]
    first, second = system.far_end.calls()[-2:]
    assert second["bytes_in"] > first["bytes_in"]
    with system.http(customer.key) as http:
        receipt = http.get(f"/api/calls/{replies[1].headers['x-call-id']}").json()
    assert receipt["prompt_cache"] == replies[1].headers["x-prompt-cache"]
    assert receipt["cache_saving_usd"].strip("-0.") != ""
