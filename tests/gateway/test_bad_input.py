"""What cannot be accepted is refused before anything is held, in the shape of the caller's wire, with what to do."""

import socket
import time
from typing import Any

import pytest

from tests.gateway.pictures import encoded, picture
from tests.system import Customer, System

GOOD = {"model": "fake-1", "messages": [{"role": "user", "content": "x"}]}
DEEP = b'{"model":"fake-1","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BODIES = [
    (b"not json", 400, "invalid_request"),
    (b"[]", 400, "invalid_request"),
    (b'{"model":"fake-1","model":"other","messages":[]}', 400, "invalid_request"),
    (b'{"model":"fake-1","messages":[{"role":"user","content":"\xff"}]}', 400, "invalid_request"),
    (b"\xef\xbb\xbf{}", 400, "invalid_request"),
    (b'{"model":"fake-1","temperature":NaN,"messages":[{}]}', 400, "invalid_request"),
    (b'{"model":"fake-1","seed":' + b"9" * 5000 + b',"messages":[{}]}', 400, "invalid_request"),
    (DEEP, 400, "invalid_request"),
    (b"[" * 8_000_000, 400, "invalid_request"),
    (b'{"model":"fake-1"}', 400, "invalid_request"),
    (b'{"messages":[{"role":"user","content":"x"}]}', 400, "invalid_request"),
    (b'{"model":"no-such","messages":[{"role":"user","content":"x"}]}', 404, "model_not_found"),
]
LIMITS: list[Any] = [0, -1, 2**31, 10**18, "100", 1.5, True, []]


def test_nothing_is_held_for_a_body_that_cannot_be_read(system: System, customer: Customer) -> None:
    with system.http(customer.key) as http:
        for body, status, code in BODIES:
            began = time.perf_counter()
            reply = http.post("/v1/chat/completions", content=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), body[:60]
            assert time.perf_counter() - began < 5, body[:60]
    assert calls_of(system, customer) == 0


@pytest.mark.parametrize("limit", LIMITS)
def test_an_output_limit_must_be_a_sane_whole_number(system: System, customer: Customer, limit: Any) -> None:
    with system.http(customer.key) as http:
        for path, field in (
            ("chat/completions", "max_tokens"),
            ("chat/completions", "max_completion_tokens"),
            ("messages", "max_tokens"),
        ):
            reply = http.post(f"/v1/{path}", json=GOOD | {field: limit})
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request"), (path, field)
    assert calls_of(system, customer) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("stream", "true"), ("n", 0), ("n", 129), ("stream_options", 1), ("messages", {}), ("messages", []), ("model", 7)],
)
def test_known_fields_are_read_strictly(system: System, customer: Customer, field: str, value: Any) -> None:
    reply = system.http(customer.key).post("/v1/chat/completions", json=GOOD | {field: value})
    assert reply.status_code == 400
    assert field in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
        {"service_tier": "priority"},
        {"modalities": ["text", "audio"]},
        {"web_search_options": {}},
    ],
)
def test_what_has_no_bounded_price_is_refused_not_guessed(
    system: System, customer: Customer, extra: dict[str, Any]
) -> None:
    reply = system.http(customer.key).post("/v1/chat/completions", json=GOOD | extra)
    assert (reply.status_code, reply.json()["error"]["code"]) == (402, "model_not_priced")


def test_a_picture_is_held_and_charged_as_tokens(system: System, customer: Customer) -> None:
    """The fake model has no family of its own, so the dearest rule holds it: the provider charges less."""
    url = f"data:image/png;base64,{encoded(picture('png', 1024, 1024))}"
    parts = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": url}}]
    system.far_end.script(
        match="what is this",
        usage={
            "prompt_tokens": 1000,
            "completion_tokens": 2,
            "prompt_tokens_details": {"image_tokens": 900, "cached_tokens": 50},
        },
    )
    reply = system.http(customer.key).post(
        "/v1/chat/completions", json=GOOD | {"messages": [{"role": "user", "content": parts}]}
    )
    assert reply.status_code == 200
    (call,) = system.rows(
        "SELECT input_tokens, cache_read_tokens, meters, charged_nano, held_nano FROM usage_call WHERE api_key_id = %s",
        customer.key_id,
    )
    assert (call["input_tokens"], call["cache_read_tokens"], call["meters"]) == (50, 50, {"input_image": 900})
    assert 0 < call["charged_nano"] < call["held_nano"]


def test_a_picture_in_an_answer_without_usage_is_counted_as_a_picture(system: System, customer: Customer) -> None:
    data = encoded(picture("jpeg_with_profile", 64, 64))
    content = [{"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": data}}]
    system.far_end.script(match='"image/jpeg"', usage="missing")
    body = GOOD | {"max_tokens": 5, "messages": [{"role": "user", "content": content}]}
    assert system.http(customer.key).post("/v1/messages", json=body).status_code == 200
    (call,) = system.rows("SELECT input_tokens, evidence FROM usage_call WHERE api_key_id = %s", customer.key_id)
    assert call["evidence"] == "counted"
    assert call["input_tokens"] < 100


