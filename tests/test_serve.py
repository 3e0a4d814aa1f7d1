"""The web process on its socket: what the HTTP parser itself would let through."""

import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn

from aiplatform.serve import LONGEST_HEAD_BYTES, BoundedHead, _bind


async def _application(
    _scope: object, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    listener = _bind("127.0.0.1", 0)
    config = uvicorn.Config(_application, http=BoundedHead, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    host, port = listener.getsockname()
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield host, port
    server.should_exit = True
    thread.join()


def test_an_endless_head_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (LONGEST_HEAD_BYTES + 1))
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_long_body_and_many_requests_on_one_connection_are_none_of_its_business(address: tuple[str, int]) -> None:
    body = b"a" * (4 * LONGEST_HEAD_BYTES)
    with socket.create_connection(address, timeout=5) as client:
        for _ in range(5):
            head = f"POST / HTTP/1.1\r\nHost: a\r\nX: {'a' * 30_000}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
