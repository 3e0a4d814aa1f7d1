"""The load client and the CPU meter count rightly: checked against the far end's own journal."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench import cpu, load
from tests.fakes.provider import FakeProvider

BURN = "import time\nuntil = time.process_time() + {seconds}\nwhile time.process_time() < until: pass"


@pytest.fixture(scope="module")
def process() -> Iterator[FakeProvider]:
    with FakeProvider() as far_end:
        yield far_end


@pytest.fixture
def far_end(process: FakeProvider) -> Iterator[FakeProvider]:
    process.clear()
    yield process
    process.clear()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_as_many_calls_are_made_as_asked_for_and_no_two_are_alike(
    far_end: FakeProvider, path: str, stream: bool
) -> None:
    before = len(far_end.calls())
    target = load.Target(base_url=far_end.base_url, path=path, stream=stream)
    result = load.run(target, clients=7, calls=50, first=1000)
    calls = far_end.calls()[before:]
    assert (result.calls, result.errors, len(result.latencies_ms)) == (50, 0, 50)
    assert len({call["sha256"] for call in calls}) == len(calls) == 50
    assert {(call["path"], call["stream"], call["status"]) for call in calls} == {(path, stream, 200)}


def test_the_load_ends_in_time_and_counts_what_the_far_end_counts(far_end: FakeProvider) -> None:
    before = far_end.count()["finished"]
    started = time.monotonic()
    result = load.run(load.Target(base_url=far_end.base_url), clients=4, seconds=0.5)
    assert 0.5 <= time.monotonic() - started < 2
    assert result.statuses["200"] == far_end.count()["finished"] - before > 0


def test_failures_are_counted_apart_and_have_no_latency(far_end: FakeProvider) -> None:
    far_end.script(times=3, status=503)
    far_end.script(times=2, drop="close")
    far_end.script(times=1, cut_after_bytes=10)
    result = load.run(load.Target(base_url=far_end.base_url), clients=1, calls=10)
    assert result.statuses == {"200": 4, "503": 3, "ConnectionError": 3}
    assert (result.errors, len(result.latencies_ms)) == (6, 4)


def test_nobody_there_is_an_error_of_its_own(far_end: FakeProvider) -> None:
    with far_end.refusing():
        result = load.run(load.Target(base_url=far_end.base_url), clients=2, calls=4)
    assert result.statuses == {"ConnectionRefusedError": 4}
    assert result.summary()["p50_ms"] is None


def test_the_first_byte_of_a_stream_is_timed_apart_from_its_last(far_end: FakeProvider) -> None:
    far_end.script(latency_ms=50, pace_ms=20)
    result = load.run(load.Target(base_url=far_end.base_url, stream=True), clients=1, calls=2)
    assert all(50 <= first < 150 for first in result.ttfb_ms)
    assert all(last >= first + 100 for first, last in zip(result.ttfb_ms, result.latencies_ms, strict=True))


@pytest.mark.parametrize(
    ("values", "percent", "expected"), [([], 50, None), ([3, 1, 2], 50, 2), ([1, 2], 50, 1), (range(1, 201), 99, 198)]
)
def test_percentiles_are_values_that_were_seen(values: list[float], percent: float, expected: float | None) -> None:
    assert load.percentile(list(values), percent) == expected


def test_the_time_of_children_is_counted_alive_and_dead() -> None:
    dead = [sys.executable, "-c", BURN.format(seconds=0.2)]
    parent = (
        f"import subprocess, sys\nsubprocess.run({dead!r})\nlive = subprocess.Popen([sys.executable, '-c', "
        f"{BURN.format(seconds=0.2) + chr(10) + 'time.sleep(60)'!r}])\nprint('go', flush=True)\n"
        "sys.stdin.read()\nlive.kill()\nlive.wait()"
    )
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        before = cpu.snapshot({"group": [process.pid], "nobody": []})
        process.stdout.readline()
        time.sleep(0.6)
        used = cpu.delta(before, cpu.snapshot({"group": [process.pid], "nobody": []}))
        twice = cpu.snapshot({"group": [process.pid, process.pid]})["group"]
        once = cpu.snapshot({"group": [process.pid]})["group"]
        process.communicate()
    assert 0.38 <= used["group"] < 1.5
    assert used["nobody"] == 0
    assert twice == pytest.approx(once, abs=0.05)
