"""A caller goes: his environment's policy decides what is sent further, and the ledger tells the same truth in each case."""

import asyncio
import os
import re
import signal
import time
import uuid
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from aiplatform.gateway import callers
from aiplatform.lib import redis
from tests.gateway.streams import (
    PATHS,
    Told,
    a_body,
    a_canary,
    before_comment,
    begun,
    ended,
    rest,
    the_attempt,
    the_call,
    told,
    whole,
)
from tests.system import Customer, System
from tests.waiting import wait_for

NANO_IN, NANO_OUT = 150, 600
campaign = pytest.mark.campaign("streams")
POLICIES = ("finish", "cancel", "drain")


@pytest.fixture
def gateway(two_webs: System) -> System:
    """It drains two streams at once, for three seconds."""
    return two_webs


def a_customer(system: System, policy: str) -> Customer:
    customer = system.tenant()
    system.rows("UPDATE tenants_environment SET on_disconnect = %s WHERE id = %s RETURNING 1", policy,
                uuid.UUID(customer.environments["prod"]))  # fmt: skip
    return customer


def left(system: System, customer: Customer, canary: str, pieces: int = 4, **more: Any) -> Told:
    """A stream whose reader goes after some of it; what he had."""
    with begun(system, customer, canary, **more) as (reply, chunks):
        content = b"".join(next(chunks) for _ in range(pieces))
    return Told(reply.headers["x-call-id"], content)


def at_the_provider(system: System, call: str) -> dict[str, Any]:
    (entry,) = [one for one in system.far_end.calls() if (one["request_id"] or "").startswith(call)]
    return entry


def ledger_agrees(system: System, call: dict[str, Any]) -> bool:
    entries = system.rows("SELECT kind, amount_nano, evidence FROM usage_ledgerentry WHERE ref = %s", call["id"])
    charges = [(one["amount_nano"], one["evidence"]) for one in entries if one["kind"] == "charge"]
    return charges == ([(call["charged_nano"], call["evidence"])] if call["charged_nano"] else [])


def by_usage(call: dict[str, Any]) -> int:
    return int(call["input_tokens"] * NANO_IN + call["output_tokens"] * NANO_OUT)


def words(content: bytes) -> int:
    """Bytes of text that the model said."""
    return sum(len(said) for said in re.findall(rb'"content":\s?"([^"]*)"', content))


def test_finish_carries_the_stream_to_its_end_and_keeps_the_answer(gateway: System) -> None:
    customer, canary = a_customer(gateway, "finish"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=80, output_tokens=20)
    had = left(gateway, customer, canary)
    call = ended(gateway, had.call)
    assert (call["evidence"], call["output_tokens"], call["charged_nano"]) == ("provider", 20, by_usage(call))
    assert ledger_agrees(gateway, call)
    assert at_the_provider(gateway, had.call)["outcome"] == "finished"
    more = rest(gateway, customer, had.call, had.numbers[-1]).content
    assert before_comment(had.content + more) == before_comment(whole(gateway, customer, had.call).content)


