"""What an answer costs that is given again: hits a second at full load, CPU by process, and how long one client waits.

Limits and accounting are on, as in `bin/bench calls`: each hit passes three limits and is put on record as a call of its own.
Afterwards the records must be complete, the ledger clean, and the provider must have been asked once for each question.
"""

import argparse
import asyncio
import sys
import time
from typing import Any

import uvloop

from bench import calls, cpu, load
from bench.calls import MODEL, Running
from tests.fakes.provider import FakeProvider

MIX_BYTES = 250_000  # of one miss in the mix
MIX_CLIENTS = 8


def main() -> None:
    """Measure and print; exits 1 where a call failed, a hit is not on record, or the ledger disagrees."""
    options = read_options()
    calls.run(options, 8, measure, print_table)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds of hits before that")
    parser.add_argument("--alone", type=int, default=1000, help="hits by a single client")
    parser.add_argument("--questions", type=int, default=200, help="how many different ones are asked again and again")
    parser.add_argument("--mix-mb", type=float, default=10.0, help="megabytes of misses a second beside them")
    calls.add_stack_options(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace, far_end: FakeProvider, running: Running) -> dict[str, Any]:
    """Set up, fill, warm up, measure, verify; returns all figures."""
    key = calls.set_up(running, far_end)
    running.manage(
        "environment_set", "--tenant", "Bench", "--environment", "prod", "--cache", "on", "--cache-ttl", "3600"
    )
    time.sleep(1.1)  # until every process knows it
    hits = load.Target(base_url=running.base_url, model=MODEL, api_key=key, kinds=options.questions)
    filled = load.run(hits, clients=16, calls=options.questions, seconds=60)
    filling = far_end.count()["arrived"]
    warm = load.run(hits, clients=options.clients, seconds=options.warmup)

    before = cpu.snapshot(running.pids)
    busy = load.run(hits, clients=options.clients, seconds=options.seconds)
    used = cpu.delta(before, cpu.snapshot(running.pids))

    alone = load.run(hits, clients=1, calls=options.alone, seconds=60)
    missed = far_end.count()["arrived"] - filling
    mixed, misses = uvloop.run(_mixed(options, hits, key))
    on_record = _recorded(
        running, options.questions + warm.calls + busy.calls + alone.calls + mixed.calls + misses.calls
    )
    by_process = {name: round(spent * 1000 / max(1, busy.calls), 3) for name, spent in used.items()}
    return {
        "hit_p50_ms": alone.summary()["p50_ms"],
        "hit_p99_ms": alone.summary()["p99_ms"],
        "hits_per_s": busy.summary()["calls_per_s"],
        "cpu_ms": round(sum(by_process.values()), 3),
        "cpu_ms_by_process": by_process,
        "p50_ms_busy": busy.summary()["p50_ms"],
        "p99_ms_busy": busy.summary()["p99_ms"],
        "hit_p50_ms_mixed": mixed.summary()["p50_ms"],
        "hit_p99_ms_mixed": mixed.summary()["p99_ms"],
        "mix_mb_per_s": round(misses.calls * MIX_BYTES / 1e6 / misses.seconds, 1),
        "clients": options.clients,
        "hits": busy.calls,
        "missed": missed,
        "errors": sum(one.errors for one in (filled, warm, busy, alone, mixed, misses)),
        "client_cpu_ms": busy.summary()["client_cpu_ms"],
        "ledger": {"agrees": on_record["ok"] and missed == 0, **on_record},
    }


async def _mixed(options: argparse.Namespace, hits: load.Target, key: str) -> tuple[load.Result, load.Result]:
    """One client's hits while large misses come at an even pace."""
    large = load.Target(base_url=hits.base_url, model=MODEL, api_key=key, prompt="word " * (MIX_BYTES // 5))
    every = MIX_CLIENTS * MIX_BYTES / (options.mix_mb * 1e6)
    misses = asyncio.create_task(
        load.run_async(large, clients=MIX_CLIENTS, seconds=options.seconds, first=int(time.time()), every=every)
    )
    await asyncio.sleep(1)
    mixed = await load.run_async(hits, clients=1, seconds=max(options.seconds - 2, 1))
    return mixed, await misses


def _recorded(running: Running, expected: int) -> dict[str, Any]:
    """Whether every call is on record and the ledger re-derives; hits are recorded right after they are answered."""
    found: dict[str, Any] = {}
    for _ in range(30):
        found = calls.settled_calls(running)
        if found["calls"] >= expected:
            break
        time.sleep(1)
    return {"ok": found["ok"] and found["calls"] == expected, "calls": found["calls"], "expected": expected}


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    parts = ", ".join(f"{name} {value}" for name, value in figures["cpu_ms_by_process"].items())
    for name, value in (
        ("hits a second", figures["hits_per_s"]),
        ("CPU a hit", f"{figures['cpu_ms']} ms ({parts})"),
        ("1 client", f"p50 {figures['hit_p50_ms']} ms, p99 {figures['hit_p99_ms']} ms"),
        (f"{figures['clients']} clients", f"p50 {figures['p50_ms_busy']} ms, p99 {figures['p99_ms_busy']} ms"),
        (
            f"beside {figures['mix_mb_per_s']} MB/s",
            f"p50 {figures['hit_p50_ms_mixed']} ms, p99 {figures['hit_p99_ms_mixed']} ms",
        ),
        ("errors", figures["errors"]),
        ("on record", "all, ledger clean" if figures["ledger"]["agrees"] else f"NOT: {figures['ledger']}"),
    ):
        print(f"{name:<20}{value}")


if __name__ == "__main__":
    sys.exit(main())
