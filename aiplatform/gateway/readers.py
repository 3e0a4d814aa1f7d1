"""A stream's last step: from its inbox to the connection of whoever reads it, however slowly."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from starlette.responses import StreamingResponse

from aiplatform.gateway.relay import Inbox
from aiplatform.gateway.streaming import After
from aiplatform.lib import failpoints
from aiplatform.lib.ids import call_name
from aiplatform.lib.logs import log

ABORT = "aiplatform.abort"
HEARTBEAT_SECONDS = 10.0
HEARTBEAT = b": ping\n"  # no blank line, which SDKs take for an event once there was an id
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Relayed(StreamingResponse):
    """What comes after a stream's head. What has gathered goes out at once, and what one send cannot take in time ends it."""

    def __init__(
        self, inbox: Inbox, status: int, headers: dict[str, str], *, after: int, ended: Callable[[bool], None]
    ) -> None:
        """`after` is the number of the last event that its reader has. `ended` is told whether he got all of it."""
        super().__init__(_nothing(), status, headers | _HEADERS)
        self._inbox, self._after, self._ended = inbox, After(after), ended
        self._is_whole, self._is_stuck, self._send_seconds = False, False, settings.SEND_SECONDS
        self._abort: Callable[[], object] = lambda: None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        hanging_up = asyncio.ensure_future(_hung_up(receive))
        hanging_up.add_done_callback(lambda _: self._inbox.close())
        self._abort = scope.get("extensions", {}).get(ABORT, {}).get("now", asyncio.current_task().cancel)  # type: ignore[union-attr]
        try:
            await self._relay(send)
        finally:
            hanging_up.cancel()
            self._ended(self._is_whole and not self._is_stuck)

    async def _relay(self, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await self._in_time(send(start))
        inbox = self._inbox
        while not (self._is_whole or inbox.is_closed):
            data, is_last = await inbox.rest(HEARTBEAT_SECONDS)
            told = self._after(data) if data else HEARTBEAT if not (is_last or inbox.is_closed) else b""
            if told or is_last:
                await self._in_time(send({"type": "http.response.body", "body": told, "more_body": not is_last}))
            self._is_whole = is_last
            failpoints.reached("door.mid_stream")

    async def _in_time(self, sending: Awaitable[None]) -> None:
        """Gives the connection up where it takes nothing more."""
        timer = asyncio.get_running_loop().call_later(self._send_seconds, self._drop)
        try:
            await sending
        finally:
            timer.cancel()

    def _drop(self) -> None:
        log.info("stream.reader_dropped", call=call_name(self._inbox.call_id))
        self._is_stuck = True
        self._inbox.close()
        self._abort()


async def _hung_up(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Any:
    return
    yield
