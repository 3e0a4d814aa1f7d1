"""What a key's holder can ask beforehand: what is left to him, and what a call would hold, by the code that holds it."""

import asyncio
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from tests.system import Customer, System

MESSAGES: Any = [{"role": "user", "content": "what would it cost? " * 20}]
PATHS = {"/v1/chat/completions": {}, "/v1/messages": {"anthropic-version": "2023-06-01"}}


def cap(system: System, customer: Customer, usd: str, *more: str) -> None:
    system.manage("cap_set", "--tenant", customer.name, "--usd", usd, *more)


def calls_of(system: System, customer: Customer) -> int:
    return int(system.rows("SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s", customer.key_id)[0]["n"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "more",
    [{"max_tokens": 77}, {"max_tokens": 100_000}, {"max_tokens": 50, "tools": []}, {"max_tokens": 9, "stream": True}],
)
@pytest.mark.parametrize("usd", [None, "0.0003"])
def test_the_worst_case_is_exactly_what_the_call_then_holds(
    system: System, customer: Customer, path: str, more: dict[str, Any], usd: str | None
) -> None:
    if usd:
        cap(system, customer, usd, "--period", "month")
    body = {"model": "fake-1", "messages": MESSAGES, **more}
    with system.http(customer.key, **PATHS[path]) as http:
        estimate = http.post("/v1/estimate", json=body).json()
        named = http.post(f"/v1/estimate?endpoint={path}", json=body).json()
        assert calls_of(system, customer) == 0
        reply = http.post(path, json=body)
    assert estimate == named
    assert reply.status_code == 200
    assert estimate["worst_case_usd"] == reply.headers["x-held-usd"]
    assert estimate["fits"] is True
    assert estimate["max_tokens_clamped"] == ("x-budget-clamped" in reply.headers)
    if estimate["max_tokens_clamped"]:
        assert estimate["max_tokens"] == int(reply.headers["x-budget-clamped"])
    assert Decimal(estimate["likely_usd"]) <= Decimal(estimate["worst_case_usd"])


def test_an_estimate_says_what_it_rests_on_and_which_cap_would_refuse(system: System, customer: Customer) -> None:
    cap(system, customer, "0.000002", "--period", "day", "--key", customer.key_id)
    cap(system, customer, "5", "--period", "month")
    cap(system, customer, "0.000001", "--period", "month", "--end-user", "somebody else")
    before = system.far_end.count()["arrived"]
    reply = system.http(customer.key).post("/v1/estimate", json={"model": "fake-1", "messages": MESSAGES})
    found = reply.json()
    assert (reply.status_code, found["model"], found["provider"]) == (200, "fake-1", "fake")
    assert found["price"]["usd_per_million"] | {"input": "0.15", "output": "0.6"} == found["price"]["usd_per_million"]
    assert (found["max_tokens"], found["max_tokens_injected"], found["fits"]) == (1024, True, False)
    assert found["likely_input_tokens"] == len(reply.request.content) // 4
    assert found["input_bound_tokens"] > found["likely_input_tokens"]
    assert {(one["scope"], one["period"], one["fits"]) for one in found["caps"]} == {
        ("key", "day", False),
        ("tenant", "month", True),
    }
    assert system.far_end.count()["arrived"] == before
    assert calls_of(system, customer) == 0
    call = system.http(customer.key).post("/v1/chat/completions", json={"model": "fake-1", "messages": MESSAGES})
    assert call.json()["error"]["estimate_usd"] == found["worst_case_usd"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "no-such", "messages": MESSAGES}, 404, "model_not_found"),
        ({"model": "fake-1"}, 400, "invalid_request"),
        ({"model": "fake-1", "messages": MESSAGES, "service_tier": "priority"}, 402, "model_not_priced"),
    ],
)
def test_what_a_call_is_refused_for_an_estimate_is_too(
    system: System, customer: Customer, body: dict[str, Any], status: int, code: str
) -> None:
    with system.http(customer.key) as http:
        for path in ("/v1/estimate", "/v1/chat/completions"):
            reply = http.post(path, json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert http.post("/v1/estimate?endpoint=/v1/nothing", json=body).status_code == 400
    assert system.http("").post("/v1/estimate", json=body).status_code == 401


def test_a_sandbox_call_is_estimated_at_nothing(system: System) -> None:
    customer = system.tenant(environment="sandbox")
    cap(system, customer, "0", "--period", "month")
    found = system.http(customer.key).post("/v1/estimate", json={"model": "any", "messages": MESSAGES}).json()
    assert (found["worst_case_usd"], found["likely_usd"], found["fits"]) == ("0.000000000", "0.000000000", True)


def test_a_keys_holder_sees_what_is_spent_and_left(system: System, customer: Customer) -> None:
    cap(system, customer, "1", "--period", "month")
    cap(system, customer, "0.5", "--period", "day", "--key", customer.key_id)
    cap(system, customer, "0.25", "--period", "lifetime", "--end-user", "eve")
    cap(system, customer, "0.1", "--period", "month", "--environment", "dev")
    body = {"model": "fake-1", "messages": MESSAGES, "max_tokens": 20}
    with system.http(customer.key) as http:
        charged = sum(
            Decimal(http.post("/v1/chat/completions", json=body, headers=headers).headers["x-cost-usd"])
            for headers in ({}, {"x-end-user": "eve"})
        )
        found, eves = http.get("/v1/me/usage").json(), http.get("/v1/me/usage", params={"end_user": "eve"}).json()
    assert (found["tenant"], found["environment"], found["key"]["id"]) == (customer.name, "prod", customer.key_id)
    assert {(one["scope"], one["period"], one["mode"]) for one in found["caps"]} == {
        ("tenant", "month", "enforce"), ("key", "day", "enforce")}  # fmt: skip
    for one in found["caps"]:
        assert Decimal(one["spent_usd"]) == charged
        assert Decimal(one["left_usd"]) == Decimal(one["limit_usd"]) - charged
        assert one["resets_at"]
    (eve,) = (one for one in eves["caps"] if one["scope"] == "end_user")
    assert (eve["limit_usd"], eve["resets_at"]) == ("0.250000000", None)
    assert 0 < Decimal(eve["spent_usd"]) < charged
    assert Decimal(found["spend"]["today"]["usd"]) == Decimal(found["spend"]["this_month"]["usd"]) == charged
    assert (found["prepaid"], found["rate_limits"]) == (None, [])


def test_figures_are_answered_where_no_money_is_left(system: System, customer: Customer) -> None:
    cap(system, customer, "0", "--period", "month")
    with system.http(customer.key) as http:
        assert http.post("/v1/chat/completions", json={"model": "fake-1", "messages": MESSAGES}).status_code == 402
        assert http.get("/v1/me/usage").json()["caps"][0]["left_usd"] == "0.000000000"


def test_a_prepaid_balance_is_shown(system: System, customer: Customer) -> None:
    system.manage("credit_grant", "--tenant", customer.name, "--usd", "3", "--category", "promotional")
    with system.http(customer.key) as http:
        cost = Decimal(
            http.post("/v1/chat/completions", json={"model": "fake-1", "messages": MESSAGES}).headers["x-cost-usd"]
        )
        found = http.get("/v1/me/usage").json()
    assert Decimal(found["prepaid"]["left_usd"]) == 3 - cost
    assert found["caps"] == []


def test_figures_of_many_at_once_are_answered_beside_calls(system: System, customer: Customer) -> None:
    """More at once than Django's pool has connections."""
    cap(system, customer, "1", "--period", "month")

    async def ask() -> list[httpx2.Response]:
        headers = {"authorization": f"Bearer {customer.key}"}
        body = {"model": "fake-1", "messages": MESSAGES}
        async with httpx2.AsyncClient(base_url=system.base_url, headers=headers, timeout=30, trust_env=False) as http:
            return await asyncio.gather(
                *(http.get("/v1/me/usage") for _ in range(30)),
                *(http.post("/v1/estimate", json=body) for _ in range(30)),
                *(http.post("/v1/chat/completions", json=body) for _ in range(10)),
            )

    assert {reply.status_code for reply in asyncio.run(ask())} == {200}
