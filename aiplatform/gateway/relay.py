"""From the worker that owns the upstream connection to the web process that owns the client's.

A Redis stream per call is the truth, a publication to the waiting web process its doorbell, which carries small records with
it. A lost doorbell costs a second; a lost Redis costs the stream, never the call, which is in Postgres (docs/streaming.md).
"""

import asyncio
import itertools
import re
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import orjson
from django.conf import settings

from aiplatform.lib import redis
from aiplatform.lib.logs import log

_FRAME = struct.Struct("!16sIBI")
CARRIED_BYTES = 64 * 1024
JOINED_BYTES = 16 * 1024  # what waits for the deliverer is joined up to this size
HELD_BYTES = 256 * 1024  # what one reader may be behind in this process's memory; the rest waits in Redis
AT_ONCE = 8  # records that one look into a stream brings
POLL_SECONDS = 0.075
EXPIRY_RECORDS = 100
FIRST_DATA = 2  # its number; 1 is the head
# How `streaming` numbers events.
NUMBER_LINE = re.compile(rb"(?:\A|(?<=[\r\n]))id: (\d+)\n")
_taking = threading.Lock()


class Kind(IntEnum):
    WHOLE = 1  # a whole answer: head, body and end in one
    HEAD = 2  # the head of a stream
    DATA = 3  # bytes of a stream
    END = 4  # the last bytes of a stream, after its money was committed
    BELL = 5  # too large to carry: look in the call's stream


@dataclass(slots=True, eq=False)
class Record:
    """One step of an answer; `seq` counts from 1 within a call."""

    call_id: uuid.UUID
    web_process: uuid.UUID
    seq: int
    kind: Kind
    data: bytes
    is_taken: bool = False

    @property
    def is_later(self) -> bool:
        """Whether it is of the middle of a stream, whose reader has its beginning."""
        return self.kind == Kind.DATA and self.seq > FIRST_DATA

    def joined(self, data: bytes) -> bool:
        """Adds to bytes that still wait for the deliverer; False where these are on their way, or it would be too much."""
        with _taking:
            if self.is_taken or len(self.data) + len(data) > JOINED_BYTES:
                return False
            self.data += data
            return True


class Outbox:
    """In the worker: one call's records, in order, on their way to `put`."""

    def __init__(self, call_id: uuid.UUID, web_process: uuid.UUID, put: Callable[[Record], None]) -> None:
        self._call_id, self._web_process, self._put = call_id, web_process, put
        self._last: Record | None = None
        self.seq = 0

    def tell(self, kind: Kind, data: bytes) -> None:
        """The next step; bytes of a stream join those before them, as long as the deliverer is busy with others."""
        if kind == Kind.DATA and self._last is not None and self._last.kind == Kind.DATA and self._last.joined(data):
            return
        self.seq += 1
        self._last = Record(self._call_id, self._web_process, self.seq, kind, data)
        self._put(self._last)


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
    with _taking:
        for record in records:
            record.is_taken = True
    commands: list[tuple[bytes | str | int, ...]] = []
    doorbells: dict[uuid.UUID, list[bytes]] = {}
    for record in records:
        key, data = stream_key(record.call_id), record.data
        commands.append(("XADD", key, f"{record.seq}-0", "k", int(record.kind), "d", data))
        # Now and then, since a stream in the background may outlive what was set at its beginning.
        if record.seq % EXPIRY_RECORDS == 1 or record.kind in {Kind.WHOLE, Kind.END}:
            commands.append(("EXPIRE", key, settings.CALL_DEADLINE_SECONDS + settings.RELAY_KEEP_SECONDS))
        kind, carried = (record.kind, data) if len(data) <= CARRIED_BYTES else (Kind.BELL, b"")
        frame = _FRAME.pack(record.call_id.bytes, record.seq, kind, len(carried)) + carried
        doorbells.setdefault(record.web_process, []).append(frame)
    commands += [("PUBLISH", channel(web), b"".join(frames)) for web, frames in doorbells.items()]
    try:
        refusals = {str(answer) for answer in redis.send(commands) if isinstance(answer, Exception)}
    except redis.LOST as error:
        log.warning("relay.lost", records=len(records), error=type(error).__name__)
        return
    for refusal in refusals:
        if "equal or smaller" not in refusal:  # that one says: it is there already
            log.error("relay.refused", error=refusal[:200])


