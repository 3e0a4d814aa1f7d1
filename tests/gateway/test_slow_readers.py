"""Whoever reads slowly gets all of his stream, however long he pauses; what he has not read waits in Redis."""

import json
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httptools
import redis

from aiplatform.gateway import relay
from aiplatform.gateway.relay import Kind, Record
from tests.system import Customer, System
from tests.waiting import wait_for

PAUSE_SECONDS = 6  # longer than the silence after which PostgreSQL is asked about a call, shorter than SEND_SECONDS
PIECES = 400


class Body:
    """What httptools tells of a reply."""

    def __init__(self) -> None:
        self.data, self.is_whole = bytearray(), False

    def on_body(self, body: bytes) -> None:
        self.data += body

    def on_message_complete(self) -> None:
        self.is_whole = True


@contextmanager
def reading(
    system: System, key: str, canary: str
) -> Iterator[tuple[socket.socket, httptools.HttpResponseParser, Body]]:
    """A streamed call that was sent over a connection with small buffers, and is still to be read."""
    url = urlsplit(system.base_url)
    messages = [{"role": "user", "content": canary}]
    content = json.dumps({"model": "fake-1", "stream": True, "max_tokens": 1000, "messages": messages})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    body = Body()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        connection.settimeout(60)
        connection.connect((url.hostname, url.port))
        connection.sendall((head + content).encode())
        yield connection, httptools.HttpResponseParser(body), body


def test_a_reader_who_pauses_while_his_call_ends_gets_the_whole_stream(system: System, customer: Customer) -> None:
    canary = f"slow-{time.monotonic_ns()}"
    # More than the buffers of both ends and of the web process together take.
    system.far_end.script(match=canary, text="x" * 12_000_000, chunks=PIECES, output_tokens=100)
    with reading(system, customer.key, canary) as (connection, parser, body):
        while not body.data:
            parser.feed_data(connection.recv(4096))
        time.sleep(PAUSE_SECONDS)
        while not body.is_whole:
            received = connection.recv(65536)
            assert received, "the connection was closed midway"
            parser.feed_data(received)
    assert b"answer_lost" not in body.data
    assert body.data.count(b"x" * 30_000) == PIECES
    assert body.data.count(b"data: [DONE]") == 1
    assert b": cost_usd=" in body.data


def test_a_reader_who_pauses_while_redis_loses_his_stream_is_told_so(system: System, customer: Customer) -> None:
    """What he has had stays exact, the error names the call, and the call is charged by its provider's usage."""
    canary = f"lost-{time.monotonic_ns()}"
    system.far_end.script(match=canary, text="x" * 12_000_000, chunks=PIECES, output_tokens=100)
    settled = "SELECT id, evidence FROM usage_call WHERE api_key_id = %s AND state = 'settled'"
    with reading(system, customer.key, canary) as (connection, parser, body):
        while not body.data:
            parser.feed_data(connection.recv(4096))
        wait_for(lambda: system.rows(settled, customer.key_id), seconds=30)
        (call,) = system.rows(settled, customer.key_id)
        with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
            assert client.delete(f"relay:{call['id']}") == 1
        while not body.is_whole:
            received = connection.recv(65536)
            assert received, "the connection was closed midway"
            parser.feed_data(received)
    *events, last = bytes(body.data).rstrip(b"\n").split(b"\n\n")
    assert call["evidence"] == "provider"
    assert b"answer_lost" in last
    assert f"call_{call['id']}".encode() in last
    assert [event.startswith(b"id: %d\n" % number) for number, event in enumerate(events, 1)] == [True] * len(events)


def test_the_last_number_is_found_behind_any_number_of_comments() -> None:
    call_id, web = uuid.uuid4(), uuid.uuid4()
    assert relay.last_number(call_id) == 0
    told = [(Kind.HEAD, relay.head(200, {})), (Kind.DATA, b"id: 1\ndata: {}\n\nid: 2\ndata: {}\n\n")]
    told += [(Kind.DATA, b": still at work\n")] * (3 * relay.AT_ONCE)
    relay.deliver([Record(call_id, web, seq, kind, data) for seq, (kind, data) in enumerate(told, 1)])
    assert relay.last_number(call_id) == 2
