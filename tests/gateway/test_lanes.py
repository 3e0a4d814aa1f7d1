"""Many calls in the batch lane hold up no interactive one, and all of them end."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiplatform.gateway.runtime import Places
from tests.fakes.provider import FakeProvider
from tests.system import System, set_up_provider, start_system
from tests.waiting import wait_for

BATCH = {"prefer": "respond-async", "x-lane": "batch"}
CHAT = "/v1/chat/completions"
CALLS = 300


@pytest.fixture(scope="module")
def narrow(far_end: FakeProvider) -> Iterator[System]:
    """A system whose worker has eight places."""
    with start_system(far_end, WORKER_PLACES="8") as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


def test_interactive_calls_are_answered_soon_while_300_batch_calls_wait(narrow: System) -> None:
    customer, canary = narrow.tenant(), f"lane-{uuid.uuid4().hex[:8]}"
    narrow.far_end.script(match=canary, latency_ms=200)
    body = {"model": "fake-1", "max_tokens": 50, "messages": [{"role": "user", "content": canary}]}
    with narrow.http(customer.key) as http:
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda _: http.post(CHAT, json=body, headers=BATCH), range(CALLS)))
        assert {reply.status_code for reply in replies} == {202}
        took = []
        for _ in range(10):
            began = time.monotonic()
            assert http.post(CHAT, json=body).status_code == 200
            took.append(time.monotonic() - began)
    waiting = "SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s AND lane = 'batch' AND state = 'held'"
    assert narrow.rows(waiting, customer.key_id)[0]["n"] > 0, "the batch was over before the interactive calls"
    assert sorted(took)[5] < 2
    settled = "SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s AND lane = 'batch' AND state = 'settled'"
    wait_for(lambda: narrow.rows(settled, customer.key_id)[0]["n"] == CALLS, seconds=60)


def test_the_batch_lane_takes_its_share_beside_interactive_calls_and_all_places_without_them() -> None:
    places = Places(8, 0.25)
    assert places.take_batch(100, timeout=0) == 8
    assert places.take(100, timeout=0) == 8
    places.give(7, "batch")
    assert places.take_batch(100, timeout=0) == 1
    places.give(8)
    assert places.take_batch(100, timeout=0) == 6


def test_the_batch_lane_always_has_a_place() -> None:
    places = Places(2, 0.0)
    assert (places.take(2, timeout=0), places.take_batch(5, timeout=0)) == (2, 1)
