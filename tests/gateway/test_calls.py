"""Both official SDKs, unchanged, against the whole system."""

import re
import uuid
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.system import Customer, System
from tests.waiting import wait_for

HELLO: Any = [{"role": "user", "content": "hello"}]
# What the far end counts, at 0.15 and 0.60 USD per million: see its token rule.
NANO_IN, NANO_OUT = 150, 600


def the_call(system: System, name: str) -> dict[str, Any]:
    (row,) = system.rows("SELECT * FROM usage_call WHERE id = %s", uuid.UUID(name.removeprefix("call_")))
    return row


def test_a_plain_openai_call_is_answered_and_charged_to_the_nano_dollar(system: System, customer: Customer) -> None:
    raw = system.openai(customer.key).chat.completions.with_raw_response.create(model="fake-1", messages=HELLO)
    usage = raw.parse().usage
    assert usage
    call = the_call(system, raw.headers["x-call-id"])
    charge = usage.prompt_tokens * NANO_IN + usage.completion_tokens * NANO_OUT
    assert (call["state"], call["charged_nano"], call["evidence"]) == ("settled", charge, "provider")
    assert Decimal(raw.headers["x-cost-usd"]) * 10**9 == charge
    assert call["held_nano"] >= charge
    entries = system.rows(
        "SELECT kind, debit, amount_nano FROM usage_ledgerentry WHERE ref = %s ORDER BY kind", call["id"]
    )
    assert [(one["kind"], one["amount_nano"]) for one in entries] == [("charge", charge), ("provider_cost", charge)]


def test_a_streamed_openai_call_is_charged_though_the_client_never_asked_for_usage(
    system: System, customer: Customer
) -> None:
    client = system.openai(customer.key)
    with client.chat.completions.with_streaming_response.create(model="fake-1", messages=HELLO, stream=True) as raw:
        text = "".join(raw.iter_text())
    assert "usage" not in text.replace(": cost_usd", "")
    assert text.rstrip().splitlines()[-1].startswith(": cost_usd=")
    assert text.count("data: [DONE]") == 1
    call = the_call(system, raw.headers["x-call-id"])
    assert (call["state"], call["evidence"]) == ("settled", "provider")
    assert call["charged_nano"] == call["input_tokens"] * NANO_IN + call["output_tokens"] * NANO_OUT > 0


def test_a_client_that_asks_for_usage_gets_it(system: System, customer: Customer) -> None:
    stream = system.openai(customer.key).chat.completions.create(
        model="fake-1", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    usage = list(stream)[-1].usage
    assert usage
    assert usage.completion_tokens == 8


def test_plain_and_streamed_anthropic_calls_are_answered_and_charged(system: System, customer: Customer) -> None:
    client = system.anthropic(customer.key)
    raw = client.messages.with_raw_response.create(model="fake-1", max_tokens=50, messages=HELLO)
    assert the_call(system, raw.headers["x-call-id"])["evidence"] == "provider"
    with client.messages.stream(model="fake-1", max_tokens=50, messages=HELLO) as stream:
        text = stream.get_final_text()
        call = the_call(system, stream.response.headers["x-call-id"])
    assert text
    assert (call["state"], call["evidence"], call["output_tokens"]) == ("settled", "provider", 8)


def test_body_and_reply_pass_byte_for_byte(system: System, customer: Customer) -> None:
    body = b'{"model" : "fake-1",\n "x_unknown": {"b":1.50,"a":[1e2]}, "max_tokens": 9, "messages":[{"role":"user","content":"\\u00e9"}]}'
    before = len(system.far_end.calls())
    reply = system.http(customer.key).post("/v1/chat/completions", content=body)
    direct = httpx2.post(f"{system.far_end.base_url}/v1/chat/completions", content=body, trust_env=False)
    ours, theirs = system.far_end.calls()[before:]
    assert ours["sha256"] == theirs["sha256"]
    assert re.sub(rb"chatcmpl-\d+", b"", reply.content) == re.sub(rb"chatcmpl-\d+", b"", direct.content)


def test_an_absent_output_limit_is_injected_and_nothing_else_changes(system: System, customer: Customer) -> None:
    reply = system.http(customer.key).post(
        "/v1/chat/completions", content=b'{"model":"fake-1","messages":[{"role":"user","content":"x"}] }'
    )
    call = the_call(system, reply.headers["x-call-id"])
    assert call["max_output_tokens"] == 1024
    assert call["held_nano"] > 1024 * NANO_OUT


def test_what_the_cap_cannot_afford_is_clamped_and_said(system: System) -> None:
    customer = system.tenant()
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "0.0004")
    reply = system.http(customer.key).post(
        "/v1/chat/completions", json={"model": "fake-1", "messages": HELLO, "max_tokens": 100_000}
    )
    assert reply.status_code == 200
    granted = int(reply.headers["x-budget-clamped"])
    assert 16 <= granted < 667
    assert the_call(system, reply.headers["x-call-id"])["max_output_tokens"] == granted


def test_models_are_listed_in_the_shape_of_the_callers_sdk(system: System, customer: Customer) -> None:
    assert "fake-1" in [one.id for one in system.openai(customer.key).models.list()]
    assert "fake-1" in [one.id for one in system.anthropic(customer.key).models.list()]


def test_a_sandbox_key_calls_any_model_for_nothing_and_never_reaches_a_provider(system: System) -> None:
    customer = system.tenant(environment="sandbox")
    before = system.far_end.count()
    raw = system.openai(customer.key).chat.completions.with_raw_response.create(model="gpt-anything", messages=HELLO)
    assert raw.parse().choices[0].message.content == "sandbox: hello"
    assert raw.headers["x-cost-usd"] == "0.000000000"
    assert system.far_end.count() == before


