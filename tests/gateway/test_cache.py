"""An answer that was made once is given again to the same question of the same environment, and to nobody else."""

import asyncio
import json
import os
import random
import re
import signal
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx2
import psycopg
import pytest
import redis

from tests.system import Customer, System
from tests.waiting import wait_for

CHAT, MESSAGES, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"
ANTHROPIC = {"anthropic-version": "2023-06-01"}
WHOLE_TTL = 300


def a_canary() -> str:
    return f"kept-{uuid.uuid4().hex[:8]}"


def a_body(canary: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "max_tokens": 50, "messages": [{"role": "user", "content": canary}], **more}


def a_response(canary: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "input": canary, "max_output_tokens": 50, "store": False, **more}


BODIES: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, str]]] = {
    CHAT: (a_body, {}),
    MESSAGES: (a_body, ANTHROPIC),
    RESPONSES: (a_response, {}),
}


def set_cache(system: System, customer: Customer, environment: str = "prod", **columns: Any) -> None:
    """By row; a process that has seen the key knows it within a second."""
    given = {"cache": "on", **columns}
    with psycopg.connect(system.stack.facts["database_url"]) as connection:
        for name, value in given.items():
            connection.execute(
                f"UPDATE tenants_environment SET {name} = %s WHERE id = %s",  # noqa: S608 - names of our own
                [value, customer.environments[environment]],
            )


@pytest.fixture
def cached(system: System, customer: Customer) -> Customer:
    """A customer whose production environment keeps answers."""
    set_cache(system, customer)
    return customer


def another_key(system: System, customer: Customer, environment: str) -> str:
    """A key of another environment of the same tenant."""
    issued = system.manage("key_issue", "--tenant", customer.name, "--environment", environment)
    return str(issued["key"])


def calls_with(system: System, canary: str) -> int:
    """How many attempts were made for calls whose body has the canary."""
    return len(
        system.rows(
            """SELECT a.call_id FROM usage_attempt a JOIN usage_callpayload p ON p.call_id = a.call_id AND p.kind = 'request'
               WHERE position(%s::bytea in p.body) > 0""",
            canary.encode(),
        )
    )


def rows_of(system: System, customer: Customer) -> list[dict[str, Any]]:
    return system.rows(
        "SELECT * FROM usage_call WHERE tenant_id = (SELECT tenant_id FROM tenants_apikey WHERE id = %s) ORDER BY id",
        customer.key_id,
    )


def settled_rows(system: System, customer: Customer, number: int) -> list[dict[str, Any]]:
    """So many calls, once they are on record and have ended."""
    wait_for(lambda: sum(row["state"] in {"settled", "void"} for row in rows_of(system, customer)) == number)
    return rows_of(system, customer)


def charges_of(system: System, customer: Customer) -> list[int]:
    rows = system.rows(
        "SELECT amount_nano FROM usage_ledgerentry WHERE api_key_id = %s AND kind = 'charge' ORDER BY number",
        customer.key_id,
    )
    return [int(row["amount_nano"]) for row in rows]


def ledger_agrees(system: System) -> None:
    assert system.manage("ledger_verify")["drift"] == []


