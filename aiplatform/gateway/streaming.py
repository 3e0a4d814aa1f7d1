"""A stream between its provider and the relay: cut into events, read for its usage, translated, numbered, told as it comes.

Every event that is relayed carries its number within the call as its SSE id, so that a reader who was cut off goes on after the
last one that he had (docs/streaming.md).
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from aiplatform.gateway import relay
from aiplatform.gateway.callers import Caller
from aiplatform.gateway.chain import Job
from aiplatform.gateway.continuing import chunks
from aiplatform.gateway.keeping import begun, kept
from aiplatform.gateway.relay import NUMBER_LINE, Kind
from aiplatform.gateway.translate import StreamTranslator
from aiplatform.gateway.wires import WIRES
from aiplatform.lib import failpoints
from aiplatform.providers.base import Broken, Reader, Reading, Reply, parsed

STORED_BYTES = 4 * 1024 * 1024
_NO_USAGE = re.compile(rb'"usage"\s*:\s*null\s*,\s*|,\s*"usage"\s*:\s*null')
_NO_USAGE_LAST = b',"usage":null}'
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r){2}")  # CR LF is one end of a line, however it is looked at
_ID_LINE = re.compile(rb"(?:\A|(?<=[\r\n]))id(?::[^\r\n]*)?(?:\r\n|\n|\r)")
_FIELD = re.compile(rb"(?:\A|(?<=[\r\n]))(?:data|event):")
_BOM = b"\xef\xbb\xbf"
_LONGEST_EVENT = 64 * 1024 * 1024

Tell = Callable[[Kind, bytes], None]


@dataclass(slots=True)
class Heard:
    """A stream that has ended, one way or another."""

    stream: "Stream"
    broken: str = ""
    """Why it ended before its last event; "" where it did not."""
    goes_on: bool = False
    """The provider carries it out in the background."""
    is_left: bool = False
    """We closed it, since its caller had gone."""


async def listen(tries: Any, reply: Reply, tell: Tell, caller: Caller, *, deadline: float) -> Heard:
    """Relays whole events as they come, but keeps the last one back until its money is committed.

    `tries` are those whose last one this reply answers, `deadline` is the loop's time. Where the caller goes, his environment's
    policy says whether anything is relayed further, and how long the provider is listened to.
    """
    tell(Kind.HEAD, relay.head(reply.status, reply.headers))
    failpoints.reached("stream.head_told")
    listener = _Listener(tries, reply, tell, caller)
    heard = listener.heard
    try:
        await listener.listen(deadline)
    except (Broken, TimeoutError) as error:
        heard.broken = str(error) or "deadline passed"
        heard.is_left = caller.has_gone and isinstance(error, TimeoutError) and not heard.goes_on
    reading = heard.stream.reading
    if reading.complete or reading.has_stopped:
        heard.is_left = False
    else:
        heard.broken = heard.broken or "the stream ended without its last event"
    return heard


class _Listener:
    def __init__(self, tries: Any, reply: Reply, tell: Tell, caller: Caller) -> None:
        speech = tries.speech
        self._job: Job = tries.served
        told = self._job.call.headers
        hides, keeps = bool(told["hide_usage"]), "cache" in told
        asked = speech.asked.with_usage() if keeps and hides and speech.asked else speech.asked
        translator = speech.translation.stream(asked) if speech.translation else None
        self._client, self._reply, self._tell, self._caller = tries.client, reply, tell, caller
        self.heard = Heard(Stream(tries.reader, translator, hide_usage=hides, keeps=keeps))

    async def listen(self, deadline: float) -> None:
        """To the end; raises Broken, and TimeoutError at the deadline or where the caller's going moved it."""
        stream, heard = self.heard.stream, self.heard

        def leave(until: float) -> bool:
            if not heard.goes_on:
                limit.reschedule(min(until, deadline))
            return not heard.goes_on

        async with asyncio.timeout_at(deadline) as limit:
            with self._caller.listening(leave):
                async for chunk in chunks(self._job.call, self._client, self._reply, stream):
                    if not (out := stream.feed(chunk)):
                        continue
                    if stream.reading.object is not None and await self._goes_on():
                        more = settings.BACKGROUND_DEADLINE_SECONDS - settings.CALL_DEADLINE_SECONDS
                        limit.reschedule(deadline + more)
                    self._pass_on(out)
                    failpoints.reached("stream.mid")
            self._pass_on(stream.end())

    async def _goes_on(self) -> bool:
        """Puts what the provider keeps on record; whether it has said just now that it carries the call out by itself."""
        reading = self.heard.stream.reading
        await kept(self._job, reading)
        if self.heard.goes_on or not await begun(self._job, reading, self._reply.headers, None):
            return False
        self.heard.goes_on = True
        return True

    def _pass_on(self, out: bytes) -> None:
        if out and not self._caller.is_drained:
            self._tell(Kind.DATA, out)


