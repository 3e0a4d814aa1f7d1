"""Chains on the whole system, with two far ends: who serves, what that costs, what is repeated, and when it is given up."""

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from tests.fakes.provider import FakeProvider
from tests.processes import Processes
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for

HELLO: Any = [{"role": "user", "content": "hello"}]
NEAR, FAR = ("0.15", "0.60"), ("3", "15")
AS_IN_PRODUCTION = {
    "BREAKER_FAILURES": "5",
    "RETRY_RESERVE": "10",
    "PACE_PROVIDERS": "true",
    "OTHER_KEY": "other-secret",
}


class Pair:
    """A system as in production, with two far ends that can be any number of providers."""

    def __init__(self, system: System, second: FakeProvider) -> None:
        self.system, self.first, self.second = system, system.far_end, second

    def provider(self, far_end: FakeProvider, usd: tuple[str, str], *models: str) -> str:
        name = f"p-{uuid.uuid4().hex[:10]}"
        url = far_end.openai_url
        self.system.manage(
            "provider_set",
            name,
            "--wire",
            "openai",
            "--base-url",
            url,
            "--key-env",
            "FAKE_KEY",
            "--models",
            ",".join(models),
        )
        for model in models:
            self.system.manage("price_set", name, model, "--input", usd[0], "--output", usd[1])
        return name

    def customer(self, alias: str, *steps: str) -> Customer:
        """A new one, for whom the alias is this chain."""
        customer = self.system.tenant()
        arguments = [text for step in steps for text in ("--step", step)]
        self.system.manage("route_set", alias, "--tenant", customer.name, "--environment", "prod", *arguments)
        return customer

    def post(self, customer: Customer, model: str, **more: Any) -> httpx2.Response:
        body = {"model": model, "messages": HELLO, "max_tokens": 50, **more}
        return self.system.http(customer.key).post("/v1/chat/completions", json=body, timeout=150)

    def receipt(self, reply: httpx2.Response) -> Any:
        return self.system.manage("call_show", reply.headers["x-call-id"])

    def settings_clear(self) -> None:
        for far_end in (self.first, self.second):
            far_end.clear()


@pytest.fixture(scope="module")
def running_pair(far_end: FakeProvider) -> Iterator[Pair]:
    with FakeProvider() as second, start_system(far_end, **AS_IN_PRODUCTION) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield Pair(system, second)
        system.close_clients()


@pytest.fixture
def pair(running_pair: Pair) -> Iterator[Pair]:
    running_pair.settings_clear()
    yield running_pair
    running_pair.system.close_clients()
    running_pair.settings_clear()


def nano(usd: str) -> int:
    return int(Decimal(usd) * 10**9)


def sent(far_end: FakeProvider, model: str) -> int:
    return sum(call["model"] == model for call in far_end.calls())


def names() -> tuple[str, str]:
    return f"near-{uuid.uuid4().hex[:8]}", f"far-{uuid.uuid4().hex[:8]}"


# --- whoever serves is whose price it is ------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_falls_back_to_the_next_model_and_pays_that_ones_price(pair: Pair, stream: bool) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    pair.first.script(match=near, status=503)
    reply = pair.post(customer, "smart", stream=stream)
    assert reply.status_code == 200
    assert (sent(pair.first, near), sent(pair.second, far)) == (1, 1)
    found = pair.receipt(reply)
    tokens = found["tokens"]
    assert nano(found["charged_usd"]) == tokens["input"] * 3000 + tokens["output"] * 15000 > 0
    assert nano(found["held_usd"]) >= 50 * 15000
    assert (found["provider"], found["price"]["model"], found["model"]) == (two, far, "smart")
    assert [
        (each["provider"], each["model"], each["credential"], each["outcome"], each["status"])
        for each in found["attempts"]
    ] == [(one, near, "default", "refused", 503), (two, far, "default", "answered", 200)]
    assert "far-end" not in json.dumps(found)
    payables = pair.system.rows(
        "SELECT credit, amount_nano FROM usage_ledgerentry WHERE ref = %s AND kind = 'provider_cost'",
        uuid.UUID(found["id"][5:]),
    )
    assert payables == [{"credit": f"payable:{two}", "amount_nano": nano(found["charged_usd"])}]
    assert pair.system.manage("ledger_verify")["drift"] == []