@pytest.mark.parametrize("path", BODIES)
def test_a_second_call_gets_the_first_ones_answer_byte_for_byte_and_free_of_charge(
    system: System, cached: Customer, path: str
) -> None:
    (body, headers), canary = BODIES[path], a_canary()
    with system.http(cached.key, **headers) as http:
        first, second = (http.post(path, json=body(canary)) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert second.headers["x-cache-source"] == first.headers["x-call-id"] != second.headers["x-call-id"]
    assert second.headers["x-cost-usd"] == "0.000000000"
    assert second.headers["x-saved-usd"] == first.headers["x-cost-usd"] != "0.000000000"
    assert 0 <= int(second.headers["age"]) < 60
    assert calls_with(system, canary) == 1
    made, given = settled_rows(system, cached, 2)
    assert (given["cached"], given["cached_from"], given["state"]) == ("exact", made["id"], "settled")
    assert (given["charged_nano"], given["saved_nano"]) == (0, made["charged_nano"])
    assert charges_of(system, cached) == [made["charged_nano"]]
    ledger_agrees(system)


def test_embeddings_are_given_again(media: System, customer: Customer) -> None:
    set_cache(media, customer)
    with media.http(customer.key) as http:
        first, second = (http.post(EMBEDDINGS, json={"model": "embed-1", "input": "the same words"}) for _ in range(2))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert second.content == first.content


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_is_given_again_as_the_same_stream(system: System, cached: Customer, path: str) -> None:
    body, headers = BODIES[path]
    canary = a_canary()
    with system.http(cached.key, **headers) as http:
        first, second = (http.post(path, json=body(canary, stream=True)) for _ in range(2))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert second.headers["content-type"] == first.headers["content-type"]
    comment = b": cost_usd="
    assert second.content == b"".join(
        line for line in first.content.splitlines(keepends=True) if not line.startswith(comment)
    )
    assert calls_with(system, canary) == 1


@pytest.mark.parametrize(("first_streams", "path"), [(streams, path) for streams in (False, True) for path in BODIES])
def test_a_plain_answer_serves_a_streamed_request_and_the_other_way_round(
    system: System, cached: Customer, path: str, first_streams: bool
) -> None:
    body, headers = BODIES[path]
    canary = a_canary()
    with system.http(cached.key, **headers) as http:
        first = http.post(path, json=body(canary, stream=first_streams))
        second = http.post(path, json=body(canary, stream=not first_streams))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert second.headers["content-type"].startswith("text/event-stream" if not first_streams else "application/json")
    assert calls_with(system, canary) == 1


def test_the_official_sdk_reads_a_kept_answer_in_either_form(system: System, cached: Customer) -> None:
    canary = a_canary()
    openai, anthropic = system.openai(cached.key), system.anthropic(cached.key)
    plain = openai.chat.completions.create(**a_body(canary))
    with openai.chat.completions.stream(**a_body(canary)) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == plain.choices[0].message.content
    message = anthropic.messages.create(**a_body(canary))
    with anthropic.messages.stream(**a_body(canary)) as events:
        again = events.get_final_message()
    assert again.content[0].text == message.content[0].text  # type: ignore[union-attr]
    assert again.usage.output_tokens == message.usage.output_tokens
    assert calls_with(system, canary) == 2  # one on each wire


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5}, {"max_tokens": 51}, {"model": "fake-2"}, {"n": 2}, {"seed": 1}, {"top_p": 0.9},
        {"messages": [{"role": "user", "content": "other words"}]}, {"stop": ["x"]}, {"whatever_comes": {"next": 1}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"response_format": {"type": "json_object"}}, {"service_tier": "default"}, {"logit_bias": {"1": 2}},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_may_change_the_answer_is_another_question(
    system: System, cached: Customer, change: dict[str, Any]
) -> None:
    with system.http(cached.key) as http:
        body = a_body(a_canary())
        assert http.post(CHAT, json=body).headers["x-cache"] == "miss"
        assert http.post(CHAT, json=body | change).headers.get("x-cache") != "hit"


@pytest.mark.parametrize(
    "change",
    [{"user": "ada"}, {"metadata": {"a": "b"}}, {"stream_options": {"include_usage": True}, "stream": True}],
    ids=str,
)
def test_who_asks_and_how_it_is_told_is_the_same_question(
    system: System, cached: Customer, change: dict[str, Any]
) -> None:
    canary = a_canary()
    with system.http(cached.key) as http:
        http.post(CHAT, json=a_body(canary, stream="stream" in change))
        reordered = dict(reversed((a_body(canary, stream="stream" in change) | change).items()))
        assert http.post(CHAT, content=json.dumps(reordered, indent=2)).headers["x-cache"] == "hit"


