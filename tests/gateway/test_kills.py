"""Promise 3 over the whole system: kill -9 anything in the middle of 200 calls, and every call ends once."""

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.fakes.provider import FakeProvider
from tests.system import System, set_up_provider, start_system
from tests.waiting import wait_for

CALLS = 200


@pytest.fixture(scope="module")
def fragile(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own, whose servers may be killed."""
    with start_system(far_end) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


@pytest.mark.parametrize("victim", ["web", "worker", "valkey", "postgres"])
def test_every_call_ends_once_though_one_process_is_killed_among_them(fragile: System, victim: str) -> None:
    fragile.far_end.clear()
    customer = fragile.tenant()
    canary = f"kill-{uuid.uuid4().hex[:8]}"
    fragile.far_end.script(match=canary, latency_ms=300, pace_ms=20)
    fragile.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "100")

    refused = asyncio.run(load_and_kill(fragile, customer.key, canary, victim))

    live = "SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s AND state NOT IN ('settled', 'void')"
    wait_for(lambda: fragile.rows(live, customer.key_id)[0]["n"] == 0, seconds=60)
    verified = fragile.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])
    settled = "SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s AND state = 'settled'"
    # Whoever was told that nothing was charged is not charged, though his hold may have been written.
    assert fragile.rows(settled, customer.key_id)[0]["n"] <= CALLS - refused
    assert_the_gauge_reads_0(fragile)
    assert_attempts_are_the_journals(fragile, customer.key_id, canary)
    wait_for(lambda: answers(fragile, customer.key))


def answers(system: System, key: str) -> bool:
    """Usable again."""
    with contextlib.suppress(httpx2.HTTPError):
        body = {"model": "fake-1", "messages": [{"role": "user", "content": "x"}]}
        return system.http(key).post("/v1/chat/completions", json=body).status_code == 200
    return False


def test_a_redis_that_does_not_answer_is_503_within_two_seconds_and_nothing_is_held(fragile: System) -> None:
    customer = fragile.tenant()
    wait_for(lambda: answers(fragile, customer.key))
    body = {"model": "fake-1", "messages": [{"role": "user", "content": "x"}]}
    before = fragile.rows("SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s", customer.key_id)
    (pid,) = fragile.stack.facts["pids"]["valkey"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with fragile.http(customer.key) as http:
            for _ in range(3):
                began = time.monotonic()
                reply = http.post("/v1/chat/completions", json=body)
                assert time.monotonic() - began < 2
                assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
                assert reply.json()["error"]["code"] == "unavailable"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert fragile.rows("SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s", customer.key_id) == before
    wait_for(lambda: answers(fragile, customer.key))


def test_a_call_that_was_held_but_never_rung_is_rung_again_or_voided(fragile: System) -> None:
    """The web process dies between its COMMIT and its doorbell: nobody waits any more, so nobody pays."""
    customer = fragile.tenant()
    wait_for(lambda: answers(fragile, customer.key))
    (row,) = fragile.rows(
        "SELECT id, held_nano, bucket_ids FROM usage_call WHERE api_key_id = %s LIMIT 1", customer.key_id
    )
    copies = {"alive": uuid.uuid4(), "dead": uuid.uuid4()}
    for kind, call in copies.items():
        fragile.rows(
            """INSERT INTO usage_call SELECT (jsonb_populate_record(c, jsonb_build_object(
                   'id', %s::uuid, 'state', 'held', 'is_live', true, 'settled_at', NULL, 'charged_nano', 0, 'worker_process', NULL,
                   'start_by', now() + interval '1 minute', 'deadline_at', now() + interval '10 minutes',
                   'next_ring_at', now(), 'admitted_at', now(), 'web_process',
                   CASE WHEN %s = 'alive' THEN c.web_process ELSE gen_random_uuid() END))).*
               FROM usage_call c WHERE c.id = %s RETURNING 1""",
            call,
            kind,
            row["id"],
        )
        fragile.rows(
            "INSERT INTO usage_callpayload SELECT %s, kind, headers, body FROM usage_callpayload WHERE call_id = %s AND kind = 'request' RETURNING 1",
            call,
            row["id"],
        )
    state = "SELECT state FROM usage_call WHERE id = %s"
    wait_for(lambda: fragile.rows(state, copies["alive"])[0]["state"] == "settled")
    wait_for(lambda: fragile.rows(state, copies["dead"])[0]["state"] == "void")


async def load_and_kill(system: System, key: str, canary: str, victim: str) -> int:
    """How many callers were told that the gateway is unavailable."""
    limits = httpx2.Limits(max_connections=CALLS)
    async with httpx2.AsyncClient(base_url=system.base_url, timeout=60, limits=limits, trust_env=False) as http:
        calls = [asyncio.create_task(one_call(http, key, canary, number)) for number in range(CALLS)]
        await asyncio.sleep(0.7)
        kill(system, victim)
        return sum(await asyncio.gather(*calls))


async def one_call(http: httpx2.AsyncClient, key: str, canary: str, number: int) -> bool:
    await asyncio.sleep(number * 0.008)
    body: dict[str, Any] = {"model": "fake-1", "stream": number % 2 == 0, "max_tokens": 50}
    body["messages"] = [{"role": "user", "content": f"{canary} {number}"}]
    with contextlib.suppress(httpx2.HTTPError):  # the caller's own connection may have died with the process
        reply = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        return reply.status_code == 503 and reply.json()["error"]["code"] == "unavailable"
    return False


def kill(system: System, victim: str) -> None:
    (pid,) = system.stack.facts["pids"][victim]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while system.stack.facts["pids"][victim] in ([pid], []):
        assert time.monotonic() < deadline, f"{victim} was not started again"
        time.sleep(0.05)


def assert_the_gauge_reads_0(system: System) -> None:
    """All that happened is sealed and has been audited by the clock, before, while and after something died."""
    last = "SELECT coalesce(max(id), 0) AS id FROM usage_auditrun"
    before = system.rows(last)[0]["id"]
    wait_for(lambda: system.rows(last)[0]["id"] > before + 1, seconds=60)
    assert system.rows("SELECT at, details FROM usage_auditrun WHERE drift <> 0") == []
    unsealed = (
        """SELECT count(*) AS n FROM usage_ledgerentry WHERE number > (SELECT max(upto_number) FROM usage_ledgerseal)"""
    )
    wait_for(lambda: system.rows(unsealed)[0]["n"] == 0, seconds=60)


def assert_attempts_are_the_journals(system: System, key_id: str, canary: str) -> None:
    """Every call at the provider has its attempt, and none has two; an attempt that the provider never saw is one of which
    the record says itself that nobody can know.
    """
    attempts = {
        f"call_{row['call_id']}-{row['n']}": row["outcome"]
        for row in system.rows(
            "SELECT a.call_id, a.n, a.outcome FROM usage_attempt a JOIN usage_call c ON c.id = a.call_id WHERE c.api_key_id = %s",
            key_id,
        )
    }
    seen = [entry["request_id"] for entry in system.far_end.calls() if entry.get("request_id") in attempts]
    assert len(seen) == len(set(seen))
    unseen = attempts.keys() - set(seen)
    assert {attempts[name] for name in unseen} <= {"unknown", "unsent"}
    assert len(attempts) > CALLS / 4
