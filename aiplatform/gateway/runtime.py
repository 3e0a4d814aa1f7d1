"""A worker process beyond Celery: its lease, its event loop with places for calls, and its settling and delivering threads."""

import asyncio
import functools
import itertools
import os
import threading
import time
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop
from django.conf import settings

from aiplatform.gateway import (
    background,
    batch_results,
    catalogue,
    chain,
    doorbell,
    execution,
    relay,
    streaming,
    webhooks,
)
from aiplatform.gateway.cache import leaving
from aiplatform.gateway.cache.leaving import Left
from aiplatform.gateway.cache.scoring import Scoring
from aiplatform.gateway.callers import Caller, Pulse
from aiplatform.gateway.prompt_cache import Marker
from aiplatform.gateway.relay import Kind, Record
from aiplatform.gateway.streaming import Tell
from aiplatform.gateway.traffic import Traffic
from aiplatform.gateway.tries import Means
from aiplatform.gateway.wires import WIRES
from aiplatform.lib import failpoints, heap, money
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import ApiError, Unavailable
from aiplatform.lib.logs import log
from aiplatform.providers.registry import Clients
from moderation.screen import Screen
from tenants import limits
from usage import background as running
from usage import ledger
from usage.leases import Lease
from usage.ledger import Ending, Retry

FENCED_EXIT = 70
OK = 200
CATALOGUE_SECONDS = 2.0
AT_ONCE_IN_BATCH = 64
# After events in the middle of streams: what comes meanwhile goes out together, at one cost.
DELIVERY_PAUSE_SECONDS = 0.003
# A settlement is repeated until the process dies: the hold stays meanwhile, so no cap is loosened.
SETTLE_PATIENCE_SECONDS = 24 * 3600.0