def test_a_body_beyond_the_limit_is_413_whatever_its_length_claims(system: System, customer: Customer) -> None:
    with system.http(customer.key) as http:
        assert http.post("/v1/chat/completions", content=b" " * (8 * 1024 * 1024 + 1)).status_code == 413

        def endless() -> Any:
            for _ in range(200):
                yield b" " * 65536

        reply = http.post("/v1/chat/completions", content=endless())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_a_malformed_content_length_does_not_crash(system: System, customer: Customer) -> None:
    host, port = system.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as raw:
        raw.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1e9\r\n\r\n{}")
        assert raw.recv(100).startswith(b"HTTP/1.1 4")


def test_a_wrong_key_is_401_in_the_wires_own_shape(system: System, customer: Customer) -> None:
    wrong = customer.key[:-1] + ("A" if customer.key[-1] != "A" else "B")
    revoked = system.tenant()
    system.manage("key_revoke", revoked.key_id)
    for key in (wrong, "", "nonsense", revoked.key):
        openai = system.http(key).post("/v1/chat/completions", json=GOOD)
        anthropic = system.http("", **{"x-api-key": key}).post("/v1/messages", json=GOOD | {"max_tokens": 5})
        assert (openai.status_code, openai.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (401, "authentication_error")
        assert not key or key not in openai.text + anthropic.text


def test_an_expired_key_is_401(system: System, customer: Customer) -> None:
    system.rows(
        "UPDATE tenants_apikey SET expires_at = now() - interval '1 minute' WHERE id = %s RETURNING 1", customer.key_id
    )
    assert system.http(customer.key).post("/v1/chat/completions", json=GOOD).status_code == 401


def test_a_revoked_key_spends_nothing_even_while_it_is_remembered(system: System, customer: Customer) -> None:
    with system.http(customer.key) as http:
        assert http.post("/v1/chat/completions", json=GOOD).status_code == 200
        system.rows("UPDATE tenants_apikey SET revoked_at = now() WHERE id = %s RETURNING 1", customer.key_id)
        assert http.post("/v1/chat/completions", json=GOOD).status_code == 401
    assert calls_of(system, customer) == 1


def test_two_different_credentials_are_refused(system: System, customer: Customer) -> None:
    reply = system.http(customer.key, **{"x-api-key": "other"}).post("/v1/chat/completions", json=GOOD)
    assert reply.status_code == 401
    assert "Two different" in reply.json()["error"]["message"]


def test_an_endpoint_that_does_not_exist_is_404_in_the_wires_shape(system: System, customer: Customer) -> None:
    assert system.http(customer.key).post("/v1/nothing", json={}).json()["error"]["code"] == "not_found"


def test_nul_in_a_prompt_and_in_the_user_field_is_served(system: System, customer: Customer) -> None:
    body = GOOD | {"user": "a\0b", "messages": [{"role": "user", "content": "nul \0 here"}]}
    reply = system.http(customer.key).post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    (call,) = system.rows("SELECT end_user FROM usage_call WHERE api_key_id = %s", customer.key_id)
    assert call["end_user"] == "ab"


@pytest.mark.parametrize(
    "usage", ["missing", "null", "negative", "string", "huge", "twice", "zero", "cached_above_input"]
)
def test_odd_usage_never_leaves_a_call_unsettled(system: System, customer: Customer, usage: str) -> None:
    system.far_end.script(match=f"odd-{usage}", usage=usage)
    messages = [{"role": "user", "content": f"odd-{usage}"}]
    for stream in (False, True):
        assert (
            system.http(customer.key)
            .post("/v1/chat/completions", json=GOOD | {"messages": messages, "stream": stream})
            .status_code
            == 200
        )
    rows = system.rows(
        "SELECT state, evidence, charged_nano, held_nano FROM usage_call WHERE api_key_id = %s", customer.key_id
    )
    assert [row["state"] for row in rows] == ["settled", "settled"]
    assert all(row["charged_nano"] <= row["held_nano"] for row in rows)
    if usage == "zero":
        assert [(row["evidence"], row["charged_nano"]) for row in rows] == [("provider", 0)] * 2
    if usage in {"missing", "null", "negative", "string"}:
        assert {row["evidence"] for row in rows} == {"counted"}


@pytest.mark.parametrize("text", ["nul \0 out", "lone \ud800 surrogate"])
def test_hostile_text_from_a_provider_is_settled(system: System, customer: Customer, text: str) -> None:
    system.far_end.script(match="hostile", text=text)
    messages = [{"role": "user", "content": "hostile"}]
    for stream in (False, True):
        assert (
            system.http(customer.key)
            .post("/v1/chat/completions", json=GOOD | {"messages": messages, "stream": stream})
            .status_code
            == 200
        )
    rows = system.rows("SELECT state, evidence FROM usage_call WHERE api_key_id = %s", customer.key_id)
    assert rows == [{"state": "settled", "evidence": "provider"}] * 2


def calls_of(system: System, customer: Customer) -> int:
    (row,) = system.rows("SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s", customer.key_id)
    return int(row["n"])
