"""In the worker: questions join their buckets, and answers are held against those that like questions would have got."""

import base64
import time
import uuid
from dataclasses import dataclass

from aiplatform.gateway.cache import agreement, buckets, shelf
from aiplatform.gateway.cache.buckets import Member
from aiplatform.gateway.cache.leaving import Left
from aiplatform.gateway.cache.metering import Meter
from aiplatform.gateway.cache.said import said
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.lib import embedding
from aiplatform.lib.batching import Batcher
from aiplatform.lib.logs import log
from tenants import near_matching

BATCH = 16


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
        self._answers: Batcher[_Answer, None] = Batcher("near", self._joined, limit=BATCH)

    def put(self, left: Left) -> None:
        """Takes what a call has left, once that is kept; nothing where its name has no near matches."""
        if left.near is not None and left.entry is not None:
            matching, bucket, vector, candidate = left.near
            self._answers.put(_Answer(left, left.entry, matching, bucket, base64.b64decode(vector), candidate))

    def _joined(self, answers: list[_Answer]) -> list[None]:
        buckets.add(
            [(it.bucket, Member(it.left.question, it.left.call_id, it.vector), it.left.seconds) for it in answers],
            now=time.time(),
        )
        wanted = [it.candidate[0] for it in answers if it.candidate]
        kept = shelf.look(wanted) if wanted else {}
        for it in answers:
            if it.candidate and (candidate := kept.get(it.candidate[0])):
                self._score(it, candidate, *it.candidate[1:])
        return [None] * len(answers)

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
        try:
            with self._meter.of(it.left.environment_id):
                return agreement.agreement(real, would_be)
        except embedding.NotAvailable:
            log.warning("near.not_scored", call_id=str(it.left.call_id))
            return None
