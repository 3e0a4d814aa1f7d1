"""The money benchmark runs, and its ledger agrees with what it settled; how fast is no matter of tests."""

import json
import os
import subprocess
import sys

from aiplatform.stack import ROOT


def test_pairs_are_counted_and_the_ledger_agrees() -> None:
    names = {"DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "DATA_DIR"}
    environ = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-m", "bench.money", "--json", "--seconds", "0.3", "--alone", "5", "--clients", "4"],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ledger"]["clean"] is True
    assert figures["ledger"]["settled"] == figures["ledger"]["booked"] > 0
