"""Callers who go: what their environment's policy makes of the call, from the web process that notices to its worker.

`finish` carries the call out to its end. `cancel` closes a stream at once; `drain` stops relaying it, but listens for a while,
so that the provider's own usage is known. A plain answer is charged by the provider whoever waits for it, so it is finished.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from django.conf import settings

from aiplatform.gateway import recovery
from aiplatform.gateway.tickets import Ticket
from aiplatform.lib import redis
from aiplatform.lib.errors import Unavailable
from aiplatform.lib.logs import log

FINISH, CANCEL, DRAIN = "finish", "cancel", "drain"
KEEP_SECONDS = 3600
BEAT_SECONDS = 1.0
BEAT_LOST_SECONDS = 4.0
_GONE, _BACK = b"gone", b"back"
_CHANNEL = "relay:gone"  # the ids' bytes, one after the other
_ID_BYTES = 16


def policy(ticket: Ticket) -> str:
    """What is to become of the call when its caller goes; whoever sent an Idempotency-Key said that he may come back."""
    return FINISH if ticket.detached or ticket.idempotency_hash else ticket.principal.on_disconnect


def leave(call_ids: Sequence[uuid.UUID]) -> list[None]:
    """In the web process: tells the workers whose callers have gone, and voids what none has claimed yet."""
    pipeline = redis.client().pipeline(transaction=False)
    for call_id in call_ids:
        pipeline.set(_key(call_id), _GONE, nx=True, ex=KEEP_SECONDS)
    try:
        is_news = pipeline.execute()
        if gone := b"".join(call_id.bytes for call_id, new in zip(call_ids, is_news, strict=True) if new):
            redis.client().publish(_CHANNEL, gone)
    except redis.LOST as error:
        log.warning("caller.not_told", calls=len(call_ids), error=type(error).__name__)  # they are finished, then
    try:
        recovery.void_left(call_ids)
    except Unavailable:
        log.warning("caller.not_voided", calls=len(call_ids))
    return [None] * len(call_ids)


def come_back(call_ids: Sequence[uuid.UUID]) -> list[None]:
    """In the web process: somebody asks for the rest of these calls, so they are finished unless it is too late.

    Raises Unavailable.
    """
    pipeline = redis.client().pipeline(transaction=False)
    for call_id in call_ids:
        pipeline.set(_key(call_id), _BACK, ex=KEEP_SECONDS)
    try:
        pipeline.execute()
    except redis.LOST as error:
        raise redis.unavailable() from error
    return [None] * len(call_ids)


class Caller:
    """In the worker: whoever waits for one call."""

    def __init__(self, policy: str, drains: "Drains", drained: Callable[[], None]) -> None:
        """`drained` is called once nothing is relayed any more."""
        self.policy, self.has_gone, self.is_drained = policy, False, False
        self._drains, self._drained = drains, drained
        self._act: Callable[[float], bool] | None = None

    def gone(self) -> None:
        """He has gone; on the loop."""
        if self.has_gone:
            return
        self.has_gone = True
        if self._act is not None:
            self._leave(self._act)

    @contextmanager
    def listening(self, act: Callable[[float], bool]) -> Iterator[None]:
        """While a stream is heard: `act` gets the loop's time at which to stop listening, once he has gone, and says whether
        that will be done: what the provider carries out in the background goes on all the same.
        """
        self._act = act
        if self.has_gone:
            self._leave(act)
        try:
            yield
        finally:
            self._act = None
            if self.is_drained:
                self._drains.running -= 1

    def _leave(self, act: Callable[[float], bool]) -> None:
        drains = self.policy == DRAIN and self._drains.running < settings.DRAIN_STREAMS
        now = asyncio.get_running_loop().time()
        if act(now + (settings.DRAIN_STREAM_SECONDS if drains else 0)) and drains:
            self._drains.running += 1
            self.is_drained = True
            self._drained()


class Drains:
    """How many streams one worker listens to for their usage alone."""

    running = 0


class Pulse:
    """In the worker: says each second that it lives, as long as its event loop turns, and hears which callers have gone.

    What a publication tells is known at once; what was missed is asked for with the next beat.
    """

    def __init__(self, worker: uuid.UUID, loop: asyncio.AbstractEventLoop) -> None:
        self._worker, self._loop, self._drains = worker, loop, Drains()
        self._callers: dict[uuid.UUID, Caller] = {}
        self._turned_at = time.monotonic()

    def start(self) -> None:
        """Begins to beat and to hear."""
        threading.Thread(target=self._run, name="pulse", daemon=True).start()
        self._hearing = self.hear()

    def hear(self) -> Future[None]:
        """Begins to hear at once of callers who go, as long as what it returns is kept, and not cancelled."""
        return asyncio.run_coroutine_threadsafe(self._hear(), self._loop)

    @contextmanager
    def caller(self, call: Any, drained: Callable[[], None]) -> Iterator[Caller]:
        """Who waits for this call, while it is carried out; on the loop."""
        caller = Caller(call.headers.get("on_disconnect", FINISH), self._drains, drained)
        if caller.policy != FINISH and call.streamed:
            self._callers[call.id] = caller
        try:
            yield caller
        finally:
            self._callers.pop(call.id, None)

    def _run(self) -> None:
        while True:
            self._loop.call_soon_threadsafe(self._turned)
            time.sleep(BEAT_SECONDS)
            try:
                self._beat()
            except redis.LOST:
                continue  # web processes ask for beats only of a Redis that answers
            except Exception:  # noqa: BLE001 - an edge: a worker without its pulse is taken for dead
                log.exception("pulse.failed")

    def _turned(self) -> None:
        self._turned_at = time.monotonic()

    def _beat(self) -> None:
        asking = list(self._callers)
        pipeline = redis.client().pipeline(transaction=False)
        if time.monotonic() - self._turned_at < BEAT_LOST_SECONDS:
            pipeline.set(beat_key(self._worker), b"1", px=int(BEAT_LOST_SECONDS * 1000))
        if asking:
            pipeline.mget([_key(call_id) for call_id in asking])
        said = pipeline.execute()
        if asking:
            gone = [call_id for call_id, word in zip(asking, said[-1], strict=True) if word == _GONE]
            self._loop.call_soon_threadsafe(self._tell, gone)

    async def _hear(self) -> None:
        while True:
            try:
                await self._hear_once()
            except redis.LOST as error:
                log.warning("pulse.subscription_lost", error=type(error).__name__)
            except Exception:  # noqa: BLE001 - an edge: callers who go would be known a second later from now on
                log.exception("pulse.subscription_failed")
            await asyncio.sleep(BEAT_SECONDS)

    async def _hear_once(self) -> None:
        client = redis.asynchronous(socket_timeout=None)
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe(_CHANNEL)
                async for message in subscription.listen():
                    said = message["data"]
                    self._tell([uuid.UUID(bytes=said[at : at + _ID_BYTES]) for at in range(0, len(said), _ID_BYTES)])
        finally:
            await client.aclose()

    def _tell(self, gone: Sequence[uuid.UUID]) -> None:
        for call_id in gone:
            if (caller := self._callers.get(call_id)) is not None:
                caller.gone()


def beat_key(worker: uuid.UUID) -> str:
    return f"relay:beat:{worker}"


def _key(call_id: uuid.UUID) -> str:
    return f"relay:gone:{call_id}"
