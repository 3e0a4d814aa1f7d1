"""From the worker that owns the upstream connection to the web process that owns the client's.

A Redis stream per call is the truth, a publication to the waiting web process its doorbell, which carries small records with
it. A lost doorbell costs a second; a lost Redis costs the stream, never the call, which is in Postgres.
"""

import asyncio
import itertools
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import orjson
from django.conf import settings

from aiplatform.lib import redis
from aiplatform.lib.logs import log

_FRAME = struct.Struct("!16sIBI")
CARRIED_BYTES = 64 * 1024
POLL_SECONDS = 0.075
EXPIRY_RECORDS = 100


class Kind(IntEnum):
    WHOLE = 1  # a whole answer: head, body and end in one
    HEAD = 2  # the head of a stream
    DATA = 3  # bytes of a stream
    END = 4  # the last bytes of a stream, after its money was committed
    BELL = 5  # too large to carry: look in the call's stream


@dataclass(slots=True)
class Record:
    """One step of an answer; `seq` counts from 1 within a call."""

    call_id: uuid.UUID
    web_process: uuid.UUID
    seq: int
    kind: Kind
    data: bytes


def head(status: int, headers: dict[str, str], body: bytes = b"") -> bytes:
    """A head and, for a whole answer, its body."""
    packed = orjson.dumps([status, headers])
    return struct.pack("!I", len(packed)) + packed + body


