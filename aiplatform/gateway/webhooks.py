"""Sends what the outbox holds: the doorbell of webhooks, and the part of a worker process that posts them.

A Celery message says only that something may be due; it comes every WEBHOOK_SECONDS and right after what is urgent. What is
due is claimed as places become free and posted on an event loop of its own, so that slow endpoints hold up neither calls nor
each other.
"""

import asyncio
import threading
import time
import unicodedata
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop
from django.conf import settings
from kombu.exceptions import OperationalError

from aiplatform.celery import app
from aiplatform.lib import outgoing, redis
from aiplatform.lib.batching import Batcher
from aiplatform.lib.errors import Unavailable
from aiplatform.lib.ids import uuid7
from aiplatform.lib.logs import log
from aiplatform.lib.outgoing import Answer
from tenants.webhooks import endpoints, outbox, signing
from tenants.webhooks.outbox import Outcome
from usage import webhook_events

KEPT_BYTES = 1024
GONE = 410


def nudge() -> None:
    """Says that something may be due now; where that is lost, the next tick finds it."""
    try:
        app.send_task("aiplatform.gateway.tasks.send_webhooks", expires=settings.WEBHOOK_SECONDS)
    except (OperationalError, OSError, *redis.LOST) as error:
        log.warning("webhook.nudge_lost", error=type(error).__name__)


def send() -> None:
    """One round: puts into words what has happened, and has this process send what is due. Returns before it is sent."""
    while webhook_events.write() >= webhook_events.AT_ONCE:
        pass
    current().ring()


class Postman:
    """Started once per worker process; at most `WEBHOOK_PLACES` posts at once, half of them to endpoints that fail."""

    def __init__(self, client: outgoing.Client | None = None) -> None:
        self._client = client or outgoing.Client(endpoints.rules())
        self._tasks: dict[asyncio.Task[None], bool] = {}  # with whether its endpoint fails
        self._stopping = False
        self._loop = uvloop.new_event_loop()
        # Lookups of names outlive their attempts: those that hang must not keep others from theirs.
        self._loop.set_default_executor(ThreadPoolExecutor(4 * settings.WEBHOOK_PLACES, "webhook-lookups"))
        self._claims = ThreadPoolExecutor(1, "webhook-claims")
        self._due = asyncio.Event()

    def start(self) -> None:
        self._endings: Batcher[Outcome, None] = Batcher("webhooks", outbox.finish)
        threading.Thread(target=self._run, name="webhooks", daemon=True).start()

    def ring(self) -> None:
        """Something may be due."""
        self._loop.call_soon_threadsafe(self._due.set)

    def refuse(self) -> None:
        """Claims nothing more from now on."""
        self._stopping = True

    def stop(self, timeout: float) -> bool:
        """Waits for what is on its way; what does not end in time is sent again after its lease."""
        self.refuse()
        give_up_at = time.monotonic() + timeout
        while self._tasks and time.monotonic() < give_up_at:
            time.sleep(0.05)
        return not self._tasks

    def _run(self) -> None:
        self._loop.run_until_complete(self._work())

    async def _work(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            free = settings.WEBHOOK_PLACES - len(self._tasks)
            if self._stopping or free <= 0:  # each end of a task looks again
                continue
            failing = max(settings.WEBHOOK_PLACES // 2 - sum(self._tasks.values()), 0)
            began = time.monotonic()
            try:
                rows = await self._loop.run_in_executor(self._claims, _claimed, free, failing)
            except Unavailable:
                continue  # logged there; the next tick asks again
            except Exception:  # noqa: BLE001 - the edge of a thread, which must outlive any mistake
                log.exception("webhook.claim_failed")
                continue
            for token, row in rows:
                task = self._loop.create_task(self._deliver(token, row, began))
                self._tasks[task] = row.fails
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._due.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook.crashed", exc_info=error)

    async def _deliver(self, token: uuid.UUID, row: Any, claimed_at: float) -> None:
        if time.monotonic() - claimed_at > outbox.LEASE_MARGIN_SECONDS / 2:
            return  # this process was held up: another may be sending it by now
        outcome = await self._outcome(token, row)
        try:
            await self._endings.submit(outcome)
        except Unavailable:
            log.warning("webhook.outcome_lost", delivery=str(row.id))  # it is sent again once the lease ends

    async def _outcome(self, token: uuid.UUID, row: Any) -> Outcome:
        body = row.body.encode()
        try:
            headers = signed_headers(row, body, int(time.time()))
        except signing.Unreadable:
            log.error("webhook.secret_unreadable", endpoint=str(row.endpoint_id))
            return Outcome(row.id, token, "again", outbox.wait_seconds(row.n), error="secret_unreadable")
        answer = await self._client.post(
            row.url, headers=headers, body=body, seconds=settings.WEBHOOK_TIMEOUT_SECONDS, most_bytes=KEPT_BYTES
        )
        return judged(token, row, answer)


def signed_headers(row: Any, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers of one attempt, by Standard Webhooks; while a secret is being rotated, two signatures. Raises Unreadable."""
    message_id = outbox.event_name(row.event_id)
    secrets = [signing.decrypted(bytes(it), row.endpoint_id) for it in (row.secret, row.old_secret) if it is not None]
    return {
        "content-type": "application/json",
        "user-agent": "aiplatform-webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(
            signing.signature(secret, message_id=message_id, timestamp=timestamp, body=body) for secret in secrets
        ),
    }


def judged(token: uuid.UUID, row: Any, answer: Answer) -> Outcome:
    """2xx has arrived, 410 wants nothing any more, all else is tried again."""
    word = "again"
    if answer.status is not None and 200 <= answer.status < 300:  # noqa: PLR2004 - as HTTP counts
        word = "delivered"
    elif answer.status == GONE:
        word = "gone"
    return Outcome(
        row.id,
        token,
        word,
        outbox.wait_seconds(row.n, answer.retry_after) if word == "again" else 0.0,
        answer.status,
        answer.milliseconds,
        answer.error,
        inert(answer.body),
    )


def inert(said: bytes) -> str:
    """Text without control and formatting characters, line ends and tabs excepted."""
    text = said.decode(errors="replace")
    return "".join(it for it in text if it in "\n\t" or not unicodedata.category(it).startswith("C"))


def _claimed(places: int, failing_places: int) -> list[tuple[uuid.UUID, Any]]:
    token = uuid7()
    return [(token, row) for row in outbox.claim(token, places=places, failing_places=failing_places)]


_postman: Postman | None = None
_starting = threading.Lock()


def current() -> Postman:
    """This process's postman, started at the first look."""
    global _postman  # noqa: PLW0603 - one a process is the point
    with _starting:
        if _postman is None:
            postman = Postman()
            postman.start()
            _postman = postman
        return _postman


def refuse() -> None:
    """This process, if it sends, claims nothing more."""
    if _postman is not None:
        _postman.refuse()


def stop(timeout: float) -> None:
    """Waits until this process has sent what it has claimed."""
    if _postman is not None and not _postman.stop(timeout):
        log.warning("webhook.left_to_leases")
