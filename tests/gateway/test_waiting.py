"""Where only other calls' holds stand in the way, a call waits its turn: in order, not for long, and without a trace if it goes."""

import asyncio
import collections
import socket
import time
import uuid
from typing import Any

import httpx2
import orjson
import psutil
import pytest

from tests.system import Customer, System
from tests.waiting import wait_for

# Its floor is its wish, so that nothing is clamped: it fits in full or not at all.
MAX_TOKENS = 2000


@pytest.fixture
def customer(system: System) -> Customer:
    customer = system.tenant()
    system.rows(
        "UPDATE tenants_environment SET floor_max_tokens = %s WHERE id = %s RETURNING 1",
        MAX_TOKENS,
        customer.environments["prod"],
    )
    return customer


def a_body(canary: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": canary}], **more}


def figures(system: System, canary: str) -> tuple[int, int]:
    """What a call like this holds, and what it is charged; nano-USD."""
    probe = system.tenant()
    assert system.http(probe.key).post("/v1/chat/completions", json=a_body(canary)).status_code == 200
    (row,) = system.rows("SELECT held_nano, charged_nano FROM usage_call WHERE api_key_id = %s", probe.key_id)
    return row["held_nano"], row["charged_nano"]


def cap(system: System, customer: Customer, nano: int, *more: str) -> None:
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", f"{nano / 1e9:.9f}", *more)


def a_canary() -> str:
    return f"line-{uuid.uuid4().hex[:8]}"


async def in_turn(system: System, keys: list[str], bodies: list[dict[str, Any]], apart: float = 0.0) -> list[Any]:
    """Replies in the order in which the calls were sent, each `apart` seconds after the one before."""
    limits = httpx2.Limits(max_connections=len(bodies))
    async with httpx2.AsyncClient(base_url=system.base_url, timeout=60, limits=limits, trust_env=False) as http:
        tasks = []
        for key, body in zip(keys, bodies, strict=True):
            headers = {"authorization": f"Bearer {key}"}
            tasks.append(asyncio.create_task(http.post("/v1/chat/completions", json=body, headers=headers)))
            await asyncio.sleep(apart)
        return await asyncio.gather(*tasks)


def admitted_order(system: System, replies: list[Any]) -> list[int]:
    """The places of the admitted calls in the order of their admission."""
    at = {reply.headers.get("x-call-id"): place for place, reply in enumerate(replies)}
    rows = system.rows(
        "SELECT 'call_' || id AS name FROM usage_call WHERE 'call_' || id = ANY (%s) ORDER BY admitted_at, id",
        [name for name in at if name],
    )
    return [at[row["name"]] for row in rows]


def test_twenty_at_once_with_room_for_two_all_get_their_turn(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    assert 20 * charge < hold
    cap(system, customer, 2 * hold + 20 * charge)
    system.far_end.script(match=canary, latency_ms=100)
    began = time.monotonic()
    replies = asyncio.run(in_turn(system, [customer.key] * 20, [a_body(canary)] * 20))
    assert collections.Counter(reply.status_code for reply in replies) == {200: 20}
    assert time.monotonic() - began < 4
    (bucket,) = system.rows(
        "SELECT b.held_nano, b.spent_nano FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s",
        customer.name,
    )
    assert bucket == {"held_nano": 0, "spent_nano": 20 * charge}


def test_turns_come_in_the_order_of_arrival_whatever_the_size(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, hold + hold // 2 + 12 * charge)
    system.far_end.script(match=canary, latency_ms=900)
    # A small call would fit beside the one that runs; it waits all the same for the large one before it.
    bodies = [a_body(canary) | {"max_tokens": size} for size in (MAX_TOKENS, MAX_TOKENS, 100, 100)]
    replies = asyncio.run(in_turn(system, [customer.key] * 4, bodies, apart=0.25))
    assert collections.Counter(reply.status_code for reply in replies) == {200: 4}
    assert admitted_order(system, replies) == [0, 1, 2, 3]


def test_another_key_of_the_tenant_joins_the_back_of_the_tenants_line(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, hold + hold // 2 + 12 * charge)
    other = str(system.manage("key_issue", "--tenant", customer.name, "--environment", "prod")["key"])
    system.http(other).get("/v1/models")
    system.far_end.script(match=canary, latency_ms=900)
    bodies = [a_body(canary) | {"max_tokens": size} for size in (MAX_TOKENS, MAX_TOKENS, 100, 100)]
    replies = asyncio.run(in_turn(system, [customer.key, customer.key, other, other], bodies, apart=0.25))
    assert admitted_order(system, replies) == [0, 1, 2, 3]


def test_who_gets_no_turn_is_told_after_two_seconds_when_to_come_back(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, 2 * hold + 20 * charge)
    system.far_end.script(match=canary, latency_ms=5000)
    replies = asyncio.run(in_turn(system, [customer.key] * 8, [a_body(canary)] * 8, apart=0.01))
    assert [reply.status_code for reply in replies] == [200] * 2 + [429] * 6
    for reply in replies[2:]:
        assert 1.9 < reply.elapsed.total_seconds() < 3
        error = reply.json()["error"]
        assert (error["code"], error["scope"], reply.headers["retry-after"]) == ("cap_contended", "tenant", "1")
        assert error["held_usd"] == f"{2 * hold / 1e9:.9f}"
        assert "x-should-retry" not in reply.headers


def test_what_is_spent_is_402_at_once_and_never_429(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    # Room for one hold until two were charged; then never again.
    cap(system, customer, hold + 2 * charge - 1)
    system.far_end.script(match=canary, latency_ms=100)
    replies = asyncio.run(in_turn(system, [customer.key] * 6, [a_body(canary)] * 6, apart=0.01))
    assert [reply.status_code for reply in replies] == [200, 200, 402, 402, 402, 402]
    for reply in replies[2:]:
        assert reply.headers["x-should-retry"] == "false"
        assert reply.elapsed.total_seconds() < 1.5
    late = system.http(customer.key).post("/v1/chat/completions", json=a_body(canary))
    assert (late.status_code, late.json()["error"]["code"]) == (402, "cap_exceeded")
    assert late.elapsed.total_seconds() < 1


def test_a_caller_who_hangs_up_in_line_leaves_nothing_held_and_gives_his_place_back(
    system: System, customer: Customer
) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, hold + 5 * charge)
    system.manage(
        "limit_set", "--tenant", customer.name, "--key", customer.key_id, "--rpm", "100", "--tpm", "1000000", "--concurrency", "2"
    )  # fmt: skip
    system.far_end.script(match=canary, latency_ms=1200)

    async def scene() -> list[Any]:
        first = asyncio.create_task(in_turn(system, [customer.key], [a_body(canary)]))
        await asyncio.sleep(0.3)
        leave_in_line(system, customer.key, a_body(canary))
        await asyncio.sleep(0.2)
        third = await in_turn(system, [customer.key], [a_body(canary)])
        return [*await first, *third]

    first, third = asyncio.run(scene())
    # With two places at once, the third had been refused if the second had kept his.
    assert (first.status_code, third.status_code) == (200, 200)
    rows = system.rows("SELECT state FROM usage_call WHERE api_key_id = %s", customer.key_id)
    assert [row["state"] for row in rows] == ["settled"] * 2


def leave_in_line(system: System, key: str, body: dict[str, Any]) -> None:
    host, port = system.base_url.removeprefix("http://").split(":")
    content = orjson.dumps(body)
    with socket.create_connection((host, int(port)), 5) as raw:
        raw.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        time.sleep(0.2)


def test_one_tenants_line_keeps_no_other_tenant_waiting(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, hold + 5 * charge)
    rival = system.tenant()
    cap(system, rival, 100 * hold)
    system.far_end.script(match=canary, latency_ms=3000)

    async def scene() -> float:
        line = asyncio.create_task(in_turn(system, [customer.key] * 5, [a_body(canary)] * 5))
        await asyncio.sleep(0.3)
        (reply,) = await in_turn(system, [rival.key], [a_body("quick")])
        assert reply.status_code == 200
        await line
        return float(reply.elapsed.total_seconds())

    assert asyncio.run(scene()) < 0.5


def test_a_call_blocked_by_its_own_keys_cap_does_not_stop_the_tenants_line(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, 2 * hold + 20 * charge)
    cap(system, customer, hold + 20 * charge, "--key", customer.key_id)
    other = str(system.manage("key_issue", "--tenant", customer.name, "--environment", "prod")["key"])
    system.http(other).get("/v1/models")
    system.far_end.script(match=canary, latency_ms=400)
    # Two holds of the tenant are out; the third, of the narrow key, then waits for that key's own cap.
    replies = asyncio.run(
        in_turn(system, [customer.key, other, customer.key, other, other], [a_body(canary)] * 5, apart=0.03)
    )
    assert collections.Counter(reply.status_code for reply in replies) == {200: 5}


def test_two_hundred_who_wait_cost_little(system: System, customer: Customer) -> None:
    canary = a_canary()
    hold, charge = figures(system, canary)
    cap(system, customer, hold + 20 * charge)
    system.far_end.script(match=canary, latency_ms=4000)
    (web,) = (psutil.Process(pid) for pid in system.stack.facts["pids"]["web"])

    async def scene() -> tuple[float, list[Any]]:
        line = asyncio.create_task(in_turn(system, [customer.key] * 201, [a_body(canary)] * 201))
        await asyncio.sleep(1)
        before = web.cpu_times()
        await asyncio.sleep(1)
        after = web.cpu_times()
        return after.user + after.system - before.user - before.system, await line

    seconds, replies = asyncio.run(scene())
    print(f"cpu of the web process while 200 wait: {seconds:.3f} s a second")
    assert seconds < 0.25
    assert collections.Counter(reply.status_code for reply in replies) == {200: 1, 429: 200}
    wait_for(lambda: not system.rows("SELECT 1 FROM usage_call WHERE api_key_id = %s AND is_live", customer.key_id))