def test_the_first_step_that_answers_is_charged_at_its_own_price_though_the_hold_covers_the_dearest(pair: Pair) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    estimate = pair.system.http(customer.key).post(
        "/v1/estimate", json={"model": "smart", "messages": HELLO, "max_tokens": 50}
    )
    reply = pair.post(customer, "smart")
    found = pair.receipt(reply)
    assert nano(found["charged_usd"]) == found["tokens"]["input"] * 150 + found["tokens"]["output"] * 600
    assert estimate.json()["worst_case_usd"] == found["held_usd"]
    assert [each["provider"] for each in estimate.json()["chain"]] == [one, two]
    assert sent(pair.second, far) == 0


def test_an_unreachable_provider_is_left_for_the_next_one_serving_the_same_model(pair: Pair) -> None:
    model, _ = names()
    one, two = pair.provider(pair.first, NEAR, model), pair.provider(pair.second, FAR, model)
    customer = pair.customer("same", f"{model}@{one}", model)
    with pair.first.refusing():
        found = pair.receipt(pair.post(customer, "same"))
    assert [(each["provider"], each["outcome"]) for each in found["attempts"]][-1] == (two, "answered")
    assert found["attempts"][0]["outcome"] == "unsent"


@pytest.mark.parametrize("status", [500, 502, 504, 400, 404])
def test_what_may_have_been_carried_out_is_neither_repeated_nor_sent_elsewhere(pair: Pair, status: int) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    pair.first.script(match=near, status=status)
    assert pair.post(customer, "smart").status_code == status
    assert (sent(pair.first, near), sent(pair.second, far)) == (1, 0)


def test_nothing_is_sent_elsewhere_once_a_byte_has_gone_to_the_caller(pair: Pair) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    pair.first.script(match=near, cut_after_chunks=3)
    text = pair.post(customer, "smart", stream=True).text
    assert "stream_broken" in text
    assert sent(pair.second, far) == 0


def test_a_charge_never_passes_the_hold_though_a_cap_clamps_a_chain(pair: Pair) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    pair.system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "0.002")
    pair.first.script(match=near, status=529)
    reply = pair.post(customer, "smart", max_tokens=4000)
    found = pair.receipt(reply)
    assert int(reply.headers["x-budget-clamped"]) < 200
    assert 0 < nano(found["charged_usd"]) <= nano(found["held_usd"]) <= nano("0.002")


# --- names ------------------------------------------------------------------------------------------------------------
def test_a_name_means_what_the_environment_says_else_the_tenant_else_the_platform(pair: Pair) -> None:
    model, other = names()
    alias = f"fast-{uuid.uuid4().hex[:8]}"
    one = pair.provider(pair.first, NEAR, model, other)
    customer, stranger = pair.system.tenant(), pair.system.tenant()
    set_ = ("route_set", alias, "--step")
    assert pair.post(customer, alias).status_code == 404
    pair.system.manage(*set_, f"{model}@{one}")
    assert pair.post(stranger, alias).json()["model"] == model
    pair.system.manage(*set_, f"{other}@{one}", "--tenant", customer.name)
    assert pair.post(customer, alias).json()["model"] == other
    pair.system.manage(*set_, f"{model}@{one}", "--tenant", customer.name, "--environment", "prod")
    assert pair.post(customer, alias).json()["model"] == model
    assert pair.post(stranger, alias).json()["model"] == model
    assert alias in [one.id for one in pair.system.openai(customer.key).models.list()]
    pair.system.manage("route_remove", alias, "--tenant", customer.name, "--environment", "prod")
    assert pair.post(customer, alias).json()["model"] == other
    pair.system.manage("route_remove", alias)
    assert pair.post(stranger, alias).status_code == 404
    assert alias not in [one.id for one in pair.system.openai(stranger.key).models.list()]


def test_siblings_are_first_as_often_as_their_weights_say(pair: Pair) -> None:
    model, _ = names()
    one, two = pair.provider(pair.first, NEAR, model), pair.provider(pair.second, NEAR, model)
    customer = pair.customer("mixed", f"{model}@{one}=3,{model}@{two}")
    for _ in range(60):
        assert pair.post(customer, "mixed").status_code == 200
    assert 32 <= sent(pair.first, model) <= 57
    assert sent(pair.first, model) + sent(pair.second, model) == 60


