"""A call that was handed in is carried out whoever dies, settled once, and fetched by its id."""

import os
import signal
import uuid
from typing import Any

import httpx2
import pytest

from tests.system import Customer, System
from tests.waiting import wait_for

ASYNC = {"prefer": "respond-async"}
CHAT = "/v1/chat/completions"


def a_body(canary: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "max_tokens": 50, "messages": [{"role": "user", "content": canary}], **more}


def a_canary() -> str:
    return f"async-{uuid.uuid4().hex[:8]}"


def fetched(system: System, customer: Customer, call: str, wait: int = 20) -> httpx2.Response:
    with system.http(customer.key) as http:
        return http.get(f"/v1/calls/{call}", headers={"prefer": f"wait={wait}"}, timeout=wait + 10)


def handed_in(system: System, customer: Customer, body: dict[str, Any], **headers: str) -> httpx2.Response:
    with system.http(customer.key) as http:
        return http.post(CHAT, json=body, headers=ASYNC | headers)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_was_handed_in_is_answered_later_as_the_provider_gave_it(two_webs: System, streamed: bool) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, latency_ms=800)
    reply = handed_in(two_webs, customer, a_body(canary, stream=streamed))
    assert (reply.status_code, reply.headers["preference-applied"], reply.json()["status"]) == (
        202,
        "respond-async",
        "held",
    )
    call = reply.json()["id"]
    assert reply.headers["location"] == f"/v1/calls/{call}"
    assert fetched(two_webs, customer, call, wait=0).status_code == 202
    answer = fetched(two_webs, customer, call)
    assert (answer.status_code, answer.headers["x-call-id"]) == (200, call)
    assert float(answer.headers["x-cost-usd"]) > 0
    assert (b"[DONE]" in answer.content) is streamed
    assert streamed or answer.json()["object"] == "chat.completion"


def test_a_call_is_shown_to_its_environment_alone_and_a_malformed_id_is_400(two_webs: System) -> None:
    customer, rival = two_webs.tenant(), two_webs.tenant()
    call = handed_in(two_webs, customer, a_body(a_canary())).json()["id"]
    assert fetched(two_webs, rival, call, wait=0).json()["error"]["code"] == "call_not_found"
    assert fetched(two_webs, rival, call, wait=0).status_code == 404
    assert fetched(two_webs, customer, "call_nonsense", wait=0).status_code == 400


def test_an_idempotency_key_attaches_to_what_was_handed_in(two_webs: System) -> None:
    customer, canary, key = two_webs.tenant(), a_canary(), uuid.uuid4().hex
    two_webs.far_end.script(match=canary, latency_ms=800)
    first = handed_in(two_webs, customer, a_body(canary), **{"idempotency-key": key})
    again = handed_in(two_webs, customer, a_body(canary), **{"idempotency-key": key})
    assert (first.status_code, again.status_code, again.json()["id"]) == (202, 202, first.json()["id"])
    answer = fetched(two_webs, customer, first.json()["id"])
    stored = handed_in(two_webs, customer, a_body(canary), **{"idempotency-key": key})
    assert (stored.status_code, stored.content) == (200, answer.content)


@pytest.mark.parametrize("lane", ["interactive", "batch"])
def test_a_call_outlives_every_web_process_that_took_it(two_webs: System, lane: str) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, latency_ms=1500)
    call = handed_in(two_webs, customer, a_body(canary), **{"x-lane": lane}).json()["id"]
    for pid in two_webs.stack.facts["pids"]["web"]:
        os.kill(pid, signal.SIGKILL)
    state = "SELECT state, charged_nano FROM usage_call WHERE api_key_id = %s"
    wait_for(lambda: two_webs.rows(state, customer.key_id)[0]["state"] == "settled", seconds=30)
    charges = "SELECT count(*) AS n FROM usage_ledgerentry WHERE api_key_id = %s AND kind = 'charge'"
    assert two_webs.rows(charges, customer.key_id)[0]["n"] == 1

    def answer() -> bool:
        try:
            return fetched(two_webs, customer, call).status_code == 200
        except httpx2.HTTPError:
            return False

    wait_for(answer, seconds=30)


def test_the_batch_lane_is_for_calls_that_nobody_waits_for(two_webs: System) -> None:
    with two_webs.http(two_webs.tenant().key) as http:
        reply = http.post(CHAT, json=a_body("x"), headers={"x-lane": "batch"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-lane")
