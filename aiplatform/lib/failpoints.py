"""Named points at which a process can be told to die, fail or hang, so that recovery can be watched: FAILPOINT.

The variable reads NAME[:NTH]:kill|raise|hang. Off by default, and then a point costs one look at a module's variable. A process
that starts with it says so loudly; docs/reliability.md has the list and what it is good for.
"""

import itertools
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from django.conf import settings

from aiplatform.lib.logs import log

NAMES = (
    "door.body_read",
    "admission.before_limits",
    "admission.after_limits",
    "admission.before_hold",
    "admission.after_hold",
    "admission.before_doorbell",
    "admission.after_doorbell",
    "door.before_reply",
    "door.mid_stream",
    "claim.before",
    "claim.after",
    "send.before",
    "send.after",
    "stream.head_told",
    "stream.mid",
    "answer.read",
    "retry.before",
    "retry.after",
    "settle.before",
    "settle.after",
    "deliver.before",
    "deliver.after",
    "places.freed",
    "background.begun",
    "background.looked",
    "background.before_settle",
    "background.settled",
    "drain.begun",
    "lease.before_renewal",
    "lease.after_renewal",
    "sweep.begun",
    "sweep.before_end",
    "sweep.after_end",
    "sweep.fenced",
    "sweep.before_bells",
    "sweep.after_bells",
    "sweep.done",
)
_FORM = re.compile(r"(?P<name>[a-z_.]+)(:(?P<nth>[1-9]\d*))?:(?P<action>kill|raise|hang)")


class FailpointReached(RuntimeError):
    """What an armed point raises for `raise`: an error that nobody expects."""


@dataclass
class _Armed:
    name: str
    nth: int
    action: str
    _reached: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # next() is atomic among threads

    def happen(self) -> None:
        if next(self._reached) != self.nth:
            return
        log.critical("failpoint.reached", point=self.name, action=self.action)
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "hang":
            threading.Event().wait()
        raise FailpointReached(self.name)


def read(given: str) -> _Armed | None:
    """What FAILPOINT says; raises ValueError for a name or an action that does not exist."""
    if not given:
        return None
    found = _FORM.fullmatch(given)
    if not found or found["name"] not in NAMES:
        raise ValueError(f"FAILPOINT is NAME[:NTH]:kill|raise|hang, not {given!r}; the names: {', '.join(NAMES)}")
    return _Armed(found["name"], int(found["nth"] or 1), found["action"])


_armed = read(settings.FAILPOINT)


def reached(name: str, when: object = True) -> None:
    """Where an armed point happens; `when` is false where there is nothing to lose yet."""
    if _armed is not None and _armed.name == name and when:
        _armed.happen()


def warn() -> None:
    """Says that this process will fail on purpose; called where processes start."""
    if _armed is not None:
        log.critical("failpoint.armed", point=_armed.name, nth=_armed.nth, action=_armed.action)