def test_a_later_step_without_a_price_is_left_out_and_said_and_a_first_one_refuses(pair: Pair) -> None:
    near, far = names()
    one = pair.provider(pair.first, NEAR, near)
    two = pair.provider(pair.second, FAR, "else-1")
    pair.system.manage(
        "provider_set", two, "--wire", "openai", "--base-url", pair.second.openai_url, "--models", f"else-1,{far}"
    )
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    found = pair.receipt(pair.post(customer, "smart"))
    assert found["left_out"] == [{"provider": two, "model": far, "reason": "model_not_priced"}]
    asked = pair.system.http(customer.key).post("/v1/estimate", json={"model": "smart", "messages": HELLO}).json()
    assert asked["left_out"] == found["left_out"]
    refused = pair.customer("smart", f"{far}@{two}", f"{near}@{one}")
    reply = pair.post(refused, "smart")
    assert (reply.status_code, reply.json()["error"]["code"]) == (402, "model_not_priced")


# --- credentials ------------------------------------------------------------------------------------------------------
def test_a_credential_that_the_provider_rejects_is_left_for_another_one(pair: Pair) -> None:
    model, _ = names()
    one = pair.provider(pair.first, NEAR, model)
    pair.system.manage("credential_set", one, "second", "--key-env", "OTHER_KEY", "--weight", "2")
    customer = pair.system.tenant()
    pair.first.script(match=model, status=401, times=1)
    found = pair.receipt(pair.post(customer, model))
    assert [each["status"] for each in found["attempts"]] == [401, 200]
    assert {each["credential"] for each in found["attempts"]} == {"default", "second"}
    hashes = {call["auth_hash"] for call in pair.first.calls() if call["model"] == model}
    assert len(hashes) == 2


def test_a_tenants_own_credential_is_used_alone_costs_us_nothing_and_him_his_plans_fee(pair: Pair) -> None:
    model, _ = names()
    one = pair.provider(pair.first, FAR, model)
    customer, other = pair.system.tenant(), pair.system.tenant()
    pair.system.manage("credential_set", one, "mine", "--tenant", customer.name, "--key-env", "OTHER_KEY")
    mine, theirs = pair.receipt(pair.post(customer, model)), pair.receipt(pair.post(other, model))
    assert (mine["attempts"][0]["credential"], theirs["attempts"][0]["credential"]) == ("mine", "default")
    assert (nano(mine["charged_usd"]), nano(mine["provider_cost_usd"]), nano(mine["held_usd"])) == (0, 0, 0)
    assert nano(mine["list_usd"]) == nano(theirs["charged_usd"]) > 0
    plan = f"plan-{uuid.uuid4().hex[:8]}"
    pair.system.manage("plan_set", plan, "--own-key-bps", "500")
    pair.system.manage("plan_assign", customer.name, plan)
    found = pair.receipt(pair.post(customer, model))
    assert nano(found["charged_usd"]) == nano(found["list_usd"]) // 20
    assert nano(found["provider_cost_usd"]) == 0
    assert pair.system.manage("ledger_verify")["drift"] == []
    pair.system.manage("credential_set", one, "mine", "--tenant", customer.name, "--no-enabled")
    assert nano(pair.receipt(pair.post(customer, model))["provider_cost_usd"]) > 0


def test_azure_is_entered_by_its_own_query_and_header_and_no_other(pair: Pair) -> None:
    model, _ = names()
    one = pair.provider(pair.first, NEAR, model)
    pair.system.manage(
        "provider_set", one, "--wire", "openai", "--base-url", pair.first.openai_url, "--key-header", "x-api-key",
        "--header", "x-region=north", "--api-version", "2026-10-01",
    )  # fmt: skip
    assert pair.post(pair.system.tenant(), model).status_code == 200
    (call,) = [call for call in pair.first.calls() if call["model"] == model]
    assert (call["auth"], call["path"]) == ("x-api-key", "/v1/chat/completions?api-version=2026-10-01")


# --- limits, budgets, breakers ----------------------------------------------------------------------------------------
def test_a_breaker_opens_tells_when_to_come_back_and_closes_again(pair: Pair) -> None:
    model, _ = names()
    one = pair.provider(pair.first, NEAR, model)
    customer = pair.system.tenant()
    pair.first.script(match=model, status=500)
    for _ in range(5):
        assert pair.post(customer, model).status_code == 500
    before = sent(pair.first, model)
    reply = pair.post(customer, model)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "provider_unavailable")
    assert 1 <= int(reply.headers["retry-after"]) <= 7
    assert sent(pair.first, model) == before
    found = pair.receipt(reply)
    assert (found["state"], nano(found["charged_usd"]), found["attempts"][0]["outcome"]) == ("void", 0, "unsent")
    (status,) = pair.system.manage("provider_status", "--provider", one)["providers"]
    assert [each["state"] for lane in status["credentials"][0]["lanes"] for each in lane["breakers"]] == ["open"]
    pair.first.clear()
    wait_for(lambda: pair.post(customer, model).status_code == 200, seconds=20)
    wait_for(lambda: [pair.post(customer, model).status_code for _ in range(3)] == [200] * 3, seconds=20)
    (status,) = pair.system.manage("provider_status", "--provider", one)["providers"]
    assert not [each for lane in status["credentials"][0]["lanes"] for each in lane["breakers"]]


