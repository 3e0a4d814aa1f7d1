"""The benchmark of streams runs, every stream is whole on both ways, and the ledger agrees; how fast is no matter of tests."""

import json
import subprocess
import sys

import pytest

from bench.calls import REPOSITORY


@pytest.mark.campaign("streams")
def test_the_benchmark_of_streams_reads_every_event_and_its_ledger_agrees() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.streams", "--json", "--seconds", "1", "--warmup", "0.5", "--alone", "5", "--clients", "4",
         "--chunks", "50"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["errors"], figures["ledger"]["agrees"]) == (0, True)
    assert len(figures["events_per_stream"]) == 1
    assert figures["events_per_stream"][0] >= 50
    assert figures["streams"] > 0
    assert min(figures[name] for name in ("ttfb_ms", "direct_ttfb_ms", "streams_per_s", "cpu_ms_per_stream")) > 0
