"""One call at its provider: tries, reading, and how it ended."""

import asyncio
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from django.conf import settings

from aiplatform.gateway import batches, relay
from aiplatform.gateway.chain import Job, ProviderUnreachable
from aiplatform.gateway.continuing import chunks
from aiplatform.gateway.keeping import begun, kept, left, screened
from aiplatform.gateway.relay import Kind
from aiplatform.gateway.translate import StreamTranslator, UnreadableAnswer
from aiplatform.gateway.tries import Means, Tries
from aiplatform.gateway.wires import WIRES
from aiplatform.gateway.wires.base import BYTES_PER_TOKEN
from aiplatform.lib import failpoints
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from aiplatform.providers.base import Broken, Reader, Reading, Reply, Unsent, Usage, parsed
from moderation.screen import ContentBlocked, Screen, record
from usage.ledger import Ending

STORED_BYTES = 4 * 1024 * 1024
PENDING_HEADER = "x-cost-pending"
OK = 200
_NO_USAGE = re.compile(rb'"usage"\s*:\s*null\s*,\s*|,\s*"usage"\s*:\s*null')
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r){2}")  # CR LF is one end of a line, however it is looked at
_BOM = b"\xef\xbb\xbf"
_LONGEST_EVENT = 64 * 1024 * 1024


class OutcomeUnknown(ApiError):
    """The connection to the provider failed after the request may have been sent, so nobody can say yet how it ended. It is not
    tried again by itself; its hold is kept until it is settled.
    """

    status = 502
    code = "outcome_unknown"
    always = {"x-should-retry": "false"}  # an SDK's own retry would buy a second answer


class AnswerTooLarge(ApiError):
    """The provider's answer is larger than what is passed on here (MAX_REPLY_BYTES)."""

    status = 502
    code = "answer_too_large"


@dataclass(slots=True)
class Finish:
    """How a call ended, and what its caller gets last, once that is settled.

    Without an ending it goes on in the background, and whoever sees its end settles it.
    """

    ending: Ending | None
    kind: Kind
    last: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Answer(Protocol):
    """What is kept of how an answer came."""

    status: int
    headers: dict[str, str]
    request_id: str


Tell = Callable[[Kind, bytes], None]


async def execute(job: Job, means: Means, screen: Screen, tell: Tell) -> Finish:
    """Carries a claimed call out and tells how it ended; never raises for anything a provider does.

    `tell` relays what comes before the end.
    """
    call = job.call
    deadline = asyncio.get_running_loop().time() + max(call.deadline_seconds - 5, 1)
    try:
        await _screen(call, screen)
        job = dataclasses.replace(job, money=await batches.hold(call)) if call.headers.get("makes") else job
    except ApiError as error:
        return own_error(call, error, "void", "unsent")
    tries = Tries(job, means, deadline)
    finish: Finish | None = None
    try:
        finish = await _tried(tries, tell, deadline)
    finally:
        ending = finish.ending if finish else None
        broken = finish is None or (ending is not None and ending.attempt_outcome in {"broken", "unknown"})
        status = ending.status if ending else OK
        tries.close(failed=broken and tries.is_sent, status=status if finish and tries.is_sent else 0)
        state, status = (ending.state, ending.status) if ending else ("unknown", OutcomeUnknown.status)
        if finish is None or ending is not None:
            await batches.conclude(job.money, state, status)
    if finish.ending is not None:
        finish.ending.attempt_model, finish.ending.attempt_credential = tries.model, tries.credential
    return finish


async def _tried(tries: Tries, tell: Tell, deadline: float) -> Finish:
    call = tries.served.call
    try:
        reply = await tries.reply()
    except Unsent as error:
        return own_error(call, ProviderUnreachable(), "void", "unsent", str(error))
    except ApiError as error:  # nothing was left to be tried
        return own_error(call, error, "void", "unsent", error.code)
    except (Broken, TimeoutError) as error:
        return _lost(call, error)
    try:
        if _is_stream(call, reply):
            return await _streamed(tries, reply, tell, deadline=deadline)
        async with asyncio.timeout_at(deadline):
            return await _whole(tries, reply)
    except (Broken, TimeoutError) as error:
        return _lost(call, error)
    finally:
        await reply.aclose()


