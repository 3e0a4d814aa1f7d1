"""Counting tokens costs nothing; models are shown one by one; beta headers and queries go along."""

from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.records import settled
from tests.system import Customer, System

HELLO: Any = [{"role": "user", "content": "hello there"}]


def test_tokens_are_counted_for_nothing_whatever_is_in_the_message(system: System) -> None:
    customer = system.tenant()
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "0")
    raw = system.anthropic(customer.key).messages.with_raw_response.count_tokens(
        model="fake-1",
        messages=[
            *HELLO,
            {
                "role": "user",
                "content": [{"type": "document", "source": {"type": "url", "url": "https://x.test/a.pdf"}}],
            },
        ],
    )
    assert raw.parse().input_tokens == 3
    call = settled(system, raw.headers)
    assert (call["held_nano"], call["charged_nano"], call["endpoint"]) == (0, 0, "count_tokens")


def test_a_model_that_nobody_serves_is_not_counted(system: System, customer: Customer) -> None:
    with pytest.raises(anthropic.NotFoundError):
        system.anthropic(customer.key).messages.count_tokens(model="nobody-1", messages=HELLO)


def test_beta_headers_and_the_query_go_along(system: System, customer: Customer) -> None:
    system.anthropic(customer.key).beta.messages.count_tokens(
        model="fake-1", messages=HELLO, betas=["next-thing"], extra_query={"beta": "true"}
    )
    call = system.far_end.calls()[-1]
    assert call["path"] == "/v1/messages/count_tokens?beta=true"
    assert "next-thing" in call["beta"]


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21"])
@pytest.mark.parametrize("name", ["x-api-key", "authorization"])
def test_both_versions_and_both_ways_to_send_a_key_are_taken(
    system: System, customer: Customer, version: str, name: str
) -> None:
    key = customer.key if name == "x-api-key" else f"Bearer {customer.key}"
    with system.http("", **{name: key, "anthropic-version": version}) as http:
        reply = http.post("/v1/messages/count_tokens", json={"model": "fake-1", "messages": HELLO})
    assert reply.json() == {"input_tokens": 3}


def test_a_single_model_is_shown_in_the_shape_of_each_sdk(system: System, customer: Customer) -> None:
    assert system.openai(customer.key).models.retrieve("fake-1").owned_by == "fake"
    assert system.anthropic(customer.key).models.retrieve("fake-1").type == "model"
    with pytest.raises(openai.NotFoundError) as refused:
        system.openai(customer.key).models.retrieve("nobody/1")
    assert refused.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError):
        system.anthropic(customer.key).models.retrieve("nobody-1")
    every = system.anthropic(customer.key).models.list()
    assert [one.id for one in system.anthropic(customer.key).models.list(limit=1)] == [one.id for one in every]
    assert len(system.anthropic(customer.key).models.list(limit=1).data) == 1
