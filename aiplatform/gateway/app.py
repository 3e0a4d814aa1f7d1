"""The /v1 application: both SDKs' wires, on one lean ASGI application beside Django."""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from django.conf import settings
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aiplatform.gateway import catalogue, recovery, relay, wires
from aiplatform.gateway.admission import Admission, Admitted, Ticket
from aiplatform.gateway.execution import OutcomeUnknown
from aiplatform.gateway.relay import Inbox, Kind
from aiplatform.gateway.wires import Wire
from aiplatform.lib import failpoints, logs, money, postgres, redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.ids import call_name
from aiplatform.lib.logs import log
from tenants.auth import Directory, Principal
from usage.leases import Lease

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}")
FENCED_EXIT = 70


class NotFound(ApiError):
    """There is no such endpoint here."""

    status = 404
    code = "not_found"


class BodyTimeout(ApiError):
    """The request body did not arrive in time."""

    status = 408
    code = "request_timeout"


class NotExecuted(ApiError):
    """The call could not be started in time; nothing was sent and nothing was charged."""

    status = 503
    code = "not_executed"


class AnswerLost(ApiError):
    """The call's answer cannot be relayed any more. What it cost is on record: GET /api/calls/ID."""

    status = 502
    code = "answer_lost"


class Gateway:
    """What one web process keeps: who calls, the door, and the ear for answers."""

    def __init__(self) -> None:
        self.lease = Lease("web", fenced=lambda: os._exit(FENCED_EXIT))
        self.directory = Directory()
        self.admission = Admission(self.lease.id)
        self.receiver = relay.Receiver(self.lease.id)
        self._states: Batcher[Any, Any] = Batcher("states", _states)

    @contextlib.asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """Holds the lease and listens, from start-up to shutdown."""
        logs.configure(settings.LOG_LEVEL)
        failpoints.warn()
        await asyncio.to_thread(self.lease.start)
        tasks = [asyncio.create_task(self.receiver.listen()), asyncio.create_task(self._watch())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(self.lease.stop)

    async def call(self, request: Request, wire: Wire, endpoint: str, request_id: str) -> Response:
        """One AI call: read, authenticated, admitted, and answered by whoever carries it out."""
        principal = await self.directory.identify(request.headers)
        facts = wire.read(endpoint, await _body(request), request.headers)
        ticket = Ticket(principal, facts, request_id)
        failpoints.reached("door.body_read")
        inbox = self.receiver.expect(ticket.call_id)
        try:
            # The caller may go while the call is being admitted: it is carried out all the same, and settled.
            admitted = await asyncio.shield(asyncio.ensure_future(self.admission.submit(ticket)))
            kind, data = await inbox.get()
        except BaseException:
            self.receiver.forget(ticket.call_id)
            raise
        failpoints.reached("door.before_reply")
        return self._reply(inbox, admitted, kind, data)

    def _reply(self, inbox: Inbox, admitted: Admitted, kind: Kind, data: bytes) -> Response:
        status, headers, body = relay.parse_head(data)
        ours = _call_headers(admitted)
        if kind == Kind.WHOLE:
            self.receiver.forget(inbox.call_id)
            return Response(body, status, ours | headers)
        return StreamingResponse(
            self._stream(inbox), status, ours | headers | {"cache-control": "no-store", "x-accel-buffering": "no"}
        )

    async def _stream(self, inbox: Inbox) -> AsyncIterator[bytes]:
        try:
            async for chunk in relay.stream(inbox):
                yield chunk
                failpoints.reached("door.mid_stream")
        finally:
            self.receiver.forget(inbox.call_id)

    async def _watch(self) -> None:
        """Asks Postgres about calls that have been silent for long: their worker, or Redis, may have died."""
        while True:
            await asyncio.sleep(1)
            silent = self.receiver.silent(settings.RELAY_SILENCE_SECONDS)
            if not silent:
                continue
            try:
                with contextlib.suppress(TimeoutError, *redis.LOST):
                    await asyncio.wait_for(self.receiver.catch_up(silent), 3)
                for inbox in self.receiver.silent(settings.RELAY_SILENCE_SECONDS):
                    _end_silence(inbox, await self._states.submit(inbox.call_id))
            except ApiError:
                continue
            except Exception:  # noqa: BLE001 - an edge: without the watch, lost answers would hang
                log.exception("relay.watch_failed")


def _states(call_ids: list[Any]) -> list[Any]:
    rows = postgres.run(
        """SELECT c.id, c.state, c.wire, c.request_id, c.streamed, c.status, c.error_code, c.charged_nano,
               c.start_by < now() AS late, p.headers, p.body
           FROM usage_call c LEFT JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'response'
           WHERE c.id = ANY (%s::uuid[])""",
        [call_ids],
    )
    found = {row.id: row for row in rows}
    for row in rows:
        if row.state == "held" and row.late:
            recovery.void_late(row.id)
    return [found.get(call_id) for call_id in call_ids]


def _end_silence(inbox: Inbox, row: Any) -> None:
    """Ends the wait for a call of which Postgres knows more than the relay."""
    if row is None or row.state in {"held", "inflight"}:
        return
    if inbox.seq:  # in the middle of a stream
        message = f"The answer's relay broke off; call {call_name(row.id)} is on record."
        inbox.push(inbox.seq + 1, Kind.END, wires.WIRES[row.wire].broken_event("answer_lost", message))
        return
    headers = {"content-type": "application/json"}
    if row.body and not (row.streamed and row.status == 200):  # noqa: PLR2004 - the provider's own
        headers |= row.headers | {"x-cost-usd": money.usd(row.charged_nano)}
        inbox.push(1, Kind.WHOLE, relay.head(row.status, headers, bytes(row.body)))
        return
    if row.body:
        inbox.push(1, Kind.HEAD, relay.head(row.status, row.headers))
        inbox.push(2, Kind.END, bytes(row.body))
        return
    error = _why_no_answer(row)
    body = orjson.dumps(wires.WIRES[row.wire].error(error, row.request_id or call_name(row.id)))
    inbox.push(1, Kind.WHOLE, relay.head(error.status, headers | error.headers, body))


def _why_no_answer(row: Any) -> ApiError:
    if row.state == "unknown" or row.error_code == OutcomeUnknown.code:
        return OutcomeUnknown()
    return NotExecuted(headers={"retry-after": "1"}) if row.state == "void" else AnswerLost()


async def _body(request: Request) -> bytes:
    """The body, within its bounds; nothing is held yet when it is refused."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise wires.BadRequest("Compressed request bodies are not accepted; send the JSON as it is.")
    most = settings.MAX_BODY_BYTES
    if int(request.headers.get("content-length") or 0) > most:
        raise wires.TooLarge(f"The request body is larger than {most} bytes.", headers={"connection": "close"})
    pieces, size = [], 0
    try:
        async with asyncio.timeout(settings.BODY_TIMEOUT_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise wires.TooLarge(
                        f"The request body is larger than {most} bytes.", headers={"connection": "close"}
                    )
                pieces.append(piece)
    except TimeoutError as error:
        raise BodyTimeout(headers={"connection": "close"}) from error
    return b"".join(pieces)


def _call_headers(admitted: Admitted) -> dict[str, str]:
    headers = {"x-call-id": call_name(admitted.call_id), "x-held-usd": money.usd(admitted.held_nano)}
    if admitted.remaining_nano is not None:
        headers["x-budget-remaining-usd"] = money.usd(admitted.remaining_nano)
    if admitted.clamped_tokens is not None:
        headers["x-budget-clamped"] = str(admitted.clamped_tokens)
    return headers


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


Handler = Callable[[Request, str], Awaitable[Response]]


def endpoint(wire: Wire | None, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint whose errors come in the shape of `wire`, and whose replies carry the request's id."""

    async def handle(request: Request) -> Response:
        request_id = _request_id(request)
        speaks = wire or _wire_of(request)
        try:
            response = await handler(request, request_id)
        except ApiError as error:
            response = _error(speaks, error, request_id)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:  # noqa: BLE001 - the outermost edge of a request
            log.exception("request.crashed", request_id=request_id)
            response = _error(speaks, Unavailable("The gateway failed; the failure is on record."), request_id)
        response.headers["x-request-id"] = request_id
        if speaks is wires.ANTHROPIC:
            response.headers.setdefault("request-id", request_id)
        return response

    return handle


def _error(wire: Wire, error: ApiError, request_id: str) -> Response:
    body = orjson.dumps(wire.error(error, request_id), default=str)
    return Response(body, error.status, error.headers, media_type="application/json")


def _wire_of(request: Request) -> Wire:
    return wires.ANTHROPIC if "anthropic-version" in request.headers else wires.OPENAI


def create() -> Starlette:
    """The application of one process."""
    gateway = Gateway()

    async def chat(request: Request, request_id: str) -> Response:
        return await gateway.call(request, wires.OPENAI, "chat", request_id)

    async def messages(request: Request, request_id: str) -> Response:
        return await gateway.call(request, wires.ANTHROPIC, "messages", request_id)

    async def models(request: Request, _: str) -> Response:
        principal: Principal = await gateway.directory.identify(request.headers)
        wire = _wire_of(request)
        book = await asyncio.to_thread(catalogue.current, max_age=1)
        return Response(
            orjson.dumps(wire.models(book.models(wire.name, principal.environment_kind))), media_type="application/json"
        )

    async def healthy(_: Request, __: str) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def nowhere(request: Request, _: str) -> Response:
        raise NotFound(f"There is no {request.method} {request.url.path[:200]} here; see README.md for the endpoints.")

    return Starlette(
        lifespan=gateway.running,
        routes=[
            Route("/v1/chat/completions", endpoint(wires.OPENAI, chat), methods=["POST"]),
            Route("/v1/messages", endpoint(wires.ANTHROPIC, messages), methods=["POST"]),
            Route("/v1/models", endpoint(None, models), methods=["GET"]),
            Route("/healthz", endpoint(None, healthy), methods=["GET"]),
            Route("/{path:path}", endpoint(None, nowhere), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ],
    )
