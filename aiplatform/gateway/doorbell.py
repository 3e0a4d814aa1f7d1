"""Celery's part in a call: one message a batch, ids only. The row in Postgres is the truth; a lost message is rung again."""

import uuid
from collections.abc import Iterable, Sequence

from kombu.exceptions import OperationalError

from aiplatform.celery import app
from aiplatform.lib import redis
from aiplatform.lib.logs import log


def ring(call_ids: Sequence[uuid.UUID]) -> bool:
    """Tells the workers of held calls; False where the broker is lost, and then the sweeper will ring."""
    if not call_ids:
        return True
    try:
        app.send_task("aiplatform.gateway.tasks.run_calls", [[call_id.hex for call_id in call_ids]])
    except (OperationalError, OSError, *redis.LOST) as error:
        log.warning("doorbell.lost", calls=len(call_ids), error=type(error).__name__)
        return False
    return True


def free_places(places: Iterable[tuple[uuid.UUID, Sequence[str]]]) -> None:
    """Gives back the places of calls among their limits' concurrent ones; what is lost here expires by itself."""
    pipeline = redis.client().pipeline(transaction=False)
    for call_id, keys in places:
        for key in keys:
            pipeline.zrem(key, str(call_id))
    if not pipeline.command_stack:
        return
    try:
        pipeline.execute()
    except redis.LOST as error:
        log.warning("limits.places_not_freed", error=type(error).__name__)
