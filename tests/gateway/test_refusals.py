"""Refusals explain themselves: which limit, its figures, what would fit, when it resets, and where a person can look."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from tests.system import Customer, System
from tests.waiting import wait_for

PATHS = {"/v1/chat/completions": "insufficient_quota", "/v1/messages": "billing_error"}


def a_body(**more: Any) -> dict[str, Any]:
    return {"model": "fake-1", "max_tokens": 100, "messages": [{"role": "user", "content": "refuse me"}], **more}


def cap(system: System, customer: Customer, usd: str, *more: str) -> None:
    system.manage("cap_set", "--tenant", customer.name, "--usd", usd, *more)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scope", ["tenant", "environment", "key", "end_user"])
def test_a_cap_says_whose_it_is_what_it_counts_and_what_to_do(
    system: System, customer: Customer, path: str, scope: str
) -> None:
    more = {"tenant": [], "environment": ["--environment", "prod"], "key": ["--key", customer.key_id],
            "end_user": ["--end-user", "eve"]}[scope]  # fmt: skip
    cap(system, customer, "0.000001", "--period", "day", *more)
    reply = system.http(customer.key, **{"x-end-user": "eve"}).post(path, json=a_body())
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (402, PATHS[path], "cap_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    figures = {
        "scope": scope, "period": "day", "limit_usd": "0.000001000", "spent_usd": "0.000000000", "held_usd": "0.000000000",
        "affordable_max_tokens": 0, "dashboard": f"{system.base_url}/",
    }  # fmt: skip
    assert error | figures == error
    assert isinstance(error["cap"], int)
    assert Decimal(error["estimate_usd"]) > Decimal("0.000001")
    resets_at = datetime.fromisoformat(error["resets_at"])
    assert abs((resets_at - datetime.now(UTC)).total_seconds() - error["resets_in_seconds"]) < 5
    assert (resets_at.hour, resets_at.minute) == (0, 0)
    for name in (*figures, "estimate_usd", "resets_at"):
        assert reply.headers[f"x-budget-{name.replace('_', '-')}"] == str(error[name]), name
    for word in ("day spending cap", "0.000001000", error["resets_at"], "ask an admin"):
        assert word in error["message"], word


def test_the_max_tokens_that_a_refusal_names_fits(system: System, customer: Customer) -> None:
    system.rows(
        "UPDATE tenants_environment SET floor_max_tokens = 5000 WHERE tenant_id = (SELECT id FROM tenants_tenant WHERE name = %s) RETURNING 1",
        customer.name,
    )
    cap(system, customer, "0.0002", "--period", "month")
    with system.http(customer.key) as http:
        refused = http.post("/v1/chat/completions", json=a_body(max_tokens=5000))
        fits = refused.json()["error"]["affordable_max_tokens"]
        assert f"lower max_tokens to {fits}" in refused.json()["error"]["message"]
        one_more = http.post("/v1/chat/completions", json=a_body(max_tokens=fits + 1))
        # A digit less in the body is a token less in its bound.
        passed = http.post("/v1/chat/completions", json=a_body(max_tokens=fits))
    assert passed.status_code == 200
    assert "x-budget-clamped" not in passed.headers
    assert refused.status_code == 402
    assert one_more.status_code in {200, 402}


def test_the_operators_own_cap_tells_no_tenant_its_figures(system: System, customer: Customer) -> None:
    (row,) = system.rows("SELECT usage_set_cap(NULL, NULL, NULL, '', 'day', 'enforce', 1, NULL) AS cap")
    try:
        reply = system.http(customer.key).post("/v1/chat/completions", json=a_body())
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["scope"]) == (402, "cap_exceeded", "platform")
        assert error.keys().isdisjoint({"cap", "limit_usd", "spent_usd", "held_usd", "resets_at"})
        assert [name for name in reply.headers if name.startswith("x-budget")] == [
            "x-budget-scope", "x-budget-estimate-usd", "x-budget-dashboard"]  # fmt: skip
        assert "operator" in error["message"]
        usage = system.http(customer.key).get("/v1/me/usage").json()
        assert usage["caps"] == []
        assert "other tenants" in usage["not_shown"]
    finally:
        system.rows("SELECT usage_remove_cap(%s)", row["cap"])


def test_both_sdks_raise_a_402_that_they_do_not_repeat(system: System, customer: Customer) -> None:
    cap(system, customer, "0", "--period", "lifetime")
    messages: Any = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.APIStatusError) as refused:
        system.openai(customer.key).with_options(max_retries=3).chat.completions.create(
            model="fake-1", messages=messages
        )
    assert refused.value.status_code == 402
    assert refused.value.response.headers["x-budget-period"] == "lifetime"
    with pytest.raises(anthropic.APIStatusError) as refusal:
        system.anthropic(customer.key).with_options(max_retries=3).messages.create(
            model="fake-1", messages=messages, max_tokens=5
        )
    assert refusal.value.status_code == 402


@pytest.mark.parametrize(
    ("path", "limit", "remaining", "reset"),
    [
        ("/v1/chat/completions", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        ("/v1/messages", "anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ],
)  # fmt: skip
def test_a_rate_limit_says_which_in_the_names_of_the_wire(
    system: System, customer: Customer, path: str, limit: str, remaining: str, reset: str
) -> None:
    system.manage(
        "limit_set", "--tenant", customer.name, "--key", customer.key_id, "--rpm", "2", "--tpm", "100000", "--concurrency", "9"
    )  # fmt: skip
    with system.http(customer.key) as http:
        replies = [http.post(path, json=a_body()) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    headers, error = replies[2].headers, replies[2].json()["error"]
    figures = {
        "scope": "key",
        "limit_name": "requests_per_minute",
        "limit": 2,
        "remaining": 0,
        "dashboard": f"{system.base_url}/",
    }
    assert error | figures == error
    assert (headers[limit], headers[remaining]) == ("2", "0")
    assert headers["x-ratelimit-dashboard"] == f"{system.base_url}/"
    assert int(headers["retry-after"]) == error["resets_in_seconds"]
    assert headers[reset] in {f"{headers['retry-after']}s", error["resets_at"]}
    assert 0 < (datetime.fromisoformat(error["resets_at"]) - datetime.now(UTC)).total_seconds() <= 30


def test_tokens_that_are_left_are_told_when_more_are_asked(system: System, customer: Customer) -> None:
    system.manage(
        "limit_set", "--tenant", customer.name, "--key", customer.key_id, "--rpm", "99", "--tpm", "1000", "--concurrency", "9"
    )  # fmt: skip
    with system.http(customer.key) as http:
        slowly = [{"role": "user", "content": "slowly"}]
        system.far_end.script(match="slowly", latency_ms=1500)
        with ThreadPoolExecutor() as pool:
            first = pool.submit(http.post, "/v1/chat/completions", json=a_body(messages=slowly, max_tokens=600))
            wait_for(lambda: system.rows("SELECT 1 FROM usage_call WHERE api_key_id = %s", customer.key_id))
            left = {one["name"]: one["remaining"] for one in http.get("/v1/me/usage").json()["rate_limits"]}
            reply = http.post("/v1/chat/completions", json=a_body(max_tokens=600))
            assert first.result().status_code == 200
    assert (reply.status_code, reply.json()["error"]["limit_name"]) == (429, "tokens_per_minute")
    assert 360 <= reply.json()["error"]["remaining"] <= 420
    assert abs(left["tokens_per_minute"] - reply.json()["error"]["remaining"]) < 20
    assert (left["requests_per_minute"], left["concurrent_calls"]) == (98, 8)


@pytest.mark.parametrize("scope", ["tenant", "environment", "api_key"])
def test_a_suspended_part_is_403_that_says_which(system: System, customer: Customer, scope: str) -> None:
    statement = {
        "tenant": "UPDATE tenants_tenant SET suspended_at = now() WHERE name = %s RETURNING 1",
        "environment": "UPDATE tenants_environment SET suspended_at = now() WHERE id = %s RETURNING 1",
        "api_key": "UPDATE tenants_apikey SET suspended_at = now() WHERE id = %s RETURNING 1",
    }[scope]
    which = {"tenant": customer.name, "environment": customer.environments["prod"], "api_key": customer.key_id}[scope]
    with system.http(customer.key) as http:
        assert http.post("/v1/chat/completions", json=a_body()).status_code == 200
        system.rows(statement, which)
        for _ in range(2):  # at once, by the hold, and later, by the key's own record
            reply = http.post("/v1/chat/completions", json=a_body())
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["scope"]) == (403, "suspended", scope.removeprefix("api_"))
            assert "Ask an admin of your tenant" in error["message"]
            wait_for(lambda: http.get("/v1/models").status_code == 403)