def test_tenants_environments_and_wires_share_nothing(system: System, cached: Customer) -> None:
    other = system.tenant()
    set_cache(system, other)
    set_cache(system, cached, "staging")
    canary = a_canary()
    with system.http(cached.key) as http:
        http.post(CHAT, json=a_body(canary))
        assert http.post(CHAT, json=a_body(canary)).headers["x-cache"] == "hit"
        assert http.post(MESSAGES, json=a_body(canary), headers=ANTHROPIC).headers["x-cache"] == "miss"
    for key in (other.key, another_key(system, cached, "staging")):
        with system.http(key) as http:
            assert http.post(CHAT, json=a_body(canary)).headers["x-cache"] == "miss"


def test_nothing_is_kept_unless_the_environment_or_the_request_asks_for_it(system: System, customer: Customer) -> None:
    canary = a_canary()
    with system.http(customer.key) as http:
        for _ in range(2):
            assert "x-cache" not in http.post(CHAT, json=a_body(canary)).headers
        wish = {"cache-control": "max-age=60"}
        told = [http.post(CHAT, json=a_body(canary), headers=wish).headers["x-cache"] for _ in range(2)]
    assert told == ["miss", "hit"]
    assert calls_with(system, canary) == 3


def test_an_environment_that_is_off_keeps_nothing_whatever_is_asked(system: System, customer: Customer) -> None:
    set_cache(system, customer, cache="off")
    with system.http(customer.key) as http:
        for _ in range(2):
            reply = http.post(CHAT, json=a_body("off"), headers={"cache-control": "max-age=60"})
            assert (reply.status_code, reply.headers.get("x-cache")) == (200, None)


def test_a_request_may_refuse_or_renew_or_want_it_young(system: System, cached: Customer) -> None:
    canary = a_canary()

    def asked(wish: str) -> httpx2.Response:
        return http.post(CHAT, json=a_body(canary), headers={"cache-control": wish} if wish else {})

    with system.http(cached.key) as http:
        assert "x-cache" not in asked("no-store").headers
        assert asked("").headers["x-cache"] == "miss"  # that one was not kept
        first = asked("")
        assert first.headers["x-cache"] == "hit"
        renewed = asked("no-cache")
        assert renewed.headers["x-cache"] == "refresh"
        assert asked("").headers["x-cache-source"] == renewed.headers["x-call-id"]
        time.sleep(1.1)
        assert asked("max-age=1").headers["x-cache"] == "miss"
        assert asked("max-age=0").headers["x-cache"] == "refresh"
        wrong = asked("max-age=soon")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "cache-control")


def test_an_answer_is_given_no_longer_than_its_environment_says(system: System, customer: Customer) -> None:
    set_cache(system, customer, cache_ttl_seconds=1)
    canary = a_canary()
    with system.http(customer.key) as http:
        told = [http.post(CHAT, json=a_body(canary)).headers["x-cache"] for _ in range(2)]
        time.sleep(1.2)
        told.append(http.post(CHAT, json=a_body(canary), headers={"cache-control": "max-age=900"}).headers["x-cache"])
    assert told == ["miss", "hit", "miss"]


def test_white_space_and_case_are_another_question_unless_the_environment_says_so(
    system: System, customer: Customer
) -> None:
    set_cache(system, customer, cache_normalises=True)
    canary, plain = a_canary(), system.tenant()
    set_cache(system, plain)
    for one, expected in ((customer, ["miss", "hit", "miss"]), (plain, ["miss", "miss", "miss"])):
        with system.http(one.key) as http:
            told = [
                http.post(CHAT, json=a_body("", messages=said)).headers["x-cache"]
                for said in (
                    [{"role": "system", "content": "Be brief"}, {"role": "user", "content": f"Tell  me {canary}"}],
                    [{"role": "system", "content": "Be brief"}, {"role": "user", "content": f"tell me\n{canary} "}],
                    [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"tell me\n{canary} "}],
                )
            ]
        assert told == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, {"model": "fake-1", "input": "kept by the provider", "max_output_tokens": 50}),
        (CHAT, a_body("stored", store=True)),
        (CHAT, a_body("", messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}]}])),
    ],
    ids=["stored response", "stored completion", "an image elsewhere"],
)  # fmt: skip
def test_what_is_kept_by_the_provider_or_lies_elsewhere_is_not_given_again(
    system: System, cached: Customer, path: str, body: dict[str, Any]
) -> None:
    with system.http(cached.key) as http:
        for _ in range(2):
            reply = http.post(path, json=body)
            assert (reply.status_code, reply.headers.get("x-cache")) == (200, "bypass"), reply.text


