"""One web process: `python -m aiplatform.serve`. Any number of them share one HOST and PORT."""

import os
import socket
import sys

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD_BYTES = 64 * 1024


def main() -> None:
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8000"))
    try:
        listener = _bind(host, port)
    except OSError as error:
        sys.exit(f"aiplatform.serve: cannot listen on {host}:{port}: {error.strerror}")
    config = uvicorn.Config(
        "aiplatform.asgi:application",
        loop="uvloop",
        http=BoundedHead,
        ws="none",
        access_log=False,
        log_config=None,  # Django's settings say how to log
        server_header=False,
        proxy_headers=False,  # whose word counts there, aiplatform/lib/addresses.py says
        timeout_keep_alive=75,  # longer than the idle time-out of the usual proxies, so that they never race us
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run(sockets=[listener])


class BoundedHead(HttpToolsProtocol):
    """Refuses a request whose head is too long; the parser itself would collect it without end."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > LONGEST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("Request head too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        # An answer that nobody reads is given up at once; closing would wait for its reader first.
        self.scope["extensions"] = {"aiplatform.abort": {"now": self.transport.abort}}

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


if __name__ == "__main__":
    main()
