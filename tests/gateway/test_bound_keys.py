"""Keys bound to models, endpoints, origins and addresses, at the door of the running system; and what a browser's page gets."""

import json
import time
from typing import Any

import httpx2
import pytest

from tests.gateway.test_batches import lines
from tests.system import Customer, System
from tests.waiting import wait_for

PAGE, OTHER = "https://app.example.com", "https://evil.example"
BODY = {"model": "fake-1", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
PREFLIGHT = {"access-control-request-method": "POST"}


def bind(system: System, customer: Customer, *options: str) -> None:
    """Binds the customer's key, and waits until the web process knows."""
    system.manage("key_set", customer.key_id, *options)
    time.sleep(1.1)


def ask(
    system: System, customer: Customer, path: str = "/v1/chat/completions", method: str = "POST", **more: Any
) -> Any:
    headers = {"origin": more.pop("origin")} if "origin" in more else {}
    with system.http(customer.key, **headers) as http:
        return http.request(method, path, json=BODY | more if method == "POST" else None)


def refused(answer: Any, binding: str) -> bool:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["binding"]) == (403, "key_not_allowed", binding), answer.text
    assert answer.headers["x-should-retry"] == "false"
    return True


def test_a_key_bound_to_models_calls_and_sees_no_others(system: System, customer: Customer) -> None:
    names = {it["id"] for it in ask(system, customer, "/v1/models", "GET").json()["data"]}
    assert "fake-1" in names
    bind(system, customer, "--model", "gpt-5*", "--model", "o3")
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/estimate"):
        more = {"input": "hello"} if path == "/v1/responses" else {}
        assert refused(ask(system, customer, path, **more), "models")
    assert ask(system, customer, "/v1/models", "GET").json()["data"] == []
    assert ask(system, customer, "/v1/models/fake-1", "GET").status_code == 404
    bind(system, customer, "--model", "fake*")
    assert ask(system, customer).status_code == 200
    assert ask(system, customer, "/v1/messages").status_code == 200
    assert refused(ask(system, customer, model="other-1"), "models")
    listed = {it["id"] for it in ask(system, customer, "/v1/models", "GET").json()["data"]}
    assert listed == {name for name in names if name.startswith("fake")}
    bind(system, customer, "--model", "none")
    assert {it["id"] for it in ask(system, customer, "/v1/models", "GET").json()["data"]} == names


def test_no_batch_leads_a_bound_key_to_another_model(system: System, customer: Customer) -> None:
    for name in ("fake", "fake-anthropic"):
        system.manage(
            "price_set", name, "fake-1", "--input", "0.15", "--output", "0.60", "--cache-read", "0.075",
            "--component", "input/batch=0.075", "--component", "output/batch=0.30",
        )  # fmt: skip
    bind(system, customer, "--model", "gpt-5*")
    client = system.openai(customer.key)
    name = client.files.create(file=("in.jsonl", lines(2)), purpose="batch").id
    wanted = {"input_file_id": name, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with system.http(customer.key) as http:
        assert refused(http.post("/v1/batches", json=wanted), "models")
        bind(system, customer, "--model", "fake-1")
        made = http.post("/v1/batches", json=wanted)
        assert made.status_code == 200
        system.far_end.finish(made.json()["id"])  # else it is looked at for as long as the system runs
        bind(system, customer, "--model", "gpt-5*")
        requests = [{"custom_id": "a", "params": BODY}]
        assert refused(http.post("/v1/messages/batches", json={"requests": requests}), "models")
    wait_for(lambda: not system.rows("SELECT 1 FROM usage_call WHERE is_live AND api_key_id = %s", customer.key_id))


def test_a_key_bound_to_endpoints_reaches_no_others(system: System, customer: Customer) -> None:
    made = ask(system, customer)
    call = made.headers["x-call-id"]
    bind(system, customer, "--endpoint", "messages")
    assert refused(ask(system, customer), "endpoints")
    for path in ("/v1/files", "/v1/batches", f"/v1/calls/{call}", "/v1/files/file-1"):
        assert refused(ask(system, customer, path, "GET"), "endpoints")
    assert refused(ask(system, customer, "/v1/estimate"), "endpoints")
    assert ask(system, customer, "/v1/messages").status_code == 200
    assert ask(system, customer, "/v1/models", "GET").status_code == 200
    bind(system, customer, "--endpoint", "chat", "--endpoint", "files.list")
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/files", "GET"), (f"/v1/calls/{call}", "GET")):
        assert ask(system, customer, path, method).status_code == 200


PATHS = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/messages"), ("GET", "/v1/models"), ("GET", "/v1/models/fake-1"),
    ("GET", "/v1/files"), ("GET", "/v1/me/usage"), ("POST", "/v1/estimate"), ("GET", "/v1/calls/{call}"),
    ("GET", "/v1/calls/{call}/stream"), ("GET", "/api/caps"), ("GET", "/api/calls/{call}"),
]  # fmt: skip