def test_errors_and_answers_cut_by_a_cap_are_not_kept(system: System, cached: Customer) -> None:
    canary = a_canary()
    system.far_end.script(match=canary, times=1, status=500)
    with system.http(cached.key) as http:
        assert http.post(CHAT, json=a_body(canary)).status_code >= 500
        assert http.post(CHAT, json=a_body(canary)).headers["x-cache"] == "miss"
    poor = system.tenant()
    set_cache(system, poor)
    system.manage("cap_set", "--tenant", poor.name, "--period", "month", "--usd", "0.0010")
    with system.http(poor.key) as http:
        first = http.post(CHAT, json=a_body(canary, max_tokens=1_000_000))
        assert "x-budget-clamped" in first.headers
        assert http.post(CHAT, json=a_body(canary, max_tokens=1_000_000)).headers.get("x-cache") != "hit"


def test_a_purge_takes_back_what_was_made_until_then(system: System, cached: Customer) -> None:
    canary = a_canary()
    scope = ("--tenant", cached.name, "--environment", "prod")

    def told() -> str:
        return str(http.post(CHAT, json=a_body(canary)).headers["x-cache"])

    with system.http(cached.key) as http:
        for purge in ((), ("--model", "fake-1"), ("--key", cached.key_id)):
            http.post(CHAT, json=a_body(canary), headers={"cache-control": "no-cache"})
            assert told() == "hit"
            system.manage("cache_purge", *scope, "--model", "another")
            time.sleep(1.2)
            assert told() == "hit"
            system.manage("cache_purge", *scope, *purge)
            wait_for(lambda: told() != "hit", seconds=1.5)
            assert told() == "hit"  # what is made from then on is kept


def test_another_policy_is_another_question(system: System, cached: Customer) -> None:
    canary = a_canary()
    with system.http(cached.key) as http:
        http.post(CHAT, json=a_body(canary))
        assert http.post(CHAT, json=a_body(canary)).headers["x-cache"] == "hit"
        system.manage("policy_set", "--tenant", cached.name, "--environment", "prod", "--block", canary)
        wait_for(lambda: http.post(CHAT, json=a_body(canary)).status_code == 400, seconds=3)


def test_a_plan_may_take_a_share_of_what_is_saved(system: System, cached: Customer) -> None:
    canary, plan = a_canary(), f"plan-{uuid.uuid4().hex[:6]}"
    system.manage("plan_set", plan, "--cache-hit-bps", "3333")
    system.manage("plan_assign", cached.name, plan)
    system.manage("cap_set", "--tenant", cached.name, "--period", "month", "--usd", "1")
    time.sleep(1.1)  # plans are as of a second ago where nothing is held
    with system.http(cached.key) as http:
        first = http.post(CHAT, json=a_body(canary))
        second = http.post(CHAT, json=a_body(canary))
    assert second.headers["x-cache"] == "hit"
    made, given = settled_rows(system, cached, 2)
    share = round(made["charged_nano"] * 3333 / 10000)
    assert given["charged_nano"] == share > 0
    assert given["saved_nano"] == made["charged_nano"] - share
    assert charges_of(system, cached) == [made["charged_nano"], share]
    assert second.headers["x-cost-usd"] == f"{share / 10**9:.9f}"
    (bucket,) = system.rows(
        """SELECT b.spent_nano, b.held_nano FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id
           WHERE c.tenant_id = (SELECT tenant_id FROM tenants_apikey WHERE id = %s)""",
        cached.key_id,
    )
    assert (bucket["spent_nano"], bucket["held_nano"]) == (made["charged_nano"] + share, 0)
    receipt = (
        http_receipt(system, cached, first.headers["x-call-id"]),
        http_receipt(system, cached, second.headers["x-call-id"]),
    )
    assert receipt[1]["given_again"]["source"] == receipt[0]["id"]
    assert sum(float(line["usd"]) for line in receipt[1]["lines"]) == pytest.approx(share / 10**9)
    ledger_agrees(system)


