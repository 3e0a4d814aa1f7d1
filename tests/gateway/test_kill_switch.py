"""The kill switch on a running system: within one second nothing more of it is admitted or sent, on any process."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fakes.provider import FakeProvider
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for

WEB = 2
WITHIN_SECONDS = 1.0


@pytest.fixture(scope="module")
def narrow(far_end: FakeProvider) -> Iterator[System]:
    """Several web processes, and one worker with a single place: whatever comes second must queue."""
    with start_system(far_end, WORKER_PLACES="1", WEB_PROCESSES=str(WEB)) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


def ask(system: System, key: str, canary: str) -> tuple[int, str | None]:
    """Status and error code, over a connection of its own, so that every web process has its share."""
    body = {"model": "fake-1", "max_tokens": 5, "messages": [{"role": "user", "content": canary}]}
    with system.http(key, connection="close") as http:
        answer = http.post("/v1/chat/completions", json=body)
    return answer.status_code, (answer.json().get("error") or {}).get("code")


def what(customer: Customer, scope: str) -> list[str]:
    named = {"environment": ["--environment", "prod"], "key": ["--key", customer.key_id], "tenant": []}
    return ["--tenant", customer.name, *named[scope]]


@pytest.mark.parametrize("scope", ["tenant", "environment", "key"])
def test_within_a_second_all_processes_refuse_queued_calls_stay_unsent_and_running_ones_settle(
    narrow: System, scope: str
) -> None:
    customer, canary = narrow.tenant(), f"switch-{uuid.uuid4().hex[:8]}"
    narrow.far_end.script(match=f"{canary}-running", latency_ms=8000)
    calls = "SELECT state, error_code, charged_nano, status FROM usage_call WHERE api_key_id = %s ORDER BY id"
    with ThreadPoolExecutor(8) as pool:
        running = pool.submit(ask, narrow, customer.key, f"{canary}-running")
        wait_for(lambda: [row["state"] for row in narrow.rows(calls, customer.key_id)] == ["inflight"])
        queued = pool.submit(ask, narrow, customer.key, f"{canary}-queued")
        wait_for(lambda: [row["state"] for row in narrow.rows(calls, customer.key_id)] == ["inflight", "held"])

        narrow.manage("suspend", *what(customer, scope), "--reason", "a test")
        # The hold refuses at once, each process's own memory of the key within the second.
        late = list(pool.map(lambda _: ask(narrow, customer.key, f"{canary}-late"), range(4 * WEB)))
        time.sleep(WITHIN_SECONDS)
        late += pool.map(lambda _: ask(narrow, customer.key, f"{canary}-late"), range(4 * WEB))
        assert set(late) == {(403, "suspended")}
        assert queued.result() == (403, "suspended")
        assert running.result()[0] == 200
    wait_for(lambda: narrow.rows(calls, customer.key_id)[0]["state"] == "settled")
    first, second = narrow.rows(calls, customer.key_id)
    assert (first["charged_nano"] > 0, first["status"]) == (True, 200)
    assert (second["state"], second["error_code"], second["charged_nano"]) == ("void", "suspended", 0)
    assert sent(narrow, customer) == 1

    narrow.manage("resume", *what(customer, scope))
    time.sleep(WITHIN_SECONDS)
    assert {ask(narrow, customer.key, f"{canary}-again")[0] for _ in range(2 * WEB)} == {200}
    assert narrow.manage("ledger_verify")["drift"] == []


def sent(system: System, customer: Customer) -> int:
    """Attempts at the provider, each of which is durable before its first byte leaves."""
    rows: list[dict[str, Any]] = system.rows(
        "SELECT count(*) AS n FROM usage_attempt a JOIN usage_call c ON c.id = a.call_id WHERE c.api_key_id = %s",
        customer.key_id,
    )
    return int(rows[0]["n"])


def test_a_call_that_is_refused_by_the_switch_costs_and_holds_nothing(narrow: System) -> None:
    customer, other = narrow.tenant(), narrow.tenant()
    narrow.manage("suspend", *what(customer, "tenant"), "--reason", "a test")
    time.sleep(WITHIN_SECONDS)
    assert ask(narrow, customer.key, "x") == (403, "suspended")
    assert narrow.rows("SELECT 1 FROM usage_call WHERE api_key_id = %s", customer.key_id) == []
    assert ask(narrow, other.key, "x")[0] == 200
    problem = narrow.http(customer.key).get("/api/caps")
    assert (problem.status_code, problem.json()["code"], problem.json()["scope"]) == (403, "suspended", "tenant")
