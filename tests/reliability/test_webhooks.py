"""kill -9 of a worker in the middle of deliveries: each arrives, at most twice, with one id, and is delivered once."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.provider import FakeProvider
from tests.fakes.receiver import Receiver
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for

CALLS = 12
TIMEOUT_SECONDS = 2


@pytest.fixture(scope="module")
def fragile(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own with two workers, which admits receivers on this machine."""
    admitted = {
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "WEBHOOK_PORTS": "1-65535", "WEBHOOK_PLAIN_HTTP": "true",
        "WEBHOOK_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS), "WORKER_PROCESSES": "2",
    }  # fmt: skip
    with start_system(far_end, **admitted) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def registered(system: System, customer: Customer, url: str) -> dict[str, Any]:
    return system.manage("webhook_set", "--tenant", customer.name, "--url", url)


def detached_calls(system: System, customer: Customer, count: int) -> None:
    """Calls of which nobody waits for the answer."""
    with system.http(customer.key) as http:
        for n in range(count):
            body = {"model": "fake-1", "messages": [{"role": "user", "content": f"webhook {n}"}]}
            answer = http.post("/v1/chat/completions", json=body, headers={"prefer": "respond-async"})
            assert answer.status_code == 202, answer.text


def states(system: System, endpoint: str) -> Counter[str]:
    rows = system.rows("SELECT state FROM tenants_webhookdelivery WHERE endpoint_id = %s", endpoint)
    return Counter(row["state"] for row in rows)


def test_every_ended_call_is_told_within_seconds(fragile: System, receiver: Receiver) -> None:
    customer = fragile.tenant()
    endpoint = registered(fragile, customer, receiver.url("/plain"))
    detached_calls(fragile, customer, 3)
    wait_for(lambda: len(receiver.at("/plain")) == 3, 10)
    costs = [
        row["charged_nano"]
        for row in fragile.rows("SELECT charged_nano FROM usage_call WHERE api_key_id = %s", customer.key_id)
    ]
    told = [message.verified(endpoint["secret"]) for message in receiver.at("/plain")]
    assert {it["type"] for it in told} == {"call.settled"}
    assert sorted(it["data"]["cost_usd"] for it in told) == sorted(f"0.{nano:09d}" for nano in costs)
    assert all(it["data"]["response"]["body"]["choices"] for it in told)


def test_kill_9_of_the_sending_worker_loses_nothing_and_doubles_at_most_once(
    fragile: System, receiver: Receiver
) -> None:
    customer = fragile.tenant()
    endpoint = registered(fragile, customer, receiver.url("/kill"))
    receiver.hanging = {"/kill"}
    detached_calls(fragile, customer, CALLS)
    wait_for(lambda: receiver.at("/kill"), 10)
    workers = fragile.stack.facts["pids"]["worker"]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    receiver.hanging = set()
    receiver.let_go.set()
    wait_for(lambda: states(fragile, endpoint["id"]) == {"delivered": CALLS}, 60)
    seen = Counter(message.id for message in receiver.at("/kill"))
    assert len(seen) == CALLS
    assert max(seen.values()) == 2, "what was on its way was sent again"
    again = [message for message in receiver.at("/kill") if message.at > killed_at and seen[message.id] == 2]
    assert again
    assert all(message.at >= killed_at + TIMEOUT_SECONDS for message in again), "not before the dead one's lease"
    bodies: dict[str, set[bytes]] = {}
    for message in receiver.at("/kill"):
        assert message.verified(endpoint["secret"])
        bodies.setdefault(message.id, set()).add(message.body)
    assert all(len(found) == 1 for found in bodies.values()), "an id stands for one body"
    lost = fragile.rows(
        "SELECT count(*) AS n FROM tenants_webhookattempt a JOIN tenants_webhookdelivery d ON d.id = a.delivery_id "
        "WHERE d.endpoint_id = %s AND a.error = 'worker_lost'",
        endpoint["id"],
    )
    assert lost[0]["n"] == sum(1 for count in seen.values() if count == 2)


def test_secrets_stand_in_no_log_and_no_row(fragile: System, receiver: Receiver) -> None:
    customer = fragile.tenant()
    secret = registered(fragile, customer, receiver.url("/log"))["secret"].removeprefix("whsec_")
    detached_calls(fragile, customer, 1)
    wait_for(lambda: receiver.at("/log"), 10)
    logs = [path.read_text() for path in (fragile.stack.supervisor.folder / "log").glob("*.log")]
    assert any(logs)
    assert not any(secret in text for text in logs)
    rows = fragile.rows("SELECT p::text AS text FROM tenants_webhookendpoint p")
    assert rows
    assert not any(secret in row["text"] for row in rows)