def http_receipt(system: System, customer: Customer, call: str) -> dict[str, Any]:
    with system.http(customer.key) as http:
        return http.get(f"/api/calls/{call}").json()  # type: ignore[no-any-return]


def test_an_idempotency_key_stands_for_the_answer_that_was_given_again(system: System, cached: Customer) -> None:
    canary, key = a_canary(), {"idempotency-key": uuid.uuid4().hex}
    with system.http(cached.key) as http:
        made = http.post(CHAT, json=a_body(canary))
        first, second = (http.post(CHAT, json=a_body(canary), headers=key) for _ in range(2))
        assert first.headers["x-cache"] == "hit"
        assert second.headers["idempotent-replayed"] == "true"
        assert first.content == second.content == made.content
        assert second.headers["x-call-id"] == first.headers["x-call-id"]
        assert http.post(CHAT, json=a_body("another"), headers=key).status_code == 422
    assert len(settled_rows(system, cached, 2)) == 2
    ledger_agrees(system)


def test_a_call_that_nobody_waits_for_gets_a_kept_answer_too(system: System, cached: Customer) -> None:
    canary = a_canary()
    with system.http(cached.key) as http:
        made = http.post(CHAT, json=a_body(canary))
        accepted = http.post(CHAT, json=a_body(canary), headers={"prefer": "respond-async"})
        assert (accepted.status_code, accepted.headers["x-cache"]) == (202, "hit")
        fetched = http.get(accepted.headers["location"])
    assert (fetched.status_code, fetched.content) == (200, made.content)
    assert calls_with(system, canary) == 1


def test_a_hit_counts_as_a_request_and_as_no_tokens(system: System, cached: Customer) -> None:
    canary = a_canary()
    with system.http(cached.key) as http:
        http.post(CHAT, json=a_body(canary))
        system.manage("limit_set", "--tenant", cached.name, "--rpm", "3", "--tpm", "60", "--concurrency", "1")
        wait_for(lambda: http.get("/v1/me/usage").json()["rate_limits"], seconds=3)
        replies = [http.post(CHAT, json=a_body(canary)) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert {reply.headers["x-cache"] for reply in replies[:3]} == {"hit"}


def test_a_lost_cache_costs_the_saving_and_nothing_else(system: System, cached: Customer) -> None:
    canary = a_canary()
    with system.http(cached.key) as http:
        http.post(CHAT, json=a_body(canary))
        with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
            for name in client.scan_iter(match="aiplatform:*"):
                client.set(name, b"not an entry")
        reply = http.post(CHAT, json=a_body(canary))
    assert (reply.status_code, reply.headers["x-cache"]) == (200, "miss")


async def at_once(system: System, keys: list[str], body: dict[str, Any], path: str = CHAT) -> list[httpx2.Response]:
    """Each over a connection of its own, so that the kernel spreads them over the web processes."""

    async def one(key: str) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=system.base_url, timeout=60, trust_env=False) as http:
            return await http.post(path, json=body, headers={"authorization": f"Bearer {key}"})

    return await asyncio.gather(*(one(key) for key in keys))


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.campaign("limits"))])
def test_a_hundred_at_once_make_one_call_one_charge_and_ninety_nine_coalesced_rows(
    two_webs: System, stream: bool
) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    set_cache(two_webs, customer)
    two_webs.manage("limit_set", "--tenant", customer.name, "--tpm", "100000", "--concurrency", "100")
    two_webs.far_end.script(match=canary, latency_ms=600)
    replies = asyncio.run(at_once(two_webs, [customer.key] * 100, a_body(canary, stream=stream)))
    assert {reply.status_code for reply in replies} == {200}
    assert calls_with(two_webs, canary) == 1
    rows = settled_rows(two_webs, customer, 100)
    (made,) = [row for row in rows if not row["cached"]]
    given = [row for row in rows if row["cached"] == "coalesced"]
    assert len(given) == 99
    assert {row["cached_from"] for row in given} == {made["id"]}
    assert {row["saved_nano"] for row in given} == {made["charged_nano"]}
    assert charges_of(two_webs, customer) == [made["charged_nano"]]
    assert len({without_cost(reply.content) for reply in replies}) == 1
    assert sorted({reply.headers["x-cache"] for reply in replies}) == ["coalesced", "miss"]
    ledger_agrees(two_webs)
    with two_webs.http(customer.key) as http:  # of their limits they used as little
        wait_for(lambda: left_of(http, "concurrent_calls") == 100 and left_of(http, "tokens_per_minute") > 99_900)


