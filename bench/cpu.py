"""CPU seconds by group of processes, children included, also those that lived and died in between."""

from collections.abc import Mapping, Sequence

import psutil

Groups = Mapping[str, Sequence[int]]


def snapshot(groups: Groups) -> dict[str, float]:
    """Return user and system CPU seconds so far of each group: its processes and all their descendants.

    A child that ends is not lost: the parent that waits for it inherits its time. The kernel counts in
    steps of 10 ms a process, so let some seconds lie between two snapshots.
    """
    return {name: sum(map(tree_seconds, pids)) for name, pids in groups.items()}


def delta(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what each group has used between two snapshots."""
    return {name: after[name] - before[name] for name in after}


def tree_seconds(pid: int) -> float:
    """Return the seconds of a process, its descendants, and its children that are dead and waited for."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(map(own_seconds, processes))


def own_seconds(process: psutil.Process) -> float:
    """Return the seconds of one process and of its dead children."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system
