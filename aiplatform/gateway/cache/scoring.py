"""In the worker: questions join their buckets, and answers are held against those that like questions would have got."""

import base64
import time
import uuid
from collections.abc import Sequence

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


class Scoring:
    """One worker process's; it has a thread of its own, and no call waits for it."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._answers: Batcher[Left, None] = Batcher("near", self._joined, limit=BATCH)

    def put(self, left: Left) -> None:
        """Takes what a call has left, once that is kept; nothing where its name has no near matches."""
        if left.near is not None and left.entry is not None:
            self._answers.put(left)

    def _joined(self, all_left: list[Left]) -> list[None]:
        buckets.add([_member(left) for left in all_left], now=time.time())
        compared = [left for left in all_left if left.near and left.near[3]]
        kept = shelf.look([left.near[3][0] for left in compared if left.near]) if compared else {}
        for left in compared:
            self._score(left, kept)
        return [None] * len(all_left)

    def _score(self, left: Left, kept: dict[str, Entry]) -> None:
        matching, _, _, (question, source, likeness) = left.near or ()
        candidate = kept.get(question)
        if candidate is None or candidate.call_id != uuid.UUID(source):
            return  # it has gone meanwhile, or was made anew
        agreed = self._agreement(left, candidate)
        if agreed is not None:
            near_matching.score(
                matching, likeness=likeness, agreement=agreed, call_id=left.call_id, source_call_id=candidate.call_id
            )

    def _agreement(self, left: Left, candidate: Entry) -> float | None:
        """None where one of the answers cannot be read, or says nothing."""
        texts: Sequence[str | None] = [said(entry) for entry in (left.entry, candidate) if entry is not None]
        if not all(texts):
            return None
        real, would_be = (text or "" for text in texts)
        try:
            with self._meter.of(left.environment_id):
                return agreement.agreement(real, would_be)
        except embedding.NotAvailable:
            log.warning("near.not_scored", call_id=str(left.call_id))
            return None


def _member(left: Left) -> tuple[str, Member, int]:
    _, bucket, vector, _ = left.near or ()
    return bucket, Member(left.question, left.call_id, base64.b64decode(vector)), left.seconds
