"""A real SMTP server on localhost that keeps what it is given, and can be told to refuse it."""

import email
import email.policy
import socketserver
import threading
import time
from email.message import EmailMessage
from typing import Self


class Mailbox:
    """Speaks as much SMTP as Django's backend does; `messages` in the order in which they were taken."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.refuses = False
        self.latency_seconds = 0.0
        box = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self._say("220 mailbox")
                while line := self.rfile.readline().decode().strip():
                    verb = line.partition(" ")[0].upper()
                    if verb == "QUIT":
                        self._say("221 bye")
                        return
                    self._answer(verb)

            def _answer(self, verb: str) -> None:
                if verb != "DATA":
                    self._say("451 not now" if verb == "MAIL" and box.refuses else "250 ok")
                    return
                self._say("354 go on")
                lines = []
                while (line := self.rfile.readline()) != b".\r\n":
                    lines.append(line.removeprefix(b"."))
                time.sleep(box.latency_seconds)
                box.messages.append(email.message_from_bytes(b"".join(lines), policy=email.policy.default))
                self._say("250 taken")

            def _say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Session)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def subjects(self) -> list[str]:
        return [str(message["subject"]) for message in self.messages]