def test_an_open_breaker_sends_calls_on_to_the_next_step(pair: Pair) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    pair.first.script(match=near, status=500)
    for _ in range(5):
        assert pair.post(customer, "smart").status_code == 500
    before = sent(pair.first, near)
    found = pair.receipt(pair.post(customer, "smart"))
    assert sent(pair.first, near) == before
    assert [(each["provider"], each["outcome"]) for each in found["attempts"]] == [(one, "unsent"), (two, "answered")]
    assert found["attempts"][0]["error"] == "provider_unavailable"
    assert found["provider"] == two


def test_a_rate_limit_that_leaves_no_room_in_time_moves_a_call_on_or_is_told_honestly(pair: Pair) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    gone = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "30m",
    }
    pair.first.script(match=near, headers=gone | {"x-ratelimit-limit-requests": "1"})
    assert pair.post(customer, "smart").status_code == 200
    assert pair.receipt(pair.post(customer, "smart"))["provider"] == two
    alone = pair.system.tenant()
    reply = pair.post(alone, near)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "provider_rate_limited")
    assert int(reply.headers["retry-after"]) >= 60
    assert sent(pair.first, near) == 1


@pytest.mark.timeout(400)
def test_a_burst_of_one_tenant_leaves_another_his_share_of_what_a_provider_has_left(pair: Pair) -> None:
    model, _ = names()
    pair.provider(pair.first, NEAR, model)
    burst, trickle = pair.system.tenant(), pair.system.tenant()
    left = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "10",
        "x-ratelimit-reset-requests": "10s",
    }
    pair.first.script(match=model, headers=left)
    assert pair.post(burst, model).status_code == 200
    waits: list[float] = []
    with ThreadPoolExecutor(41) as pool:
        many = [pool.submit(pair.post, burst, model) for _ in range(40)]
        time.sleep(1)
        for _ in range(5):
            began = time.monotonic()
            assert pair.post(trickle, model).status_code == 200
            waits.append(time.monotonic() - began)
        unserved = sum(not one.done() for one in many)
        pair.first.clear()
        replies = [one.result() for one in many]
    print(
        f"burst of 40: {40 - unserved} had an answer when the other tenant's 5 had theirs, after {[round(one, 1) for one in waits]} s"
    )
    assert max(waits) < 6, waits
    assert unserved >= 10, (unserved, waits)
    assert {reply.status_code for reply in replies} <= {200, 429}
    assert all(
        reply.json()["error"]["code"] == "provider_rate_limited" for reply in replies if reply.status_code == 429
    )


@pytest.mark.timeout(400)
def test_a_worker_that_dies_between_two_tries_leaves_one_true_outcome(pair: Pair) -> None:
    near, far = names()
    one, two = pair.provider(pair.first, NEAR, near), pair.provider(pair.second, FAR, far)
    customer = pair.customer("smart", f"{near}@{one}", f"{far}@{two}")
    pair.first.script(match=near, status=503)
    Processes(pair.system).arm_now("worker", "retry.after:1:kill")
    reply = pair.post(customer, "smart")
    assert (reply.status_code, reply.json()["error"]["code"]) in {(502, "answer_lost"), (502, "outcome_unknown")}
    call = uuid.UUID(reply.headers["x-call-id"][5:])
    wait_for(lambda: state_of(pair.system, call) == "void", seconds=40)
    found = pair.receipt(reply)
    assert [(each["provider"], each["outcome"]) for each in found["attempts"]] == [
        (one, "refused"),
        (two, "unknown"),
    ]
    assert (sent(pair.first, near), sent(pair.second, far)) == (1, 0)
    assert nano(found["charged_usd"]) == 0
    kinds = pair.system.rows("SELECT kind, credit FROM usage_ledgerentry WHERE ref = %s", call)
    assert kinds == [{"kind": "exposure", "credit": f"payable:{two}"}]
    assert pair.system.manage("ledger_verify")["drift"] == []


def state_of(system: System, call: uuid.UUID) -> str:
    return str(system.rows("SELECT state FROM usage_call WHERE id = %s", call)[0]["state"])