def _lost(call: Any, error: Exception) -> Finish:
    if isinstance(error, TimeoutError):
        return own_error(call, OutcomeUnknown("The call's deadline passed."), "unknown", "unknown", "deadline passed")
    return own_error(call, OutcomeUnknown(), "unknown", "unknown", str(error))


async def _screen(call: Any, screen: Screen) -> None:
    """Raises ContentBlocked where the environment's policy does not let the input pass; the finding is on record then."""
    if call.headers.get("makes"):  # a file's lines are read from the database
        verdict = await asyncio.to_thread(screen.verdict, call.environment_id, lambda: screened(call))
    else:
        verdict = screen.verdict(call.environment_id, lambda: screened(call))
    if verdict is None:
        return
    await asyncio.to_thread(
        record, tenant_id=call.tenant_id, environment_id=call.environment_id, call_id=call.id, verdict=verdict
    )
    raise ContentBlocked(policy_version=verdict.policy_version, term=verdict.term)


def _is_stream(call: Any, reply: Reply) -> bool:
    """Some compatible servers call their events plain text, or nothing."""
    kind = reply.headers.get("content-type", "")
    return bool(call.streamed) and reply.is_success and (kind.startswith("text/") or not kind or "event-stream" in kind)


async def _whole(tries: Tries, reply: Reply) -> Finish:
    job, speech, first_byte_at = tries.served, tries.speech, datetime.now(UTC)
    body = await _body(reply)
    failpoints.reached("answer.read")
    if body is None:
        return _too_large(job, reply, first_byte_at)
    if not reply.is_success:
        if speech.translation:
            body = speech.translation.error(reply.status, body)
        ending = Ending(
            job.call.id,
            "void",
            reply.status,
            "provider_error",
            provider_request_id=reply.request_id,
            first_byte_at=first_byte_at,
            attempt_outcome="refused",
            attempt_error=f"status {reply.status}",
            headers=reply.headers,
            body=stored(body),
        )
        return Finish(ending, Kind.WHOLE, body, reply.headers)
    reading = tries.reader.read_whole(body)
    await kept(job, reading)
    if await begun(job, reading, reply.headers, body):
        failpoints.reached("background.begun")
        return Finish(None, Kind.WHOLE, body, reply.headers | {PENDING_HEADER: "true"})
    ending = settled(job, reading, reply, first_byte_at, "answered")
    if speech.translation:
        try:
            body = speech.translation.whole(body, speech.asked)
        except UnreadableAnswer as error:
            return _unreadable(job, ending, error)
    ending.body = stored(body)
    return Finish(ending, Kind.WHOLE, body, reply.headers)


def _unreadable(job: Job, ending: Ending, error: ApiError) -> Finish:
    """An answer that was made, and is charged, but cannot be given in the caller's wire."""
    finish = own_error(job.call, error, "settled", "answered")
    ending.status, ending.error_code, ending.headers, ending.body = error.status, error.code, {}, finish.last
    finish.ending = ending
    return finish


async def _body(reply: Reply) -> bytes | None:
    """All of it, or None where it is larger than MAX_REPLY_BYTES."""
    pieces, size = [], 0
    async for chunk in reply.chunks():
        size += len(chunk)
        if size > settings.MAX_REPLY_BYTES:
            return None
        pieces.append(chunk)
    return b"".join(pieces)


def _too_large(job: Job, reply: Reply, first_byte_at: datetime) -> Finish:
    """An answer that was made, and is charged as far as the request shows it, but cannot be passed on."""
    finish = own_error(job.call, AnswerTooLarge(), "settled", "broken")
    ending = settled(job, Reading(), reply, first_byte_at, "broken")
    ending.status, ending.error_code = AnswerTooLarge.status, AnswerTooLarge.code
    ending.headers, ending.body = {}, finish.last
    finish.ending = ending
    return finish


