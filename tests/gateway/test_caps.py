"""Promise 1 over the whole system: a cap with room for exactly so many holds lets exactly so many through."""

import asyncio
import collections
from typing import Any

import httpx2

from tests.system import Customer, System
from tests.waiting import wait_for

BODY = {"model": "fake-1", "max_tokens": 100, "messages": [{"role": "user", "content": "cap race"}]}


def the_hold_of(system: System, customer: Customer) -> int:
    system.http(customer.key).post("/v1/chat/completions", json=BODY)
    (row,) = system.rows("SELECT held_nano FROM usage_call WHERE api_key_id = %s", customer.key_id)
    return int(row["held_nano"])


def at_once(system: System, key: str, calls: int) -> list[Any]:
    async def run() -> list[Any]:
        limits = httpx2.Limits(max_connections=calls)
        async with httpx2.AsyncClient(base_url=system.base_url, timeout=60, limits=limits, trust_env=False) as http:
            headers = {"authorization": f"Bearer {key}"}
            return await asyncio.gather(
                *(http.post("/v1/chat/completions", json=BODY, headers=headers) for _ in range(calls))
            )

    return asyncio.run(run())


def test_two_hundred_at_once_against_room_for_twenty_holds_let_twenty_through(system: System) -> None:
    hold = the_hold_of(system, system.tenant())
    customer = system.tenant()
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", f"{20 * hold / 1e9:.9f}")
    system.far_end.script(match="cap race", latency_ms=8000)
    replies = at_once(system, customer.key, 200)
    statuses = collections.Counter(reply.status_code for reply in replies)
    assert statuses == {200: 20, 429: 180}
    for reply in replies:
        if reply.status_code == 429:
            assert reply.headers["retry-after"] == "1"
            assert reply.json()["error"]["code"] == "cap_contended"
            assert reply.json()["error"]["held_usd"] == reply.json()["error"]["limit_usd"] == f"{20 * hold / 1e9:.9f}"
            assert 1.9 < reply.elapsed.total_seconds() < 7
    assert_no_cap_is_passed(system)


def assert_no_cap_is_passed(system: System) -> None:
    over = system.rows(
        """SELECT max(b.held_nano + b.spent_nano - c.limit_nano) AS nano FROM usage_capbucket b
           JOIN usage_spendingcap c ON c.id = b.cap_id WHERE c.mode = 'enforce'"""
    )
    assert over[0]["nano"] <= 0


def test_a_cap_that_is_spent_refuses_with_402_that_sdks_do_not_repeat(system: System, customer: Customer) -> None:
    with system.http(customer.key) as http:
        assert http.post("/v1/chat/completions", json=BODY).status_code == 200
        wait_for(
            lambda: system.rows("SELECT 1 FROM usage_call WHERE api_key_id = %s AND state = 'settled'", customer.key_id)
        )
        # A new cap counts what its period has already spent.
        cap = system.manage(
            "cap_set", "--tenant", customer.name, "--key", customer.key_id, "--period", "month", "--usd", "0.000001"
        )
        reply = http.post("/v1/chat/completions", json=BODY)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (402, "cap_exceeded", "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"
    assert (error["limit_usd"], error["period"]) == ("0.000001000", "month")
    assert error["spent_usd"] > "0.000000000"
    assert error["resets_at"]
    assert cap


def test_a_rate_limit_refuses_with_429_and_an_integer_retry_after(system: System, customer: Customer) -> None:
    system.manage(
        "limit_set",
        "--tenant",
        customer.name,
        "--key",
        customer.key_id,
        "--rpm",
        "5",
        "--tpm",
        "1000000",
        "--concurrency",
        "50",
    )
    replies = at_once(system, customer.key, 20)
    assert collections.Counter(reply.status_code for reply in replies) == {200: 5, 429: 15}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["retry-after"].isdecimal()
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_concurrent_calls_are_limited_and_their_places_come_back(system: System, customer: Customer) -> None:
    system.manage(
        "limit_set",
        "--tenant",
        customer.name,
        "--key",
        customer.key_id,
        "--rpm",
        "10000",
        "--tpm",
        "10000000",
        "--concurrency",
        "3",
    )
    system.far_end.script(match="cap race", latency_ms=1500)
    for _ in range(2):
        replies = at_once(system, customer.key, 12)
        assert collections.Counter(reply.status_code for reply in replies) == {200: 3, 429: 9}


def test_the_ledger_agrees_with_every_cap_and_call(system: System) -> None:
    verified = system.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])