def last_number(call_id: uuid.UUID) -> int:
    """The number of the last event that a running stream has told, 0 before the first; raises Unavailable."""
    before = b"+"
    while True:  # a provider may have told comments alone for long
        try:
            entries: Any = redis.client().xrevrange(stream_key(call_id), max=before, count=AT_ONCE)
        except redis.LOST as error:
            raise redis.unavailable() from error
        for at, entry in entries:
            if numbers := NUMBER_LINE.findall(entry[b"d"]):
                return int(numbers[-1])
            before = b"(" + at
        if len(entries) < AT_ONCE:
            return 0


def is_whole(call_id: uuid.UUID) -> bool:
    """Whether Redis has all of an answer; raises Unavailable."""
    key = stream_key(call_id)
    try:
        length, last = redis.send([("XLEN", key), ("XREVRANGE", key, "+", "-", "COUNT", 1)])
    except redis.LOST as error:
        raise redis.unavailable() from error
    if not last:
        return False
    (at, fields), *_ = last
    kind = Kind(int(fields[fields.index(b"k") + 1]))
    return kind in {Kind.WHOLE, Kind.END} and int(at.split(b"-")[0]) == length


def stream_key(call_id: uuid.UUID) -> str:
    return f"relay:{call_id}"


def channel(web_process: uuid.UUID) -> str:
    return f"relay:web:{web_process}"


