"""The /v1 application: both SDKs' wires, on one lean ASGI application beside Django."""

import asyncio
import contextlib
import functools
import os
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from django.conf import settings
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aiplatform.gateway import (
    again,
    browsers,
    callers,
    calls,
    catalogue,
    endpoints,
    estimate,
    idempotency,
    limit_headers,
    lists,
    me,
    objects,
    refusals,
    relay,
    replies,
    wires,
)
from aiplatform.gateway.admission import Admission
from aiplatform.gateway.cache import hits, wishes
from aiplatform.gateway.cache.flights import Tower
from aiplatform.gateway.cache.hits import Shared
from aiplatform.gateway.cache.near import Neighbourhood
from aiplatform.gateway.cache.sharing import Sharing
from aiplatform.gateway.recall import Door, Recall
from aiplatform.gateway.relay import Inbox, Kind
from aiplatform.gateway.tickets import Admitted, Hit, Replay, Ticket
from aiplatform.gateway.watching import Watch
from aiplatform.gateway.wires import Asked, Wire
from aiplatform.lib import failpoints, heap, logs
from aiplatform.lib.addresses import client_address
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.logs import log
from aiplatform.providers.endpoints import Endpoint
from tenants import bounds, limits
from tenants.auth import Directory, Principal, authorise
from usage import ledger
from usage import objects as stored
from usage.leases import Lease

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}")
_LONGEST_QUERY = 2000
FENCED_EXIT = 70


class NotFound(ApiError):
    """There is no such endpoint here."""

    status = 404
    code = "not_found"


class BodyTimeout(ApiError):
    """The request body did not arrive in time."""

    status = 408
    code = "request_timeout"


