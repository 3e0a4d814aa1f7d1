"""In the worker: questions join their buckets, and answers are held against those that like questions would have got."""

import base64
import threading
import time
import uuid
from dataclasses import dataclass

from aiplatform.gateway.cache import agreement, buckets, shelf
from aiplatform.gateway.cache.buckets import Member
from aiplatform.gateway.cache.leaving import Left
from aiplatform.gateway.cache.metering import Meter
from aiplatform.gateway.cache.said import said
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.lib.batching import Batcher
from aiplatform.lib.logs import log
from tenants import near_matching

BATCH = 16
MOST_WAITING = 64  # scoring long answers takes longer than some take to be made; a sample says as much as all of them


@dataclass(frozen=True, slots=True)
class _Answer:
    """A kept answer of a name that has near matches; `candidate` is whose it would have got: question, call, likeness."""

    left: Left
    entry: Entry
    matching: int
    bucket: str
    vector: bytes
    candidate: tuple[str, str, float] | None


class Scoring:
    """One worker process's; it has a thread of its own, and no call waits for it."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._room = threading.Semaphore(MOST_WAITING)
        self._answers: Batcher[_Answer, None] = Batcher("near", self._joined, limit=BATCH)

    def put(self, left: Left) -> None:
        """Takes what a call has left, once that is kept; nothing where its name has no near matches, or too many wait."""
        if left.near is not None and left.entry is not None and self._room.acquire(blocking=False):
            matching, bucket, vector, candidate = left.near
            self._answers.put(_Answer(left, left.entry, matching, bucket, base64.b64decode(vector), candidate))

    def _joined(self, answers: list[_Answer]) -> list[None]:
        """Never raises, so that each makes room once."""
        try:
            _add(answers)
            self._compare([it for it in answers if it.candidate])
        except Exception as error:  # noqa: BLE001 - an edge: nobody waits for it, and other answers will say the same
            log.warning("near.not_scored", calls=len(answers), error=f"{type(error).__name__}: {error}"[:200])
        finally:
            self._room.release(len(answers))
        return [None] * len(answers)

    def _compare(self, answers: list[_Answer]) -> None:
        kept = shelf.look([it.candidate[0] for it in answers if it.candidate]) if answers else {}
        for it in answers:
            if it.candidate and (candidate := kept.get(it.candidate[0])):
                self._score(it, candidate, *it.candidate[1:])

    def _score(self, it: _Answer, candidate: Entry, source: str, likeness: float) -> None:
        if candidate.call_id != uuid.UUID(source):
            return  # it was made anew meanwhile
        agreed = self._agreement(it, candidate)
        if agreed is not None:
            near_matching.score(
                it.matching,
                likeness=likeness,
                agreement=agreed,
                call_id=it.left.call_id,
                source_call_id=candidate.call_id,
            )

    def _agreement(self, it: _Answer, candidate: Entry) -> float | None:
        """None where one of the answers cannot be read, or says nothing."""
        real, would_be = said(it.entry), said(candidate)
        if not real or not would_be:
            return None
        with self._meter.of(it.left.environment_id):
            return agreement.agreement(real, would_be)


def _add(answers: list[_Answer]) -> None:
    members = [(it.bucket, Member(it.left.question, it.left.call_id, it.vector), it.left.seconds) for it in answers]
    buckets.add(members, now=time.time())