@dataclass(slots=True, eq=False)
class Inbox:
    """What has arrived for one waiting call, in order. A polled one is rung at another web process.

    It holds no more than HELD_BYTES: whoever reads slowly is `is_behind`, and what comes then is looked up in the call's stream
    once there is room again.
    """

    call_id: uuid.UUID
    is_polled: bool = False
    has_ended: bool = False
    is_behind: bool = False
    is_lost: bool = False
    """Records are missing, and nobody has them any more."""
    is_closed: bool = False
    """Its reader has gone."""
    seq: int = 0
    heard_at: float = field(default_factory=time.monotonic)
    look: Callable[["Inbox"], None] = field(default=lambda _: None)
    """Asks for a look into the call's stream."""
    _rung: int = 0
    _held: int = 0
    _records: deque[tuple[Kind, bytes]] = field(default_factory=deque)
    _waiter: asyncio.Future[None] | None = None

    def push(self, seq: int, kind: Kind, data: bytes) -> None:
        """Takes the next record; one that is too much now, or before which another is missing, is looked up later."""
        self._rung += 1
        if seq <= self.seq or self.is_lost:
            return
        if self.is_behind or seq != self.seq + 1 or kind == Kind.BELL or self._held > HELD_BYTES:
            self.is_behind = True
            self._catch_up()
            return
        self._take(seq, kind, data)

    def refill(self, entries: Sequence[tuple[int, Kind, bytes]], rung: int) -> None:
        """Takes what a look has brought, from `seq` on; `rung` is `rings` as it was before."""
        for seq, kind, data in entries:
            if seq > self.seq + 1:
                self.is_lost = True
                return
            if seq == self.seq + 1:
                self._take(seq, kind, data)
        self.is_behind = len(entries) == AT_ONCE or self._rung != rung
        self._catch_up()

    def end(self, *records: tuple[Kind, bytes]) -> None:
        """Takes its last records from elsewhere."""
        for kind, data in records:
            self._take(self.seq + 1, kind, data)

    def close(self) -> None:
        """Nobody reads any more."""
        self.is_closed = True
        self._wake()

    @property
    def rings(self) -> int:
        return self._rung

    @property
    def has_room(self) -> bool:
        return self._held <= HELD_BYTES // 2

    async def get(self) -> tuple[Kind, bytes]:
        """The next record."""
        while not self._records:
            await self._wait()
        kind, data = self._records.popleft()
        self._held -= len(data)
        self._catch_up()
        return kind, data

    async def rest(self, seconds: float) -> tuple[bytes, bool]:
        """All bytes that are there, and whether they are the last ones; waits for the first. Nothing after so many seconds."""
        if not self._records:
            timer = asyncio.get_running_loop().call_later(seconds, self._wake)
            try:
                await self._wait()
            finally:
                timer.cancel()
        pieces = [data for _, data in self._records]
        is_last = self.has_ended
        self._records.clear()
        self._held = 0
        self._catch_up()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), is_last

    def _take(self, seq: int, kind: Kind, data: bytes) -> None:
        self.seq, self.heard_at, self.has_ended = seq, time.monotonic(), kind in {Kind.WHOLE, Kind.END}
        self._records.append((kind, data))
        self._held += len(data)
        self._wake()

    def _catch_up(self) -> None:
        if self.is_behind and self.has_room and not (self.is_lost or self.is_closed):
            self.look(self)

    async def _wait(self) -> None:
        if self.is_closed:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Receiver:
    """One web process's ear: a subscription, and the inboxes of the calls that it waits for. `ended` hears of every end."""

    def __init__(self, web_process: uuid.UUID, ended: Callable[[], None] = lambda: None) -> None:
        self._web_process = web_process
        self._ended = ended
        self._inboxes: dict[uuid.UUID, list[Inbox]] = {}
        self._behind: dict[Inbox, None] = {}
        self._client: Any = None
        self._poller: asyncio.Task[None] | None = None
        self._looker: asyncio.Task[None] | None = None

    def expect(self, call_id: uuid.UUID, *, is_polled: bool = False) -> Inbox:
        """A new inbox; a call may have several."""
        inbox = Inbox(call_id, is_polled, look=self._look_soon)
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
        self._behind.pop(inbox, None)

    def is_expected(self, call_id: uuid.UUID) -> bool:
        """Whether somebody here waits for the call."""
        return call_id in self._inboxes

    def silent(self, seconds: float) -> list[Inbox]:
        """The inboxes that have heard nothing for so long, or will hear nothing more.

        A full one is not silent, but unread: what it has not heard waits in Redis for its reader.
        """
        since = time.monotonic() - seconds
        return [
            inbox
            for inbox in self._all()
            if not inbox.has_ended and (inbox.is_lost or (inbox.heard_at < since and inbox.has_room))
        ]

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
                for inbox in [one for one in self._all() if not one.has_ended]:
                    inbox.is_behind = True
                    self._look_soon(inbox)
                async for message in subscription.listen():
                    if message["type"] == "message":
                        self._take(message["data"])
        finally:
            await client.aclose()

    def _take(self, frames: bytes) -> None:
        at = 0
        while at < len(frames):
            call, seq, kind, size = _FRAME.unpack_from(frames, at)
            at += _FRAME.size
            data = frames[at : at + size]
            for inbox in self._inboxes.get(uuid.UUID(bytes=call), ()):
                inbox.push(seq, Kind(kind), data)
            if kind in {Kind.WHOLE, Kind.END, Kind.BELL}:
                self._ended()
            at += size

    def _look_soon(self, inbox: Inbox) -> None:
        self._behind[inbox] = None
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_while_behind())

    async def _look_while_behind(self) -> None:
        while self._behind:
            looking = list(self._behind)
            self._behind.clear()
            try:
                await self.catch_up(looking)
            except redis.LOST as error:
                log.warning("relay.look_failed", error=type(error).__name__)
                self._behind |= dict.fromkeys(one for one in looking if not one.is_closed)
                await asyncio.sleep(0.2)
            except Exception:  # noqa: BLE001 - an edge: PostgreSQL is asked about those that stay silent
                log.exception("relay.look_crashed")

    async def catch_up(self, inboxes: Iterable[Inbox]) -> None:
        """Reads from the calls' streams what their inboxes have missed, as far as they have room for it."""
        waiting = [inbox for inbox in inboxes if inbox.has_room]
        if not waiting:
            return
        if self._client is None:
            self._client = redis.asynchronous(socket_timeout=5)
        rings = [inbox.rings for inbox in waiting]
        pipeline = self._client.pipeline(transaction=False)
        for inbox in waiting:
            pipeline.xrange(stream_key(inbox.call_id), min=f"({inbox.seq}-0", count=AT_ONCE)
        for inbox, rung, entries in zip(waiting, rings, await pipeline.execute(), strict=True):
            found = [(int(at.split(b"-")[0]), Kind(int(entry[b"k"])), entry[b"d"]) for at, entry in entries]
            inbox.refill(found, rung)

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
