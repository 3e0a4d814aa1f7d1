"""One call at its provider: tries, reading, and how it ended."""

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from django.conf import settings

from aiplatform.gateway import batches, catalogue, relay
from aiplatform.gateway.continuing import chunks
from aiplatform.gateway.keeping import begun, kept, left, screened
from aiplatform.gateway.relay import Kind
from aiplatform.gateway.wires import WIRES, with_fields
from aiplatform.gateway.wires.base import BYTES_PER_TOKEN
from aiplatform.lib import failpoints
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_name
from aiplatform.lib.logs import log
from aiplatform.providers import backoff
from aiplatform.providers.base import Adapter, Broken, Reader, Reading, Reply, Unsent, Usage
from aiplatform.providers.registry import ADAPTERS, Clients
from moderation.screen import ContentBlocked, Screen, record
from tenants import secrets
from usage.ledger import Ending
from usage.pricing import Rates

STORED_BYTES = 4 * 1024 * 1024
LONGEST_WAIT_SECONDS = 20.0
PENDING_HEADER = "x-cost-pending"
_EMPTY_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_NO_USAGE = re.compile(rb'"usage"\s*:\s*null\s*,\s*|,\s*"usage"\s*:\s*null')
_EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")


class ProviderUnreachable(ApiError):
    """The provider could not be reached; nothing was sent and nothing was charged."""

    status = 502
    code = "provider_unreachable"


class OutcomeUnknown(ApiError):
    """The connection to the provider failed after the request may have been sent, so nobody can say yet how it ended. It is not
    tried again by itself; its hold is kept until it is settled.
    """

    status = 502
    code = "outcome_unknown"


class AnswerTooLarge(ApiError):
    """The provider's answer is larger than what is passed on here (MAX_REPLY_BYTES)."""

    status = 502
    code = "answer_too_large"


