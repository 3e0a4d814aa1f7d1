"""In the worker: what an answer tells of a kept object is on record before the answer goes out."""

import asyncio
from typing import Any

import jiter

from aiplatform.gateway import batch_lines, batches
from aiplatform.gateway.wires import forms
from aiplatform.providers.base import Reading
from usage import background, objects

# The answer must not go out before its object is on record, so this is as patient as a settlement.
PATIENCE_SECONDS = 24 * 3600.0


async def kept(job: Any, reading: Reading) -> None:
    """Records the object that an answer made, once, or what it tells anew of one that the call named.

    `job` is a `chain.Job`. Raises `usage.objects.Conflict` where the provider told another environment's id.
    """
    told, call = reading.object, job.call
    if told is None or reading.is_kept or not isinstance(told.get("id"), str):
        return
    reading.is_kept = True
    if kind := call.headers.get("makes"):
        await asyncio.to_thread(
            objects.record,
            call,
            kind=kind,
            provider=job.place.name,
            model=job.step.model,
            credential=job.secret_ref,
            told=told,
            figures=reading.figures | call.headers.get("figures", {}) if reading.figures else {},
            items=reading.items,
            money_call_id=job.money.call_id if job.money else None,
            patience=PATIENCE_SECONDS,
        )
        if job.money:
            job.money.is_kept = True
    elif told["id"] in call.headers.get("names", ()):
        await asyncio.to_thread(objects.batch_seen, call, told)


async def begun(job: Any, reading: Reading, headers: dict[str, str], body: bytes | None) -> bool:
    """Whether the provider carries the call out in the background: that is on record then, before anybody hears of it.

    `body` and `headers` are its first answer, None of a stream.
    """
    told = reading.object
    if told is None or not (reading.is_background and reading.is_pending and job.call.headers.get("makes")):
        return False
    await asyncio.to_thread(
        background.begin,
        job.call,
        provider=job.place.name,
        response_id=told["id"],
        credential=job.secret_ref,
        is_streaming=body is None,
        headers=headers,
        body=body,
        patience=PATIENCE_SECONDS,
    )
    return True


async def left(job: Any) -> None:
    """The call goes on, but this worker does not hear of it any more."""
    await asyncio.to_thread(background.leave, job.call.id)


def screened(call: Any) -> Any:
    """The request's texts, for the screen: of a form its fields, of a batch its lines."""
    if (call.wire, call.endpoint) in batches.CREATES:
        return [jiter.from_json(line.body) for line in batch_lines.lines_of(call)]
    kind, body = call.headers["forward"].get("content-type", ""), bytes(call.body)
    if kind.lower().startswith("multipart/"):
        return forms.read(kind, body).fields
    return jiter.from_json(body) if body else None
