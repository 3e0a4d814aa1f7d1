"""The far end's ways of sending: what it is told to put around, before and after a good reply is what a socket sees."""

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import scripted, sse
from tests.fakes.provider import FakeProvider

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
WIRES = pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])


@pytest.fixture(scope="module")
def process() -> Iterator[FakeProvider]:
    with FakeProvider() as far_end:
        yield far_end


@pytest.fixture
def far_end(process: FakeProvider) -> Iterator[FakeProvider]:
    process.clear()
    yield process
    process.clear()


def received(far_end: FakeProvider, path: str, *, stream: bool = True, keep_alive: bool = False) -> tuple[bytes, bytes]:
    """Head and body of a reply as they came, byte for byte."""
    asked = {"model": "fake-1", "max_tokens": 9, "stream": stream, "stream_options": {"include_usage": True},
             "messages": [{"role": "user", "content": "hello there"}]}  # fmt: skip
    body = json.dumps(asked).encode()
    ends = b"keep-alive" if keep_alive else b"close"
    with socket.create_connection(("127.0.0.1", far_end.port), timeout=5) as connection:
        connection.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (path.encode(), ends, len(body), body)
        )
        head, _, rest = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head + b"\r\n", rest


def unchunked(body: bytes) -> tuple[bytes, bytes]:
    """The content of a chunked body, and its trailers."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return content, body
        content, body = content + body[: int(size, 16)], body[int(size, 16) + 2 :]


@WIRES
@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_lines_end_as_told_and_the_events_are_the_same(far_end: FakeProvider, path: str, newline: str) -> None:
    usual = unchunked(received(far_end, path)[1])[0]
    far_end.script(newline=newline)
    body = unchunked(received(far_end, path)[1])[0]
    assert (b"\n" in body) == (newline == "\r\n")
    assert [one.name for one in sse.events(body)] == [one.name for one in sse.events(usual)]
    assert body.count(newline.encode()) == usual.count(b"\n")


def test_comments_ids_and_retries_come_before_each_event(far_end: FakeProvider) -> None:
    far_end.script(before_each=": ping\n\nretry: 3000\nid: 7\n", output_tokens=2)
    body = unchunked(received(far_end, OPENAI)[1])[0]
    assert body.count(b": ping\n\nretry: 3000\nid: 7\ndata: ") == len(sse.events(body)) == 6


def test_a_byte_order_mark_comes_once(far_end: FakeProvider) -> None:
    far_end.script(bom=True)
    body = unchunked(received(far_end, ANTHROPIC)[1])[0]
    assert body.startswith(b"\xef\xbb\xbfevent: message_start\n")
    assert body.count(b"\xef\xbb\xbf") == 1


@WIRES
@pytest.mark.parametrize("stream", [True, False])
def test_trailers_follow_the_last_chunk(far_end: FakeProvider, path: str, *, stream: bool) -> None:
    far_end.script(trailers={"x-checksum": "1"})
    head, body = received(far_end, path, stream=stream)
    assert b"transfer-encoding: chunked" in head
    assert unchunked(body)[1] == b"x-checksum: 1\r\n\r\n"


@WIRES
@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_ends_by_its_length_or_by_closing(far_end: FakeProvider, path: str, *, stream: bool) -> None:
    far_end.script(framing="length")
    head, body = received(far_end, path, stream=stream)
    assert b"content-length: %d\r\n" % len(body) in head
    far_end.clear()
    far_end.script(framing="close")
    head, closed = received(far_end, path, stream=stream, keep_alive=True)
    assert b"content-length" not in head
    assert b"transfer-encoding" not in head
    assert len(closed) == len(body)


def test_a_header_comes_as_often_as_told(far_end: FakeProvider) -> None:
    far_end.script(headers={"retry-after": ["1", "2"], "x-one": "a"})
    head, _ = received(far_end, OPENAI)
    assert (head.count(b"retry-after: "), head.count(b"x-one: a\r\n")) == (2, 1)


@WIRES
@pytest.mark.parametrize("done", [0, 1, 2])
def test_the_last_event_comes_as_often_as_told(far_end: FakeProvider, path: str, done: int) -> None:
    far_end.script(done=done)
    body = unchunked(received(far_end, path)[1])[0]
    assert body.count(b"data: [DONE]" if path == OPENAI else b"event: message_stop") == done


def test_usage_may_be_told_at_the_beginning_only(far_end: FakeProvider) -> None:
    far_end.script(usage="start_only")
    told = [json.loads(one.data) for one in sse.events(unchunked(received(far_end, ANTHROPIC)[1])[0])]
    assert [one["type"] for one in told if "usage" in one.get("message", one)] == ["message_start"]
    told = [json.loads(one.data) for one in sse.events(unchunked(received(far_end, OPENAI)[1])[0])[:-1]]
    assert [bool(one.get("usage")) for one in told].index(True) == 0


def test_a_body_is_sent_byte_for_byte_and_may_be_compressed(far_end: FakeProvider) -> None:
    anything = bytes(range(256))
    far_end.script(times=1, **scripted.exactly(anything, stream=False))
    far_end.script(**scripted.gzipped(anything, stream=True))
    assert received(far_end, OPENAI, stream=False)[1] == anything
    head, body = received(far_end, OPENAI)
    assert b"content-encoding: gzip\r\n" in head
    assert gzip.decompress(unchunked(body)[0]) == anything


def test_slammed_connections_are_reset_before_they_are_read(far_end: FakeProvider) -> None:
    before = far_end.count()
    far_end.slam(1)
    with pytest.raises(ConnectionError):
        received(far_end, OPENAI)
    assert far_end.count() == before
    assert received(far_end, OPENAI)[1]


@pytest.mark.parametrize("fault", [{"framing": "letters"}, {"newline": "\n\n"}])
def test_a_way_of_sending_that_there_is_not_is_refused(far_end: FakeProvider, fault: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="400"):
        far_end.script(**fault)


@pytest.mark.parametrize(
    ("wire", "path"), [("openai", OPENAI), ("anthropic", ANTHROPIC), ("responses", "/v1/responses")]
)
@pytest.mark.parametrize("stream", [True, False])
def test_tools_are_called_in_parallel_as_scripted(far_end: FakeProvider, wire: str, path: str, *, stream: bool) -> None:
    far_end.script(**scripted.tool_calls(wire, [("a", {"x": 1}), ("b", {"y": [2]})], stream=stream))
    body = received(far_end, path, stream=stream)[1]
    text = (unchunked(body)[0] if stream else body).decode()
    assert '"name": "a"' in text
    assert '"name": "b"' in text
    assert {"openai": "tool_calls", "anthropic": "tool_use", "responses": "function_call"}[wire] in text


def test_events_are_read_as_the_standard_says() -> None:
    stream = "\ufeff: c\nid: 1\nretry: 5\n\nevent: a\ndata: 1\ndata:  2\n\ndata\n\r\ndata:x\r\rdata: not ended".encode()
    assert sse.events(stream) == [("a", "1\n 2"), ("", ""), ("", "x")]
