"""One call at its provider: tries, reading, and how it ended."""

import asyncio
import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from django.conf import settings

from aiplatform.gateway import batches, streaming
from aiplatform.gateway.callers import Caller
from aiplatform.gateway.chain import Job, ProviderUnreachable
from aiplatform.gateway.keeping import begun, kept, left, screened
from aiplatform.gateway.relay import Kind
from aiplatform.gateway.streaming import STORED_BYTES, Tell
from aiplatform.gateway.translate import UnreadableAnswer
from aiplatform.gateway.tries import Means, Tries
from aiplatform.gateway.wires import WIRES
from aiplatform.gateway.wires.base import BYTES_PER_TOKEN
from aiplatform.lib import failpoints
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from aiplatform.providers.base import Broken, Reading, Reply, Unsent, Usage
from moderation.screen import ContentBlocked, Screen, record
from usage.ledger import Ending

PENDING_HEADER = "x-cost-pending"
OK = 200


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
    answer: bytes | None = None
    """As others may get it, where it is whole and from where it was asked first."""


class Answer(Protocol):
    """What is kept of how an answer came."""

    status: int
    headers: dict[str, str]
    request_id: str


async def execute(job: Job, means: Means, screen: Screen, tell: Tell, caller: Caller) -> Finish:
    """Carries a claimed call out and tells how it ended; never raises for anything a provider does.

    `tell` relays what comes before the end.
    """
    call = job.call
    deadline = asyncio.get_running_loop().time() + max(call.deadline_seconds - 5, 1)
    try:
        await _screen(call, screen)
        job = (
            dataclasses.replace(job, money=await batches.hold(call, own=job.step.is_own))
            if call.headers.get("makes")
            else job
        )
    except ApiError as error:
        return own_error(call, error, "void", "unsent")
    tries = Tries(job, means, deadline)
    finish: Finish | None = None
    try:
        finish = await _tried(tries, tell, caller, deadline)
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


async def _tried(tries: Tries, tell: Tell, caller: Caller, deadline: float) -> Finish:
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
            return await _streamed(tries, reply, tell, caller, deadline=deadline)
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
    return Finish(ending, Kind.WHOLE, body, reply.headers, body if job.at == 0 else None)


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


async def _streamed(tries: Tries, reply: Reply, tell: Tell, caller: Caller, *, deadline: float) -> Finish:
    heard = await streaming.listen(tries, reply, tell, caller, deadline=deadline)
    job, stream, reading, broken = tries.served, heard.stream, heard.stream.reading, heard.broken
    await kept(job, reading)
    failpoints.reached("answer.read")
    code = "caller_gone" if heard.is_left else "stream_broken"
    event = b""
    if broken and not reading.error:
        message = "The caller had gone." if heard.is_left else f"The provider's stream broke off: {broken}."
        event = WIRES[job.call.wire].broken_event(code, message, job.call.endpoint, reading.sequence_number + 1)
    last = stream.last(event)
    if broken and heard.goes_on:
        await left(job)
        return Finish(None, Kind.END, last)
    outcome = "closed" if heard.is_left else "broken" if broken else "answered"
    ending = settled(job, reading, reply, stream.first_byte_at, outcome)
    ending.attempt_error = ("the caller had gone" if heard.is_left else broken) or ending.attempt_error
    ending.error_code = ending.error_code or (code if broken else reading.error)
    ending.body = stored(bytes(stream.relayed) + last)
    is_whole = outcome == "answered" and job.at == 0 and not ending.error_code
    return Finish(ending, Kind.END, last, answer=bytes(stream.whole) if is_whole and stream.whole else None)


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


def used_tokens(ending: Ending) -> int | None:
    """What a call has used of its limits on tokens; None where nobody can say."""
    if ending.state == "unknown":
        return None
    used = ending.usage
    return used.input + used.cache_read + used.cache_write_5m + used.cache_write_1h + used.output


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
