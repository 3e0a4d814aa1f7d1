"""Celery's part in a call: one message a batch, ids only. The row in Postgres is the truth; a lost message is rung again."""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kombu.exceptions import OperationalError

from aiplatform.celery import app
from aiplatform.lib import redis
from aiplatform.lib.logs import log

QUEUES = {"interactive": "calls", "batch": "calls-batch"}


def ring(calls: Iterable[tuple[uuid.UUID, str]]) -> bool:
    """Tells the workers of held calls, each with its lane; False where the broker is lost, and then the sweeper will ring."""
    by_lane: dict[str, list[uuid.UUID]] = defaultdict(list)
    for call_id, lane in calls:
        by_lane[lane].append(call_id)
    rung = [ring_in(lane, call_ids) for lane, call_ids in by_lane.items()]  # every lane, whatever became of one
    return all(rung)


def ring_in(lane: str, call_ids: Sequence[uuid.UUID]) -> bool:
    """The same for calls of one lane."""
    if not call_ids:
        return True
    try:
        app.send_task(
            "aiplatform.gateway.tasks.run_calls", [[call_id.hex for call_id in call_ids], lane], queue=QUEUES[lane]
        )
    except (OperationalError, OSError, *redis.LOST) as error:
        log.warning("doorbell.lost", calls=len(call_ids), error=type(error).__name__)
        return False
    return True