class Places:
    """A counted number of calls at once."""

    def __init__(self, places: int, batch_share: float) -> None:
        self._total, self._share = places, max(1, int(places * batch_share))
        self._used = {"interactive": 0, "batch": 0}
        self._waiting = 0
        self._changed = threading.Condition()

    def take(self, wanted: int, timeout: float) -> int:
        """As many places as are free, at most `wanted`; waits for the first; 0 after `timeout` seconds.

        Calls of the batch lane do not count here, so that none of them is waited for.
        """
        with self._changed:
            self._waiting += 1
            try:
                if not self._changed.wait_for(lambda: self._used["interactive"] < self._total, timeout):
                    return 0
            finally:
                self._waiting -= 1
            return self._taken("interactive", min(wanted, self._total - self._used["interactive"]))

    def take_batch(self, wanted: int, timeout: float) -> int:
        """The same for the batch lane: its share while interactive calls wait or run, all places while none does."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._room_for_batch() > 0, timeout):
                return 0
            return self._taken("batch", min(wanted, self._room_for_batch()))

    def give(self, places: int, lane: str = "interactive") -> None:
        with self._changed:
            self._used[lane] -= places
            self._changed.notify_all()

    def wait_until_all_free(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._used.values()), timeout)

    def _room_for_batch(self) -> int:
        busy = self._waiting or self._used["interactive"]
        return (self._share if busy else self._total) - self._used["batch"]

    def _taken(self, lane: str, places: int) -> int:
        self._used[lane] += places
        return places


class Queue:
    """Calls of the batch lane that were rung here and wait for places, each once, in order."""

    def __init__(self) -> None:
        self._calls: dict[uuid.UUID, None] = {}
        self._changed = threading.Condition()

    def put(self, call_ids: Sequence[uuid.UUID]) -> None:
        with self._changed:
            self._calls |= dict.fromkeys(call_ids)
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Whether there is one; waits for it up to `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._calls), timeout)

    def take(self, most: int | None) -> list[uuid.UUID]:
        """The first of them, all where `most` is None."""
        with self._changed:
            taken = list(itertools.islice(self._calls, most))
            for call_id in taken:
                del self._calls[call_id]
            return taken


class Runtime:
    """Started once per worker process."""

    def __init__(self) -> None:
        self.lease = Lease("worker", fenced=functools.partial(os._exit, FENCED_EXIT))
        self._places = Places(settings.WORKER_PLACES, settings.BATCH_PLACES_SHARE)
        self._draining = False
        self._queue = Queue()
        self._loop = uvloop.new_event_loop()
        self._screen = Screen()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self.lease.start()
        self._deliveries: Batcher[Record, None] = Batcher("delivery", _deliver, size=lambda record: len(record.data))
        self._settlements: Batcher[Ending, Any] = Batcher(
            "settlement", self._settle, size=lambda ending: len(ending.body or b"")
        )
        self._retries: Batcher[Retry, bool] = Batcher("retries", self._retry)
        self._means = Means(Clients(), Traffic(self.lease.id), Marker(), self._retries.submit)
        self._freed: Batcher[tuple[uuid.UUID, list[Any] | None, int | None], None] = Batcher("places", _free)
        self._nudges: Batcher[uuid.UUID, None] = Batcher("webhook-nudges", _nudge)
        self._leaves: Batcher[Left, None] = Batcher("answers", leaving.leave)
        self._scoring = Scoring()
        self._pulse = Pulse(self.lease.id, self._loop)
        threading.Thread(target=self._loop.run_forever, name="calls", daemon=True).start()
        self._pulse.start()
        threading.Thread(target=self._run_queue, name="batch", daemon=True).start()
        failpoints.warn()
        heap.freeze()
        log.info("worker.started", process=str(self.lease.id), places=settings.WORKER_PLACES)

    def run(self, call_ids: Sequence[uuid.UUID]) -> None:
        """Claims what is still to be claimed of these calls, as places become free, and starts them."""
        waiting = list(call_ids)
        while waiting:
            places = 0 if self._draining else self._places.take(len(waiting), timeout=2)
            if places == 0:  # another worker may be free, and this one has its other queue to read
                doorbell.ring_in("interactive", waiting)
                return
            wanted, waiting = waiting[:places], waiting[places:]
            self._claim(wanted, "interactive")

    def queue(self, call_ids: Sequence[uuid.UUID]) -> None:
        """Keeps calls of the batch lane until there are places; no thread of Celery's, which serve both lanes, waits here."""
        if self._draining:
            doorbell.ring_in("batch", call_ids)
        else:
            self._queue.put(call_ids)

    def _run_queue(self) -> None:
        """Claims the calls of the batch lane as places become free, for the life of the process."""
        while not self._draining:
            if not self._queue.wait(1):
                continue
            places = self._places.take_batch(AT_ONCE_IN_BATCH, timeout=1)
            if not places:
                continue
            wanted = self._queue.take(places)
            self._places.give(places - len(wanted), "batch")
            try:
                self._claim(wanted, "batch")
            except Exception:  # noqa: BLE001 - an edge: without this thread the lane would stand still
                log.exception("claim.crashed", calls=len(wanted))
        doorbell.ring_in("batch", self._queue.take(None))

    def _claim(self, wanted: Sequence[uuid.UUID], lane: str) -> None:
        """Claims calls for as many places that were taken; gives those back that it did not need."""
        claimed = []
        try:
            self._screen.refresh()
            book = catalogue.current(max_age=CATALOGUE_SECONDS)
            failpoints.reached("claim.before")
            claimed = ledger.claim(self.lease.id, wanted)
        except Unavailable:
            log.warning("claim.failed", calls=len(wanted))  # the sweeper rings again
        finally:
            self._places.give(len(wanted) - len(claimed), lane)
        failpoints.reached("claim.after", claimed)
        if claimed:
            self._loop.call_soon_threadsafe(self._begin, [_prepared(call, book) for call in claimed])

    def look_at_background(self) -> None:
        """Looks at the calls in the background that are due; each look is short, and whatever becomes of it another follows."""
        rows = [] if self._draining else running.due(background.AT_ONCE)
        if rows:
            book = catalogue.current(max_age=CATALOGUE_SECONDS)
            self._loop.call_soon_threadsafe(
                self._start, [background.look(row, book, self._means.clients) for row in rows]
            )
        running.forget(background.AT_ONCE)

    def look_at_batches(self) -> int:
        """Settles the batches that have ended, on this process's loop; how many there were."""
        looking = asyncio.run_coroutine_threadsafe(batch_results.poll(self._means.clients), self._loop)
        return looking.result(settings.CALL_DEADLINE_SECONDS)

    def refuse(self) -> None:
        """Takes no more calls from now on; what is rung here is rung again for others."""
        self._draining = True

    def drain(self, timeout: float) -> bool:
        """Waits for the calls in flight; what does not end is left to the lease and the sweeper."""
        self.refuse()
        failpoints.reached("drain.begun")
        done = self._places.wait_until_all_free(timeout)
        for batcher in (self._settlements, self._deliveries):
            batcher.close(5)
        if done:
            self.lease.stop()
        log.info("worker.drained", process=str(self.lease.id), complete=done)
        return done

    def _begin(self, jobs: Sequence[tuple[Any, chain.Job | ApiError]]) -> None:
        self._start([self._carry_out(call, job) for call, job in jobs])

    def _start(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        for one in work:
            task = self._loop.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, call: Any, job: chain.Job | ApiError) -> None:
        outbox = relay.Outbox(call.id, call.web_process, self._deliveries.put)
        tell = outbox.tell
        leaves = leaving.left(call)
        policy_version = self._screen.version(call.environment_id)
        try:
            with self._pulse.caller(
                call, lambda: tell(Kind.END, streaming.why_left(call.wire, call.endpoint))
            ) as caller:
                finish = await self._executed(call, job, tell, caller)
            await background.told(call, finish)
            if finish.ending is None:
                self._freed.put((call.id, call.headers.get("limits"), None))
                if not caller.is_drained:
                    self._tell_pending(finish, tell)
                return
            try:
                row = await self._settlements.submit(finish.ending)
            except Exception:  # noqa: BLE001 - logged by the batcher; the call must not stay in flight for it
                row = await self._settlements.submit(
                    Ending(call.id, "unknown", 502, "settlement_failed", attempt_outcome="unknown")
                )
            self._freed.put((call.id, call.headers.get("limits"), execution.used_tokens(finish.ending)))
            await self._leave(leaving.left(call, finish, row, policy_version=policy_version))
            leaves = None
            if call.detached:  # nobody waits for it, but a webhook may tell of it
                self._nudges.put(call.id)
            if row is None:
                log.warning("call.settled_elsewhere", call_id=str(call.id))
                return
            if caller.is_drained:
                return
            if finish.kind == Kind.WHOLE and outbox.seq == 0:
                headers = finish.headers | cost_headers(row, call.held_nano)
                tell(Kind.WHOLE, relay.head(finish.ending.status, headers, finish.last))
            else:
                tell(Kind.END, _end_of_stream(call, finish) + cost_comment(row))
        except Exception:  # noqa: BLE001 - an edge
            log.exception("call.lost_in_worker", call_id=str(call.id))  # the sweeper will end it
        finally:
            await self._leave(leaves)
            self._places.give(1, call.lane)

    async def _leave(self, left: Left | None) -> None:
        """Before a call's end is told: whoever waited for it looks then for what it left."""
        if left is not None:
            await self._leaves.submit(left)
            self._scoring.put(left)

    @staticmethod
    def _tell_pending(finish: execution.Finish, tell: Tell) -> None:
        """The provider's first word on a call that goes on in the background: its cost is not known yet."""
        last = finish.last if finish.kind == Kind.END else relay.head(OK, finish.headers, finish.last)
        tell(finish.kind, last)

    async def _executed(self, call: Any, job: chain.Job | ApiError, tell: Tell, caller: Caller) -> execution.Finish:
        if isinstance(job, ApiError):
            return execution.own_error(call, job, "void", "unsent")
        try:
            return await execution.execute(job, self._means, self._screen, tell, caller)
        except Exception as error:  # noqa: BLE001 - an edge: a bug of ours must still end the call
            log.exception("call.crashed", call_id=str(call.id))
            return execution.own_error(
                call, execution.OutcomeUnknown(), "unknown", "unknown", f"{type(error).__name__} in the gateway"
            )

    def _retry(self, retries: list[Retry]) -> list[bool]:
        failpoints.reached("retry.before")
        going_on = ledger.retry(retries, worker=self.lease.id)
        failpoints.reached("retry.after")
        return [retry.call_id in going_on for retry in retries]

    def _settle(self, endings: list[Ending]) -> list[Any]:
        failpoints.reached("settle.before")
        rows = ledger.settle(self.lease.id, endings, patience=SETTLE_PATIENCE_SECONDS)
        failpoints.reached("settle.after", rows)
        for row in rows.values():
            if row.platform_loss_nano:
                log.error("call.above_its_hold", call_id=str(row.id), platform_loss_nano=row.platform_loss_nano)
        return [rows.get(ending.call_id) for ending in endings]


