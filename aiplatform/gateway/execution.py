"""One call at its provider: tries, reading, and how it ended."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jiter
import orjson

from aiplatform.gateway import relay
from aiplatform.gateway.chain import Job, ProviderUnreachable
from aiplatform.gateway.relay import Kind
from aiplatform.gateway.tries import Means, Tries
from aiplatform.gateway.wires import WIRES
from aiplatform.gateway.wires.base import BYTES_PER_TOKEN
from aiplatform.lib import failpoints
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from aiplatform.providers.base import Adapter, Broken, Reading, Reply, Unsent, Usage
from aiplatform.providers.registry import ADAPTERS
from moderation.screen import ContentBlocked, Screen, record
from usage.ledger import Ending

STORED_BYTES = 4 * 1024 * 1024
_EMPTY_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_NO_USAGE = re.compile(rb'"usage"\s*:\s*null\s*,\s*|,\s*"usage"\s*:\s*null')
_EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")


class OutcomeUnknown(ApiError):
    """The connection to the provider failed after the request may have been sent, so nobody can say yet how it ended. It is not
    tried again by itself; its hold is kept until it is settled.
    """

    status = 502
    code = "outcome_unknown"


@dataclass(slots=True)
class Finish:
    """How a call ended, and what its caller gets last, once that is settled."""

    ending: Ending
    kind: Kind
    last: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Tell = Callable[[Kind, bytes], None]


async def execute(job: Job, means: Means, screen: Screen, tell: Tell) -> Finish:
    """Carries a claimed call out and tells how it ended; never raises for anything a provider does.

    `tell` relays what comes before the end.
    """
    call = job.call
    deadline = asyncio.get_running_loop().time() + max(call.deadline_seconds - 5, 1)
    try:
        await _screen(call, screen)
    except ApiError as error:
        return own_error(call, error, "void", "unsent")
    tries = Tries(job, means, deadline)
    finish: Finish | None = None
    try:
        finish = await _tried(tries, tell, deadline)
    finally:
        broken = finish is None or finish.ending.attempt_outcome in {"broken", "unknown"}
        tries.close(failed=broken and tries.is_sent, status=finish.ending.status if finish and tries.is_sent else 0)
    finish.ending.attempt_model, finish.ending.attempt_credential = tries.model, tries.credential
    return finish


async def _tried(tries: Tries, tell: Tell, deadline: float) -> Finish:
    call = tries.served.call
    try:
        reply = await tries.reply()
        job = tries.served
        adapter = ADAPTERS[job.place.wire]
        try:
            if _is_stream(call, reply):
                return await _streamed(job, adapter, reply, tell, deadline)
            async with asyncio.timeout_at(deadline):
                return await _whole(job, adapter, reply)
        finally:
            await reply.aclose()
    except Unsent as error:
        return own_error(call, ProviderUnreachable(), "void", "unsent", str(error))
    except ApiError as error:
        return own_error(call, error, "void", "unsent", error.code)
    except Broken as error:
        return own_error(call, OutcomeUnknown(), "unknown", "unknown", str(error))
    except TimeoutError:
        return own_error(call, OutcomeUnknown("The call's deadline passed."), "unknown", "unknown", "deadline passed")


async def _screen(call: Any, screen: Screen) -> None:
    """Raises ContentBlocked where the environment's policy does not let the input pass; the finding is on record then."""
    verdict = screen.verdict(call.environment_id, lambda: jiter.from_json(bytes(call.body)))
    if verdict is None:
        return
    await asyncio.to_thread(
        record, tenant_id=call.tenant_id, environment_id=call.environment_id, call_id=call.id, verdict=verdict
    )
    raise ContentBlocked(policy_version=verdict.policy_version, term=verdict.term)


def _is_stream(call: Any, reply: Reply) -> bool:
    return bool(call.streamed) and reply.is_success and "event-stream" in reply.headers.get("content-type", "")


