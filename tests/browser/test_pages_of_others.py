"""Pages on other origins that call the gateway from a real browser, with a key that is bound to their origin and with others."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.system import Customer, System

CALL = """async ([url, headers, body]) => {
  try {
    const reply = await fetch(url, {method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body)});
    const text = await reply.text();
    return {status: reply.status, text, call: reply.headers.get('x-call-id'), held: reply.headers.get('x-held-usd')};
  } catch (error) { return {failed: error.name}; }
}"""
BODY = {"model": "fake-1", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}


class Blank(BaseHTTPRequestHandler):
    """A page with nothing on it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page</title>")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def origins() -> Iterator[list[str]]:
    """Two sites."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Blank) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def call(browser: Any, system: System, origins: list[str]) -> Iterator[Any]:
    """What JavaScript of a page gets from the gateway."""
    contexts = []

    def ask(origin: str, key: str, path: str = "/v1/chat/completions", body: Any = None, **headers: str) -> Any:
        context = browser.new_context()
        contexts.append(context)
        page = context.new_page()
        page.goto(origin)
        own = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return page.evaluate(CALL, [f"{system.base_url}{path}", own | headers, body])

    yield ask
    for context in contexts:
        context.close()


def test_a_page_of_the_keys_origin_reads_answers_streams_and_errors_and_another_page_nothing(
    call: Any, system: System, customer: Customer, origins: list[str]
) -> None:
    its, other = origins
    system.manage("key_set", customer.key_id, "--origin", its)
    time.sleep(1.1)
    plain = call(its, customer.key, body=BODY, **{"x-stainless-os": "Linux", "idempotency-key": "one"})
    assert (plain["status"], plain["held"] is not None) == (200, True)
    assert plain["call"].startswith("call_")
    streamed = call(its, customer.key, body=BODY | {"stream": True})
    assert streamed["text"].count("data: ") > 1
    assert "[DONE]" in streamed["text"]
    message = call(
        its, customer.key, "/v1/messages", BODY, **{"anthropic-version": "2023-06-01", "x-api-key": customer.key}
    )
    assert message["status"] == 200
    assert call(its, customer.key, "/v1/models")["status"] == 200
    assert call(its, customer.key, f"/v1/calls/{plain['call']}")["status"] == 200
    wrong = call(its, customer.key, body={**BODY, "model": "no-such"})
    assert wrong["status"] == 404
    assert "model_not_found" in wrong["text"]
    before = system.far_end.count()
    for path, body in (("/v1/chat/completions", BODY), ("/v1/models", None), (f"/v1/calls/{plain['call']}", None)):
        assert call(other, customer.key, path, body) == {"failed": "TypeError"}
    assert system.far_end.count() == before


def test_a_key_for_servers_does_not_work_in_any_page(
    call: Any, system: System, customer: Customer, origins: list[str]
) -> None:
    with system.http(customer.key) as http:
        assert http.post("/v1/chat/completions", json=BODY).status_code == 200
    before = system.far_end.count()
    for origin in origins:
        assert call(origin, customer.key, body=BODY) == {"failed": "TypeError"}
    assert system.far_end.count() == before
