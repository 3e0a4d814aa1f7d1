"""A wire between a client and the gateway that writes down what passes: what the client really sends, apart from what it tells."""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools


@dataclass
class Exchange:
    """One request of a client, and what it was answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    status: int = 0
    reply_headers: dict[str, str] = field(default_factory=dict)
    reply: bytes = b""

    @property
    def call_id(self) -> str:
        return self.reply_headers.get("x-call-id", "")

    @property
    def asked_for(self) -> str:
        """The body's text; escapes as JSON writes them."""
        return self.body.decode(errors="replace")


class _Requests:
    """Reads what the client sends; the answers come in the same order."""

    def __init__(self, log: list[Exchange], open_: deque[Exchange]) -> None:
        self.log, self.open = log, open_
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.path, self.headers = b"", dict[str, str]()

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """A refusal may come before the body has."""
        self.exchange = Exchange(self.parser.get_method().decode(), self.path.decode("latin-1"), self.headers)
        self.log.append(self.exchange)
        self.open.append(self.exchange)

    def on_body(self, body: bytes) -> None:
        self.exchange.body += body


class _Replies:
    def __init__(self, open_: deque[Exchange]) -> None:
        self.open = open_
        self.parser = httptools.HttpResponseParser(self)

    def on_status(self, _: bytes) -> None:
        self.open[0].status = self.parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.open[0].reply_headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.open[0].reply += body

    def on_message_complete(self) -> None:
        self.open.popleft()


class Wiretap:
    """Forwards to one address; `log` holds every request in order."""

    def __init__(self, base_url: str) -> None:
        self.to = urlsplit(base_url)
        self.log: list[Exchange] = []
        self.base_url = ""

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        async with server:
            await stop.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self.to.hostname, self.to.port)
        open_: deque[Exchange] = deque()
        requests, replies = _Requests(self.log, open_), _Replies(open_)
        await asyncio.gather(
            _forward(reader, far_writer, requests.parser), _forward(far_reader, writer, replies.parser)
        )


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parser: Any) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            parser.feed_data(data)
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def tapped(base_url: str) -> Iterator[Wiretap]:
    """A wiretap that serves in a thread of its own."""
    tap, ready, held = Wiretap(base_url), threading.Event(), dict[str, Any]()

    async def main() -> None:
        held["loop"], held["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await tap.serve(ready, held["stop"])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield tap
    finally:
        held["loop"].call_soon_threadsafe(held["stop"].set)
        thread.join(10)
