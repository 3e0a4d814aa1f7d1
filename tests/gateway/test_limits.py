"""Limits over HTTP: exact however many ask at once and wherever, told in headers, and corrected by what was used."""

import asyncio
import collections
import os
import signal
import time
import uuid
from typing import Any

import httpx2
import openai
import pytest
import redis

from tests.system import Customer, System
from tests.waiting import wait_for

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def a_body(text: str = "within limits", **more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "max_tokens": 20, "messages": [{"role": "user", "content": text}], **more}


def set_limit(system: System, customer: Customer, **columns: Any) -> None:
    """By row, before the customer's first call."""
    given = {"rpm": None, "tpm": None, "concurrency": None, "api_key_id": customer.key_id, "end_user": ""} | columns
    names = ", ".join(given)
    marks = ", ".join(["%s"] * len(given))
    system.execute(
        f"""INSERT INTO tenants_ratelimit (tenant_id, {names})
            VALUES ((SELECT tenant_id FROM tenants_apikey WHERE id = %s), {marks})""",  # noqa: S608 - names of our own
        customer.key_id, *given.values(),
    )  # fmt: skip


async def at_once(system: System, calls: list[tuple[dict[str, str], dict[str, Any]]]) -> list[httpx2.Response]:
    """Each over a connection of its own, so that the kernel spreads them over the web processes."""

    async def one(headers: dict[str, str], body: dict[str, Any]) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=system.base_url, timeout=60, trust_env=False) as http:
            return await http.post(CHAT, json=body, headers=headers)

    return await asyncio.gather(*(one(*call) for call in calls))


def codes(replies: list[httpx2.Response]) -> collections.Counter[int]:
    return collections.Counter(reply.status_code for reply in replies)


def test_exactly_n_of_twenty_n_at_once_pass_over_two_web_processes(two_webs: System) -> None:
    customer = two_webs.tenant()
    set_limit(two_webs, customer, rpm=10)
    bearer = {"authorization": f"Bearer {customer.key}"}
    assert codes(asyncio.run(at_once(two_webs, [(bearer, a_body())] * 200))) == {200: 10, 429: 190}


def test_each_end_user_passes_as_often_as_the_limit_says_and_who_names_none_by_his_address(two_webs: System) -> None:
    customer = two_webs.tenant()
    set_limit(two_webs, customer, rpm=3, end_user="*", api_key_id=None)
    bearer = {"authorization": f"Bearer {customer.key}"}
    calls = [
        *[(bearer, a_body(user="ada"))] * 20,
        *[(bearer | {"x-end-user": "bob"}, a_body())] * 20,
        *[(bearer, a_body())] * 20,
        # Nobody here is a proxy, so this says nothing.
        *[(bearer | {"x-forwarded-for": f"198.51.100.{n}"}, a_body()) for n in range(20)],
    ]
    replies = asyncio.run(at_once(two_webs, calls))
    assert codes(replies[:20]) == codes(replies[20:40]) == {200: 3, 429: 17}
    assert codes(replies[40:]) == {200: 3, 429: 37}
    assert next(reply for reply in replies if reply.status_code == 429).json()["error"]["scope"] == "end_user"


def test_behind_a_proxy_of_ours_callers_are_told_apart_by_what_it_says(behind_proxy: System) -> None:
    customer = behind_proxy.tenant()
    set_limit(behind_proxy, customer, rpm=2, end_user="*")
    bearer = {"authorization": f"Bearer {customer.key}"}
    calls = [
        (bearer | {"x-forwarded-for": f"{spoofed}, {address}"}, a_body())
        for address in ("198.51.100.1", "198.51.100.2", "2001:db8::1")
        for spoofed in range(5)
    ]
    replies = asyncio.run(at_once(behind_proxy, calls))
    assert [codes(replies[at : at + 5]) for at in (0, 5, 10)] == [{200: 2, 429: 3}] * 3


def test_the_estimate_of_tokens_is_corrected_when_the_call_is_settled(system: System, customer: Customer) -> None:
    set_limit(system, customer, tpm=1000)
    with system.http(customer.key) as http:
        first = http.post(CHAT, json=a_body(max_tokens=900))
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100
        # It used a dozen.
        wait_for(lambda: left_of(http, "tokens_per_minute") > 950, seconds=3)
        assert http.post(CHAT, json=a_body(max_tokens=900)).status_code == 200


def left_of(http: httpx2.Client, name: str) -> int:
    return next(int(one["remaining"]) for one in http.get("/v1/me/usage").json()["rate_limits"] if one["name"] == name)


