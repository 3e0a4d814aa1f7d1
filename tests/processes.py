"""The processes of a running system, and how to tell the next one of a part to die."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.system import QUICK, System

START_SECONDS = 60


class Processes:
    """Those of one system; a part is `web` or `worker`, and has one process."""

    def __init__(self, system: System) -> None:
        self.system = system

    def arm(self, part: str, plan: str, **environ: str) -> None:
        """What the next process of this part is told; the one that runs keeps what it was told."""
        running = self._running(part)
        usual = {"START_WITHIN_SECONDS": "60", "LEASE_LOST_SECONDS": QUICK["LEASE_LOST_SECONDS"]}
        running.program.env.update(usual | environ, FAILPOINT=plan)
        running.crashes = 0

    def arm_now(self, part: str, plan: str) -> None:
        """The process that runs from now on dies as planned, and the one after it does not."""
        self.arm(part, plan)
        self.restart(part)
        self.arm(part, "")

    def restart(self, part: str) -> None:
        pid = self.pid(part)
        os.kill(pid, signal.SIGKILL)
        self.started_again(part, pid, f"{part} restarted")

    def started_again(self, part: str, pid: int, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.pid(part) == pid:
            assert time.monotonic() < deadline, f"{what}: no process died"
            time.sleep(0.02)
        started = self.pid(part)
        while not self._is_ready(part, started):
            assert time.monotonic() < deadline, f"{what}: {part} is not ready"
            assert self.pid(part) == started, f"{what}: {part} died while it started"
            time.sleep(0.05)

    def pid(self, part: str) -> int:
        return int(self._running(part).process.pid)

    def _is_ready(self, part: str, pid: int) -> bool:
        if part == "web":
            return bool(self._running(part).program.is_ready(pid))
        ready = Path(self.system.stack.facts["data_dir"]) / "run" / "worker-1.ready"
        return ready.exists() and ready.read_text().split()[:1] == [str(pid)]  # it may be there, and not yet written

    def _running(self, part: str) -> Any:
        (found,) = [it for it in self.system.stack.supervisor._running if it.program.part == part]
        return found
