"""What the tests of streams share: a streamed call, its events by number, and its row."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2

from tests.system import Customer, System
from tests.waiting import wait_for

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
_EVENT = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n))id: (\d+)\n(.*?\n\n)", re.DOTALL)


class Told(NamedTuple):
    """A stream as its reader got it."""

    call: str
    content: bytes

    @property
    def numbers(self) -> list[int]:
        return [int(number) for number, _ in _EVENT.findall(self.content)]

    def after(self, number: int) -> bytes:
        """From the event after that one on, without the comment that ends a stream."""
        found = next((one for one in _EVENT.finditer(self.content) if int(one[1]) == number + 1), None)
        return before_comment(self.content[found.start() :]) if found else b""


def before_comment(content: bytes) -> bytes:
    """Without the comment of costs, and without heartbeats, which are no events."""
    return re.sub(rb": (?:ping|cost_usd=[^\n]*)\n", b"", content)


def a_body(canary: str, **more: Any) -> dict[str, Any]:
    asked = {"model": "fake-1", "max_tokens": 200, "stream": True, "messages": [{"role": "user", "content": canary}]}
    return asked | more


def a_canary() -> str:
    """The far end writes words of this form down."""
    return f"canary-{uuid.uuid4().hex[:10]}"


def told(system: System, customer: Customer, canary: str, wire: str = "openai") -> Told:
    with system.http(customer.key) as http:
        reply = http.post(PATHS[wire], json=a_body(canary))
    assert reply.status_code == 200, reply.text
    return Told(reply.headers["x-call-id"], reply.content)


def rest(system: System, customer: Customer, call: str, number: int | str, **headers: str) -> httpx2.Response:
    with system.http(customer.key) as http:  # a connection of its own, at whichever process takes it
        return http.get(f"/v1/calls/{call}/stream", params={"starting_after": str(number)}, headers=headers)


def whole(system: System, customer: Customer, call: str, **headers: str) -> httpx2.Response:
    with system.http(customer.key) as http:
        return http.get(f"/v1/calls/{call}", headers=headers)


@contextmanager
def begun(
    system: System, customer: Customer, canary: str, **more: Any
) -> Iterator[tuple[httpx2.Response, Iterator[bytes]]]:
    """A stream whose first bytes have come."""
    headers = more.pop("headers", {})
    with (
        system.http(customer.key) as http,
        http.stream("POST", PATHS["openai"], json=a_body(canary, **more), headers=headers) as reply,
    ):
        assert reply.status_code == 200
        yield reply, reply.iter_raw()


def the_call(system: System, name: str) -> dict[str, Any]:
    (row,) = system.rows("SELECT * FROM usage_call WHERE id = %s", uuid.UUID(name.removeprefix("call_")))
    return row


def ended(system: System, name: str, seconds: float = 15) -> dict[str, Any]:
    """The call's row, once it has ended."""
    wait_for(lambda: the_call(system, name)["state"] in {"settled", "void"}, seconds)
    return the_call(system, name)


def the_attempt(system: System, name: str) -> dict[str, Any]:
    (row,) = system.rows("SELECT * FROM usage_attempt WHERE call_id = %s", uuid.UUID(name.removeprefix("call_")))
    return row
