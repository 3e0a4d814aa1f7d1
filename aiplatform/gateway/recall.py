"""Answers that are asked for again: by a call's id, by the number of a stream's last event, by an Idempotency-Key."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from aiplatform.gateway import callers, calls, relay, replies, streaming
from aiplatform.gateway.readers import Relayed
from aiplatform.gateway.relay import Inbox, Kind
from aiplatform.lib import failpoints, redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.ids import call_name
from tenants import bounds
from tenants.auth import Principal

FETCH_SECONDS = 0.1


class Door:
    """Where answers go out."""

    def __init__(self, receiver: relay.Receiver) -> None:
        self._receiver = receiver
        self._left: Batcher[uuid.UUID, None] = Batcher("left", callers.leave)

    def left(self, call_id: uuid.UUID) -> None:
        """The caller has gone, whose environment has a policy for that."""
        self._left.put(call_id)

    def reply(
        self,
        inbox: Inbox,
        ours: dict[str, str],
        kind: Kind,
        data: bytes,
        *,
        after: int = 0,
        policy: str = callers.FINISH,
    ) -> Response:
        failpoints.reached("door.before_reply")
        status, headers, body = relay.parse_head(data)
        if kind == Kind.WHOLE:
            self._receiver.forget(inbox)
            return Response(body, status, ours | headers)

        def ended(is_whole: bool) -> None:
            self._receiver.forget(inbox)
            if not is_whole and policy != callers.FINISH and not self._receiver.is_expected(inbox.call_id):
                self.left(inbox.call_id)

        return Relayed(inbox, status, ours | headers, after=after, ended=ended)


class Recall:
    """What a web process answers of calls that were made before, here or elsewhere; nothing is made again."""

    def __init__(
        self,
        identify: Callable[[Request], Awaitable[Principal]],
        receiver: relay.Receiver,
        door: Door,
        states: Batcher[uuid.UUID, Any],
        web_process: uuid.UUID,
    ) -> None:
        self._identify, self._receiver, self._door, self._states = identify, receiver, door, states
        self._web_process = web_process
        self._come_back: Batcher[uuid.UUID, None] = Batcher("come_back", callers.come_back)

    async def fetch(self, request: Request) -> Response:
        """The answer of a call of the caller's environment, or 202 while it is to come."""
        wish = calls.preference(request.headers)
        until = time.monotonic() + wish.wait_seconds
        row = await self._own(request)
        while replies.is_running(row) and time.monotonic() < until:
            await asyncio.sleep(min(FETCH_SECONDS, max(until - time.monotonic(), 0)))
            row = await self._states.submit(row.id)
        if replies.is_running(row):
            return calls.accepted(row.id, row.state, replies.headers_of_row(row))
        return await self._ended(row)

    async def resume(self, request: Request) -> Response:
        """The rest of a stream of the caller's environment, after the last event that he has; nothing is made again."""
        after, row = calls.after(request), await self._own(request)
        calls.refuse_plain(row)
        if row.state == "held":
            return calls.accepted(row.id, row.state, replies.headers_of_row(row))
        if not replies.is_running(row):
            if row.body and row.status == replies.OK:
                calls.refuse_unheard(after, streaming.last_number(row.body) or 0)
            return await self._ended(row, after, lost=calls.NotResumable(call=call_name(row.id)))
        await self._come_back.submit(row.id)
        calls.refuse_unheard(after, await asyncio.to_thread(relay.last_number, row.id))
        inbox = self._receiver.expect(row.id, is_polled=row.web_process != self._web_process)
        try:
            with contextlib.suppress(*redis.LOST):  # it is looked at again
                await self._receiver.catch_up([inbox])
            calls.refuse_trimmed(inbox)
            return self._door.reply(inbox, replies.headers_of_row(row), *await inbox.get(), after=after)
        except BaseException:
            self._receiver.forget(inbox)
            raise

    async def _own(self, request: Request) -> Any:
        """The row of the call that the path names; raises CallNotFound unless it is of the caller's environment."""
        principal, call_id = (
            await self._identify(request),
            calls.asked(request.path_params["call_id"]),
        )
        row = await self._states.submit(call_id)
        if row is None or row.environment_id != principal.environment_id:
            raise calls.CallNotFound
        bounds.refuse_call(principal.bounds, model="", endpoint=row.endpoint)
        return row

    async def _ended(self, row: Any, after: int = 0, lost: ApiError | None = None) -> Response:
        """The answer of a call that has ended: as it is on record, else as Redis still has it."""
        if row.state == "settled" and not row.body:
            if not await self._is_in_redis(row.id):
                if lost is not None:
                    raise lost
                calls.refuse_lost(row)
            inbox = self._receiver.expect(row.id, is_polled=True)
        else:
            inbox = Inbox(row.id)
            replies.end(inbox, row)
        try:
            return self._door.reply(inbox, replies.headers_of_row(row), *await inbox.get(), after=after)
        except BaseException:
            self._receiver.forget(inbox)
            raise

    async def replay(self, call_id: uuid.UUID, *, is_async: bool = False) -> Response:
        """The answer of a call that was made before: as it comes, where it still runs, else as it was."""
        row = await self._states.submit(call_id)
        if row is None:
            raise replies.AnswerLost(call=call_name(call_id))
        if replies.is_running(row) and (is_async or row.detached):
            return calls.accepted(call_id, row.state, replies.replayed_headers(row))
        inbox = await self._again(row)
        try:
            return self._door.reply(inbox, replies.replayed_headers(row), *await inbox.get())
        except BaseException:
            self._receiver.forget(inbox)
            raise

    async def _again(self, row: Any) -> Inbox:
        """The inbox of an answer that is asked for again: from Redis while it has every byte, else as it is on record."""
        if not replies.is_running(row) and not await self._is_in_redis(row.id):
            inbox = Inbox(row.id)
            replies.end(inbox, row)
            return inbox
        inbox = self._receiver.expect(
            row.id, is_polled=row.web_process != self._web_process or not replies.is_running(row)
        )
        with contextlib.suppress(TimeoutError, *redis.LOST):  # it is looked at again
            await asyncio.wait_for(self._receiver.catch_up([inbox]), 3)
        return inbox

    @staticmethod
    async def _is_in_redis(call_id: uuid.UUID) -> bool:
        try:
            return await asyncio.to_thread(relay.is_whole, call_id)
        except Unavailable:
            return False
