"""A lease per process, renewed by the database's clock: whoever cannot renew is fenced, and settles nothing any more."""

import os
import socket
import threading
import uuid
from collections.abc import Callable

from django.conf import settings

from aiplatform.lib import failpoints, postgres
from aiplatform.lib.errors import Unavailable
from aiplatform.lib.ids import uuid7
from aiplatform.lib.logs import log


class Lease:
    """This process's lease; `fenced` is called, from its thread, once another has taken the process for dead."""

    def __init__(self, kind: str, fenced: Callable[[], None]) -> None:
        self.id: uuid.UUID = uuid7()
        self.kind, self.number = kind, 1
        """How many processes of this kind live, as of the start or the last renewal."""
        self._fenced = fenced
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def start(self) -> None:
        """Writes the lease and keeps it; raises Unavailable where the database stays away."""
        postgres.run(
            """INSERT INTO usage_processlease (id, kind, host, pid, state, started_at, seen_at)
               VALUES (%s, %s, %s, %s, 'alive', now(), now()) ON CONFLICT DO NOTHING""",
            [self.id, self.kind, socket.gethostname()[:255], os.getpid()],
            patience=30,
        )
        self.number = postgres.run(
            "SELECT count(*) AS number FROM usage_processlease WHERE kind = %s AND state = 'alive'", [self.kind]
        )[0].number
        self._thread.start()

    def is_oldest(self) -> bool:
        """Whether no process of this kind lives that began before."""
        (row,) = postgres.run(
            """SELECT count(*) AS older FROM usage_processlease o JOIN usage_processlease me ON me.id = %s
               WHERE o.kind = me.kind AND o.state = 'alive' AND (o.started_at, o.id) < (me.started_at, me.id)""",
            [self.id],
        )
        return int(row.older) == 0

    def stop(self) -> None:
        """Ends the lease in good order."""
        self._stop.set()
        postgres.run("UPDATE usage_processlease SET state = 'stopped' WHERE id = %s AND state = 'alive'", [self.id])

    def _renew(self) -> None:
        while not self._stop.wait(settings.LEASE_RENEW_SECONDS):
            failpoints.reached("lease.before_renewal")
            try:
                alive = postgres.run(
                    """UPDATE usage_processlease SET seen_at = now() WHERE id = %s AND state = 'alive' RETURNING
                           (SELECT count(*) FROM usage_processlease o WHERE o.kind = %s AND o.state = 'alive') AS number""",
                    [self.id, self.kind],
                )
            except Unavailable:
                continue  # nobody else can fence us either
            failpoints.reached("lease.after_renewal")
            self.number = alive[0].number if alive else self.number
            if not alive and not self._stop.is_set():
                log.error("process.fenced", process=str(self.id), kind=self.kind)
                self._fenced()
                return
