"""A receiver of webhooks: a real HTTP server on localhost that keeps what it is sent, and answers as it is told."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Message:
    """One POST as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """The body, by the standard's own library; raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """`messages` in the order in which they were taken; `statuses` by path are used up, then it says 200."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.statuses: dict[str, list[int]] = defaultdict(list)
        self.headers: dict[str, str] = {}
        self.answer = b"thanks"
        self.hanging: set[str] = set()
        self.let_go = threading.Event()
        self.at_once: dict[str, int] = defaultdict(int)
        self.most_at_once: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver._take(Message(self.path, headers, body, time.time()))
                try:
                    if self.path in receiver.hanging:
                        receiver.let_go.wait()
                    self._answer(receiver._status(self.path))
                finally:
                    receiver._leave(self.path)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(receiver.answer)))
                self.end_headers()
                self.wfile.write(receiver.answer)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A sender that hung up is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Message]:
        return [message for message in list(self.messages) if message.path == path]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, message: Message) -> None:
        with self._lock:
            self.messages.append(message)
            self.at_once[message.path] += 1
            self.most_at_once[message.path] = max(self.most_at_once[message.path], self.at_once[message.path])

    def _leave(self, path: str) -> None:
        with self._lock:
            self.at_once[path] -= 1

    def _status(self, path: str) -> int:
        with self._lock:
            return self.statuses[path].pop(0) if self.statuses[path] else 200
