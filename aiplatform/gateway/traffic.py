"""What one worker process knows of its providers' health and headroom, and shares with the others."""

import asyncio
import time
import uuid
from typing import Any

import redis.asyncio
from django.conf import settings
from redis.exceptions import RedisError

from aiplatform.lib import redis as shared
from aiplatform.lib.batching import Batcher
from aiplatform.lib.logs import log
from aiplatform.providers import breaker as breakers
from aiplatform.providers.backoff import RetryBudget
from aiplatform.providers.breaker import Breaker, Breakers, State
from aiplatform.providers.headroom import Headroom

WAITING_SHARE = 4  # a tenant may fill so much of a worker's places with calls that wait for one lane


class Traffic:
    """Used on the worker's event loop alone."""

    def __init__(self, worker: uuid.UUID) -> None:
        self._worker = str(worker)
        self.headroom = Headroom(
            _connect,
            most_waiting=max(settings.WORKER_PLACES // WAITING_SHARE, 1),
            place_seconds=settings.CALL_DEADLINE_SECONDS,
            learns=settings.PACE_PROVIDERS,
        )
        self.breakers = Breakers(failures=settings.BREAKER_FAILURES)
        self.budget = RetryBudget(reserve=settings.RETRY_RESERVE)
        self._repeats: Batcher[str, bool] = Batcher("repeats", self.budget.take)
        self._told: dict[str, State] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def may_repeat(self, provider: str) -> bool:
        """Whether the provider's retry budget has room for one more."""
        return await self._repeats.submit(provider)

    def note(self, lane: str, breaker: Breaker) -> None:
        """Tells of a breaker that opened or closed: into the log, and to `provider_status`."""
        state = breaker.state
        if self._told.get(lane, State.CLOSED) is state:
            return
        self._told[lane] = state
        log.warning("breaker.changed", lane=lane, state=state.value)
        task = asyncio.get_running_loop().create_task(self._publish(lane, state, breaker.reopens_in()))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _publish(self, lane: str, state: State, seconds: float) -> None:
        name = breakers.key(lane)
        try:
            if state is State.CLOSED:
                await self.headroom.client().hdel(name, self._worker)
                return
            said = f"{state.value} {int((time.time() + seconds) * 1000)}"
            await self.headroom.client().hset(name, self._worker, said)
            await self.headroom.client().expire(name, breakers.KEPT_SECONDS)
        except (RedisError, OSError):
            log.warning("breaker.not_published", lane=lane)


def _connect() -> redis.asyncio.Redis:
    return shared.asynchronous(socket_timeout=1)
