"""Collect while busy: a thread that handles all that waits as one batch, and then looks again.

There is no timer. An idle system handles batches of one with no added delay; a busy one shares each round trip, each COMMIT
and each message among the whole batch.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from aiplatform.lib.errors import Unavailable
from aiplatform.lib.logs import log

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Waiter = Callable[[Any], None]


class Batcher(Generic[Item, Outcome]):
    """Hands items to `handle`, a plain function from a list to a list of as many outcomes.

    A batch is bounded in items and in bytes (`size` says an item's). A batch that fails is handled again item by item, so
    that a poisoned item fails alone; `Unavailable` fails them all at once, since each would only wait for the same thing.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[list[Item]], Sequence[Outcome]],
        *,
        limit: int = 256,
        limit_bytes: int = 16 * 1024 * 1024,
        size: Callable[[Item], int] = lambda _: 0,
    ) -> None:
        self._name, self._handle, self._limit, self._limit_bytes, self._size = name, handle, limit, limit_bytes, size
        self._queue: queue.SimpleQueue[tuple[Item, asyncio.Future[Outcome] | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hands over an item whose outcome nobody waits for."""
        self._queue.put((item, None))

    async def submit(self, item: Item) -> Outcome:
        """The item's outcome; raises what `handle` raised, or returned, for it."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.put((item, future))
        return await future

    def close(self, timeout: float | None = None) -> bool:
        """Handles what waits, then ends the thread; False where that took longer than `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ends = self._collect(first)
            self._resolve(batch, self._outcomes([item for item, _ in batch]))
            if ends:
                return

    def _collect(
        self, first: tuple[Item, asyncio.Future[Outcome] | None]
    ) -> tuple[list[tuple[Item, asyncio.Future[Outcome] | None]], bool]:
        batch, held_bytes = [first], self._size(first[0])
        while len(batch) < self._limit and held_bytes < self._limit_bytes:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return batch, True
            batch.append(entry)
            held_bytes += self._size(entry[0])
        return batch, False

    def _outcomes(self, items: list[Item]) -> Sequence[Outcome | BaseException]:
        try:
            return self._handle(items)
        except Unavailable as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - the edge of a thread: what fails here must fail its own items and no others
            if len(items) == 1:
                log.exception("batch.item_failed", batcher=self._name)
                return [error]
            log.warning("batch.failed", batcher=self._name, items=len(items), error=repr(error)[:200])
            return [outcome for item in items for outcome in self._outcomes([item])]

    @staticmethod
    def _resolve(
        batch: list[tuple[Item, asyncio.Future[Outcome] | None]], outcomes: Sequence[Outcome | BaseException]
    ) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Outcome], Outcome | BaseException]]] = {}
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future is not None:
                by_loop.setdefault(future.get_loop(), []).append((future, outcome))
        for loop, answers in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, answers)


def _wake(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in answers:
        if future.done():  # its caller has gone
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
