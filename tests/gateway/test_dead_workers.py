"""A worker that dies or stands still ends its streams in a well-formed error within ten seconds, as production is set."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.fakes.provider import FakeProvider
from tests.system import System, set_up_provider, start_system
from tests.waiting import wait_for

AS_IN_PRODUCTION = {
    "LEASE_RENEW_SECONDS": "3", "LEASE_LOST_SECONDS": "15", "SWEEP_SECONDS": "3", "RELAY_SILENCE_SECONDS": "5",
    "PROVIDER_SILENCE_SECONDS": "60", "UNKNOWN_GRACE_SECONDS": "900",
}  # fmt: skip
WITHIN_SECONDS = 10
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


@pytest.fixture(scope="module")
def sober(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own, with production's times."""
    with start_system(far_end, **AS_IN_PRODUCTION) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


@pytest.mark.parametrize("wire", PATHS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stream_whose_worker_is_gone_ends_in_an_error_within_ten_seconds(
    sober: System, wire: str, how: signal.Signals
) -> None:
    customer = sober.tenant()
    canary = f"dead-{how.name}-{wire}-{time.monotonic_ns()}"
    sober.far_end.script(match=canary, output_tokens=500, pace_ms=200)
    body = {"model": "fake-1", "max_tokens": 600, "stream": True, "messages": [{"role": "user", "content": canary}]}
    (pid,) = sober.stack.facts["pids"]["worker"]
    told, hit_at = b"", 0.0
    try:
        with sober.http(customer.key) as http, http.stream("POST", PATHS[wire], json=body) as reply:
            for piece in reply.iter_raw():
                told += piece
                if not hit_at and told.count(b"data: ") > 5:
                    hit_at = time.monotonic()
                    os.kill(pid, how)
        took = time.monotonic() - hit_at
    finally:
        if how == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    last = told.rstrip(b"\n").rpartition(b"data: ")[2]
    error = json.loads(last)["error"]
    assert "answer_lost" in json.dumps(error)
    assert reply.headers["x-call-id"] in error["message"]
    assert took < WITHIN_SECONDS, took
    sober.far_end.clear()
    wait_for(lambda: answers(sober, customer.key), seconds=60)


def answers(system: System, key: str) -> bool:
    body = {"model": "fake-1", "messages": [{"role": "user", "content": "x"}]}
    return system.http(key).post(PATHS["openai"], json=body).status_code == 200