def parse_head(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what `head` made."""
    (size,) = struct.unpack_from("!I", data)
    status, headers = orjson.loads(data[4 : 4 + size])
    return status, headers, data[4 + size :]


def deliver(records: Sequence[Record]) -> None:
    """Sends a batch of records in one pipeline. Repeating it does no harm: the stream refuses an id that it has."""
    pipeline = redis.client().pipeline(transaction=False)
    doorbells: dict[uuid.UUID, list[bytes]] = {}
    for record in records:
        key = stream_key(record.call_id)
        pipeline.xadd(key, {"k": int(record.kind), "d": record.data}, id=f"{record.seq}-0")
        # Now and then, since a stream in the background may outlive what was set at its beginning.
        if record.seq % EXPIRY_RECORDS == 1 or record.kind in {Kind.WHOLE, Kind.END}:
            pipeline.expire(key, settings.CALL_DEADLINE_SECONDS + settings.RELAY_KEEP_SECONDS)
        carried = len(record.data) <= CARRIED_BYTES
        kind, data = (record.kind, record.data) if carried else (Kind.BELL, b"")
        frame = _FRAME.pack(record.call_id.bytes, record.seq, kind, len(data)) + data
        doorbells.setdefault(record.web_process, []).append(frame)
    for web_process, frames in doorbells.items():
        pipeline.publish(channel(web_process), b"".join(frames))
    try:
        refusals = {str(answer) for answer in pipeline.execute(raise_on_error=False) if isinstance(answer, Exception)}
    except redis.LOST as error:
        log.warning("relay.lost", records=len(records), error=type(error).__name__)
        return
    for refusal in refusals:
        if "equal or smaller" not in refusal:  # that one says: it is there already
            log.error("relay.refused", error=refusal[:200])


def stream_key(call_id: uuid.UUID) -> str:
    return f"relay:{call_id}"


def channel(web_process: uuid.UUID) -> str:
    return f"relay:web:{web_process}"


@dataclass(slots=True, eq=False)
class Inbox:
    """What has arrived for one waiting call, in order. A polled one is rung at another web process."""

    call_id: uuid.UUID
    is_polled: bool = False
    has_ended: bool = False
    seq: int = 0
    heard_at: float = field(default_factory=time.monotonic)
    _records: asyncio.Queue[tuple[Kind, bytes]] = field(default_factory=asyncio.Queue)

    def push(self, seq: int, kind: Kind, data: bytes) -> bool:
        """Takes the next record; False where one before it is missing or it must be looked up."""
        if seq <= self.seq:
            return True
        if seq != self.seq + 1 or kind == Kind.BELL:
            return False
        self.seq, self.heard_at, self.has_ended = seq, time.monotonic(), kind in {Kind.WHOLE, Kind.END}
        self._records.put_nowait((kind, data))
        return True

    async def get(self, seconds: float | None = None) -> tuple[Kind, bytes]:
        """The next record; TimeoutError after so many of silence."""
        async with asyncio.timeout(seconds):
            return await self._records.get()


class Receiver:
    """One web process's ear: a subscription, and the inboxes of the calls that it waits for. `ended` hears of every end."""

    def __init__(self, web_process: uuid.UUID, ended: Callable[[], None] = lambda: None) -> None:
        self._web_process = web_process
        self._ended = ended
        self._inboxes: dict[uuid.UUID, list[Inbox]] = {}
        self._client: Any = None
        self._poller: asyncio.Task[None] | None = None

    def expect(self, call_id: uuid.UUID, *, is_polled: bool = False) -> Inbox:
        """A new inbox; a call may have several."""
        inbox = Inbox(call_id, is_polled)
        self._inboxes.setdefault(call_id, []).append(inbox)
        if is_polled and (self._poller is None or self._poller.done()):
            self._poller = asyncio.create_task(self._poll())
        return inbox

    def forget(self, inbox: Inbox) -> None:
        others = [one for one in self._inboxes.get(inbox.call_id, []) if one is not inbox]
        if others:
            self._inboxes[inbox.call_id] = others
        else:
            self._inboxes.pop(inbox.call_id, None)

    def silent(self, seconds: float) -> list[Inbox]:
        """The inboxes that have heard nothing for so long."""
        since = time.monotonic() - seconds
        return [inbox for inbox in self._all() if inbox.heard_at < since and not inbox.has_ended]

    def _all(self) -> Iterator[Inbox]:
        return itertools.chain.from_iterable(self._inboxes.values())

    async def listen(self) -> None:
        """Runs for the life of the process; subscribes again after every loss, and catches up."""
        while True:
            try:
                await self._listen_once()
            except redis.LOST as error:
                log.warning("relay.subscription_lost", error=type(error).__name__)
            except Exception:  # noqa: BLE001 - without this ear every answer of the process would come late
                log.exception("relay.subscription_failed")
            await asyncio.sleep(0.2)

    async def _listen_once(self) -> None:
        client = redis.asynchronous(socket_timeout=None)
        try:
            async with client.pubsub() as subscription:
                await subscription.subscribe(channel(self._web_process))
                await self.catch_up(self._all())
                async for message in subscription.listen():
                    if message["type"] == "message":
                        await self._take(message["data"])
        finally:
            await client.aclose()

    async def _take(self, frames: bytes) -> None:
        at, behind = 0, []
        while at < len(frames):
            call, seq, kind, size = _FRAME.unpack_from(frames, at)
            at += _FRAME.size
            data = frames[at : at + size]
            behind += [
                inbox for inbox in self._inboxes.get(uuid.UUID(bytes=call), []) if not inbox.push(seq, Kind(kind), data)
            ]
            if kind in {Kind.WHOLE, Kind.END, Kind.BELL}:
                self._ended()
            at += size
        if behind:
            await self.catch_up(behind)

    async def catch_up(self, inboxes: Iterable[Inbox]) -> None:
        """Reads from the calls' streams what their inboxes have missed."""
        waiting = list(inboxes)
        if not waiting:
            return
        if self._client is None:
            self._client = redis.asynchronous(socket_timeout=None)
        pipeline = self._client.pipeline(transaction=False)
        for inbox in waiting:
            pipeline.xrange(stream_key(inbox.call_id), min=f"({inbox.seq}-0")
        for inbox, entries in zip(waiting, await pipeline.execute(), strict=True):
            for entry_id, entry in entries:
                inbox.push(int(entry_id.split(b"-")[0]), Kind(int(entry[b"k"])), entry[b"d"])

    async def _poll(self) -> None:
        """Looks into the streams of calls that ring at another web process, as long as one is waited for."""
        while polled := [inbox for inbox in self._all() if inbox.is_polled and not inbox.has_ended]:
            try:
                await self.catch_up(polled)
            except redis.LOST as error:
                log.warning("relay.poll_failed", error=type(error).__name__)
            except Exception:  # noqa: BLE001 - without this look every attached answer would come late
                log.exception("relay.poll_crashed")
            await asyncio.sleep(POLL_SECONDS)


async def stream(inbox: Inbox, heartbeat_seconds: float = 10) -> AsyncIterator[bytes]:
    """The bytes of a stream after its head, with a comment now and then where it is silent."""
    while True:
        try:
            kind, data = await inbox.get(heartbeat_seconds)
        except TimeoutError:
            yield b": ping\n"  # no blank line: after an `id:` of the provider's, some SDKs take that for an event
            continue
        if data:
            yield data
        if kind == Kind.END:
            return
