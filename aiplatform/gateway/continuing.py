"""Streams of responses in the background: what breaks off between us and the provider goes on from its last whole event."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from aiplatform.lib.logs import log
from aiplatform.providers.base import Broken, Reading, Reply, Unsent
from aiplatform.providers.endpoints import ENDPOINTS
from aiplatform.providers.registry import ADAPTERS

TRIES = 4
PAUSE_SECONDS = 0.5
SILENCE_SECONDS = 60.0


class Stream(Protocol):
    """What has been heard so far."""

    reading: Reading

    def forget_rest(self) -> None:
        """Drops the beginning of an event that will come again as a whole."""


async def chunks(call: Any, client: Any, reply: Reply, stream: Stream) -> AsyncIterator[bytes]:
    """The bytes of an answer as they arrive; raises Broken where they end early and cannot be heard again.

    `call` is a claimed call's row. A look at a stream is free, so it is repeated, but at most `TRIES` times without news.
    """
    failures, first = 0, reply
    while True:
        why, before = "the stream ended without its last event", stream.reading.sequence_number
        try:
            async for chunk in reply.chunks():
                yield chunk
        except Broken as error:
            why = str(error)
            if not _goes_on(stream.reading):
                raise
        finally:
            if reply is not first:
                await reply.aclose()
        if not _goes_on(stream.reading):
            return
        stream.forget_rest()
        failures = 0 if stream.reading.sequence_number > before else failures
        reply, failures = await _again(call, client, stream.reading, failures, why)


def _goes_on(reading: Reading) -> bool:
    return reading.is_background and not reading.complete and reading.object is not None


async def _again(call: Any, client: Any, reading: Reading, failures: int, why: str) -> tuple[Reply, int]:
    """The stream from its next event on, and how many looks in a row were in vain."""
    one, told = ENDPOINTS[call.wire, "responses.retrieve"], reading.object or {}
    target = one.target({"id": told["id"]}, f"stream=true&starting_after={reading.sequence_number}")
    while failures < TRIES:
        failures += 1
        await asyncio.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
        log.info("stream.continued", call_id=str(call.id), after=reading.sequence_number)
        try:
            reply = await ADAPTERS[call.wire].send(client, one.name, target, b"", {}, silence=SILENCE_SECONDS)
        except (Unsent, Broken) as error:
            why = str(error)
            continue
        if reply.is_success:
            return reply, failures
        why = f"status {reply.status}"
        await reply.aclose()
    raise Broken(f"{why}; it goes on at the provider")
