"""The Celery tasks, and what a worker process does at its beginning and its end."""

import uuid
from typing import Any

from celery import signals
from django.conf import settings

from aiplatform.celery import app
from aiplatform.gateway import recovery, runtime, webhooks
from aiplatform.lib import logs
from tenants.webhooks import notices
from usage import audits, cap_notices, seals


@app.task(name="aiplatform.gateway.tasks.run_calls")
def run_calls(call_ids: list[str], lane: str = "interactive") -> None:
    """The doorbell of held calls of one lane; claims them and hands them to this process's loop."""
    wanted = [uuid.UUID(call_id) for call_id in call_ids]
    if lane == "batch":
        runtime.current().queue(wanted)
    else:
        runtime.current().run(wanted)


@app.task(name="aiplatform.gateway.tasks.sweep")
def sweep() -> None:
    """One round of the sweeper; a second one at the same time does nothing."""
    recovery.sweep()


@app.task(name="aiplatform.gateway.tasks.look_at_background")
def look_at_background() -> None:
    """One round of looking at calls in the background that are due."""
    runtime.current().look_at_background()


@app.task(name="aiplatform.gateway.tasks.settle_batches")
def settle_batches() -> None:
    """One look at the batches that run, in a worker, which has the providers' secrets."""
    runtime.current().look_at_batches()


@app.task(name="aiplatform.gateway.tasks.tell_notices")
def tell_notices() -> None:
    """One round of telling who has reached a threshold; apart from the sweeper, which a slow mail server must not hold up."""
    cap_notices.tell_notices()
    notices.tell_disabled()


@app.task(name="aiplatform.gateway.tasks.send_webhooks")
def send_webhooks() -> None:
    """One round of webhooks: what has happened is put into words, and what is due is sent."""
    webhooks.send()


@app.task(name="aiplatform.gateway.tasks.seal")
def seal() -> None:
    """Seals what was booked since the last time."""
    seals.seal()


@app.task(name="aiplatform.gateway.tasks.audit")
def audit() -> None:
    """Compares what moved since the last time with the rows, and every cap's running period."""
    audits.run(complete=False)


@app.task(name="aiplatform.gateway.tasks.audit_all")
def audit_all() -> None:
    """Compares everything with the rows, at night."""
    audits.run(complete=True)


@signals.setup_logging.connect
def _log_as_json(**_: Any) -> None:
    logs.configure(settings.LOG_LEVEL)


@signals.worker_ready.connect
def _start(**_: Any) -> None:
    runtime.current()
    runtime.announce_ready()


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    runtime.current().refuse()
    webhooks.refuse()


@signals.worker_shutdown.connect
def _stop(**_: Any) -> None:
    runtime.current().drain(settings.DRAIN_SECONDS)
    webhooks.stop(settings.WEBHOOK_TIMEOUT_SECONDS)  # since it was told to refuse, whatever it sends is nearly over
