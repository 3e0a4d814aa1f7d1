"""What a plain call costs: CPU by process at full load, and the latency that one client gains.

A fake provider of 0 ms stands behind the whole system, each call passes four caps and three limits, and
afterwards the ledger must agree with the provider's own count: a fast gateway that miscounts has no figures.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cpu, load
from tests.fakes.provider import FakeProvider

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = "bench-1"


@dataclass(frozen=True, kw_only=True)
class Running:
    """The system as `bin/stack` says it runs."""

    base_url: str
    pids: dict[str, list[int]]
    env: dict[str, str]

    def manage(self, *command: str) -> dict[str, Any]:
        """Run an operator's command; returns its JSON object, raises CalledProcessError where it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", *command, "--json"],
            cwd=REPOSITORY,
            env=self.env,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
        )
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def main() -> None:
    """Measure and print; exits 1 where a call failed or the ledger disagrees."""
    options = read_options()
    run(options, options.output_tokens, measure, print_table)


def run(
    options: argparse.Namespace,
    output_tokens: int,
    measured: Callable[[argparse.Namespace, FakeProvider, "Running"], dict[str, Any]],
    table: Callable[[dict[str, Any]], None],
) -> None:
    """What every benchmark of the whole system does: starts it beside a far end, measures, prints, and exits."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # unwinds, so that the stack stops too
    with FakeProvider(output_tokens=output_tokens) as far_end, stack(options) as running:
        figures = measured(options, far_end, running)
    if not options.json:
        table(figures)
    print(json.dumps(figures))
    sys.exit(0 if figures["errors"] == 0 and figures["ledger"]["agrees"] else 1)


def add_stack_options(parser: argparse.ArgumentParser) -> None:
    """The options of all of them."""
    parser.add_argument("--data", help="a folder for bin/stack; otherwise a temporary one")
    parser.add_argument("--web", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds of load before that")
    parser.add_argument("--alone", type=int, default=300, help="calls by a single client, for the added latency")
    parser.add_argument("--output-tokens", type=int, default=8)
    add_stack_options(parser)
    return parser.parse_args()


@contextlib.contextmanager
def stack(options: argparse.Namespace) -> Iterator[Running]:
    """Run the whole system; the only place that knows how `bin/stack` is asked and what it answers."""
    command = [str(REPOSITORY / "bin" / "stack"), "--json"]
    for name in ("data", "web", "workers"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    # The fake takes any key, but the workers must find one.
    environ = os.environ | {"BENCH_KEY": "unused"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environ)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("{"):
            raise SystemExit(f"bin/stack did not start: {line or process.wait(60)}")
        ready = json.loads(line)
        where = {"DATABASE_URL": "database_url", "REDIS_URL": "redis_url", "DATA_DIR": "data_dir"}
        env = {variable: ready[fact] for variable, fact in where.items() if fact in ready}
        yield Running(base_url=ready["base_url"], pids=ready["pids"], env=os.environ | env)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def measure(options: argparse.Namespace, far_end: FakeProvider, running: Running) -> dict[str, Any]:
    """Set up, warm up, measure, verify; returns all figures."""
    key = set_up(running, far_end)
    through = load.Target(base_url=running.base_url, model=MODEL, api_key=key)
    direct = load.Target(base_url=far_end.base_url, model=MODEL)
    numbers = distinct_numbers()

    settled_before = settled_calls(running)
    warm = load.run(through, clients=options.clients, seconds=options.warmup, first=next(numbers))

    before = cpu.snapshot(running.pids)
    busy = load.run(through, clients=options.clients, seconds=options.seconds, first=next(numbers))
    used = cpu.delta(before, cpu.snapshot(running.pids))

    alone = load.run(through, clients=1, calls=options.alone, seconds=60, first=next(numbers))
    arrived = far_end.count()["arrived"]
    bare = load.run(direct, clients=1, calls=options.alone, seconds=60, first=next(numbers))

    answered = sum(result.statuses["200"] for result in (warm, busy, alone))
    settled = settled_calls(running)
    by_process = {name: round(spent * 1000 / max(1, busy.calls), 3) for name, spent in used.items()}
    summary = busy.summary()
    return {
        "calls_per_s": summary["calls_per_s"],
        "cpu_ms": round(sum(by_process.values()), 3),
        "cpu_ms_by_process": by_process,
        "p50_ms": summary["p50_ms"],
        "p99_ms": summary["p99_ms"],
        "added_p50_ms_1_client": difference(alone.summary()["p50_ms"], bare.summary()["p50_ms"]),
        "p50_ms_1_client": alone.summary()["p50_ms"],
        "direct_p50_ms_1_client": bare.summary()["p50_ms"],
        "clients": options.clients,
        "calls": busy.calls,
        "errors": warm.errors + busy.errors + alone.errors,
        "statuses": dict(warm.statuses + busy.statuses + alone.statuses),
        "seconds": summary["seconds"],
        "client_cpu_ms": summary["client_cpu_ms"],
        "ledger": {
            "agrees": settled["ok"] and answered == arrived == settled["calls"] - settled_before["calls"],
            "clean": settled["ok"],
            "answered": answered,
            "provider": arrived,
            "settled": settled["calls"] - settled_before["calls"],
        },
    }


def set_up(running: Running, far_end: FakeProvider) -> str:
    """Make provider, price, tenant, key, four caps and a limit; returns the key."""
    operate = running.manage
    operate(
        *("provider_set", "bench", "--wire", "openai", "--base-url", far_end.openai_url),
        *("--key-env", "BENCH_KEY", "--models", MODEL),
    )
    operate("price_set", "bench", MODEL, "--input", "0.15", "--output", "0.60")
    operate("tenant_create", "Bench")
    issued = operate("key_issue", "--tenant", "Bench", "--environment", "prod")
    ample = ("--usd", "1000000")
    tenant = ("--tenant", "Bench")
    operate("cap_set", *tenant, "--period", "month", *ample)
    operate("cap_set", *tenant, "--period", "lifetime", *ample)
    operate("cap_set", *tenant, "--environment", "prod", "--period", "month", *ample)
    operate("cap_set", *tenant, "--environment", "prod", "--key", str(issued["id"]), "--period", "month", *ample)
    operate("limit_set", *tenant, "--rpm", "10000000", "--tpm", "2000000000", "--concurrency", "100000")
    key: str = issued["key"]
    return key


def settled_calls(running: Running) -> dict[str, Any]:
    """Return how many calls are settled, and whether the ledger re-derives without drift."""
    try:
        verdict = running.manage("ledger_verify")
    except subprocess.CalledProcessError as drift:
        verdict = json.loads(drift.stdout.splitlines()[-1])
        return {"ok": False, "calls": verdict.get("checked", {}).get("calls", 0)}
    return {"ok": True, "calls": verdict["checked"]["calls"]}


def distinct_numbers() -> Iterator[int]:
    """Yield where to begin numbering calls, so that no body was ever sent before and no cache can answer."""
    start = int(time.time()) % 1_000_000 * 1_000_000
    while True:
        yield start
        start += 200_000


def difference(this: float | None, that: float | None) -> float | None:
    """Subtract what was measured; None where either was not."""
    return None if this is None or that is None else round(this - that, 3)


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    parts = ", ".join(f"{name} {value}" for name, value in figures["cpu_ms_by_process"].items())
    ledger = figures["ledger"]
    for name, value in (
        ("calls a second", figures["calls_per_s"]),
        ("CPU a call", f"{figures['cpu_ms']} ms ({parts})"),
        (f"{figures['clients']} clients", f"p50 {figures['p50_ms']} ms, p99 {figures['p99_ms']} ms"),
        ("1 client", f"p50 {figures['p50_ms_1_client']} ms, added {figures['added_p50_ms_1_client']} ms"),
        ("errors", figures["errors"]),
        ("ledger", "agrees" if ledger["agrees"] else f"DISAGREES: {ledger}"),
    ):
        print(f"{name:<16}{value}")


if __name__ == "__main__":
    main()
