"""The far end's journal: an append-only file of what really reached a provider, and of what left it.

It is the ground truth that tests hold against the gateway's attempts and ledger. Each call writes two
lines, each with one write(): one before the first byte of its reply, one after the last:

    {"order": 1, "event": "arrived", "call": 1, "request_id": …, "path": …, "wire": …, "model": …,
     "stream": …, "sha256": of the body, "bytes_in": …, "auth": "bearer" | "x-api-key" | null,
     "auth_hash": 12 hex digits, "canary": …, "fault": the script's fault or null}
    {"order": 2, "event": "ended", "call": 1, "status": … or null, "outcome": "finished" | "aborted",
     "bytes_out": body bytes, "input_tokens": …, "output_tokens": produced, "usage": as it was sent, or null}

`aborted` means that the reply did not leave whole: by fault, or because the client went away.
`finished` says that the last byte was handed to the kernel, not that the client read it.
The control API answers after both lines are written; who reads the file itself may be a moment early.
"""

import os
from pathlib import Path
from typing import Any

from tests.fakes.codec import dumps, loads


class Journal:
    """Appends to a file, and counts; a file that exists is continued."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; os.devnull keeps counts only."""
        self.path = path
        self.counts = {"arrived": 0, "finished": 0, "aborted": 0}
        self.order = 0
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for entry in self.entries():
            self.order = entry["order"]
            self.counts[entry.get("outcome", entry["event"])] += 1
        self.calls = self.counts["arrived"]

    def arrived(self, **facts: Any) -> int:
        """Write down that a call has arrived; returns its number."""
        self.calls += 1
        self.counts["arrived"] += 1
        self.append({"event": "arrived", "call": self.calls} | facts)
        return self.calls

    def ended(self, call: int, *, outcome: str, **facts: Any) -> None:
        """Write down how a call ended: "finished" or "aborted"."""
        self.counts[outcome] += 1
        self.append({"event": "ended", "call": call, "outcome": outcome} | facts)

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line; O_APPEND and a single write() keep it whole."""
        self.order += 1
        os.write(self.file, dumps({"order": self.order} | entry) + b"\n")

    def entries(self) -> list[dict[str, Any]]:
        """Return everything that was written, in order."""
        return [loads(line) for line in self.path.read_bytes().splitlines()]