async def _whole(job: Job, adapter: Adapter, reply: Reply) -> Finish:
    first_byte_at = datetime.now(UTC)
    body = b"".join([chunk async for chunk in reply.chunks()])
    failpoints.reached("answer.read")
    if not reply.is_success:
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
            body=_stored(body),
        )
        return Finish(ending, Kind.WHOLE, body, reply.headers)
    ending = _settled(job, adapter.read_whole(body), reply, first_byte_at, "answered")
    ending.body = _stored(body)
    return Finish(ending, Kind.WHOLE, body, reply.headers)


async def _streamed(job: Job, adapter: Adapter, reply: Reply, tell: Tell, deadline: float) -> Finish:
    """Relays whole events as they come, but keeps the last one back until its money is committed."""
    stream = _Stream(adapter, hide_usage=job.call.headers["hide_usage"])
    tell(Kind.HEAD, relay.head(reply.status, reply.headers))
    failpoints.reached("stream.head_told")
    broken = ""
    try:
        async with asyncio.timeout_at(deadline):
            async for chunk in reply.chunks():
                if out := stream.feed(chunk):
                    tell(Kind.DATA, out)
                    failpoints.reached("stream.mid")
    except (Broken, TimeoutError) as error:
        broken = str(error) or "deadline passed"
    failpoints.reached("answer.read")
    reading = stream.reading
    if not reading.complete:
        broken = broken or "the stream ended without its last event"
    last = stream.last
    if broken and not reading.error:
        last += WIRES[job.call.wire].broken_event("stream_broken", f"The provider's stream broke off: {broken}.")
    ending = _settled(job, reading, reply, stream.first_byte_at, "broken" if broken else "answered")
    ending.attempt_error, ending.error_code = broken, "stream_broken" if broken else reading.error
    ending.body = _stored(bytes(stream.relayed) + last)
    return Finish(ending, Kind.END, last)


class _Stream:
    """What a stream has told so far, what of it is to be relayed now, and what only at the end."""

    def __init__(self, adapter: Adapter, *, hide_usage: bool) -> None:
        self.reading, self.last, self.relayed = Reading(), b"", bytearray()
        self.first_byte_at: datetime | None = None
        self._adapter, self._hide_usage, self._events = adapter, hide_usage, Events()

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to relay now, as they came, but for a usage that nobody asked for."""
        self.first_byte_at = self.first_byte_at or datetime.now(UTC)
        out = b"".join(self._take(raw, data) for raw, data in self._events.feed(chunk))
        if len(self.relayed) <= STORED_BYTES:
            self.relayed += out
        return out

    def _take(self, raw: bytes, data: bytes) -> bytes:
        usage_before = self.reading.usage
        if data:
            self._adapter.read_event(self.reading, data)
        if self.reading.complete:
            self.last += raw
            return b""
        if not self._hide_usage:
            return raw
        if self.reading.usage is not usage_before and _EMPTY_CHOICES.search(raw):
            return b""
        return _NO_USAGE.sub(b"", raw)


def _settled(job: Job, reading: Reading, reply: Reply, first_byte_at: datetime | None, outcome: str) -> Ending:
    """The charge: by the provider's own usage; where that is missing, by what was counted, and marked so."""
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


def _stored(body: bytes) -> bytes | None:
    """What is kept of an answer: all of it or nothing, since a part could be taken for the whole."""
    return body if len(body) <= STORED_BYTES else None


def _counted(call: Any, reading: Reading) -> Usage:
    """An estimate from the bytes that went in and came out, and from the images and the audio that were seen at admission."""
    tokens, meters = call.headers.get("likely") or (-(-len(call.body) // BYTES_PER_TOKEN), {})
    return Usage(input=tokens, output=_relayed_tokens(reading), meters=meters, variant=reading.variant)


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
        self._rest = b""

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """The events completed by `chunk`: (the bytes as they came, the data)."""
        buffer, found, at = self._rest + chunk, [], 0
        for end in _EVENT_END.finditer(buffer):
            raw = buffer[at : end.end()]
            found.append((raw, _data(raw)))
            at = end.end()
        self._rest = buffer[at:]
        return found


def _data(raw: bytes) -> bytes:
    lines = [line[5:].lstrip(b" ") for line in raw.splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
