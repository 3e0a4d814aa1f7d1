"""What exact money costs: holds with their settlements a second on real Postgres, every call through the same four caps.

Clients of one process share batches as the gateway's processes do: a batch is what waits while the one before is busy.
Nothing else runs, fsync is on, and afterwards the ledger must agree with what was settled, to the nano-dollar.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import django

REPOSITORY = Path(__file__).resolve().parent.parent
INSIDE = "BENCH_MONEY_INSIDE"


def main() -> None:
    """Measure and print; exits 1 where the ledger disagrees."""
    options = read_options()
    if INSIDE not in os.environ:
        command = [sys.executable, "-m", "aiplatform.stack", "--quiet", "--parts", "postgres,valkey", "--"]
        inner = [sys.executable, "-m", "bench.money", *sys.argv[1:]]
        sys.exit(subprocess.call([*command, *inner], cwd=REPOSITORY, env=os.environ | {INSIDE: "1"}))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiplatform.settings")
    django.setup()
    from bench import pairs  # noqa: PLC0415 - models need the settings, and those the servers' addresses

    figures = pairs.measure(options)
    if not options.json:
        for name, value in figures.items():
            print(f"{name:<28} {value}")
    print(json.dumps(figures))
    sys.exit(0 if figures["ledger"]["agrees"] else 1)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to measure, each time")
    parser.add_argument("--alone", type=int, default=400, help="pairs by a single client")
    parser.add_argument("--payload", type=int, default=800, help="bytes of a call's body")
    parser.add_argument("--tenants", type=int, default=1, help="spread the calls over so many tenants, four caps each")
    parser.add_argument("--past", type=int, default=0, help="settled calls that are in the tables before")
    parser.add_argument("--profile", action="store_true", help="the time inside Postgres by statement")
    parser.add_argument("--plans", action="store_true", help="the plans of the hot statements")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
