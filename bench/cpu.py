"""CPU seconds by group of processes, children included, also those that lived and died in between."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import psutil


def snapshot(groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return user and system CPU seconds so far of each group: its processes and all their descendants.

    A child that ends is not lost: the parent that waits for it inherits its time. The kernel counts in
    steps of 10 ms a process, so let some seconds lie between two snapshots.
    """
    return {name: sum(map(seconds, family(pids))) for name, pids in groups.items()}


def delta(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what each group has used between two snapshots."""
    return {name: after[name] - before[name] for name in after}


def family(pids: Iterable[int]) -> set[psutil.Process]:
    """Return the processes and their descendants, each once."""
    members: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            members |= {root, *root.children(recursive=True)}
    return members


def seconds(process: psutil.Process) -> float:
    """Return the seconds of one process and of its children that are dead and waited for."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system