def test_from_another_address_or_page_no_path_answers_a_key(system: System, customer: Customer) -> None:
    with system.http(customer.key) as http:
        call = http.post("/v1/chat/completions", json=BODY | {"stream": True}).headers["x-call-id"]

    def statuses(**headers: str) -> set[tuple[int, str | None]]:
        with system.http(customer.key, **headers) as http:
            answers = [
                http.request(method, path.format(call=call), json=BODY if method == "POST" else None)
                for method, path in PATHS
            ]
        found = set()
        for answer in answers:
            body = answer.json() if "json" in answer.headers["content-type"] else {}
            error = body.get("error") or body
            found.add((answer.status_code, error.get("code")))
        return found

    assert statuses() == {(200, None)}
    assert statuses(origin=PAGE) == {(403, "key_not_allowed")}
    bind(system, customer, "--network", "192.0.2.0/24")
    assert statuses() == {(403, "key_not_allowed")}
    assert statuses(**{"x-real-ip": "192.0.2.1"}) == {(403, "key_not_allowed")}
    bind(system, customer, "--network", "127.0.0.0/8", "--origin", PAGE)
    assert statuses() == {(403, "key_not_allowed")}
    assert statuses(origin=OTHER) == {(403, "key_not_allowed")}
    assert statuses(origin=PAGE) == {(200, None)}


def test_the_address_is_that_of_the_connection(system: System, customer: Customer) -> None:
    bind(system, customer, "--network", "127.0.0.2")
    assert refused(ask(system, customer), "networks")
    transport = httpx2.HTTPTransport(local_address="127.0.0.2")
    headers = {"authorization": f"Bearer {customer.key}"}
    with httpx2.Client(base_url=system.base_url, headers=headers, transport=transport, timeout=60) as http:
        assert http.post("/v1/chat/completions", json=BODY).status_code == 200
        assert http.get("/api/caps").status_code == 200
    with system.http(customer.key) as http:
        assert http.get("/api/caps").status_code == 403


def test_answers_streams_and_errors_are_open_to_the_page_of_the_key_and_to_no_other(
    system: System, customer: Customer
) -> None:
    bind(system, customer, "--origin", PAGE)
    for more, status in (({}, 200), ({"stream": True}, 200), ({"model": "no-such"}, 404), ({"messages": 5}, 400)):
        answer = ask(system, customer, origin=PAGE, **more)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
        for strange in ({"origin": OTHER}, {}):
            answer = ask(system, customer, **strange, **more)
            assert refused(answer, "origins")
            assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_suspended_key_says_so_to_its_own_page(system: System, customer: Customer) -> None:
    bind(system, customer, "--origin", PAGE)
    system.manage("suspend", "--tenant", customer.name, "--key", customer.key_id, "--reason", "x")
    wait_for(lambda: ask(system, customer, origin=PAGE).status_code == 403)
    answer = ask(system, customer, origin=PAGE)
    assert answer.json()["error"]["code"] == "suspended"
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/models", "/v1/calls/call_x", "/v1/nowhere"]
)
def test_a_preflight_is_answered_without_a_key_for_what_callers_send(system: System, path: str) -> None:
    asked = "authorization, content-type, x-api-key, anthropic-version, x-stainless-os, idempotency-key, cookie"
    with system.http("", origin=OTHER, **PREFLIGHT, **{"access-control-request-headers": asked}) as http:
        answer = http.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == OTHER
    assert answer.headers["access-control-allow-headers"] == asked.removesuffix(", cookie")
    assert {"GET", "POST", "DELETE"} == set(answer.headers["access-control-allow-methods"].split(", "))
    assert int(answer.headers["access-control-max-age"]) > 600
    assert "access-control-allow-credentials" not in answer.headers


def test_an_options_that_is_no_preflight_is_not_found_and_api_answers_none(system: System) -> None:
    with system.http("") as http:
        assert http.options("/v1/chat/completions").status_code == 404
    with system.http("", origin=PAGE, **PREFLIGHT) as http:
        assert "access-control-allow-origin" not in http.options("/api/calls").headers


def test_a_limit_on_a_key_holds_within_a_second(system: System, customer: Customer) -> None:
    assert [ask(system, customer).status_code for _ in range(3)] == [200] * 3
    system.manage("limit_set", "--tenant", customer.name, "--key", customer.key_id, "--rpm", "1")
    time.sleep(1.1)
    assert [ask(system, customer).status_code for _ in range(3)] in ([200, 429, 429], [429, 429, 429])
    limit = system.manage("limit_list", "--tenant", customer.name)["limits"][0]
    assert (limit["rpm"], limit["left"]) == (1, {"rpm": 0})
    system.manage("limit_remove", str(limit["limit"]))
    time.sleep(1.1)
    assert ask(system, customer).status_code == 200
    assert json.dumps(system.manage("limit_list", "--tenant", customer.name)["limits"]) == "[]"
