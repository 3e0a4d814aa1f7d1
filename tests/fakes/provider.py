"""The far end of the network: a real HTTP server that speaks both wires and knows every fault.

`python -m tests.fakes.provider --port 0 --journal FILE` prints one JSON line with `base_url` when it is
ready, and stops on SIGTERM. `FakeProvider` does that for a test. What it can be told to do wrong is in
`faults`, what it writes down in `journal`, how it counts tokens in `replies`.

The control API (`control_url`; on `base_url` too, as long as that is open):

    POST   /_script          {"match": substring of the body, "fault": {…}, "times": n or null}
    DELETE /_script
    POST   /_listen          {"open": false} refuses connections, {"open": true} accepts them again
    POST   /_slam            {"times": n} resets the next n connections before a byte is read
    GET    /_journal         every entry
    GET    /_journal/count   {"arrived": n, "finished": n, "aborted": n}
    GET    /_looks           what was asked about stored responses, in order, as "GET /v1/responses/resp_7"
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

from tests.fakes.faults import Fault, Script
from tests.fakes.journal import Journal
from tests.fakes.server import PLAIN, FarEnd, serving

REPOSITORY = Path(__file__).resolve().parents[2]


class FakeProvider:
    """The far end as a process beside a test.

    >>> with FakeProvider() as far_end:
    ...     far_end.script(match="canary-7", times=1, status=429, retry_after="1")
    ...     client = openai.OpenAI(base_url=far_end.openai_url, api_key="unused")
    """

    def __init__(self, *, journal: Path | None = None, latency_ms: float = 0, output_tokens: int = 8) -> None:
        """Without `journal`, one is kept in a temporary folder."""
        self.journal_given = journal
        self.options = ["--latency-ms", str(latency_ms), "--output-tokens", str(output_tokens)]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.journal_path = self.journal_given or temporary_journal(stack)
            command = [sys.executable, "-m", "tests.fakes.provider", "--journal", str(self.journal_path), *self.options]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
            stack.callback(self.stop)
            assert self.process.stdout is not None
            ready = json.loads(self.process.stdout.readline())
            self.cleanup = stack.pop_all()
        self.base_url: str = ready["base_url"]
        self.control_url: str = ready["control_url"]
        self.port: int = ready["port"]
        self.openai_url = f"{self.base_url}/v1"
        self.anthropic_url = self.base_url
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup.close()

    def stop(self) -> None:
        """End the process, at the latest after five seconds."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def script(self, *, match: str = "", times: int | None = None, **fault: Any) -> None:
        """Play a fault (see `faults.Fault`) on the next `times` calls whose body holds `match`; None: on all."""
        self.control("POST", "/_script", {"match": match, "fault": fault, "times": times})

    def finish(self, batch: str, status: str = "completed", lines: int | None = None) -> None:
        """End a batch, with so many of its lines answered; None: all."""
        self.control("POST", "/_finish", {"id": batch, "status": status} | ({} if lines is None else {"lines": lines}))

    def clear(self) -> None:
        self.control("DELETE", "/_script")

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections for a while."""
        self.control("POST", "/_listen", {"open": False})
        try:
            yield
        finally:
            self.control("POST", "/_listen", {"open": True})

    def slam(self, times: int) -> None:
        """Reset the next connections before a byte of them is read; 0 ends it."""
        self.control("POST", "/_slam", {"times": times})

    def journal(self) -> list[dict[str, Any]]:
        """Return every entry of the journal."""
        return list(self.control("GET", "/_journal"))

    def calls(self) -> list[dict[str, Any]]:
        """Return the journal by call: both entries of a call in one, without `outcome` while it runs."""
        merged: dict[int, dict[str, Any]] = {}
        for entry in self.journal():
            merged.setdefault(entry["call"], {}).update(entry)
        return list(merged.values())

    def looks(self) -> list[str]:
        """Return what was asked about stored responses, in order."""
        return list(self.control("GET", "/_looks"))

    def count(self) -> dict[str, int]:
        """Return how many calls have arrived, finished and been aborted."""
        return dict(self.control("GET", "/_journal/count"))

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call the control API; raises urllib's HTTPError where it refuses."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.control_url}{path}", data, method=method)  # noqa: S310
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return json.load(response)


def temporary_journal(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory())) / "journal.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake provider on both wires.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", type=Path, default=Path(os.devnull))
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--pace-ms", type=float, default=0, help="between the events of a stream")
    parser.add_argument("--output-tokens", type=int, default=8)
    options = parser.parse_args()
    uvloop.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    usual = Fault(latency_ms=options.latency_ms, pace_ms=options.pace_ms)
    far_end = FarEnd(
        journal=Journal(options.journal),
        script=Script(),
        usual=PLAIN if usual == PLAIN else usual,
        output_tokens=options.output_tokens,
        port=options.port,
    )
    async with serving(far_end) as control_port:
        urls = {"base_url": f"http://127.0.0.1:{far_end.port}", "control_url": f"http://127.0.0.1:{control_port}"}
        print(json.dumps(urls | {"port": far_end.port}), flush=True)
        await stop.wait()


if __name__ == "__main__":
    main()