def test_tokens_of_a_call_that_a_cap_refuses_come_back(system: System, customer: Customer) -> None:
    set_limit(system, customer, tpm=10_000, rpm=100)
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "0.000001")
    with system.http(customer.key) as http:
        assert http.post(CHAT, json=a_body(max_tokens=9000)).status_code == 402
        assert left_of(http, "tokens_per_minute") >= 9_990
        assert left_of(http, "requests_per_minute") <= 99


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "prefix"), [(CHAT, "x-ratelimit-{what}-{unit}"), (MESSAGES, "anthropic-ratelimit-{unit}-{what}")])  # fmt: skip
def test_what_is_left_is_told_on_success_in_the_drafts_fields_and_the_wires_own(
    system: System, customer: Customer, path: str, prefix: str, stream: bool
) -> None:
    set_limit(system, customer, rpm=60, tpm=100_000)
    set_limit(system, customer, rpm=30, api_key_id=None)
    # What a provider says of its own limits is no business of our caller's.
    system.far_end.script(match="within", headers={"x-ratelimit-remaining-requests": "1", "ratelimit": '"x";r=1'})
    with system.http(customer.key) as http:
        headers = http.post(path, json=a_body(stream=stream)).headers
    assert headers["ratelimit-policy"] == '"key-rpm";q=60;w=60, "key-tpm";q=100000;w=60, "tenant-rpm";q=30;w=60'
    assert headers["ratelimit"].startswith('"key-rpm";r=59;t=1, "key-tpm";r=999')
    assert headers["ratelimit"].endswith('"tenant-rpm";r=29;t=2')
    # The tightest of each.
    assert headers[prefix.format(what="limit", unit="requests")] == "30"
    assert headers[prefix.format(what="remaining", unit="requests")] == "29"
    assert headers[prefix.format(what="limit", unit="tokens")] == "100000"
    assert prefix.format(what="reset", unit="tokens") in headers


def test_a_refusal_tells_the_official_sdk_how_long_to_wait(system: System, customer: Customer) -> None:
    set_limit(system, customer, rpm=60, rpm_burst=1)
    client = system.openai(customer.key)
    client.chat.completions.create(**a_body())
    with pytest.raises(openai.RateLimitError) as refusal:
        client.chat.completions.create(**a_body())
    headers = refusal.value.response.headers
    assert headers["retry-after"] == "1"
    assert headers["ratelimit-policy"] == '"key-rpm";q=60;w=60'
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("60", "0")
    # The SDK itself waits for as long as it is told, and is let pass then.
    assert client.with_options(max_retries=2).chat.completions.create(**a_body()).choices


def test_a_limit_in_shadow_mode_refuses_nobody_and_is_counted(system: System, customer: Customer) -> None:
    set_limit(system, customer, rpm=2, mode="shadow")
    with system.http(customer.key) as http:
        replies = [http.post(CHAT, json=a_body()) for _ in range(5)]
    assert codes(replies) == {200: 5}
    assert "ratelimit" not in replies[0].headers

    def counted() -> int:
        (row,) = system.rows(
            "SELECT shadow_refused_calls AS n FROM tenants_ratelimit WHERE api_key_id = %s", customer.key_id
        )
        return int(row["n"])

    wait_for(lambda: counted() == 3, seconds=3)


def test_places_come_back_when_a_worker_dies(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), f"held-{uuid.uuid4().hex[:8]}"
    set_limit(two_webs, customer, concurrency=2)
    set_limit(two_webs, customer, concurrency=1, end_user="*")
    two_webs.far_end.script(match=canary, latency_ms=15_000)
    bearer = {"authorization": f"Bearer {customer.key}"}

    def is_inflight() -> bool:
        return bool(
            two_webs.rows("SELECT 1 FROM usage_call WHERE api_key_id = %s AND state = 'inflight'", customer.key_id)
        )

    async def both() -> list[httpx2.Response]:
        hanging = asyncio.ensure_future(at_once(two_webs, [(bearer | {"x-end-user": "ada"}, a_body(canary))] * 2))
        await asyncio.to_thread(wait_for, is_inflight)
        os.kill(two_webs.stack.facts["pids"]["worker"][0], signal.SIGKILL)
        return await hanging

    replies = asyncio.run(both())
    assert sorted(codes(replies)) in ([429, 502], [429, 503])
    with two_webs.http(customer.key) as http:
        wait_for(lambda: http.post(CHAT, json=a_body(), headers={"x-end-user": "ada"}).status_code == 200, seconds=20)


def test_a_redis_that_forgot_everything_lets_no_burst_pass(behind_proxy: System) -> None:
    system = behind_proxy  # which no other test shares: its buckets begin empty for a minute
    customer = system.tenant()
    set_limit(system, customer, rpm=20)
    bearer = {"authorization": f"Bearer {customer.key}"}
    assert codes(asyncio.run(at_once(system, [(bearer, a_body())] * 30)))[200] == 20
    with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
        for name in client.scan_iter(match="limit:*"):
            client.delete(name)
    began = time.monotonic()
    more = codes(asyncio.run(at_once(system, [(bearer, a_body())] * 30)))
    assert more.get(200, 0) <= 1 + (time.monotonic() - began) / 3