def _prepared(call: Any, book: catalogue.Catalogue) -> tuple[Any, chain.Job | ApiError]:
    try:
        return call, chain.prepare(call, book)
    except ApiError as error:  # claimed, but surely not sent: it ends with this error
        return call, error


def _end_of_stream(call: Any, finish: execution.Finish) -> bytes:
    """The last bytes of a stream, also where it ended in an error of ours after its head had gone out."""
    if finish.kind == Kind.END or finish.ending is None:
        return finish.last
    message = "The call broke off; its outcome is on record."
    return WIRES[call.wire].broken_event(finish.ending.error_code, message, call.endpoint)


def cost_headers(row: Any, held_nano: int) -> dict[str, str]:
    """What a call cost and what is left, for the reply's headers."""
    headers = {"x-cost-usd": money.usd(row.charged_nano), "x-held-usd": money.usd(held_nano)}
    if row.remaining_nano is not None:
        headers["x-budget-remaining-usd"] = money.usd(row.remaining_nano)
    return headers


def cost_comment(row: Any) -> bytes:
    """The same at the end of a stream, as a comment, which every client ignores.

    Without a blank line, which SDKs take for an event once there was an id.
    """
    left = "" if row.remaining_nano is None else f" budget_remaining_usd={money.usd(row.remaining_nano)}"
    return f": cost_usd={money.usd(row.charged_nano)}{left}\n".encode()


