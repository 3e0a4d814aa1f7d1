"""What a stream costs: the time that is added to its first byte, streams a second, and CPU for a stream of 50 chunks.

The same client reads the same streams from the far end directly and through the whole system, in one run. Streams come in two
ways: paced, so that each chunk is on its way alone, and at once, so that what waits is joined.
"""

import argparse
import http.client
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import psycopg

from bench import cpu, load
from bench.calls import (
    MODEL,
    Running,
    add_stack_options,
    difference,
    distinct_numbers,
    run,
    set_up,
    settled_calls,
)
from tests.fakes.provider import FakeProvider

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class First:
    """When a stream's first byte was here."""

    ms: float
    at: float
    call: str
    events: int


def main() -> None:
    """Measure and print; exits 1 where a stream failed or the ledger disagrees."""
    options = read_options()
    run(options, options.chunks, measure, print_table)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each of the four loads lasts")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds of load before them")
    parser.add_argument("--alone", type=int, default=200, help="streams of a single client, for the first byte")
    parser.add_argument("--chunks", type=int, default=50, help="pieces of text in a stream")
    parser.add_argument("--pace-ms", type=float, default=5.0, help="between two chunks of a paced stream")
    add_stack_options(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace, far_end: FakeProvider, running: Running) -> dict[str, Any]:
    """Set up, warm up, measure, verify; returns all figures."""
    more = {"key": set_up(running, far_end), "numbers": distinct_numbers()}
    before, arrived = settled_calls(running), far_end.count()["arrived"]
    through, direct = Streams(running.base_url, running.pids, **more), Streams(far_end.base_url, {}, **more)

    results = [through.loaded(options.clients, options.warmup)[0]]
    alone = through.alone_beside(direct, options.alone)
    at_once, at_once_cpu = through.loaded(options.clients, options.seconds)
    at_once_bare, _ = direct.loaded(options.clients, options.seconds)
    far_end.script(pace_ms=options.pace_ms)
    paced, paced_cpu = through.loaded(options.clients, options.seconds)
    paced_bare, _ = direct.loaded(options.clients, options.seconds)
    results += [at_once, paced]

    answered = sum(result.statuses["200"] for result in results) + options.alone
    bare = at_once_bare.calls + paced_bare.calls + options.alone
    came = far_end.count()["arrived"] - arrived - bare
    settled = settled_calls(running)
    count = settled["calls"] - before["calls"]
    return {
        **alone,
        "first_byte_ms": first_byte_ms(running, through.firsts),
        "streams_per_s": paced.summary()["calls_per_s"],
        "direct_streams_per_s": paced_bare.summary()["calls_per_s"],
        "cpu_ms_per_stream": round(sum(paced_cpu.values()), 3),
        "cpu_ms_per_stream_by_process": paced_cpu,
        "direct_client_cpu_ms_per_stream": paced_bare.summary()["client_cpu_ms"],
        "client_cpu_ms_per_stream": paced.summary()["client_cpu_ms"],
        "at_once": {
            "streams_per_s": at_once.summary()["calls_per_s"],
            "direct_streams_per_s": at_once_bare.summary()["calls_per_s"],
            "cpu_ms_per_stream": round(sum(at_once_cpu.values()), 3),
            "cpu_ms_per_stream_by_process": at_once_cpu,
        },
        "chunks": options.chunks,
        "pace_ms": options.pace_ms,
        "clients": options.clients,
        "streams": paced.calls + at_once.calls,
        "errors": sum(result.errors for result in (*results, at_once_bare, paced_bare)),
        "ledger": {
            "agrees": settled["ok"] and answered == came == count,
            "clean": settled["ok"], "answered": answered, "provider": came, "settled": count,
        },
    }  # fmt: skip