def why_left(wire: str, endpoint: str) -> bytes:
    """The event for whoever asks for the rest of a stream that was not relayed, since its caller had gone."""
    message = "The caller had gone, and his environment's policy is not to relay further; see GET /v1/calls/ID."
    return WIRES[wire].broken_event("caller_gone", message, endpoint)


class Stream:
    """What a stream has told so far, what of it is to be relayed now, and what only at the end."""

    def __init__(
        self, reader: Reader, translator: StreamTranslator | None, *, hide_usage: bool, keeps: bool = False
    ) -> None:
        """With `keeps`, `whole` is all of it as others may get it: with its usage, and without numbers."""
        self.reading, self.relayed = Reading(), bytearray()
        self.whole = bytearray()
        self._keeps = keeps
        self._last, self._translator = b"", translator
        self.first_byte_at: datetime | None = None
        self._reader, self._hide_usage, self._events = reader, hide_usage, Events()
        self._number = 0

    def last(self, broken: bytes = b"") -> bytes:
        """The events that end it, and the one that says why it ended early."""
        last = self._translated(self._translator.end()) if self._translator else self._last
        return last + (self._numbered(broken, broken) if broken else b"")

    def forget_rest(self) -> None:
        """Drops the beginning of an event that will come again as a whole."""
        self._events.forget_rest()

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to relay now, as they came, but for their numbers and for a usage that nobody asked for."""
        if self.first_byte_at is None:
            self.first_byte_at = datetime.now(UTC)
        out = b"".join([self._take(raw, data) for raw, data in self._events.feed(chunk)])
        if len(self.relayed) <= STORED_BYTES:
            self.relayed += out
        return out

    def end(self) -> bytes:
        """What is left at the well-formed end: some servers do not end their last event, which then is relayed ended."""
        raw = self._events.rest
        data = _data(raw)
        if data != b"[DONE]" and parsed(data) is None:
            return b""
        out = self._take(raw + b"\n\n", data)
        self.relayed += out
        return out

    def _take(self, raw: bytes, data: bytes) -> bytes:
        if data:
            self._reader.read_event(self.reading, data)
        if self._translator:
            return self._translated(self._translator.feed(data)) if data else b""
        if self._keeps and len(self.whole) <= STORED_BYTES:
            self.whole += raw
        if self.reading.complete:
            self._last += self._numbered(raw, data)
            return b""
        if self._hide_usage and b'"usage"' in data:
            raw = without_usage(raw, data)
        return self._numbered(raw, data) if raw else b""

    def _translated(self, events: bytes) -> bytes:
        each = [one + b"\n\n" for one in events.split(b"\n\n") if one]
        if self._keeps:
            if len(self.whole) <= STORED_BYTES:
                self.whole += events
            if self._hide_usage:
                each = [without_usage(one, _data(one)) if b'"usage"' in one else one for one in each]
        return b"".join([self._numbered(one, one) for one in each if one])

    def _numbered(self, raw: bytes, data: bytes) -> bytes:
        """The event with its number for its id, in place of any other.

        What is no event loses its blank line: once there was an id, SDKs take that for one. Source: `SSEDecoder.decode` of
        openai and anthropic, which keep `_last_event_id`.
        """
        if not data:
            return b"".join([line + b"\n" for line in raw.splitlines() if line.startswith((b":", b"retry:"))])
        bom, raw = (_BOM, raw[3:]) if raw.startswith(_BOM) else (b"", raw.lstrip(b"\r\n"))
        if b"\nid" in raw or b"\rid" in raw or raw.startswith(b"id"):
            raw = _ID_LINE.sub(b"", raw)
        self._number += 1
        return b"%bid: %d\n%b" % (bom, self._number, raw)


def without_usage(raw: bytes, data: bytes) -> bytes:
    """An event as it would be had nobody asked for usage, every other byte as it came; empty if it told nothing else."""
    chunk = parsed(data)
    if chunk is None or "usage" not in chunk:
        return raw
    if chunk["usage"] is not None:
        return raw if chunk.get("choices") else b""
    if data.endswith(_NO_USAGE_LAST) and data.count(b'"usage"') == 1 and b"\\u" not in data:  # as nearly all have it
        return raw.replace(data, data[: -len(_NO_USAGE_LAST)] + b"}")
    without = {name: value for name, value in chunk.items() if name != "usage"}
    for found in _NO_USAGE.finditer(data):  # a nested one stays
        left = data[: found.start()] + data[found.end() :]
        if parsed(left) == without:
            return raw.replace(data, left)
    return raw


class After:
    """Of whole events, those after a number, and any without one: that is the relay's own, which says why no more comes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._is_open = number == 0

    def __call__(self, events: bytes) -> bytes:
        if self._is_open:
            return events
        at = 0
        for found in NUMBER_LINE.finditer(events):
            if int(found[1]) > self._number:
                self._is_open = True
                return events[found.start() :]
            end = _EVENT_END.search(events, found.end())
            at = end.end() if end else len(events)
        return events[at:] if _FIELD.search(events, at) else b""