def test_the_callers_request_id_comes_back_and_a_malformed_one_does_not(system: System, customer: Customer) -> None:
    body = {"model": "fake-1", "messages": HELLO}
    with system.http(customer.key) as http:
        assert (
            http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-7"}).headers["x-request-id"]
            == "mine-7"
        )
        odd = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "a b<script>"}).headers[
            "x-request-id"
        ]
    assert re.fullmatch(r"req_[0-9a-f]{24}", odd)


def test_a_providers_refusal_is_passed_on_and_costs_nothing(system: System, customer: Customer) -> None:
    system.far_end.script(match="teapot", status=400)
    with pytest.raises(openai.BadRequestError):
        system.openai(customer.key).chat.completions.create(
            model="fake-1", messages=[{"role": "user", "content": "teapot"}]
        )
    (call,) = system.rows("SELECT state, charged_nano FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s", customer.name)  # fmt: skip
    assert call == {"state": "void", "charged_nano": 0}


def test_a_429_is_tried_again_after_a_while_and_each_try_is_on_record(system: System, customer: Customer) -> None:
    system.far_end.script(match="busy once", status=429, times=1)
    raw = system.openai(customer.key).chat.completions.with_raw_response.create(
        model="fake-1", messages=[{"role": "user", "content": "busy once"}]
    )
    attempts = system.rows(
        "SELECT n, outcome, status FROM usage_attempt WHERE call_id = %s ORDER BY n",
        uuid.UUID(raw.headers["x-call-id"][5:]),
    )
    assert [(one["n"], one["outcome"], one["status"]) for one in attempts] == [
        (1, "refused", 429),
        (2, "answered", 200),
    ]


def test_an_unreachable_provider_is_tried_three_times_and_costs_nothing(system: System, customer: Customer) -> None:
    with system.far_end.refusing():
        reply = system.http(customer.key).post("/v1/chat/completions", json={"model": "fake-1", "messages": HELLO})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "provider_unreachable")
    attempts = system.rows(
        "SELECT outcome FROM usage_attempt WHERE call_id = %s", uuid.UUID(reply.headers["x-call-id"][5:])
    )
    assert [one["outcome"] for one in attempts] == ["unsent"] * 3


def test_a_provider_that_hangs_up_after_reading_leaves_an_unknown_outcome_and_no_second_try(
    system: System, customer: Customer
) -> None:
    system.far_end.script(match="hang up", drop="close")
    reply = system.http(customer.key).post(
        "/v1/chat/completions", json={"model": "fake-1", "messages": [{"role": "user", "content": "hang up"}]}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "outcome_unknown")
    call = uuid.UUID(reply.headers["x-call-id"][5:])
    assert [one["outcome"] for one in system.rows("SELECT outcome FROM usage_attempt WHERE call_id = %s", call)] == [
        "unknown"
    ]
    wait_for(lambda: system.rows("SELECT state FROM usage_call WHERE id = %s", call)[0]["state"] == "void")
    (entry,) = system.rows("SELECT kind, amount_nano FROM usage_ledgerentry WHERE ref = %s", call)
    assert entry["kind"] == "exposure"


def test_a_cut_stream_is_charged_by_count_and_ends_in_an_error_the_sdk_raises(
    system: System, customer: Customer
) -> None:
    system.far_end.script(match="cut me", cut_after_chunks=3)
    stream = system.openai(customer.key).chat.completions.create(
        model="fake-1", messages=[{"role": "user", "content": "cut me"}], stream=True
    )
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    (call,) = system.rows("SELECT state, evidence, charged_nano FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s", customer.name)  # fmt: skip
    assert (call["state"], call["evidence"]) == ("settled", "counted")
    assert call["charged_nano"] > 0


def test_a_cut_anthropic_stream_is_charged_for_what_was_relayed_though_its_beginning_told_a_usage(
    system: System, customer: Customer
) -> None:
    system.far_end.script(match="cut this", cut_after_chunks=6)
    stream = system.anthropic(customer.key).messages.create(
        model="fake-1", max_tokens=64, messages=[{"role": "user", "content": "cut this"}], stream=True
    )
    relayed: list[str] = []
    with pytest.raises(anthropic.APIError, match="broke off"):
        relayed.extend(event.delta.text for event in stream if event.type == "content_block_delta")  # type: ignore[union-attr]
    (call,) = system.rows("SELECT evidence, input_tokens, output_tokens FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s", customer.name)  # fmt: skip
    assert call["evidence"] == "counted"
    assert call["input_tokens"] > 0
    assert call["output_tokens"] == -(-sum(map(len, relayed)) // 4) > 1


def test_a_client_that_goes_away_in_mid_stream_is_charged_all_the_same(system: System, customer: Customer) -> None:
    system.far_end.script(match="slow one", pace_ms=100)
    with (
        system.http(customer.key) as http,
        http.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "fake-1", "stream": True, "messages": [{"role": "user", "content": "slow one"}]},
        ) as reply,
    ):
        next(reply.iter_raw())
        call = uuid.UUID(reply.headers["x-call-id"][5:])
    wait_for(lambda: system.rows("SELECT state FROM usage_call WHERE id = %s", call)[0]["state"] == "settled")
    assert system.rows("SELECT evidence FROM usage_call WHERE id = %s", call)[0]["evidence"] == "provider"