class Streams:
    """Streams from one address, directly or through us."""

    def __init__(self, base_url: str, pids: dict[str, list[int]], *, key: str, numbers: Iterator[int]) -> None:
        """`pids` are the processes whose CPU is counted, by name."""
        self.target = load.Target(base_url=base_url, model=MODEL, api_key=key, stream=True, max_tokens=1000)
        self.pids, self.numbers = pids, numbers
        self.firsts: list[First] = []

    def loaded(self, clients: int, seconds: float) -> tuple[load.Result, dict[str, float]]:
        """Read streams with many clients; returns what was seen, and CPU milliseconds per stream by process."""
        before = cpu.snapshot(self.pids)
        result = load.run(self.target, clients=clients, seconds=seconds, first=next(self.numbers))
        used = cpu.delta(before, cpu.snapshot(self.pids))
        return result, {name: round(spent * 1000 / max(1, result.calls), 3) for name, spent in used.items()}

    def alone_beside(self, direct: "Streams", streams: int) -> dict[str, Any]:
        """Read streams one at a time, by turns through us and directly, so that both meet the same machine."""
        for part in range(ROUNDS):
            share = streams * (part + 1) // ROUNDS - streams * part // ROUNDS
            self.alone(share)
            direct.alone(share)
        ours, bare = (median(first.ms for first in each.firsts) for each in (self, direct))
        events = {first.events for first in self.firsts} | {first.events for first in direct.firsts}
        return {
            "ttfb_added_ms": difference(ours, bare), "ttfb_ms": ours, "direct_ttfb_ms": bare,
            "events_per_stream": sorted(events),
        }  # fmt: skip

    def alone(self, streams: int) -> None:
        """Read some streams over one connection, and note when each one's first byte came."""
        url = urlsplit(self.target.base_url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        for _, request in zip(range(streams), self.target.requests(next(self.numbers)), strict=False):
            headers = {"authorization": f"Bearer {self.target.api_key}", "content-type": "application/json"}
            started = time.perf_counter()
            connection.request("POST", self.target.path, request.partition(b"\r\n\r\n")[2], headers)
            reply = connection.getresponse()
            beginning = reply.read(1)
            ms, at = (time.perf_counter() - started) * 1000, time.time()
            events = (beginning + reply.read()).count(b"data: ")
            if reply.status != http.client.OK:
                raise SystemExit(f"a stream was answered by {reply.status}")
            self.firsts.append(First(ms=ms, at=at, call=reply.headers.get("x-call-id", ""), events=events))
        connection.close()


def first_byte_ms(running: Running, firsts: list[First]) -> float | None:
    """From a first byte's arrival at the worker, as the call's row tells it, to its client: the median."""
    named = {uuid.UUID(first.call.removeprefix("call_")): first.at for first in firsts}
    with psycopg.connect(running.env["DATABASE_URL"]) as connection:
        rows: list[tuple[uuid.UUID, datetime]] = connection.execute(
            "SELECT id, first_byte_at FROM usage_call WHERE id = ANY (%s)", [list(named)]
        ).fetchall()
    return median((named[call] - arrived.timestamp()) * 1000 for call, arrived in rows)


def median(values: Iterator[float]) -> float | None:
    found = list(values)
    return round(statistics.median(found), 3) if found else None


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    at_once, ledger = figures["at_once"], figures["ledger"]
    parts = ", ".join(f"{name} {value}" for name, value in figures["cpu_ms_per_stream_by_process"].items())
    for name, value in (
        ("first byte", f"{figures['ttfb_ms']} ms, directly {figures['direct_ttfb_ms']} ms"),
        ("added to it", f"{figures['ttfb_added_ms']} ms"),
        ("from the worker", f"{figures['first_byte_ms']} ms after the byte's arrival there"),
        ("paced", f"{figures['streams_per_s']} streams/s, directly {figures['direct_streams_per_s']}"),
        ("CPU a stream", f"{figures['cpu_ms_per_stream']} ms ({parts})"),
        ("at once", f"{at_once['streams_per_s']} streams/s, directly {at_once['direct_streams_per_s']}"),
        ("CPU a stream", f"{at_once['cpu_ms_per_stream']} ms"),
        ("errors", figures["errors"]),
        ("ledger", "agrees" if ledger["agrees"] else f"DISAGREES: {ledger}"),
    ):
        print(f"{name:<16}{value}")


if __name__ == "__main__":
    main()
