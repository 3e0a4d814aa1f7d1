"""In the web process: what becomes of calls that are silent, since their worker, their reader or Redis may have died."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterable
from typing import Any

from django.conf import settings

from aiplatform.gateway import callers, relay, replies
from aiplatform.lib import redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log

# A Redis that came back empty has heard of no worker for a moment.
MISSED_SECONDS = 2.0
PATIENCE_SECONDS = 3


class Watch:
    """Looks once a second."""

    def __init__(self, receiver: relay.Receiver, states: Batcher[uuid.UUID, Any]) -> None:
        self._receiver, self._states = receiver, states
        self._missed_since: dict[uuid.UUID, float] = {}
        self._client: Any = None

    async def run(self) -> None:
        """For the life of the process."""
        while True:
            await asyncio.sleep(1)
            try:
                await self._look()
            except ApiError:
                continue
            except Exception:  # noqa: BLE001 - an edge: without the watch, lost answers would hang
                log.exception("relay.watch_failed")

    async def _look(self) -> None:
        silent = self._receiver.silent(settings.RELAY_SILENCE_SECONDS)
        if not silent:
            self._missed_since.clear()
            return
        with contextlib.suppress(TimeoutError, *redis.LOST):
            await asyncio.wait_for(self._receiver.catch_up(silent), PATIENCE_SECONDS)
        silent = self._receiver.silent(settings.RELAY_SILENCE_SECONDS)
        rows = await asyncio.gather(*(self._states.submit(inbox.call_id) for inbox in silent))
        dead = await self._dead({row.worker_process for row in rows if row is not None and row.state == "inflight"})
        for inbox, row in zip(silent, rows, strict=True):
            if not inbox.has_ended:
                replies.end(inbox, row, worker_is_dead=row is not None and row.worker_process in dead)

    async def _dead(self, workers: Iterable[uuid.UUID | None]) -> set[uuid.UUID]:
        """Those that have said nothing for a while, though Redis was there to be told."""
        asked = [worker for worker in workers if worker is not None]
        if not asked:
            return set()
        if self._client is None:
            self._client = redis.asynchronous(socket_timeout=PATIENCE_SECONDS)
        try:
            beats = await self._client.mget([callers.beat_key(worker) for worker in asked])
        except redis.LOST:
            self._missed_since.clear()
            return set()
        now = time.monotonic()
        missed = {worker for worker, beat in zip(asked, beats, strict=True) if beat is None}
        self._missed_since = {worker: self._missed_since.get(worker, now) for worker in missed}
        return {worker for worker, since in self._missed_since.items() if now - since >= MISSED_SECONDS}