def _deliver(records: list[Record]) -> list[None]:
    failpoints.reached("deliver.before", records[-1].kind in {Kind.WHOLE, Kind.END})
    relay.deliver(records)
    failpoints.reached("deliver.after", records[-1].kind in {Kind.WHOLE, Kind.END})
    if all(record.is_later for record in records):
        time.sleep(DELIVERY_PAUSE_SECONDS)
    return [None] * len(records)


def _nudge(calls: list[uuid.UUID]) -> list[None]:
    webhooks.nudge()
    return [None] * len(calls)


def _free(calls: list[tuple[uuid.UUID, list[Any] | None, int | None]]) -> list[None]:
    limits.give_back(calls)
    failpoints.reached("places.freed")
    return [None] * len(calls)


_runtime: Runtime | None = None
_starting = threading.Lock()


def current() -> Runtime:
    """This process's runtime, started at the first look."""
    global _runtime  # noqa: PLW0603 - one a process is the point
    with _starting:
        if _runtime is None:
            runtime = Runtime()
            runtime.start()
            _runtime = runtime
        return _runtime


def announce_ready() -> None:
    """Tells whoever started this worker that it takes calls: a file in the data folder."""
    if settings.DATA_DIR:
        ready = Path(settings.DATA_DIR) / "run" / f"worker-{settings.INSTANCE}.ready"
        ready.parent.mkdir(parents=True, exist_ok=True)
        ready.write_text(f"{os.getpid()} {time.time()}\n")