class Gateway:
    """What one web process keeps: who calls, the door, and the ear for answers."""

    def __init__(self) -> None:
        self.lease = Lease("web", fenced=lambda: os._exit(FENCED_EXIT))
        self.directory = Directory()
        self.admission = Admission(self.lease.id, processes=lambda: self.lease.number)
        self.receiver = relay.Receiver(self.lease.id, ended=self.admission.lines.ring)
        # With answers of up to 4 MiB each.
        self._states: Batcher[uuid.UUID, Any] = Batcher("states", replies.states, limit=16)
        self.door = Door(self.receiver)
        self.sharing = Sharing(self.admission, Tower(self.receiver, self._states), Neighbourhood(self.admission.book))
        self.recall = Recall(self.identify, self.receiver, self.door, self._states, self.lease.id)

    async def identify(self, request: Request) -> Principal:
        """Who calls, from where he may: every request with a key passes here. Raises Unauthenticated, KeyNotAllowed, Suspended
        or Forbidden.
        """
        principal = await self.directory.authenticate(request.headers)
        browsers.note(request, principal.bounds)
        authorise(principal, origin=request.headers.get("origin"), address=_address(request))
        return principal

    @contextlib.asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """Holds the lease and listens, from start-up to shutdown."""
        logs.configure(settings.LOG_LEVEL)
        failpoints.warn()
        await asyncio.to_thread(self._start)
        heap.freeze()
        tasks = [
            asyncio.create_task(self.receiver.listen()),
            asyncio.create_task(Watch(self.receiver, self._states).run()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(self.lease.stop)

    def _start(self) -> None:
        """Where others live already, they know whether limits were forgotten."""
        self.lease.start()
        if self.lease.is_oldest():
            limits.begin(ledger.idle_seconds())

    async def call(self, request: Request, endpoint: Endpoint, request_id: str) -> Response:
        """One AI call: read, authenticated, admitted, and answered by whoever carries it out."""
        ticket = await self.ticket(request, endpoint, request_id)
        if endpoint.method == "POST":
            wish = calls.preference(request.headers)
            ticket.detached, ticket.lane = wish.is_async, wish.lane
        await again.refuse_deletion(ticket.facts)
        if (rest := await again.events(ticket.facts)) is not None:
            return Response(rest, media_type="text/event-stream", headers={"cache-control": "no-store"})
        failpoints.reached("door.body_read")
        if ticket.detached:
            return await self._hand_in(ticket)
        inbox = self.receiver.expect(ticket.call_id)
        try:
            # The caller may go while the call is being admitted: it is carried out all the same, and settled.
            admitted = await asyncio.shield(asyncio.ensure_future(self.sharing.outcome(ticket)))
            if not isinstance(admitted, Admitted):
                self.receiver.forget(inbox)
                return await self._given(admitted, ticket)
            policy = callers.policy(ticket)
            kind, data = await (inbox.get() if policy == callers.FINISH else self._first(inbox, ticket))
            ours = replies.headers_of(admitted) | _told(ticket)
            return self.door.reply(inbox, ours, kind, data, policy=policy)
        except BaseException:
            self.receiver.forget(inbox)
            raise

    async def _given(self, answer: Replay | Hit | Shared, ticket: Ticket) -> Response:
        """An answer that was not made for this call."""
        if isinstance(answer, Replay):
            return await self.recall.replay(answer.call_id)
        left = limit_headers.told(ticket.left, ticket.facts.wire)
        if isinstance(answer, Hit):
            return Response(answer.body, headers=hits.headers_of(answer) | left)
        return Response(answer.body, answer.status, hits.headers_of_shared(ticket, answer) | left)

    async def _first(self, inbox: Inbox, ticket: Ticket) -> tuple[Kind, bytes]:
        """The first record; raises ClientDisconnect where the caller goes before, and then his policy is followed."""
        answer, gone = asyncio.ensure_future(inbox.get()), asyncio.ensure_future(ticket.caller_gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
            gone.cancel()
        self.door.left(ticket.call_id)
        raise ClientDisconnect

    async def _hand_in(self, ticket: Ticket) -> Response:
        """Admits a call that nobody waits for; what is refused is refused at once."""
        admitted = await asyncio.shield(asyncio.ensure_future(self.sharing.outcome(ticket)))
        if isinstance(admitted, Replay):
            return await self.recall.replay(admitted.call_id, is_async=True)
        applied = {"preference-applied": "respond-async"}
        if isinstance(admitted, Admitted):
            headers = replies.headers_of(admitted) | _told(ticket)
            return calls.accepted(admitted.call_id, "held", headers | applied)
        if isinstance(admitted, Hit):
            told = {name: value for name, value in hits.headers_of(admitted).items() if name != "content-type"}
            return calls.accepted(admitted.call_id, "settled", told | applied)
        return await self._given(admitted, ticket)

    async def ticket(self, request: Request, endpoint: Endpoint, request_id: str) -> Ticket:
        """What is asked for and by whom; nothing is held yet, and nothing stored."""
        principal = await self.identify(request)
        body = await _body(request, settings.MAX_UPLOAD_BYTES if endpoint.is_upload else settings.MAX_BODY_BYTES)
        key_hash, body_hash = idempotency.hashes(request, body)
        query = request.scope["query_string"].decode("latin-1")
        if len(query) > _LONGEST_QUERY:
            raise wires.BadRequest(f"The query is longer than {_LONGEST_QUERY} characters.")
        asked = Asked(endpoint, body, request.headers, request.path_params, query)
        facts = endpoints.read(asked)
        bounds.refuse_call(principal.bounds, model=facts.model, endpoint=endpoint.name)
        await objects.attach(principal, facts, is_deletion=endpoint.method == "DELETE")
        ticket = Ticket(principal, facts, request_id, key_hash, body_hash, functools.partial(_hung_up, request))
        ticket.address = _address(request)
        ticket.wish = wishes.wish(principal, facts, request.headers)
        return ticket

    async def models(self, request: Request, one: Endpoint) -> Response:
        """What can be called, all or the one that is asked for."""
        principal = await self.identify(request)
        book = await asyncio.to_thread(lambda: catalogue.renewed(catalogue.current()))
        wire, found = (
            wires.WIRES[one.wire],
            book.models(one.wire, principal.environment_kind, principal.tenant_id, principal.environment_id),
        )
        if principal.bounds:
            found = [one for one in found if principal.bounds.allows_model(one[0])]
        asked = request.path_params.get("model")
        value = lists.model(wire, found, asked) if asked else lists.models(wire, found, request.query_params)
        return Response(orjson.dumps(value), media_type="application/json")

    async def kept(self, request: Request, one: Endpoint) -> Response:
        """What providers keep for the environment, of one kind."""
        principal = await self.identify(request)
        bounds.refuse_call(principal.bounds, model="", endpoint=one.name)
        rows = await asyncio.to_thread(stored.listed, principal.environment_id, one.wire, one.lists)
        return _json(lists.page(wires.WIRES[one.wire], rows, request.query_params))


def _told(ticket: Ticket) -> dict[str, str]:
    """What an answer that is made for its call tells besides its hold."""
    return hits.headers_of_miss(ticket) | limit_headers.told(ticket.left, ticket.facts.wire)


@functools.lru_cache(maxsize=4096)
def _client(peer: str, forwarded_for: tuple[str, ...]) -> str:
    return client_address(peer, forwarded_for, settings.TRUSTED_PROXIES)


def _address(request: Request) -> str:
    """Where the request comes from."""
    peer = request.client.host if request.client else ""
    return _client(peer, tuple(request.headers.getlist("x-forwarded-for")) if settings.TRUSTED_PROXIES else ())


async def _body(request: Request, most: int) -> bytes:
    """The body, within its bounds; nothing is held yet when it is refused."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise wires.BadRequest("Compressed request bodies are not accepted; send the JSON as it is.")
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


async def _hung_up(request: Request) -> None:
    """Returns when the caller has closed his connection; his body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
            refusals.explain(error, speaks, request)
            response = _error(speaks, error, request_id)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:  # noqa: BLE001 - the outermost edge of a request
            log.exception("request.crashed", request_id=request_id)
            response = _error(speaks, Unavailable("The gateway failed; the failure is on record."), request_id)
        response.headers["x-request-id"] = request_id
        if speaks is wires.ANTHROPIC:
            response.headers.setdefault("request-id", request_id)
        browsers.open_to_its_page(request, response)
        return response

    return handle


def _error(wire: Wire, error: ApiError, request_id: str) -> Response:
    body = orjson.dumps(wire.error(error, request_id), default=str)
    return Response(body, error.status, error.headers, media_type="application/json")


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json", headers={"cache-control": "no-store"})


def _wire_of(request: Request) -> Wire:
    named = request.url.path == estimate.PATH and request.query_params.get("endpoint")
    known = endpoints.by_path(named) if named else None
    return wires.WIRES[known.wire] if known else endpoints.wire_of(request)


def create() -> Starlette:
    """The application of one process."""
    gateway = Gateway()

    async def usage(request: Request, _: str) -> Response:
        principal = await gateway.identify(request)
        return _json(await asyncio.to_thread(me.usage, principal, request.query_params.get("end_user")))

    async def priced(request: Request, request_id: str) -> Response:
        ticket = await gateway.ticket(request, estimate.endpoint(request), request_id)
        return _json(await asyncio.to_thread(estimate.quote, ticket))

    async def fetched(request: Request, _: str) -> Response:
        return await gateway.recall.fetch(request)

    async def resumed(request: Request, _: str) -> Response:
        return await gateway.recall.resume(request)

    async def healthy(_: Request, __: str) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def nowhere(request: Request, _: str) -> Response:
        if browsers.is_preflight(request):
            return browsers.preflight(request)
        raise NotFound(f"There is no {request.method} {request.url.path[:200]} here; see README.md for the endpoints.")

    return Starlette(
        lifespan=gateway.running,
        routes=[
            *(_route(gateway, path, method, found) for (path, method), found in endpoints.routes().items()),
            Route(estimate.PATH, endpoint(None, priced), methods=["POST"]),
            Route(calls.PATH, endpoint(None, fetched), methods=["GET"]),
            Route(calls.STREAM_PATH, endpoint(None, resumed), methods=["GET"]),
            Route("/v1/me/usage", endpoint(None, usage), methods=["GET"]),
            Route("/healthz", endpoint(None, healthy), methods=["GET"]),
            Route(
                "/{path:path}", endpoint(None, nowhere), methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
            ),
        ],
    )


def _route(gateway: Gateway, path: str, method: str, found: list[Endpoint]) -> Route:
    """The route of one path, which both wires may share."""
    by_wire = {one.wire: one for one in found}
    wire = wires.WIRES[found[0].wire] if len(found) == 1 else None

    async def handle(request: Request, request_id: str) -> Response:
        one = found[0] if wire else by_wire[_wire_of(request).name]
        if one.lists:
            return await gateway.kept(request, one)
        if one.is_local:
            return await gateway.models(request, one)
        return await gateway.call(request, one, request_id)

    return Route(path, endpoint(wire, handle), methods=[method])
