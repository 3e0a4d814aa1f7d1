"""An Idempotency-Key stands for one call of its environment for a day: made once, charged once, answered as often as asked."""

import asyncio
import os
import signal
import time
import uuid
from typing import Any

import httpx2
import pytest
import redis

from tests.system import Customer, System
from tests.waiting import wait_for

PATHS = {"/v1/chat/completions": {}, "/v1/messages": {"anthropic-version": "2023-06-01"}}
# What may differ between a call's answer and its replays.
OWN = {"date", "x-request-id", "request-id", "idempotent-replayed", "x-budget-remaining-usd", "transfer-encoding", "content-length"}  # fmt: skip


def a_body(canary: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "max_tokens": 50, "messages": [{"role": "user", "content": canary}], **more}


def a_key() -> dict[str, str]:
    return {"idempotency-key": uuid.uuid4().hex}


def a_canary() -> str:
    return f"once-{uuid.uuid4().hex[:8]}"


def calls_of(system: System, customer: Customer) -> list[dict[str, Any]]:
    return system.rows("SELECT * FROM usage_call WHERE api_key_id = %s ORDER BY id", customer.key_id)


def charges_of(system: System, customer: Customer) -> int:
    return int(
        system.rows(
            "SELECT count(*) AS n FROM usage_ledgerentry WHERE api_key_id = %s AND kind = 'charge'", customer.key_id
        )[0]["n"]
    )


def own(reply: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name not in OWN}


def arrived(system: System, before: int) -> int:
    return system.far_end.count()["arrived"] - before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_repeated_request_gets_the_same_bytes_and_is_charged_once(
    system: System, customer: Customer, path: str, stream: bool
) -> None:
    before = system.far_end.count()["arrived"]
    with system.http(customer.key, **a_key(), **PATHS[path]) as http:
        first, second = (http.post(path, json=a_body("again", stream=stream)) for _ in range(2))
        system_redis_forgets(system, first.headers["x-call-id"])
        third = http.post(path, json=a_body("again", stream=stream))
    assert (first.status_code, second.content) == (200, first.content)
    # From Postgres: the stream's bytes are the same, only the comment about what is left of the budget is not kept.
    assert third.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == third.headers["idempotent-replayed"] == "true"
    assert own(first) == own(second) == own(third)
    assert first.headers.get("x-cost-usd") == third.headers.get("x-cost-usd")
    assert arrived(system, before) == 1
    assert (len(calls_of(system, customer)), charges_of(system, customer)) == (1, 1)


def system_redis_forgets(system: System, call: str) -> None:
    with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
        assert client.delete(f"relay:{call.removeprefix('call_')}") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_twenty_at_once_over_two_web_processes_make_one_call_and_get_twenty_equal_answers(
    two_webs: System, stream: bool
) -> None:
    assert len(two_webs.stack.facts["pids"]["web"]) == 2
    two_webs.far_end.clear()
    customer, canary, key = two_webs.tenant(), a_canary(), a_key()
    two_webs.far_end.script(match=canary, latency_ms=400, pace_ms=50 if stream else 0)
    before = two_webs.far_end.count()["arrived"]
    replies = asyncio.run(many(two_webs, customer.key, [a_body(canary, stream=stream)] * 20, key))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert len({reply.headers["x-call-id"] for reply in replies}) == 1
    assert sum("idempotent-replayed" in reply.headers for reply in replies) == 19
    assert arrived(two_webs, before) == 1
    assert (len(calls_of(two_webs, customer)), charges_of(two_webs, customer)) == (1, 1)


async def many(system: System, key: str, bodies: list[dict[str, Any]], headers: dict[str, str]) -> list[Any]:
    """Each over a connection of its own, so that the kernel spreads them over the web processes."""

    async def one(body: dict[str, Any]) -> Any:
        async with httpx2.AsyncClient(base_url=system.base_url, timeout=60, trust_env=False) as http:
            return await http.post(
                "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}", **headers}
            )

    return await asyncio.gather(*(one(body) for body in bodies))


def test_whoever_attaches_to_a_running_stream_reads_it_from_its_first_byte_while_it_runs(two_webs: System) -> None:
    two_webs.far_end.clear()
    customer, canary, key = two_webs.tenant(), a_canary(), a_key()
    two_webs.far_end.script(match=canary, pace_ms=150)

    async def first_bytes() -> list[tuple[float, bytes]]:
        async def one() -> tuple[float, bytes]:
            headers = {"authorization": f"Bearer {customer.key}", **key}
            async with httpx2.AsyncClient(base_url=two_webs.base_url, timeout=60, trust_env=False) as http, http.stream(
                "POST", "/v1/chat/completions", json=a_body(canary, stream=True), headers=headers
            ) as reply:  # fmt: skip
                pieces, heard_at = [], 0.0
                async for piece in reply.aiter_raw():
                    heard_at = heard_at or time.monotonic()
                    pieces.append(piece)
                return time.monotonic() - heard_at, b"".join(pieces)

        tasks = []
        for _ in range(6):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(0.1)
        return await asyncio.gather(*tasks)

    read = asyncio.run(first_bytes())
    assert len({body for _, body in read}) == 1
    assert all(seconds > 0.4 for seconds, _ in read)  # none had to wait for the end
    assert len(calls_of(two_webs, customer)) == 1


