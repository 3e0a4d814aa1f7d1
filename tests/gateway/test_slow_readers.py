"""Whoever reads slowly gets all of his stream, however long he pauses; what he has not read waits in Redis."""

import json
import socket
import time
from urllib.parse import urlsplit

import httptools
import pytest

from tests.system import Customer, System

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


def read_with_a_pause(system: System, customer: Customer, canary: str) -> bytes:
    """The stream's bytes, by a connection of small buffers that reads a little, nothing for a while, then the rest."""
    url = urlsplit(system.base_url)
    content = json.dumps(
        {"model": "fake-1", "stream": True, "max_tokens": 1000, "messages": [{"role": "user", "content": canary}]}
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {customer.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    body = Body()
    parser = httptools.HttpResponseParser(body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        connection.settimeout(30)
        connection.connect((url.hostname, url.port))
        connection.sendall((head + content).encode())
        while not body.data:
            parser.feed_data(connection.recv(4096))
        time.sleep(PAUSE_SECONDS)
        while not body.is_whole:
            received = connection.recv(65536)
            assert received, "the connection was closed midway"
            parser.feed_data(received)
    return bytes(body.data)


@pytest.mark.parametrize("pace_ms", [0])
def test_a_reader_who_pauses_while_his_call_ends_gets_the_whole_stream(
    system: System, customer: Customer, pace_ms: int
) -> None:
    canary = f"slow-{pace_ms}-{time.monotonic_ns()}"
    system.far_end.script(match=canary, text="x" * 12_000_000, chunks=PIECES, output_tokens=100, pace_ms=pace_ms)
    told = read_with_a_pause(system, customer, canary)
    assert b"answer_lost" not in told
    assert told.count(b"x" * 30_000) == PIECES
    assert told.count(b"data: [DONE]") == 1
    assert b": cost_usd=" in told