def left_of(http: httpx2.Client, name: str) -> int:
    return next(int(one["remaining"]) for one in http.get("/v1/me/usage").json()["rate_limits"] if one["name"] == name)


def without_cost(body: bytes) -> bytes:
    return b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b": cost_usd="))


def test_those_who_wait_survive_the_failure_of_the_one_they_wait_for(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    set_cache(two_webs, customer)
    two_webs.far_end.script(match=canary, times=1, latency_ms=500, status=500)
    two_webs.far_end.script(match=canary, latency_ms=300)
    replies = asyncio.run(at_once(two_webs, [customer.key] * 12, a_body(canary)))
    codes = sorted(reply.status_code for reply in replies)
    assert codes[:11] == [200] * 11
    rows = settled_rows(two_webs, customer, 12)
    assert sum(row["cached"] == "coalesced" for row in rows) == 10
    ledger_agrees(two_webs)


def test_a_provider_that_refuses_the_question_is_asked_once(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    set_cache(two_webs, customer)
    two_webs.far_end.script(match=canary, latency_ms=400, status=400)
    replies = asyncio.run(at_once(two_webs, [customer.key] * 10, a_body(canary)))
    assert {reply.status_code for reply in replies} == {400}
    assert calls_with(two_webs, canary) == 1
    assert len({reply.content for reply in replies}) == 1
    rows = settled_rows(two_webs, customer, 10)
    assert {f"call_{row['id']}" for row in rows} == {reply.headers["x-call-id"] for reply in replies}
    ledger_agrees(two_webs)


def test_where_the_first_is_refused_by_a_cap_of_its_own_the_others_are_not(system: System, cached: Customer) -> None:
    canary = a_canary()
    poor = system.manage("key_issue", "--tenant", cached.name, "--environment", "prod")
    system.manage("cap_set", "--tenant", cached.name, "--key", poor["id"], "--period", "month", "--usd", "0.000001")
    system.far_end.script(match=canary, latency_ms=300)
    replies = asyncio.run(at_once(system, [poor["key"], *[cached.key] * 5, poor["key"]], a_body(canary)))
    by_key = [reply.status_code for reply in replies]
    # Whoever can pay, or need not, since another does, has an answer.
    assert by_key[1:6] == [200] * 5
    assert calls_with(system, canary) <= 2
    ledger_agrees(system)


@pytest.mark.parametrize(
    "rounds", [1, pytest.param(12, marks=[pytest.mark.campaign("limits"), pytest.mark.timeout(900)])]
)
def test_no_two_tenants_environments_wires_models_or_policies_ever_share_an_answer(system: System, rounds: int) -> None:
    """Whoever asks what others ask in these words gets an answer that was made for one like him, told by its canary."""
    for name, wire, url in (("second", "openai", "/v1"), ("second-anthropic", "anthropic", "")):
        system.manage(
            "provider_set", name, "--wire", wire, "--base-url", system.far_end.base_url + url, "--key-env", "FAKE_KEY",
            "--models", "fake-2",
        )  # fmt: skip
        system.manage("price_set", name, "fake-2", "--input", "0.3", "--output", "0.9")
    parties = [party for _ in range(3) for party in keeping(system)]
    questions = [a_canary() for _ in range(3)]
    made: dict[str, tuple[Any, ...]] = {}
    for at in range(rounds):
        tenant, environment, _ = parties[at % len(parties)]
        system.manage("policy_set", "--tenant", tenant, "--environment", environment, "--block", f"never-{at}")
        time.sleep(1.2)  # until every process knows it
        versions = {party: version(system, party) for party in parties}
        asked = [
            (party, path, model, question)
            for party in parties
            for path in (CHAT, MESSAGES)
            for model in ("fake-1", "fake-2")
            for question in questions
        ]
        chance = random.Random(at)
        for party, path, model, question in chance.sample(asked * 2, len(asked) * 2):
            headers = {"authorization": f"Bearer {party[2]}", **(ANTHROPIC if path == MESSAGES else {})}
            body = a_body(question, model=model, stream=chance.random() < 0.4)
            reply = httpx2.post(system.base_url + path, json=body, headers=headers, trust_env=False)
            assert reply.status_code == 200
            one_like_him = (party, versions[party], path, model, question)
            assert made.setdefault(answer_of(reply), one_like_him) == one_like_him
    rows = system.rows(
        """SELECT c.tenant_id = s.tenant_id AND c.environment_id = s.environment_id AND c.wire = s.wire
               AND c.model = s.model AS is_same, count(*) AS n
           FROM usage_call c JOIN usage_call s ON s.id = c.cached_from GROUP BY 1"""
    )
    assert [row["is_same"] for row in rows] == [True]


def keeping(system: System) -> list[tuple[str, str, str]]:
    """Two environments of a new tenant, both keeping answers, each with a key."""
    customer = system.tenant()
    for environment in ("prod", "staging"):
        set_cache(system, customer, environment)
    return [(customer.name, "prod", customer.key), (customer.name, "staging", another_key(system, customer, "staging"))]


def version(system: System, party: tuple[str, str, str]) -> int:
    """Of the content policy of the party's environment."""
    rows = system.rows(
        """SELECT p.version FROM moderation_policy p JOIN tenants_environment e ON e.id = p.environment_id
           JOIN tenants_tenant t ON t.id = e.tenant_id WHERE t.name = %s AND e.name = %s""",
        *party[:2],
    )
    return int(rows[0]["version"]) if rows else 0


def answer_of(reply: httpx2.Response) -> str:
    """What tells one answer of the far end from all others: the id that it gave it."""
    found = re.search(r'"id": ?"((?:chatcmpl|msg)[^"]*)"', reply.text)
    assert found
    return found[1]


@pytest.mark.parametrize("stream", [True, pytest.param(False, marks=pytest.mark.campaign("limits"))])
def test_those_who_wait_survive_the_death_of_the_worker_of_the_one_they_wait_for(
    two_webs: System, stream: bool
) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    set_cache(two_webs, customer)
    two_webs.far_end.script(match=canary, times=1, latency_ms=15_000)

    def is_inflight() -> bool:
        return any(row["state"] == "inflight" for row in rows_of(two_webs, customer))

    async def killed_meanwhile() -> list[httpx2.Response]:
        calls = asyncio.ensure_future(at_once(two_webs, [customer.key] * 8, a_body(canary, stream=stream)))
        await asyncio.to_thread(wait_for, is_inflight)
        os.kill(two_webs.stack.facts["pids"]["worker"][0], signal.SIGKILL)
        return await calls

    replies = asyncio.run(killed_meanwhile())
    # The one whose call it was hears that nobody knows; of the others one leads anew, and the rest get its answer.
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [502]
    assert calls_with(two_webs, canary) == 2
    rows = settled_rows(two_webs, customer, 8)
    assert sum(row["cached"] in {"coalesced", "exact"} for row in rows) == 6
    ledger_agrees(two_webs)


@pytest.mark.parametrize("asks_for_usage", [False, True])
def test_a_translated_stream_is_kept_with_its_usage_whether_or_not_it_was_asked_for(
    system: System, cached: Customer, asks_for_usage: bool
) -> None:
    url = system.far_end.base_url
    system.manage(
        "provider_set", "other-wire", "--wire", "anthropic", "--base-url", url, "--key-env", "FAKE_KEY", "--models",
        "other-1",
    )  # fmt: skip
    system.manage("price_set", "other-wire", "other-1", "--input", "1", "--output", "5")
    canary = a_canary()
    options = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
    with system.http(cached.key) as http:
        streamed = http.post(CHAT, json=a_body(canary, model="other-1", stream=True, **options))
        again = http.post(CHAT, json=a_body(canary, model="other-1", stream=True, **options))
        plain = http.post(CHAT, json=a_body(canary, model="other-1"))
    assert (b'"usage":{' in streamed.content) is asks_for_usage
    assert [reply.headers["x-cache"] for reply in (streamed, again, plain)] == ["miss", "hit", "hit"]
    assert again.content == without_cost(streamed.content)
    assert plain.json()["usage"]["completion_tokens"] > 0
    assert plain.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_given_again_is_fetched_by_its_call(system: System, cached: Customer, stream: bool) -> None:
    canary = a_canary()
    with system.http(cached.key) as http:
        first, hit = (http.post(CHAT, json=a_body(canary, stream=stream)) for _ in range(2))
        settled_rows(system, cached, 2)
        fetched = http.get(f"/v1/calls/{hit.headers['x-call-id']}")
        assert (fetched.status_code, without_cost(fetched.content)) == (200, hit.content)
        assert fetched.headers["x-call-id"] == hit.headers["x-call-id"] != first.headers["x-call-id"]
        assert fetched.headers.get("x-cost-usd", "0.000000000") == "0.000000000"
        if stream:
            rest = http.get(f"/v1/calls/{hit.headers['x-call-id']}/stream", headers={"last-event-id": "3"})
            assert rest.content.startswith(b"id: 4\n")
    with system.http(another_key(system, cached, "staging")) as http:
        assert http.get(f"/v1/calls/{hit.headers['x-call-id']}").status_code == 404


def test_a_share_of_the_saving_burns_prepaid_credit_and_is_refused_without(system: System, cached: Customer) -> None:
    canary, plan = a_canary(), f"plan-{uuid.uuid4().hex[:6]}"
    system.manage("plan_set", plan, "--cache-hit-bps", "10000")
    system.manage("plan_assign", cached.name, plan)
    system.manage("credit_grant", "--tenant", cached.name, "--usd", "0.000100", "--category", "paid")
    time.sleep(1.1)
    with system.http(cached.key) as http:
        made = http.post(CHAT, json=a_body(canary))
        replies = [http.post(CHAT, json=a_body(canary)) for _ in range(20)]
    cost = round(float(made.headers["x-cost-usd"]) * 10**9)
    paid = [reply for reply in replies if reply.status_code == 200]
    assert {reply.status_code for reply in replies} == {200, 402}
    assert len(paid) == 100_000 // cost - 1
    assert {reply.headers["x-cost-usd"] for reply in paid} == {made.headers["x-cost-usd"]}
    burnt = system.rows(
        """SELECT coalesce(sum(amount_nano), 0)::bigint AS nano FROM usage_ledgerentry
           WHERE api_key_id = %s AND debit = 'customer_credit'""",
        cached.key_id,
    )
    assert burnt[0]["nano"] == cost * (len(paid) + 1)
    ledger_agrees(system)