@dataclass(frozen=True, slots=True)
class Try:
    """How a try ended that is followed by another."""

    outcome: str
    error: str
    status: int | None = None
    provider_request_id: str = ""


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
Retried = Callable[[Any, Try, float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed call with all that it needs, so that nothing is asked of the database while it runs."""

    call: Any
    place: catalogue.Place
    rates: Rates
    money: batches.Money | None = None
    """Of a batch that this call creates."""


def prepare(call: Any, book: catalogue.Catalogue) -> Job:
    """Raises ProviderUnreachable where the operator has removed the provider, Unavailable where the price cannot be read."""
    if call.endpoint == batches.ENDPOINT:
        raise batches.BatchNotSent
    try:
        place = book.place(call.provider, call.wire)
    except KeyError:
        raise ProviderUnreachable(f"The provider {call.provider!r} is not set up any more.") from None
    if kept_by := call.headers.get("credential"):  # what the call names is in that account
        place = dataclasses.replace(place, secret_ref=kept_by)
    return Job(call, place, book.frozen(call.price_id, call.tariff_id))


async def execute(job: Job, clients: Clients, screen: Screen, tell: Tell, retried: Retried) -> Finish:
    """Carries a claimed call out and tells how it ended; never raises for anything a provider does.

    `tell` relays what comes before the end; `retried` makes the next attempt durable before it may be sent.
    """
    call = job.call
    deadline = asyncio.get_running_loop().time() + max(call.deadline_seconds - 5, 1)
    try:
        client = clients.get(call.wire, job.place.base_url, secrets.read(job.place.secret_ref))
        await _screen(call, screen)
        job = dataclasses.replace(job, money=await batches.hold(call)) if call.headers.get("makes") else job
    except ApiError as error:
        return own_error(call, error, "void", "unsent")
    state, status = "unknown", 502
    try:
        finish = await _sent(job, client, tell, retried, deadline)
        if finish.ending is not None:
            state, status = finish.ending.state, finish.ending.status
        return finish
    finally:
        await batches.conclude(job.money, state, status)


async def _sent(job: Job, client: Any, tell: Tell, retried: Retried, deadline: float) -> Finish:
    call, adapter = job.call, ADAPTERS[job.call.wire]
    try:
        async with asyncio.timeout_at(deadline):
            reply = await _post(call, adapter, client, retried)
        try:
            reader = adapter.reader(call.endpoint)
            if _is_stream(call, reply):
                return await _streamed(job, reader, reply, tell, deadline=deadline, client=client)
            async with asyncio.timeout_at(deadline):
                return await _whole(job, reader, reply)
        finally:
            await reply.aclose()
    except Unsent as error:
        return own_error(call, ProviderUnreachable(), "void", "unsent", str(error))
    except Broken as error:
        return own_error(call, OutcomeUnknown(), "unknown", "unknown", str(error))
    except TimeoutError:
        return own_error(call, OutcomeUnknown("The call's deadline passed."), "unknown", "unknown", "deadline passed")


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


async def _post(call: Any, adapter: Adapter, client: Any, retried: Retried) -> Reply:
    """The first answer that is not to be tried again."""
    body, headers = _outgoing(call)
    silence = settings.PROVIDER_SILENCE_SECONDS if call.streamed else settings.CALL_DEADLINE_SECONDS
    for tries in range(1, settings.PROVIDER_TRIES + 1):
        last = tries == settings.PROVIDER_TRIES
        failpoints.reached("send.before")
        try:
            reply = await adapter.send(
                client,
                call.endpoint,
                call.headers.get("target", ""),
                body,
                headers | {"x-client-request-id": f"{call_name(call.id)}-{tries}"},
                silence=silence,
            )
        except Unsent as error:
            if last:
                raise
            wait = backoff.delay(tries, None)
            await retried(call, Try("unsent", str(error)), wait)
        else:
            failpoints.reached("send.after")
            wait = backoff.delay(tries, reply.headers.get("retry-after"))
            if last or reply.status not in backoff.UNPROCESSED or wait > LONGEST_WAIT_SECONDS:
                return reply
            await reply.aclose()
            await retried(call, Try("refused", f"status {reply.status}", reply.status, reply.request_id), wait)
        await asyncio.sleep(wait)
    raise AssertionError("unreachable: the last try returns or raises")


def _outgoing(call: Any) -> tuple[bytes, dict[str, str]]:
    """The body as it came, but for the fields that admission said to set, and the headers that go along."""
    fields = dict(call.headers["set"])
    name, asked = call.headers["limit"]
    if asked != call.max_output_tokens:
        fields[name] = call.max_output_tokens
    return with_fields(bytes(call.body), fields), dict(call.headers["forward"])


def _is_stream(call: Any, reply: Reply) -> bool:
    return bool(call.streamed) and reply.is_success and "event-stream" in reply.headers.get("content-type", "")


async def _whole(job: Job, reader: Reader, reply: Reply) -> Finish:
    first_byte_at = datetime.now(UTC)
    body = await _body(reply)
    failpoints.reached("answer.read")
    if body is None:
        return _too_large(job, reply, first_byte_at)
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
            body=stored(body),
        )
        return Finish(ending, Kind.WHOLE, body, reply.headers)
    reading = reader.read_whole(body)
    await kept(job, reading)
    if await begun(job, reading, reply.headers, body):
        failpoints.reached("background.begun")
        return Finish(None, Kind.WHOLE, body, reply.headers | {PENDING_HEADER: "true"})
    ending = settled(job, reading, reply, first_byte_at, "answered")
    ending.body = stored(body)
    return Finish(ending, Kind.WHOLE, body, reply.headers)


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


async def _streamed(job: Job, reader: Reader, reply: Reply, tell: Tell, *, deadline: float, client: Any) -> Finish:
    """Relays whole events as they come, but keeps the last one back until its money is committed."""
    stream = _Stream(reader, hide_usage=job.call.headers["hide_usage"])
    tell(Kind.HEAD, relay.head(reply.status, reply.headers))
    failpoints.reached("stream.head_told")
    broken, goes_on = "", False
    try:
        async with asyncio.timeout_at(deadline) as limit:
            async for chunk in chunks(job.call, client, reply, stream):
                if out := stream.feed(chunk):
                    await kept(job, stream.reading)
                    if not goes_on and (goes_on := await begun(job, stream.reading, reply.headers, None)):
                        limit.reschedule(
                            deadline + settings.BACKGROUND_DEADLINE_SECONDS - settings.CALL_DEADLINE_SECONDS
                        )
                    tell(Kind.DATA, out)
                    failpoints.reached("stream.mid")
    except (Broken, TimeoutError) as error:
        broken = str(error) or "deadline passed"
    await kept(job, stream.reading)
    failpoints.reached("answer.read")
    reading = stream.reading
    if not reading.complete:
        broken = broken or "the stream ended without its last event"
    last = stream.last
    if broken and not reading.error:
        message = f"The provider's stream broke off: {broken}."
        last += WIRES[job.call.wire].broken_event("stream_broken", message, job.call.endpoint)
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

    def __init__(self, reader: Reader, *, hide_usage: bool) -> None:
        self.reading, self.last, self.relayed = Reading(), b"", bytearray()
        self.first_byte_at: datetime | None = None
        self._reader, self._hide_usage, self._events = reader, hide_usage, Events()

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

    def _take(self, raw: bytes, data: bytes) -> bytes:
        usage_before = self.reading.usage
        if data:
            self._reader.read_event(self.reading, data)
        if self.reading.complete:
            self.last += raw
            return b""
        if not self._hide_usage:
            return raw
        if self.reading.usage is not usage_before and _EMPTY_CHOICES.search(raw):
            return b""
        return _NO_USAGE.sub(b"", raw)


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
        self._rest = b""

    def forget_rest(self) -> None:
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