async def _streamed(tries: Tries, reply: Reply, tell: Tell, *, deadline: float) -> Finish:
    """Relays whole events as they come, but keeps the last one back until its money is committed."""
    job, speech = tries.served, tries.speech
    translator = speech.translation.stream(speech.asked) if speech.translation else None
    stream = _Stream(tries.reader, translator, hide_usage=job.call.headers["hide_usage"])
    tell(Kind.HEAD, relay.head(reply.status, reply.headers))
    failpoints.reached("stream.head_told")
    broken, goes_on = "", False
    try:
        async with asyncio.timeout_at(deadline) as limit:
            async for chunk in chunks(job.call, tries.client, reply, stream):
                if out := stream.feed(chunk):
                    await kept(job, stream.reading)
                    if not goes_on and (goes_on := await begun(job, stream.reading, reply.headers, None)):
                        limit.reschedule(
                            deadline + settings.BACKGROUND_DEADLINE_SECONDS - settings.CALL_DEADLINE_SECONDS
                        )
                    tell(Kind.DATA, out)
                    failpoints.reached("stream.mid")
        if out := stream.end():
            tell(Kind.DATA, out)
    except (Broken, TimeoutError) as error:
        broken = str(error) or "deadline passed"
    await kept(job, stream.reading)
    failpoints.reached("answer.read")
    reading = stream.reading
    if not (reading.complete or reading.has_stopped):
        broken = broken or "the stream ended without its last event"
    last = stream.last
    if broken and not reading.error:
        message = f"The provider's stream broke off: {broken}."
        last += WIRES[job.call.wire].broken_event(
            "stream_broken", message, job.call.endpoint, reading.sequence_number + 1
        )
    if broken and goes_on:
        await left(job)
        return Finish(None, Kind.END, last)
    ending = settled(job, reading, reply, stream.first_byte_at, "broken" if broken else "answered")
    ending.attempt_error = broken or ending.attempt_error
    ending.error_code = ending.error_code or ("stream_broken" if broken else reading.error)
    ending.body = stored(bytes(stream.relayed) + last)
    return Finish(ending, Kind.END, last)


