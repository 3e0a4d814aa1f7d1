"""What a stream costs: added time to its first byte, streams a second, and CPU by process, direct and through us in one run.

A fake provider of 0 ms stands behind the whole system and sends 50 events, first as fast as it can and then at a pace, as
models do. Afterwards the ledger must agree with the provider's own count.
"""

import argparse
import json
import signal
import sys
from typing import Any

from bench import calls, cpu, load
from tests.fakes.provider import FakeProvider

EVENTS = 50
TOKENS = EVENTS - 3  # the others: who speaks, why it stopped, and the usage


def main() -> None:
    """Measure and print; exits 1 where a stream failed or the ledger disagrees."""
    options = read_options()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # unwinds, so that the stack stops too
    with FakeProvider(output_tokens=TOKENS) as far_end, calls.stack(options) as running:
        figures = measure(options, far_end, running)
    if not options.json:
        print_table(figures)
    print(json.dumps(figures))
    sys.exit(0 if figures["errors"] == 0 and figures["ledger"]["agrees"] else 1)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long to measure, at full speed and again paced"
    )
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds of load before that")
    parser.add_argument("--alone", type=int, default=300, help="streams by a single client, for the first byte")
    parser.add_argument("--pace-ms", type=float, default=20, help="between two events of a paced stream")
    parser.add_argument("--data", help="a folder for bin/stack; otherwise a temporary one")
    parser.add_argument("--web", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args()


def measure(options: argparse.Namespace, far_end: FakeProvider, running: calls.Running) -> dict[str, Any]:
    """Set up, warm up, measure, verify; returns all figures."""
    key = calls.set_up(running, far_end)
    through = load.Target(base_url=running.base_url, model=calls.MODEL, api_key=key, stream=True, max_tokens=TOKENS)
    direct = load.Target(base_url=far_end.base_url, model=calls.MODEL, stream=True, max_tokens=TOKENS)
    numbers = calls.distinct_numbers()
    settled_before = calls.settled_calls(running)

    def run(target: load.Target, **how: Any) -> load.Result:
        return load.run(target, **how, first=next(numbers))

    full = {"clients": options.clients, "seconds": options.seconds}
    warm = run(through, clients=options.clients, seconds=options.warmup)
    busy, used = counted(running, lambda: run(through, **full))
    alone = run(through, clients=1, calls=options.alone, seconds=60)
    far_end.script(pace_ms=options.pace_ms)
    paced, used_paced = counted(running, lambda: run(through, **full))
    far_end.clear()
    arrived = far_end.count()["arrived"]
    bare_alone = run(direct, clients=1, calls=options.alone, seconds=60)
    bare = run(direct, clients=options.clients, seconds=options.seconds)

    mine = (warm, busy, alone, paced)
    answered = sum(result.statuses["200"] for result in mine)
    settled = calls.settled_calls(running)
    by_process, by_process_paced = per_stream(used, busy), per_stream(used_paced, paced)
    told, told_busy, told_direct = alone.summary(), busy.summary(), bare_alone.summary()
    return {
        "ttfb_added_ms": calls.difference(told["ttfb_p50_ms"], told_direct["ttfb_p50_ms"]),
        "ttfb_ms": told["ttfb_p50_ms"],
        "direct_ttfb_ms": told_direct["ttfb_p50_ms"],
        "streams_per_s": told_busy["calls_per_s"],
        "direct_streams_per_s": bare.summary()["calls_per_s"],
        "cpu_ms_per_stream": round(sum(by_process.values()), 3),
        "cpu_ms_by_process": by_process,
        "paced_cpu_ms_per_stream": round(sum(by_process_paced.values()), 3),
        "paced_cpu_ms_by_process": by_process_paced,
        "paced_streams_per_s": paced.summary()["calls_per_s"],
        "pace_ms": options.pace_ms,
        "events": EVENTS,
        "clients": options.clients,
        "streams": busy.calls,
        "errors": sum(result.errors for result in mine),
        "statuses": dict(sum((result.statuses for result in mine[1:]), warm.statuses)),
        "client_cpu_ms": told_busy["client_cpu_ms"],
        "ledger": {
            "agrees": settled["ok"] and answered == arrived == settled["calls"] - settled_before["calls"],
            "clean": settled["ok"],
            "answered": answered,
            "provider": arrived,
            "settled": settled["calls"] - settled_before["calls"],
        },
    }


def counted(running: calls.Running, work: Any) -> tuple[load.Result, dict[str, float]]:
    """What `work` returns, and the CPU seconds that each of our processes used meanwhile."""
    before = cpu.snapshot(running.pids)
    result = work()
    return result, cpu.delta(before, cpu.snapshot(running.pids))


def per_stream(used: dict[str, float], result: load.Result) -> dict[str, float]:
    """Milliseconds of CPU a stream, by process."""
    return {name: round(spent * 1000 / max(1, result.calls), 3) for name, spent in used.items()}


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    parts = ", ".join(f"{name} {value}" for name, value in figures["cpu_ms_by_process"].items())
    paced = ", ".join(f"{name} {value}" for name, value in figures["paced_cpu_ms_by_process"].items())
    ledger = figures["ledger"]
    for name, value in (
        (
            "first byte",
            f"{figures['ttfb_ms']} ms, direct {figures['direct_ttfb_ms']}: added {figures['ttfb_added_ms']} ms",
        ),
        ("streams a second", f"{figures['streams_per_s']}, direct {figures['direct_streams_per_s']}"),
        ("CPU a stream", f"{figures['cpu_ms_per_stream']} ms ({parts})"),
        (f"every {figures['pace_ms']} ms", f"{figures['paced_cpu_ms_per_stream']} ms ({paced})"),
        ("errors", figures["errors"]),
        ("ledger", "agrees" if ledger["agrees"] else f"DISAGREES: {ledger}"),
    ):
        print(f"{name:<18}{value}")


if __name__ == "__main__":
    main()
