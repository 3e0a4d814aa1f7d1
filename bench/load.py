"""A lean load client: plain and streamed calls from N clients, for a number of seconds or of calls.

It is written on asyncio's protocols and httptools, since on a small machine the client's own CPU is taken
from what it measures. Unless it is told otherwise every body differs by a number, so that no cache can answer
for the provider.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

NUMBER = "%NUMBER%"
GIVE_UP_SECONDS = 60.0


@dataclass(kw_only=True)
class Target:
    """Where calls go, and what they say."""

    base_url: str
    path: str = "/v1/chat/completions"
    api_key: str = "unused"
    model: str = "bench-1"
    stream: bool = False
    max_tokens: int = 16
    prompt: str = "Say something, please. "
    more: dict[str, Any] = field(default_factory=dict)
    kinds: int | None = None
    """Of so many bodies each comes again and again; None: no two are alike."""

    def requests(self, first: int = 0) -> Iterator[bytes]:
        """Yield whole HTTP requests, each with a body of its own."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        body["messages"] = [{"role": "user", "content": self.prompt + NUMBER}]
        if self.stream:
            body["stream"] = True
        if self.stream and self.path.endswith("/chat/completions"):
            body["stream_options"] = {"include_usage": True}
        text = json.dumps(body | self.more)
        before, _, after = text.partition(NUMBER)
        digits = 12
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {urlsplit(self.base_url).netloc}\r\n"
            f"authorization: Bearer {self.api_key}\r\ncontent-type: application/json\r\n"
            f"anthropic-version: 2023-06-01\r\ncontent-length: {len(text) - len(NUMBER) + digits}\r\n\r\n"
        )
        start, end = (head + before).encode(), after.encode()
        for number in itertools.count(first):
            yield b"%b%0*d%b" % (start, digits, number % self.kinds if self.kinds else number, end)


@dataclass(kw_only=True)
class Result:
    """What was seen."""

    seconds: float
    cpu_seconds: float
    statuses: Counter[str]
    latencies_ms: list[float]
    ttfb_ms: list[float]

    @property
    def calls(self) -> int:
        """How many calls ended, well or not."""
        return self.statuses.total()

    @property
    def errors(self) -> int:
        """How many ended otherwise than by a whole 200."""
        return self.calls - self.statuses["200"]

    def summary(self) -> dict[str, Any]:
        """Return the figures for a table or for JSON; times are those of whole 200s."""
        return {
            "calls": self.calls,
            "errors": self.errors,
            "statuses": dict(self.statuses),
            "seconds": round(self.seconds, 3),
            "calls_per_s": round(self.statuses["200"] / self.seconds, 1),
            "p50_ms": percentile(self.latencies_ms, 50),
            "p99_ms": percentile(self.latencies_ms, 99),
            "ttfb_p50_ms": percentile(self.ttfb_ms, 50),
            "ttfb_p99_ms": percentile(self.ttfb_ms, 99),
            "client_cpu_ms": round(self.cpu_seconds * 1000 / max(1, self.calls), 4),
        }


class Client(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self) -> None:
        """Start idle."""
        self.waiter: asyncio.Future[int] | None = None
        self.first_byte_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call that waits: its reply is not whole."""
        self.fail(exc or ConnectionError("the connection was closed midway"))

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(ConnectionError(str(error)))
            self.transport.close()

    def on_body(self, body: bytes) -> None:  # noqa: ARG002
        """Note the first byte of a reply's body."""
        if not self.first_byte_at:
            self.first_byte_at = time.perf_counter()

    def on_message_complete(self) -> None:
        """Give the status to the one who waits."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(self.parser.get_status_code())

    def fail(self, error: Exception) -> None:
        """End the call that waits, if there is one."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)

    async def call(self, request: bytes) -> int:
        """Send a request; returns the status once the reply is whole, raises OSError if it never is."""
        self.waiter = asyncio.get_running_loop().create_future()
        self.first_byte_at = 0.0
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self.waiter


class Load:
    """Calls from many clients, until an instant or a number of calls."""

    def __init__(self, target: Target, *, calls: int | None, first: int) -> None:
        """Take each call's number from one source, so that no two are alike."""
        url = urlsplit(target.base_url)
        self.address = (url.hostname or "127.0.0.1", url.port or 80)
        self.requests = itertools.islice(target.requests(first), calls)
        self.statuses: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.ttfb_ms: list[float] = []

    async def client(self, stop_at: float, every: float = 0) -> None:
        """Be one client: call, wait for the reply, call again, at most once in `every` seconds; connect anew when the
        connection is gone.
        """
        connection: Client | None = None
        due = time.perf_counter()
        while time.perf_counter() < stop_at and (request := next(self.requests, None)) is not None:
            if every:
                due += every
                await asyncio.sleep(max(due - time.perf_counter(), 0))
            try:
                if connection is None or connection.transport.is_closing():
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(Client, *self.address)
                started = time.perf_counter()
                status = await connection.call(request)
                ended = time.perf_counter()
            except OSError as error:
                self.statuses[type(error).__name__] += 1
                connection = None
                await asyncio.sleep(0.01)
                continue
            self.statuses[str(status)] += 1
            if status == 200:  # noqa: PLR2004
                self.latencies_ms.append((ended - started) * 1000)
                self.ttfb_ms.append((connection.first_byte_at - started) * 1000)
        if connection is not None:
            connection.transport.close()


def run(
    target: Target, *, clients: int, seconds: float | None = None, calls: int | None = None, first: int = 0
) -> Result:
    """Call from `clients` connections for `seconds` or `calls` times, whichever ends first; number them from `first`.

    A call that has begun is waited for, at most a minute.
    """
    if seconds is None and calls is None:
        raise ValueError("say for how long, or how many calls")
    return uvloop.run(run_async(target, clients=clients, seconds=seconds, calls=calls, first=first))


async def run_async(
    target: Target,
    *,
    clients: int,
    seconds: float | None = None,
    calls: int | None = None,
    first: int = 0,
    every: float = 0,
) -> Result:
    """Do what `run` does, on the running loop; with `every`, each client calls at most once in so many seconds."""
    load = Load(target, calls=calls, first=first)
    started, cpu = time.perf_counter(), time.process_time()
    stop_at = float("inf") if seconds is None else started + seconds
    tasks = [asyncio.create_task(load.client(stop_at, every)) for _ in range(clients)]
    _, late = await asyncio.wait(tasks, timeout=None if seconds is None else seconds + GIVE_UP_SECONDS)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    for task in late:
        task.cancel()
        load.statuses["no reply"] += 1
    await asyncio.gather(*(task for task in tasks if task not in late))
    return Result(
        seconds=elapsed,
        cpu_seconds=cpu,
        statuses=load.statuses,
        latencies_ms=load.latencies_ms,
        ttfb_ms=load.ttfb_ms,
    )


def percentile(values: list[float], percent: float) -> float | None:
    """Return the smallest value that `percent` of all values do not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)], 3)


def main() -> None:
    """Load an address from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--model", default="bench-1")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--key-env", default="BENCH_KEY", help="the variable that holds the key")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args()
    target = Target(
        base_url=options.base_url,
        path=options.path,
        model=options.model,
        stream=options.stream,
        api_key=os.environ.get(options.key_env, "unused"),
    )
    seconds = options.seconds if options.seconds or options.calls else 5.0
    summary = run(target, clients=options.clients, seconds=seconds, calls=options.calls).summary()
    if not options.json:
        for name, value in summary.items():
            print(f"{name:<16}{value}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