def test_another_body_or_path_under_the_same_key_is_422_that_says_so(system: System, customer: Customer) -> None:
    with system.http(customer.key, **a_key()) as http:
        first = http.post("/v1/chat/completions", json=a_body("one"))
        for reply in (
            http.post("/v1/chat/completions", json=a_body("two")),
            http.post("/v1/messages", json=a_body("one")),
        ):
            assert (reply.status_code, reply.headers["x-should-retry"]) == (422, "false")
            error = reply.json()["error"]
            assert (error["code"], error["call"]) == ("idempotency_key_reused", first.headers["x-call-id"])
    assert len(calls_of(system, customer)) == 1


def test_many_at_once_get_what_their_own_body_deserves(system: System, customer: Customer) -> None:
    key = a_key()
    first = system.http(customer.key, **key).post("/v1/chat/completions", json=a_body("right"))
    replies = asyncio.run(many(system, customer.key, [a_body("wrong"), a_body("right")] * 10, key))
    assert [reply.status_code for reply in replies] == [422, 200] * 10
    assert {reply.content for reply in replies[1::2]} == {first.content}
    fresh = asyncio.run(many(system, customer.key, [a_body("one"), a_body("other")] * 10, a_key()))
    made = {reply.headers["x-call-id"] for reply in fresh if reply.status_code == 200}
    assert (len(made), sum(reply.status_code == 422 for reply in fresh)) == (1, 10)


def test_a_key_is_its_environments_own(system: System, customer: Customer) -> None:
    key = a_key()
    dev, rival = another_key(system, customer, "dev"), system.tenant()
    sibling = another_key(system, customer, "prod")
    replies = {
        who: system.http(secret, **key).post("/v1/chat/completions", json=a_body("mine"))
        for who, secret in (("first", customer.key), ("dev", dev), ("rival", rival.key), ("sibling", sibling))
    }
    ids = {who: reply.headers["x-call-id"] for who, reply in replies.items()}
    assert ids["sibling"] == ids["first"]
    assert len({ids["first"], ids["dev"], ids["rival"]}) == 3
    assert [who for who, reply in replies.items() if "idempotent-replayed" in reply.headers] == ["sibling"]


def another_key(system: System, customer: Customer, environment: str) -> str:
    issued = system.manage("key_issue", "--tenant", customer.name, "--environment", environment)
    return str(issued["key"])


@pytest.mark.parametrize("bad", ["", "x" * 256, "tab\there", "n\u00e9"])
def test_a_key_is_1_to_255_printable_ascii_characters(system: System, customer: Customer, bad: str) -> None:
    headers = [(b"authorization", f"Bearer {customer.key}".encode()), (b"idempotency-key", bad.encode())]
    reply = httpx2.post(
        f"{system.base_url}/v1/chat/completions", json=a_body("x"), headers=headers, trust_env=False, timeout=30
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")
    assert calls_of(system, customer) == []


def test_a_call_that_ended_without_effect_is_made_anew(system: System, customer: Customer) -> None:
    canary = a_canary()
    system.far_end.script(match=canary, status=400, times=1)
    with system.http(customer.key, **a_key()) as http:
        statuses = [http.post("/v1/chat/completions", json=a_body(canary)).status_code for _ in range(3)]
    assert statuses == [400, 200, 200]
    assert [call["state"] for call in calls_of(system, customer)] == ["void", "settled"]


def test_an_outcome_that_nobody_knows_is_told_again_and_never_sent_again(system: System, customer: Customer) -> None:
    canary = a_canary()
    system.far_end.script(match=canary, drop="close")
    before = system.far_end.count()["arrived"]
    with system.http(customer.key, **a_key()) as http:
        first = http.post("/v1/chat/completions", json=a_body(canary))
        wait_for(lambda: calls_of(system, customer)[0]["state"] == "void")
        system_redis_forgets(system, first.headers["x-call-id"])
        second = http.post("/v1/chat/completions", json=a_body(canary))
    for reply in (first, second):
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "outcome_unknown")
    assert second.headers["x-call-id"] == first.headers["x-call-id"]
    assert arrived(system, before) == 1


