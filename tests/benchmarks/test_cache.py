"""The benchmark of kept answers runs, every hit is on record, and the ledger is clean; how fast is no matter of tests."""

import json
import subprocess
import sys

import pytest

from bench.calls import REPOSITORY


@pytest.mark.campaign("limits")
def test_the_benchmark_of_kept_answers_asks_each_question_once_and_finds_every_hit_on_record() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.cache", "--json", "--seconds", "2", "--warmup", "0.5", "--alone", "20", "--clients", "4",
         "--questions", "20", "--mix-mb", "1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["errors"], figures["missed"], figures["ledger"]["agrees"]) == (0, 0, True)
    assert figures["ledger"]["calls"] == figures["ledger"]["expected"] > figures["hits"] > 0
    assert min(figures[name] for name in ("hit_p50_ms", "hits_per_s", "cpu_ms", "hit_p50_ms_mixed")) > 0
