"""Calls in the background: looked at by any worker until the provider says how they ended, and settled by who sees it first.

A look is a free GET. Nothing here is owned: a worker that dies between a look and its settlement leaves the call as it was, and
another looks a little later (docs/responses.md).
"""

import asyncio
import dataclasses
from typing import Any

from aiplatform.gateway import catalogue, chain, execution
from aiplatform.gateway.relay import Kind
from aiplatform.gateway.streaming import Events
from aiplatform.lib import failpoints
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from aiplatform.providers.base import Broken, Reading, Unsent
from aiplatform.providers.endpoints import ENDPOINTS
from aiplatform.providers.registry import ADAPTERS, Clients
from aiplatform.providers.responses import Responses
from tenants import limits, secrets
from usage import background, ledger, objects
from usage.ledger import Ending

AT_ONCE = 200
LOOK_SECONDS = 30.0
PATIENCE_SECONDS = 30.0
# Who looked first does not matter: the call is ended from wherever it stands, once.
FROM_STATES = ("inflight", "unknown")
_LOOKS = frozenset(("responses.retrieve", "responses.cancel"))
_OK, _NOT_FOUND = 200, 404


@dataclasses.dataclass(slots=True)
class Seen:
    """How an answer came that a call of another's own brought."""

    status: int
    headers: dict[str, str]
    request_id: str = ""


async def look(row: Any, book: catalogue.Catalogue, clients: Clients) -> None:
    """Asks the provider how a call stands, and settles it where it has ended; what fails is tried again when it is next due.

    One that is close to its deadline is cancelled instead, so that it ends and says what it cost.
    """
    try:
        job = chain.seen_by(row, book, row.credential)
        client = clients.get(row.wire, job.place.base_url, secrets.read(job.secret_ref), door=job.place.door)
        one = ENDPOINTS[row.wire, "responses.cancel" if row.is_late else "responses.retrieve"]
        target = one.target({"id": row.response_id}, "")
        reply = await ADAPTERS[row.wire].send(client, one.name, target, b"", {}, silence=LOOK_SECONDS)
        try:
            body = b"".join([chunk async for chunk in reply.chunks()])
        finally:
            await reply.aclose()
    except (ApiError, Unsent, Broken) as error:
        log.warning("background.look_failed", call_id=str(row.id), error=str(error)[:200])
        return
    failpoints.reached("background.looked")
    if reply.status == _NOT_FOUND:
        await asyncio.to_thread(_lost, job)
    elif reply.is_success:
        try:
            await _ended(job, Responses().read_whole(body), reply, body)
        except (ApiError, objects.Conflict) as error:
            log.warning("background.look_failed", call_id=str(row.id), error=str(error)[:200])


def _lost(job: chain.Job) -> None:
    """The provider has forgotten it: nobody can say any more what it cost."""
    ending = Ending(job.call.id, "unknown", 502, execution.OutcomeUnknown.code, attempt_outcome="unknown")
    ledger.settle(None, [ending], from_states=["inflight"], patience=PATIENCE_SECONDS)


async def told(call: Any, finish: execution.Finish) -> None:
    """Settles the call whose end its owner's own look shows, before he sees it. `call` is the look's row."""
    if call.endpoint not in _LOOKS or finish.ending is None or finish.ending.status != _OK:
        return
    reading = _read(finish)
    if reading.object is None or reading.is_pending:
        return
    try:
        row = await asyncio.to_thread(background.running, call.environment_id, call.provider, str(reading.object["id"]))
        if row is not None:
            book = await asyncio.to_thread(catalogue.current, max_age=2.0)
            job = chain.seen_by(row, book, row.credential)
            body = finish.last if finish.kind == Kind.WHOLE else None
            await _ended(job, reading, Seen(_OK, finish.headers), body)
    except (ApiError, objects.Conflict) as error:  # it is looked at again
        log.warning("background.look_failed", call_id=str(call.id), error=str(error)[:200])


def _read(finish: execution.Finish) -> Reading:
    if finish.kind == Kind.WHOLE:
        return Responses().read_whole(finish.last)
    reading = Reading()
    for _, data in Events().feed(finish.last):
        Responses().read_event(reading, data)
    return reading


async def _ended(job: chain.Job, reading: Reading, reply: execution.Answer, body: bytes | None) -> None:
    if reading.is_pending or not reading.complete:
        return
    ending = execution.settled(job, reading, reply, None, "answered")
    if ending.error_code == "":
        ending.error_code = reading.error
    await asyncio.to_thread(_end, job, ending, reading)
    if body is not None and execution.stored(body):
        await asyncio.to_thread(background.keep_result, job.call.id, body)


def _end(job: chain.Job, ending: Ending, reading: Reading) -> None:
    call = job.call
    if reading.object is not None:
        objects.record(
            call,
            kind="response",
            provider=job.place.name,
            model=job.step.model,
            credential=job.secret_ref,
            told=reading.object,
            figures=reading.figures | call.headers.get("figures", {}) if reading.figures else {},
            items=reading.items,
        )
    failpoints.reached("background.before_settle")
    ended = ledger.settle(None, [ending], from_states=FROM_STATES, patience=PATIENCE_SECONDS)
    failpoints.reached("background.settled")
    if not ended:
        return
    log.info("background.ended", call_id=str(call.id), state=ending.state, looks=call.looks)
    limits.give_back([(call.id, call.headers.get("limits"), execution.used_tokens(ending))])