def test_cancel_closes_the_stream_at_once_and_charges_what_was_counted(gateway: System) -> None:
    customer, canary = a_customer(gateway, "cancel"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=150, output_tokens=100)
    had = left(gateway, customer, canary)
    went_at = time.monotonic()
    call = ended(gateway, had.call, seconds=5)
    assert time.monotonic() - went_at < 2.5
    wait_for(lambda: at_the_provider(gateway, had.call).get("outcome") == "aborted", seconds=2)
    kept = whole(gateway, customer, had.call).content
    assert kept.startswith(before_comment(had.content)[:200])
    assert b"caller_gone" in kept
    assert (call["evidence"], call["error_code"], call["charged_nano"]) == ("counted", "caller_gone", by_usage(call))
    assert call["output_tokens"] == -(-words(kept) // 4) > 0
    assert call["input_tokens"] > 0
    assert the_attempt(gateway, had.call)["outcome"] == "closed"
    assert ledger_agrees(gateway, call)


@pytest.mark.usefixtures("committed_db")
def test_a_worker_hears_of_it_at_once_and_not_with_its_next_beat() -> None:
    async def heard() -> tuple[bool, bool]:
        pulse = callers.Pulse(uuid.uuid4(), asyncio.get_running_loop())
        hearing = pulse.hear()  # and no beat ever
        going, coming = (
            SimpleNamespace(id=uuid.uuid4(), streamed=True, headers={"on_disconnect": "cancel"}) for _ in "ab"
        )
        async with asyncio.timeout(5):
            while not redis.client().pubsub_numsub("relay:gone")[0][1]:  # noqa: ASYNC110 - Redis tells nobody of it
                await asyncio.sleep(0.01)
            with pulse.caller(going, lambda: None) as gone, pulse.caller(coming, lambda: None) as back:
                callers.come_back([coming.id])
                callers.leave([coming.id, going.id])
                while not gone.has_gone:  # noqa: ASYNC110 - it is told to the stream alone
                    await asyncio.sleep(0.01)
        hearing.cancel()
        return gone.has_gone, back.has_gone

    assert asyncio.run(heard()) == (True, False)


def test_drain_relays_nothing_more_but_hears_the_providers_usage(gateway: System) -> None:
    customer, canary = a_customer(gateway, "drain"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=80, output_tokens=30)
    had = left(gateway, customer, canary)
    time.sleep(0.6)  # who asks for the rest before the worker knows keeps his stream
    assert b"caller_gone" in rest(gateway, customer, had.call, had.numbers[-1]).content
    call = ended(gateway, had.call)
    assert (call["evidence"], call["output_tokens"], call["charged_nano"]) == ("provider", 30, by_usage(call))
    assert at_the_provider(gateway, had.call)["outcome"] == "finished"
    assert ledger_agrees(gateway, call)
    kept = whole(gateway, customer, had.call).content
    assert b"[DONE]" in kept
    assert b"caller_gone" not in kept


@pytest.mark.parametrize("policy", ["cancel", "drain"])
def test_a_stream_that_the_provider_carries_out_in_the_background_goes_on_for_who_comes_back(
    gateway: System, policy: str
) -> None:
    customer, canary = a_customer(gateway, policy), a_canary()
    gateway.far_end.script(match=canary, pace_ms=80, output_tokens=30)
    body = {"model": "fake-1", "input": canary, "stream": True, "background": True, "max_output_tokens": 60}
    with gateway.http(customer.key) as http, http.stream("POST", "/v1/responses", json=body) as reply:
        chunks = reply.iter_raw()
        had = Told(reply.headers["x-call-id"], b"".join(next(chunks) for _ in range(6)))
    time.sleep(0.6)
    more = rest(gateway, customer, had.call, had.numbers[-1]).content
    assert b"caller_gone" not in more
    assert b"response.completed" in more
    call = ended(gateway, had.call)
    assert (call["evidence"], call["charged_nano"]) == ("provider", by_usage(call))
    assert ledger_agrees(gateway, call)


@campaign
def test_a_drain_that_takes_too_long_is_closed_and_counted(gateway: System) -> None:
    customer, canary = a_customer(gateway, "drain"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=200, output_tokens=150)
    had = left(gateway, customer, canary)
    went_at = time.monotonic()
    call = ended(gateway, had.call, seconds=10)
    assert 2.5 < time.monotonic() - went_at < 8
    assert (call["evidence"], call["charged_nano"]) == ("counted", by_usage(call))
    assert call["output_tokens"] > -(-words(had.content) // 4)
    assert the_attempt(gateway, had.call)["outcome"] == "closed"


def test_no_more_streams_are_drained_at_once_than_the_bound_says(gateway: System) -> None:
    customer, canary = a_customer(gateway, "drain"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=70, output_tokens=30)
    calls = [left(gateway, customer, canary, pieces=2).call for _ in range(3)]
    evidence = sorted(ended(gateway, call)["evidence"] for call in calls)
    assert evidence == ["counted", "provider", "provider"]


@campaign
@pytest.mark.parametrize("policy", POLICIES)
def test_a_plain_call_that_was_sent_is_finished_since_the_provider_charges_it(gateway: System, policy: str) -> None:
    customer, canary = a_customer(gateway, policy), a_canary()
    gateway.far_end.script(match=canary, latency_ms=1500)
    with (
        gateway.http(customer.key) as http,
        pytest.raises(httpx2.ReadTimeout),
    ):
        http.post(PATHS["openai"], json=a_body(canary, stream=False), timeout=0.7)
    state = "SELECT id, state, evidence, charged_nano FROM usage_call WHERE api_key_id = %s"
    wait_for(lambda: gateway.rows(state, customer.key_id)[0]["state"] == "settled")
    (call,) = gateway.rows(state, customer.key_id)
    assert call["evidence"] == "provider"
    assert ledger_agrees(gateway, call)


@pytest.mark.parametrize(
    ("policy", "stream"),
    [
        ("cancel", True),
        *(pytest.param(policy, stream, marks=campaign) for policy in POLICIES for stream in (True, False)),
    ],
)
def test_a_call_that_no_worker_has_begun_is_void_at_no_cost_unless_it_is_to_be_finished(
    gateway: System, policy: str, stream: bool
) -> None:
    customer, canary = a_customer(gateway, policy), a_canary()
    (worker,) = gateway.stack.facts["pids"]["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        with gateway.http(customer.key) as http, pytest.raises(httpx2.ReadTimeout):
            http.post(PATHS["openai"], json=a_body(canary, stream=stream), timeout=0.7)
        state = "SELECT state, error_code, charged_nano FROM usage_call WHERE api_key_id = %s"
        if policy != "finish":
            wait_for(lambda: gateway.rows(state, customer.key_id)[0]["state"] == "void", seconds=3)
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_for(lambda: gateway.rows(state, customer.key_id)[0]["state"] in {"settled", "void"})
    (call,) = gateway.rows(state, customer.key_id)
    arrived = [one for one in gateway.far_end.calls() if one["canary"] == canary]
    if policy == "finish":
        assert (call["charged_nano"] > 0, len(arrived)) == (True, 1)
    else:
        assert (call, arrived) == ({"state": "void", "error_code": "caller_gone", "charged_nano": 0}, [])


@campaign
def test_who_sent_an_idempotency_key_may_come_back_so_his_call_is_finished(gateway: System) -> None:
    customer, canary = a_customer(gateway, "cancel"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=80, output_tokens=20)
    key = {"idempotency-key": uuid.uuid4().hex}
    had = left(gateway, customer, canary, headers=key)
    with gateway.http(customer.key) as http:
        again = http.post(PATHS["openai"], json=a_body(canary), headers=key)
    assert (again.headers["x-call-id"], b"[DONE]" in again.content) == (had.call, True)
    assert ended(gateway, had.call)["evidence"] == "provider"


def test_who_asks_for_the_rest_keeps_his_stream_though_the_policy_is_to_cancel(gateway: System) -> None:
    """The reader's second connection is there before the first one is known to be gone."""
    customer, canary = a_customer(gateway, "cancel"), a_canary()
    gateway.far_end.script(match=canary, pace_ms=100, output_tokens=30)
    with gateway.http(customer.key) as second, begun(gateway, customer, canary) as (reply, chunks):
        had = Told(reply.headers["x-call-id"], b"".join(next(chunks) for _ in range(3)))
        with second.stream("GET", f"/v1/calls/{had.call}/stream", params={"starting_after": "2"}) as more:
            going_on = more.iter_raw()
            next(going_on)
            reply.close()
            content = b"".join(going_on)
    assert b"[DONE]" in content
    assert ended(gateway, had.call)["evidence"] == "provider"


@campaign
def test_a_stream_that_was_read_to_its_end_is_left_alone_by_every_policy(gateway: System) -> None:
    for policy in POLICIES:
        customer = a_customer(gateway, policy)
        call = ended(gateway, told(gateway, customer, a_canary()).call)
        assert (call["evidence"], call["error_code"]) == ("provider", "")
        assert the_call(gateway, f"call_{call['id']}")["state"] == "settled"


def test_the_operator_sets_the_policy(gateway: System) -> None:
    customer = gateway.tenant()
    said = gateway.manage(
        "environment_set", "--tenant", customer.name, "--environment", "prod", "--on-disconnect", "drain"
    )
    assert said["on_disconnect"] == "drain"
    again = gateway.manage("environment_set", "--tenant", customer.name, "--environment", "prod")
    assert again["on_disconnect"] == "drain"


@campaign
def test_the_ledger_agrees_after_all_of_it(gateway: System) -> None:
    live = "SELECT count(*) AS n FROM usage_call WHERE is_live"
    wait_for(lambda: gateway.rows(live)[0]["n"] == 0, seconds=30)
    verified = gateway.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])