class _Stream:
    """What a stream has told so far, what of it is to be relayed now, and what only at the end."""

    def __init__(self, reader: Reader, translator: StreamTranslator | None, *, hide_usage: bool) -> None:
        self.reading, self.relayed = Reading(), bytearray()
        self._last, self._translator = b"", translator
        self.first_byte_at: datetime | None = None
        self._reader, self._hide_usage, self._events = reader, hide_usage, Events()

    @property
    def last(self) -> bytes:
        """The events that end it."""
        return self._translator.end() if self._translator else self._last

    def forget_rest(self) -> None:
        """Drops the beginning of an event that will come again as a whole."""
        self._events.forget_rest()

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to relay now, as they came, but for a usage that nobody asked for."""
        self.first_byte_at = self.first_byte_at or datetime.now(UTC)
        out = b"".join(self._take(raw, data) for raw, data in self._events.feed(chunk))
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
            return self._translator.feed(data) if data else b""
        if self.reading.complete:
            self._last += raw
            return b""
        return _without_usage(raw, data) if self._hide_usage and b'"usage"' in data else raw


def _without_usage(raw: bytes, data: bytes) -> bytes:
    """An event as it would be had nobody asked for usage, every other byte as it came; empty if it told nothing else."""
    chunk = parsed(data)
    if chunk is None or "usage" not in chunk:
        return raw
    if chunk["usage"] is not None:
        return raw if chunk.get("choices") else b""
    without = {name: value for name, value in chunk.items() if name != "usage"}
    for found in _NO_USAGE.finditer(data):  # a nested one stays
        left = data[: found.start()] + data[found.end() :]
        if parsed(left) == without:
            return raw.replace(data, left)
    return raw


def settled(job: Job, reading: Reading, reply: Answer, first_byte_at: datetime | None, outcome: str) -> Ending:
    """The charge: by the provider's own usage; where that is missing, by what was counted, and marked so.

    What failed at the provider without a usage and before it said anything costs nothing, as a status of its own would.
    """
    if reading.has_failed and reading.usage is None and not reading.text_bytes:
        return Ending(
            job.call.id, "void", reply.status, "provider_error", provider_request_id=reply.request_id,
            first_byte_at=first_byte_at, served_model=reading.model, attempt_outcome="refused", attempt_error=reading.error,
            headers=reply.headers,
        )  # fmt: skip
    usage, evidence = reading.usage, "provider"
    if usage is None:
        usage, evidence = _counted(job.call, reading), "counted"
    elif reading.is_partial:
        usage.output, evidence = max(usage.output, _relayed_tokens(reading)), "counted"
    cost = job.rates.cost(usage)
    if cost.marked:
        log.error("call.not_priced", call_id=str(job.call.id), price=job.rates.price_id, missing=list(cost.marked))
    return Ending(
        job.call.id,
        "settled",
        reply.status,
        evidence=evidence,
        cost_nano=cost.charge_nano,
        list_nano=cost.list_nano,
        provider_cost_nano=cost.provider_cost_nano,
        usage=usage,
        served_model=reading.model,
        provider_request_id=reply.request_id,
        first_byte_at=first_byte_at,
        attempt_outcome=outcome,
        headers=reply.headers,
    )


def stored(body: bytes) -> bytes | None:
    """What is kept of an answer: all of it or nothing, since a part could be taken for the whole."""
    return body if len(body) <= STORED_BYTES else None


def _counted(call: Any, reading: Reading) -> Usage:
    """An estimate from the bytes that went in and came out, and from the images and the audio that were seen at admission."""
    tokens, meters, *output = call.headers.get("likely") or (-(-len(call.body) // BYTES_PER_TOKEN), {})
    relayed = max([_relayed_tokens(reading), *output])
    return Usage(input=tokens, output=relayed, meters=meters, variant=reading.variant)


def _relayed_tokens(reading: Reading) -> int:
    return -(-reading.text_bytes // BYTES_PER_TOKEN)


def own_error(call: Any, error: ApiError, state: str, outcome: str, detail: str = "") -> Finish:
    log.warning("call.failed", call_id=str(call.id), code=error.code, detail=detail[:200])
    body = relay_error(call.wire, error, call.request_id)
    ending = Ending(call.id, state, error.status, error.code, attempt_outcome=outcome, attempt_error=detail, body=body)
    return Finish(ending, Kind.WHOLE, body, {"content-type": "application/json", **error.headers})


def relay_error(wire: str, error: ApiError, request_id: str) -> bytes:
    """An error of ours in the wire's own shape."""
    return orjson.dumps(WIRES[wire].error(error, request_id))


class Events:
    """Cuts a byte stream into server-sent events, however the network split them."""

    def __init__(self) -> None:
        self.rest = b""

    def forget_rest(self) -> None:
        self.rest = b""

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """The events completed by `chunk`: (the bytes as they came, the data). Raises Broken for one without an end."""
        buffer, found, at = self.rest + chunk, [], 0
        # What was looked at before holds no end, but for one that is cut in the middle.
        for end in _EVENT_END.finditer(buffer, max(len(self.rest) - 3, 0)):
            raw = buffer[at : end.end()]
            found.append((raw, _data(raw)))
            at = end.end()
        self.rest = buffer[at:]
        if len(self.rest) > _LONGEST_EVENT:
            raise Broken("an event of the stream has no end")
        return found


def _data(raw: bytes) -> bytes:
    lines = [line[5:].strip(b" ") for line in raw.removeprefix(_BOM).splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
