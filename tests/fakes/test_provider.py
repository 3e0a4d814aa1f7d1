"""The far end must itself be right: good replies please the official SDKs, each fault is the fault it says."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import socket
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.fakes.provider import FakeProvider

HELLO = [{"role": "user", "content": "hello there"}]  # 11 characters: 3 tokens
OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
WIRES = pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])


@pytest.fixture(scope="module")
def process() -> Iterator[FakeProvider]:
    """Start one far end for all tests of this module."""
    with FakeProvider() as far_end:
        yield far_end


@pytest.fixture
def far_end(process: FakeProvider) -> Iterator[FakeProvider]:
    """Return the far end without any fault."""
    process.clear()
    yield process
    process.clear()


@pytest.fixture
def openai_client(far_end: FakeProvider) -> Iterator[Any]:
    with openai.OpenAI(base_url=far_end.openai_url, api_key="unused", max_retries=0, timeout=5) as client:
        yield client


@pytest.fixture
def anthropic_client(far_end: FakeProvider) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=far_end.anthropic_url, api_key="unused", max_retries=0, timeout=5) as client:
        yield client


def raw(far_end: FakeProvider, path: str, timeout: float = 5, **body: Any) -> tuple[http.client.HTTPResponse, bytes]:
    """Send a call as no SDK would, and return the reply with its bytes."""
    body = {"model": "fake-1", "messages": HELLO, "max_tokens": 100} | body
    connection = http.client.HTTPConnection("127.0.0.1", far_end.port, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(body).encode())
        with connection.getresponse() as response:
            return response, response.read()
    finally:
        connection.close()


def events_of(stream: bytes) -> list[Any]:
    """Return the data of each event of a stream that is whole."""
    assert stream.endswith(b"\n\n")
    data = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def last_call(far_end: FakeProvider, *, ended: bool = True) -> dict[str, Any]:
    """Return what the journal says of the latest call, waiting for its end."""
    for _ in range(100):
        call = far_end.calls()[-1]
        if not ended or "outcome" in call:
            return call
        time.sleep(0.02)
    raise AssertionError(f"the call has not ended: {call}")


# --- good replies -----------------------------------------------------------------------------------------------------


def test_a_completion_has_counted_usage(openai_client: Any) -> None:
    reply = openai_client.chat.completions.create(model="fake-1", messages=HELLO)
    assert reply.choices[0].message.content == "tok " * 8
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (3, 8, 11)


def test_a_message_has_counted_usage(anthropic_client: Any) -> None:
    reply = anthropic_client.messages.create(model="fake-1", max_tokens=5, messages=HELLO, system="12345")
    assert (reply.content[0].text, reply.stop_reason) == ("tok " * 5, "max_tokens")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (4, 5)


def test_a_streamed_completion_shows_its_usage_only_if_asked(openai_client: Any) -> None:
    def usages(**options: Any) -> list[int]:
        stream = openai_client.chat.completions.create(model="fake-1", messages=HELLO, stream=True, **options)
        chunks = list(stream)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == "tok " * 8
        return [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]

    assert usages() == []
    assert usages(stream_options={"include_usage": True}) == [8]


def test_a_streamed_message_is_whole(anthropic_client: Any) -> None:
    with anthropic_client.messages.stream(model="fake-1", max_tokens=100, messages=HELLO) as stream:
        reply = stream.get_final_message()
    assert reply.content[0].text == "tok " * 8
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 8)


def test_a_canary_comes_back_first_in_text_and_stream(far_end: FakeProvider, openai_client: Any) -> None:
    said = [{"role": "user", "content": "keep canary-T1_x safe"}]
    reply = openai_client.chat.completions.create(model="fake-1", messages=said)
    assert reply.choices[0].message.content.startswith("canary-T1_x ")
    _, stream = raw(far_end, ANTHROPIC, messages=said, stream=True)
    assert b'"text":"canary-T1_x "' in stream
    assert last_call(far_end)["canary"] == "canary-T1_x"


def test_replies_on_one_connection_keep_their_order(far_end: FakeProvider) -> None:
    far_end.script(match="slowly", latency_ms=100)

    def request(text: str) -> bytes:
        body = json.dumps({"model": text, "messages": HELLO}).encode()
        return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (OPENAI.encode(), len(body), body)

    with socket.create_connection(("127.0.0.1", far_end.port), timeout=5) as connection:
        connection.sendall(request("slowly") + request("quickly"))
        seen = b""
        while b"quickly" not in seen:
            received = connection.recv(65536)
            assert received
            seen += received
    assert seen.index(b"slowly") < seen.index(b"quickly")


# --- the journal ------------------------------------------------------------------------------------------------------


def test_the_journal_says_what_came_and_what_left(far_end: FakeProvider) -> None:
    body = json.dumps({"model": "fake-1", "messages": HELLO}).encode()
    headers = {"authorization": "Bearer my-key", "x-client-request-id": "call-1"}
    before = far_end.count()
    reply = httpx2.post(f"{far_end.base_url}{OPENAI}", content=body, headers=headers)
    call = last_call(far_end)
    expected = {
        "request_id": "call-1",
        "path": OPENAI,
        "wire": "openai",
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes_in": len(body),
        "auth": "bearer",
        "auth_hash": hashlib.sha256(b"my-key").hexdigest()[:12],
        "bytes_out": len(reply.content),
        "input_tokens": 3,
        "output_tokens": 8,
        "outcome": "finished",
        "usage": reply.json()["usage"],
    }
    assert {name: call[name] for name in expected} == expected
    assert "my-key" not in json.dumps(far_end.journal())
    assert far_end.count() == before | {"arrived": before["arrived"] + 1, "finished": before["finished"] + 1}


def test_the_journal_is_in_order_and_on_disk_before_the_reply(far_end: FakeProvider) -> None:
    far_end.script(hang="before_headers")
    with pytest.raises(TimeoutError):
        raw(far_end, OPENAI, timeout=0.3)
    orders = [entry["order"] for entry in far_end.journal()]
    assert orders == sorted(set(orders))
    written = [json.loads(line) for line in far_end.journal_path.read_text().splitlines()]
    assert any(entry["event"] == "arrived" and entry["fault"] == {"hang": "before_headers"} for entry in written)


def test_a_journal_is_continued_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for expected in (1, 2):
        with FakeProvider(journal=path) as far_end:
            raw(far_end, OPENAI)
            assert far_end.count() == {"arrived": expected, "finished": expected, "aborted": 0}
            assert last_call(far_end)["call"] == expected


def test_a_client_that_leaves_makes_an_aborted_call(far_end: FakeProvider) -> None:
    far_end.script(hang="mid_stream", after=3)
    with pytest.raises(TimeoutError):
        raw(far_end, OPENAI, timeout=0.3, stream=True)
    call = last_call(far_end)
    assert (call["outcome"], call["output_tokens"], call["usage"]) == ("aborted", 2, None)


# --- the script -------------------------------------------------------------------------------------------------------


def test_a_fault_strikes_only_where_it_matches_and_as_often_as_told(far_end: FakeProvider) -> None:
    far_end.script(match="unlucky", times=2, status=500)
    statuses = [raw(far_end, OPENAI, model=model)[0].status for model in ("unlucky", "lucky", "unlucky", "unlucky")]
    assert statuses == [500, 200, 500, 200]


@pytest.mark.parametrize("fault", [{"no_such": 1}, {"usage": "odd"}, {"hang": "sometimes"}, {"cut": "twice"}])
def test_a_fault_that_means_nothing_is_refused(far_end: FakeProvider, fault: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        far_end.script(**fault)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_refusing_refuses_connections_and_accepts_them_again(far_end: FakeProvider) -> None:
    with far_end.refusing(), pytest.raises(ConnectionRefusedError):
        raw(far_end, OPENAI)
    assert raw(far_end, OPENAI)[0].status == 200


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 502, 503, 529])
def test_an_error_is_one_of_the_sdks_own(
    far_end: FakeProvider, status: int, openai_client: Any, anthropic_client: Any
) -> None:
    far_end.script(status=status)
    with pytest.raises(openai.APIStatusError) as from_openai:
        openai_client.chat.completions.create(model="fake-1", messages=HELLO)
    with pytest.raises(anthropic.APIStatusError) as from_anthropic:
        anthropic_client.messages.create(model="fake-1", max_tokens=1, messages=HELLO)
    assert from_openai.value.status_code == from_anthropic.value.status_code == status
    assert from_openai.value.response.json()["error"]["type"]
    assert from_anthropic.value.response.json()["error"]["type"]


@pytest.mark.parametrize("retry_after", [None, "2", "-1", "999999999", "soon", "Wed, 21 Oct 2065 07:28:00 GMT"])
def test_retry_after_is_sent_as_it_stands(far_end: FakeProvider, retry_after: str | None) -> None:
    far_end.script(status=429, retry_after=retry_after, headers={"x-ratelimit-remaining-requests": "0"})
    response, _ = raw(far_end, OPENAI)
    assert response.headers["retry-after"] == retry_after
    assert response.headers["x-ratelimit-remaining-requests"] == "0"


@WIRES
@pytest.mark.parametrize(("drop", "error"), [("close", http.client.RemoteDisconnected), ("reset", ConnectionError)])
def test_a_dropped_call_was_read_but_not_answered(
    far_end: FakeProvider, path: str, drop: str, error: type[Exception]
) -> None:
    far_end.script(drop=drop)
    with pytest.raises(error):
        raw(far_end, path)
    call = last_call(far_end)
    assert (call["outcome"], call["bytes_out"], call["status"]) == ("aborted", 0, None)
    assert call["bytes_in"] > 0


@pytest.mark.parametrize(
    ("hang", "stream", "expected"),
    [
        ("after_headers", False, b""),
        ("after_headers", True, b""),
        ("mid_stream", False, b'{"id"'),
        ("mid_stream", True, b"data: "),
    ],
)
def test_a_hang_leaves_a_client_with_what_was_sent_before(
    far_end: FakeProvider, hang: str, stream: bool, expected: Any
) -> None:
    far_end.script(hang=hang)
    body = {"model": "fake-1", "messages": HELLO, "stream": stream}

    async def read() -> bytes:
        seen = b""
        url = f"{far_end.base_url}{OPENAI}"
        async with httpx2.AsyncClient(timeout=0.3) as client, client.stream("POST", url, json=body) as response:
            assert response.status_code == 200
            with contextlib.suppress(httpx2.ReadTimeout):
                async for part in response.aiter_raw():
                    seen += part
                raise AssertionError("the reply has ended")
        return seen

    seen = asyncio.run(read())
    assert seen.startswith(expected)
    assert bool(seen) == bool(expected)


def test_a_hang_can_end(far_end: FakeProvider) -> None:
    far_end.script(hang="before_headers", hang_seconds=0.1)
    started = time.monotonic()
    assert raw(far_end, OPENAI)[0].status == 200
    assert time.monotonic() - started >= 0.1


@WIRES
def test_a_cut_stream_ends_after_so_many_events(far_end: FakeProvider, path: str) -> None:
    far_end.script(cut_after_chunks=3)
    with pytest.raises(http.client.IncompleteRead) as short:
        raw(far_end, path, stream=True)
    assert len(events_of(short.value.partial)) == 3
    assert last_call(far_end)["outcome"] == "aborted"


@WIRES
@pytest.mark.parametrize("stream", [True, False])
def test_a_cut_reply_ends_after_so_many_bytes(far_end: FakeProvider, path: str, stream: bool) -> None:
    far_end.script(cut_after_bytes=50)
    with pytest.raises(http.client.IncompleteRead) as short:
        raw(far_end, path, stream=stream)
    assert len(short.value.partial) == 50
    assert last_call(far_end)["bytes_out"] == 50


def test_a_cut_may_leave_the_http_message_well_formed(far_end: FakeProvider) -> None:
    far_end.script(cut_after_chunks=2, cut="end")
    assert "[DONE]" not in events_of(raw(far_end, OPENAI, stream=True)[1])
    far_end.clear()
    far_end.script(cut_after_bytes=20, cut="end")
    assert len(raw(far_end, OPENAI)[1]) == 20


def test_a_cut_may_be_a_reset(far_end: FakeProvider) -> None:
    far_end.script(cut_after_chunks=2, cut="reset")
    with pytest.raises(ConnectionResetError):
        raw(far_end, OPENAI, stream=True)


@pytest.mark.parametrize(("path", "last"), [(OPENAI, "[DONE]"), (ANTHROPIC, {"type": "message_stop"})])
def test_a_stream_may_lack_its_end(far_end: FakeProvider, path: str, last: Any) -> None:
    assert events_of(raw(far_end, path, stream=True)[1])[-1] == last
    far_end.script(done=False)
    assert last not in events_of(raw(far_end, path, stream=True)[1])


@WIRES
def test_single_bytes_tear_characters_apart_and_still_make_the_same_text(far_end: FakeProvider, path: str) -> None:
    far_end.script(text="é€😀", output_tokens=1, split_bytes=1)
    body = json.dumps({"model": "fake-1", "messages": HELLO, "max_tokens": 9, "stream": True}).encode()
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (
        path.encode(),
        len(body),
    )
    with socket.create_connection(("127.0.0.1", far_end.port), timeout=5) as connection:
        connection.sendall(head + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    chunks = received.partition(b"\r\n\r\n")[2].removesuffix(b"0\r\n\r\n")
    sizes, parts = zip(
        *((chunks[at : at + 3], chunks[at + 3 : at + 4]) for at in range(0, len(chunks), 6)), strict=True
    )
    assert set(sizes) == {b"1\r\n"}
    assert '"é€😀"'.encode() in b"".join(parts)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("zero", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        ("negative", {"prompt_tokens": -3, "completion_tokens": -8, "total_tokens": -11}),
        ("huge", {"prompt_tokens": 10**18, "completion_tokens": 10**18, "total_tokens": 10**18}),
        ("string", {"prompt_tokens": "3", "completion_tokens": "8", "total_tokens": "11"}),
        ("cached_above_input", {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 103}}),
        ({"prompt_tokens": 1.5}, {"prompt_tokens": 1.5}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_odd_usage_is_sent_and_journalled_as_it_was_sent(
    far_end: FakeProvider, usage: Any, expected: Any, stream: bool
) -> None:
    far_end.script(usage=usage)
    body = raw(far_end, OPENAI, stream=stream, stream_options={"include_usage": True})[1]
    sent = events_of(body)[-2]["usage"] if stream else json.loads(body)["usage"]
    assert expected.items() <= sent.items()
    assert last_call(far_end)["usage"] == sent


@pytest.mark.parametrize(("usage", "where"), [("missing", []), ("first", [0]), ("twice", [10, 11]), (None, [10])])
def test_usage_comes_where_and_as_often_as_told_on_a_stream(
    far_end: FakeProvider, usage: Any, where: list[int]
) -> None:
    far_end.script(usage=usage)
    events = events_of(raw(far_end, OPENAI, stream=True, stream_options={"include_usage": True})[1])
    assert [index for index, event in enumerate(events) if event != "[DONE]" and event.get("usage")] == where


@WIRES
def test_usage_may_be_missing_or_null_in_a_plain_reply(far_end: FakeProvider, path: str) -> None:
    far_end.script(usage="missing", times=1)
    far_end.script(usage="null", times=1)
    assert "usage" not in json.loads(raw(far_end, path)[1])
    assert json.loads(raw(far_end, path)[1])["usage"] is None


@WIRES
@pytest.mark.parametrize("stream", [True, False])
def test_nul_and_a_lone_surrogate_in_the_output_arrive(far_end: FakeProvider, path: str, stream: bool) -> None:
    far_end.script(text="a\x00b\ud800c", output_tokens=1)
    body = raw(far_end, path, stream=stream)[1]
    assert b"a\\u0000b\\ud800c" in body


@WIRES
@pytest.mark.parametrize("stream", [True, False])
def test_unknown_fields_are_added(far_end: FakeProvider, path: str, stream: bool) -> None:
    far_end.script(extra={"tomorrow": {"deep": [1]}})
    body = raw(far_end, path, stream=stream)[1]
    assert b'"tomorrow":{"deep":[1]}' in body


def test_a_body_can_be_anything(far_end: FakeProvider) -> None:
    far_end.script(body="<html>not JSON</html>", content_type="text/html")
    response, body = raw(far_end, OPENAI)
    assert (response.status, response.headers["content-type"], body) == (200, "text/html", b"<html>not JSON</html>")


def test_a_stream_may_fail_midway_by_an_event(far_end: FakeProvider, openai_client: Any, anthropic_client: Any) -> None:
    far_end.script(error_after=3)
    completion = openai_client.chat.completions.create(model="fake-1", messages=HELLO, stream=True)
    message = anthropic_client.messages.create(model="fake-1", max_tokens=9, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError):
        list(completion)
    with pytest.raises(anthropic.APIStatusError):
        list(message)


def test_chunks_and_pace_are_kept(far_end: FakeProvider) -> None:
    far_end.script(text="x" * 100, chunks=5, pace_ms=20, output_tokens=40)
    started = time.monotonic()
    events = events_of(raw(far_end, OPENAI, stream=True, stream_options={"include_usage": True})[1])
    assert [len(event["choices"][0]["delta"].get("content", "")) for event in events[1:6]] == [20] * 5
    assert events[-2]["usage"]["completion_tokens"] == 40
    assert time.monotonic() - started >= 0.02 * len(events)


def test_a_latency_is_kept(far_end: FakeProvider) -> None:
    far_end.script(latency_ms=100)
    started = time.monotonic()
    assert raw(far_end, ANTHROPIC)[0].status == 200
    assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize(("path", "body"), [(OPENAI, b"{"), (OPENAI, b"[]"), (ANTHROPIC, b"[" * 100_000)])
def test_a_body_that_is_no_object_is_a_400_and_is_journalled(far_end: FakeProvider, path: str, body: bytes) -> None:
    assert httpx2.post(f"{far_end.base_url}{path}", content=body).status_code == 400
    assert last_call(far_end)["bytes_in"] == len(body)


def test_a_route_that_does_not_exist_is_a_404_and_is_journalled(far_end: FakeProvider) -> None:
    assert raw(far_end, "/v1/engines")[0].status == 404
    assert last_call(far_end)["path"] == "/v1/engines"
