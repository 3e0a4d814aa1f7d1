"""Answers are kept in Redis or in Memcached; either may go away at any time, and costs no more than what it saved."""

import json
import os
import signal
import time
from typing import Any

import pytest
import redis

from tests.gateway.test_cache import CHAT, a_body, a_canary, calls_with, set_cache
from tests.memcached import Memcached
from tests.system import System
from tests.waiting import wait_for


@pytest.fixture
def memcached(behind_proxy: System) -> tuple[System, Memcached]:
    """The system that keeps answers there; a limiter that has just been emptied by another test lets nobody pass."""
    if behind_proxy.memcached is None:
        pytest.skip("memcached is not installed (Debian's package has it): answers kept in it were NOT tested")
    behind_proxy.far_end.clear()
    return behind_proxy, behind_proxy.memcached


def asked_twice(system: System, **more: Any) -> list[str]:
    customer, canary = system.tenant(), a_canary()
    set_cache(system, customer)
    with system.http(customer.key) as http:
        replies = [http.post(CHAT, json=a_body(canary, **more)) for _ in range(2)]
    assert {reply.status_code for reply in replies} == {200}
    assert replies[0].content == replies[1].content or replies[1].headers["x-cache"] == "miss"
    return [reply.headers["x-cache"] for reply in replies]


@pytest.mark.parametrize("stream", [False, True])
def test_memcached_serves(memcached: tuple[System, Memcached], stream: bool) -> None:
    system, _ = memcached
    with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
        assert asked_twice(system)[1] == "hit"
        assert list(client.scan_iter(match="*aiplatform:*")) == []
    if stream:
        customer, canary = system.tenant(), a_canary()
        set_cache(system, customer)
        with system.http(customer.key) as http:
            told = [http.post(CHAT, json=a_body(canary, stream=stream)).headers["x-cache"] for _ in range(2)]
        assert told == ["miss", "hit"]
        assert calls_with(system, canary) == 1


def test_memcached_may_be_gone_and_come_back_empty(memcached: tuple[System, Memcached]) -> None:
    system, server = memcached
    server.stop()
    began = time.monotonic()
    assert asked_twice(system) == ["miss", "miss"]
    assert time.monotonic() - began < 3
    server.start()
    time.sleep(1.1)  # until it is asked again
    assert asked_twice(system) == ["miss", "hit"]


def test_kept_answers_go_on_by_the_share_of_limits_while_redis_is_away(memcached: tuple[System, Memcached]) -> None:
    system, _ = memcached
    customer, canary = system.tenant(), a_canary()
    set_cache(system, customer)
    system.manage("limit_set", "--tenant", customer.name, "--rpm", "600")
    (valkey,) = system.stack.facts["pids"]["valkey"]
    with system.http(customer.key) as http:
        assert http.post(CHAT, json=a_body(canary)).status_code == 200
        os.kill(valkey, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert http.post(CHAT, json=a_body(a_canary())).status_code == 503
            assert time.monotonic() - began < 2
            wait_for(lambda: http.post(CHAT, json=a_body(canary)).headers.get("x-cache") == "hit", seconds=5)
            handed_in = http.post(CHAT, json=a_body(a_canary()), headers={"prefer": "respond-async"})
            assert handed_in.status_code in {202, 429}
        finally:
            os.kill(valkey, signal.SIGCONT)
        wait_for(lambda: http.post(CHAT, json=a_body(a_canary())).status_code == 200, seconds=5)
    # What was handed in is carried out now that it can be.
    wait_for(lambda: not system.rows("SELECT 1 FROM usage_call WHERE is_live"))


def test_what_is_larger_than_an_entry_may_be_is_not_kept(memcached: tuple[System, Memcached]) -> None:
    system, _ = memcached
    customer, canary = system.tenant(), a_canary()
    set_cache(system, customer)
    message = {"role": "assistant", "content": "x" * 600_000}
    usage = {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9}
    reply = {"model": "fake-1", "choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}
    system.far_end.script(match=canary, body=json.dumps(reply), headers={"content-type": "application/json"})
    with system.http(customer.key) as http:
        told = [http.post(CHAT, json=a_body(canary)).headers["x-cache"] for _ in range(2)]
    assert told == ["miss", "miss"]