def last_number(events: bytes) -> int | None:
    """The number of the last event, None where none has one."""
    found = [int(each) for each in NUMBER_LINE.findall(events)]
    return found[-1] if found else None


class Events:
    """Cuts a byte stream into server-sent events, however the network split them."""

    def __init__(self) -> None:
        self.rest = b""

    def forget_rest(self) -> None:
        self.rest = b""

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """The events completed by `chunk`: (the bytes as they came, the data). Raises Broken for one without an end."""
        buffer, found, at = self.rest + chunk, [], 0
        if b"\r" not in buffer:
            return self._feed_plain(buffer)
        # What was looked at before holds no end, but for one that is cut in the middle.
        for end in _EVENT_END.finditer(buffer, max(len(self.rest) - 3, 0)):
            raw = buffer[at : end.end()]
            found.append((raw, _data(raw)))
            at = end.end()
        self._keep(buffer[at:])
        return found

    def _feed_plain(self, buffer: bytes) -> list[tuple[bytes, bytes]]:
        """The same where lines end by LF alone, as nearly all do."""
        found, at = [], 0
        end = buffer.find(b"\n\n", max(len(self.rest) - 1, 0))
        while end >= 0:
            raw = buffer[at : end + 2]
            found.append((raw, _data(raw)))
            at = end + 2
            end = buffer.find(b"\n\n", at)
        self._keep(buffer[at:])
        return found

    def _keep(self, rest: bytes) -> None:
        if len(rest) > _LONGEST_EVENT:
            raise Broken("an event of the stream has no end")
        self.rest = rest


def _data(raw: bytes) -> bytes:
    if raw.startswith(b"data:") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:  # as nearly all are
        return raw[5:-2].strip(b" ")
    lines = [line[5:].strip(b" ") for line in raw.removeprefix(_BOM).splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
