"""Near matches at work: in shadow nobody gets one, switched on only who asks the same in other words, and bad ones end it."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.gateway.test_cache import ANTHROPIC, CHAT, MESSAGES, a_body, another_key, rows_of, set_cache
from tests.system import Customer, System
from tests.waiting import wait_for

MODEL = "fake-1"
LEAST_SCORES = 20
KNOWN_WITHIN_SECONDS = 1.5


def a_place() -> str:
    """A name that nobody else asks about."""
    return f"Zarkon{uuid.uuid4().hex[:10]}"


def about(place: str, spaces: int = 0) -> str:
    """A question; with more spaces it is another question, but for how it is put."""
    return f"Tell me the height of{' ' * spaces} the tower {place} in Paris"


def asking(text: str, **more: Any) -> dict[str, Any]:
    return a_body(text, **more)


@pytest.fixture
def near(system: System, customer: Customer) -> Customer:
    """A customer whose production environment keeps answers, and has near matches in shadow."""
    set_cache(system, customer)
    switch(system, customer, "shadow")
    return customer


@pytest.fixture
def on(system: System, near: Customer) -> Customer:
    """The same, switched on."""
    switch(system, near, "on", "--force")
    return near


def switch(system: System, customer: Customer, mode: str, *more: str, environment: str = "prod") -> dict[str, Any]:
    return system.manage(
        "near_set", "--tenant", customer.name, "--environment", environment, "--model", MODEL, "--mode", mode, *more
    )


def standing(system: System, customer: Customer) -> dict[str, Any]:
    """Its row as the command lists it."""
    (one,) = system.manage("near_list", "--tenant", customer.name, "--environment", "prod")["near"]
    return dict(one)


def buckets_joined(system: System, customer: Customer) -> int:
    """How many calls have told the worker their vector."""
    rows = system.rows(
        """SELECT count(*) AS n FROM usage_callpayload p JOIN usage_call c ON c.id = p.call_id
           WHERE p.headers ? 'near' AND c.api_key_id = %s""",
        customer.key_id,
    )
    return int(rows[0]["n"])


def ask(http: httpx2.Client, text: str, path: str = CHAT, **more: Any) -> httpx2.Response:
    reply = http.post(path, json=asking(text, **more), headers=ANTHROPIC if path == MESSAGES else {})
    assert reply.status_code == 200, reply.text
    return reply


def seed(system: System, customer: Customer, http: httpx2.Client, path: str = CHAT, **more: Any) -> str:
    """A place whose question has been answered and stands in its bucket. Another one where the model was still being loaded,
    or a process did not know of near matches yet.
    """
    for _ in range(20):
        place, before = a_place(), buckets_joined(system, customer)
        ask(http, about(place), path, **more)
        if buckets_joined(system, customer) > before:
            wait_until_joined(http, place, path, **more)
            return place
    raise AssertionError("no call was looked at for near matches")


def wait_until_joined(http: httpx2.Client, place: str, path: str = CHAT, **more: Any) -> None:
    """The worker adds a question to its bucket after it has answered it; a kept answer tells that it has begun to."""
    wait_for(lambda: ask(http, about(place), path, **more).headers["x-cache"] == "hit")


def asked_nearly(http: httpx2.Client, place: str, **more: Any) -> httpx2.Response:
    """The first answer that is given again to some wording of it; each try puts it in other words."""
    for spaces in range(1, 20):
        text = about(place, spaces).replace("Tell me", "Please tell me")
        reply = ask(http, text, **more)
        if reply.headers["x-cache"] != "miss":
            return reply
    raise AssertionError("no wording was answered by another's answer")


@pytest.fixture
def http(system: System, customer: Customer) -> Iterator[httpx2.Client]:
    with system.http(customer.key) as client:
        yield client


def test_shadow_gives_nobody_a_near_answer_but_scores_it(system: System, near: Customer, http: httpx2.Client) -> None:
    place = seed(system, near, http)
    for spaces in range(1, 4):
        reply = ask(http, about(place, spaces))
        assert reply.headers["x-cache"] == "miss"
        assert "x-cache-likeness" not in reply.headers
    wait_for(lambda: standing(system, near)["scored"] >= 1)
    row = standing(system, near)
    assert (row["mode"], row["mean"]) == ("shadow", 1.0)
    score = row["latest"][0]
    assert score["likeness"] > 0.99
    assert score["call"] != score["source"]
    assert all(row["cached"] in {"", "exact"} for row in rows_of(system, near))


def test_switched_on_the_same_in_other_words_gets_the_answer_for_nothing(
    system: System, on: Customer, http: httpx2.Client
) -> None:
    place = seed(system, on, http)
    first = ask(http, about(place))
    reply = asked_nearly(http, place)
    assert (first.headers["x-cache"], reply.headers["x-cache"]) == ("hit", "near")
    assert 0.92 <= float(reply.headers["x-cache-likeness"]) < 1
    assert reply.headers["x-cache-source"] == first.headers["x-cache-source"]
    assert reply.headers["x-cost-usd"] == "0.000000000"
    assert reply.content == first.content
    wait_for(lambda: any(row["cached"] == "near" for row in rows_of(system, on)))
    (row,) = [row for row in rows_of(system, on) if row["cached"] == "near"]
    assert (row["state"], row["charged_nano"], row["status"]) == ("settled", 0, 200)
    assert system.manage("ledger_verify")["drift"] == []


def test_an_exact_answer_goes_before_a_near_one(system: System, near: Customer, http: httpx2.Client) -> None:
    place = seed(system, near, http)
    made = [ask(http, about(place, spaces)).headers["x-call-id"] for spaces in range(1, 4)]
    wait_for(lambda: standing(system, near)["scored"] >= 1)
    switch(system, near, "on", "--force")
    time.sleep(KNOWN_WITHIN_SECONDS)
    assert asked_nearly(http, place).headers["x-cache"] == "near"
    for spaces, call in enumerate(made, 1):
        reply = ask(http, about(place, spaces))
        assert (reply.headers["x-cache"], reply.headers["x-cache-source"]) == ("hit", call)


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ("Please tell me the height of the tower {} in London", {}),
        ("Please tell me the height of the tower {}2 in Paris", {}),
        ("Please tell me the height of the tower no {} in Paris", {}),
        ("Please tell me not the height of the tower {} in Paris", {}),
        ("Please tell me the 2 heights of the tower {} in Paris", {}),
        ("Please tell me the height of the tower '{}' in Paris", {}),
        ("Please tell me the height of the tower {} in Paris", {"temperature": 0.1}),
        ("Please tell me the height of the tower {} in Paris", {"max_tokens": 51}),
        ("Please tell me the height of the tower {} in Paris", {"response_format": {"type": "json_object"}}),
        ("Please tell me the height of the tower {} in Paris", {"tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
        ("Please tell me the height of the tower {} in Paris", {"messages": "system"}),
    ],
    ids=str,
)  # fmt: skip
def test_whatever_may_change_the_answer_is_never_a_near_match(
    system: System, on: Customer, http: httpx2.Client, said: str, more: dict[str, Any]
) -> None:
    place = seed(system, on, http)
    assert asked_nearly(http, place).headers["x-cache"] == "near"
    text = said.format(place)
    body = asking(text, **more)
    if more.get("messages"):
        body["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    reply = http.post(CHAT, json=body)
    assert (reply.status_code, reply.headers["x-cache"]) == (200, "miss")


def test_tenants_environments_and_wires_share_no_near_answer(system: System, on: Customer, http: httpx2.Client) -> None:
    other = system.tenant()
    for customer, environment in ((other, "prod"), (on, "staging")):
        set_cache(system, customer, environment)
        switch(system, customer, "on", "--force", environment=environment)
    place = seed(system, on, http)
    assert asked_nearly(http, place).headers["x-cache"] == "near"
    for key in (other.key, another_key(system, on, "staging")):
        with system.http(key) as elsewhere:
            first = ask(elsewhere, about(place, 40))
            assert first.headers["x-cache"] == "miss"
            again = asked_nearly(elsewhere, place)  # of its own it gets one
        sources = system.rows(
            "SELECT DISTINCT environment_id FROM usage_call WHERE id IN (%s, %s)",
            first.headers["x-call-id"].removeprefix("call_"), again.headers["x-cache-source"].removeprefix("call_"),
        )  # fmt: skip
        assert len(sources) == 1
    assert ask(http, about(place, 41), MESSAGES).headers["x-cache"] == "miss"


def test_another_policy_or_a_purge_ends_near_answers(system: System, on: Customer, http: httpx2.Client) -> None:
    place = seed(system, on, http)
    assert asked_nearly(http, place).headers["x-cache"] == "near"
    system.manage("cache_purge", "--tenant", on.name, "--environment", "prod")
    time.sleep(KNOWN_WITHIN_SECONDS)
    assert ask(http, about(place, 42)).headers["x-cache"] == "miss"
    system.manage("policy_set", "--tenant", on.name, "--environment", "prod", "--block", "kindly")
    time.sleep(KNOWN_WITHIN_SECONDS)
    assert ask(http, about(place, 43)).headers["x-cache"] == "miss"


def test_what_a_policy_blocks_is_blocked_where_a_like_question_was_answered(
    system: System, on: Customer, http: httpx2.Client
) -> None:
    system.manage("policy_set", "--tenant", on.name, "--environment", "prod", "--block", "please")
    time.sleep(KNOWN_WITHIN_SECONDS)
    place = seed(system, on, http)
    wait_for(lambda: ask(http, about(place, uuid.uuid4().int % 60 + 2)).headers["x-cache"] == "near")
    reply = http.post(CHAT, json=asking(about(place, 1).replace("Tell", "Please tell")))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_blocked")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_streamed_request_gets_a_near_answer_as_a_stream(
    system: System, on: Customer, http: httpx2.Client, path: str
) -> None:
    place = seed(system, on, http, path)
    reply = asked_nearly(http, place, path=path, stream=True)
    assert reply.headers["x-cache"] == "near"
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.rstrip().endswith("data: [DONE]" if path == CHAT else '"message_stop"}')


def test_an_idempotency_key_gets_its_near_answer_again(system: System, on: Customer, http: httpx2.Client) -> None:
    place = seed(system, on, http)
    asked_nearly(http, place)
    for spaces in range(50, 60):
        headers = {"idempotency-key": uuid.uuid4().hex}
        first, second = (http.post(CHAT, json=asking(about(place, spaces)), headers=headers) for _ in range(2))
        if first.headers["x-cache"] == "near":  # the twentieth is made for real
            break
    assert first.headers["x-cache"] == second.headers["x-cache"] == "near"
    assert second.headers["x-call-id"] == first.headers["x-call-id"]
    assert second.content == first.content


def test_on_is_refused_until_shadow_has_proven_it_and_a_route_that_drifts_switches_itself_off(
    system: System, near: Customer, http: httpx2.Client
) -> None:
    set_up = ("near_set", "--tenant", near.name, "--environment", "prod", "--model", MODEL, "--mode", "on")
    assert "needs 20 scores" in system.manage(*set_up, code=1)["error"]
    place = seed(system, near, http)
    for spaces in range(1, LEAST_SCORES + 5):
        ask(http, about(place, spaces))
    wait_for(lambda: standing(system, near)["scored"] >= LEAST_SCORES)
    assert standing(system, near)["mean"] == 1
    assert system.manage(*set_up)["mode"] == "on"
    time.sleep(KNOWN_WITHIN_SECONDS)
    told = []
    for number in range(1, 400):
        system.far_end.clear()
        system.far_end.script(match=place, text=f"It is {number + 1000} metres tall.")
        told.append(ask(http, about(place, 60 + number)).headers["x-cache"])
        if told[-1] == "miss" and standing(system, near)["mode"] == "off":
            break
    row = standing(system, near)
    assert (row["mode"], told.count("near") > told.count("miss")) == ("off", True)
    assert "agreed with the real ones to" in row["switched_off_why"]
    assert "Tell me" not in row["switched_off_why"]
    time.sleep(KNOWN_WITHIN_SECONDS)
    assert ask(http, about(place, 500)).headers["x-cache"] == "miss"


def test_shadow_switches_itself_off_where_answers_differ(system: System, near: Customer, http: httpx2.Client) -> None:
    place = seed(system, near, http)
    for number in range(1, LEAST_SCORES + 10):
        system.far_end.clear()
        system.far_end.script(match=place, text=f"It is {number} metres tall.")
        ask(http, about(place, number))
    wait_for(lambda: standing(system, near)["mode"] == "off")
    row = standing(system, near)
    assert row["scored"] >= LEAST_SCORES
    assert row["mean"] < 0.2
    assert "It is" not in json.dumps(row)


def test_what_was_embedded_is_on_record(system: System, near: Customer, http: httpx2.Client) -> None:
    place = seed(system, near, http)
    ask(http, about(place, 1))
    shown = http.get("/api/cache/near").json()
    assert shown["near"][0]["model"] == MODEL
    wait_for(lambda: http.get("/api/cache/near").json()["embedded"] != [])
    wait_for(lambda: http.get("/api/cache/near").json()["embedded"][0]["texts"] >= 2)
    (row,) = http.get("/api/cache/near").json()["embedded"]
    assert row["environment"] == "prod"
    assert row["tokens"] >= 2 * row["texts"]
    assert row["cpu_ms"] > 0


def test_without_near_matches_nothing_is_embedded(system: System, customer: Customer, http: httpx2.Client) -> None:
    set_cache(system, customer)
    place = a_place()
    for spaces in range(2):
        assert ask(http, about(place, spaces)).headers["x-cache"] == "miss"
    assert buckets_joined(system, customer) == 0
    assert (
        system.rows("SELECT 1 FROM tenants_embeddinguse WHERE environment_id = %s", customer.environments["prod"]) == []
    )