def test_an_answer_too_large_to_be_kept_is_lost_by_name_and_not_made_again(system: System, customer: Customer) -> None:
    canary = a_canary()
    system.far_end.script(match=canary, text="long " * 900_000)
    with system.http(customer.key, **a_key()) as http:
        first = http.post("/v1/chat/completions", json=a_body(canary))
        assert (first.status_code, len(first.content) > 4 * 1024 * 1024) == (200, True)
        system_redis_forgets(system, first.headers["x-call-id"])
        second = http.post("/v1/chat/completions", json=a_body(canary))
    error = second.json()["error"]
    assert (second.status_code, error["code"], error["call"]) == (502, "answer_lost", first.headers["x-call-id"])
    assert second.headers["x-cost-usd"] == first.headers["x-cost-usd"]
    assert len(calls_of(system, customer)) == 1


def test_replays_count_against_no_rate_limit(system: System, customer: Customer) -> None:
    system.manage(
        "limit_set", "--tenant", customer.name, "--key", customer.key_id, "--rpm", "3", "--tpm", "1000000", "--concurrency", "1"
    )  # fmt: skip
    with system.http(customer.key, **a_key()) as http:
        statuses = [http.post("/v1/chat/completions", json=a_body("often")).status_code for _ in range(8)]
    assert statuses == [200] * 8
    with system.http(customer.key) as http:
        statuses = [http.post("/v1/chat/completions", json=a_body("often")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_key_is_forgotten_after_a_day(system: System, customer: Customer) -> None:
    with system.http(customer.key, **a_key()) as http:
        first = http.post("/v1/chat/completions", json=a_body("yesterday"))
        environment = customer.environments["prod"]
        system.rows(
            "UPDATE usage_idempotencykey SET created_at = now() - interval '23 hours 59 minutes' WHERE environment_id = %s RETURNING 1",
            environment,
        )
        assert "idempotent-replayed" in http.post("/v1/chat/completions", json=a_body("yesterday")).headers
        system.rows(
            "UPDATE usage_idempotencykey SET created_at = now() - interval '24 hours 1 second' WHERE environment_id = %s RETURNING 1",
            environment,
        )
        known = "SELECT 1 FROM usage_idempotencykey WHERE environment_id = %s"
        wait_for(lambda: not system.rows(known, environment))
        later = http.post("/v1/chat/completions", json=a_body("yesterday"))
    assert later.status_code == 200
    assert later.headers["x-call-id"] != first.headers["x-call-id"]


def test_the_sdks_send_the_key_and_read_the_replay(system: System, customer: Customer) -> None:
    messages: Any = [{"role": "user", "content": "by sdk"}]
    openai, anthropic = system.openai(customer.key), system.anthropic(customer.key)
    for create in (
        lambda key: openai.chat.completions.with_raw_response.create(
            model="fake-1", messages=messages, extra_headers=key
        ),
        lambda key: anthropic.messages.with_raw_response.create(
            model="fake-1", max_tokens=50, messages=messages, extra_headers=key
        ),
    ):
        key = {"Idempotency-Key": uuid.uuid4().hex}
        first, second = create(key), create(key)
        assert first.parse() == second.parse()
        assert second.headers["idempotent-replayed"] == "true"
        assert second.headers["x-cost-usd"] == first.headers["x-cost-usd"]
    key = {"Idempotency-Key": uuid.uuid4().hex}
    texts = [
        "".join(
            chunk.choices[0].delta.content or ""
            for chunk in openai.chat.completions.create(
                model="fake-1", messages=messages, stream=True, extra_headers=key
            )
            if chunk.choices
        )
        for _ in range(2)
    ]
    assert texts[0]
    assert texts[0] == texts[1]
    assert len(calls_of(system, customer)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_that_is_killed_leaves_all_who_wait_with_one_and_the_same_outcome(
    two_webs: System, stream: bool
) -> None:
    two_webs.far_end.clear()
    customer, canary, key = two_webs.tenant(), a_canary(), a_key()
    two_webs.far_end.script(match=canary, latency_ms=3000)
    before = two_webs.far_end.count()["arrived"]

    async def killed() -> list[Any]:
        waiting = asyncio.create_task(many(two_webs, customer.key, [a_body(canary, stream=stream)] * 6, key))
        await asyncio.to_thread(wait_for, lambda: arrived(two_webs, before))
        (pid,) = two_webs.stack.facts["pids"]["worker"]
        os.kill(pid, signal.SIGKILL)
        return await waiting

    replies = asyncio.run(killed())
    assert {(reply.status_code, reply.json()["error"]["code"]) for reply in replies} == {(502, "outcome_unknown")}
    wait_for(lambda: calls_of(two_webs, customer)[0]["state"] == "void", seconds=30)
    again = two_webs.http(customer.key, **key).post("/v1/chat/completions", json=a_body(canary, stream=stream))
    assert (again.status_code, again.json()["error"]["code"]) == (502, "outcome_unknown")
    assert (len(calls_of(two_webs, customer)), arrived(two_webs, before)) == (1, 1)
