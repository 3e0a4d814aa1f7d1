"""The beat's look at running batches: what their results say is settled, whether or not anybody asks for it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
from django.conf import settings

from aiplatform.gateway import batch_lines, catalogue
from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.logs import log
from aiplatform.providers.base import Broken, Reply, Unsent, Usage, parsed
from aiplatform.providers.registry import ADAPTERS, Clients
from tenants import secrets
from usage import ledger, objects
from usage.ledger import Ending

AT_ONCE = 50
SILENCE_SECONDS = 60.0
LONGEST_LINE = 64 * 1024 * 1024
_ENDED = frozenset(("completed", "failed", "expired", "cancelled", "ended"))


class NotNow(Exception):
    """The provider did not tell; it is asked again later."""


async def poll(clients: Clients) -> int:
    """Looks at the batches that were not seen for BATCH_POLL_SECONDS; how many of them were settled."""
    settled = 0
    for row in await asyncio.to_thread(_due):
        try:
            settled += await _look(row, clients)
        except (NotNow, Unsent, Broken, TimeoutError, ApiError) as error:
            log.warning("batch.not_seen", batch=row.provider_id, error=str(error)[:200])
        except Exception:  # noqa: BLE001 - an edge: one odd batch must not keep the others from their ends
            log.exception("batch.crashed", batch=row.provider_id)
    return settled


def _due() -> list[Any]:
    """Running batches with their money's call; each is another worker's business for the next BATCH_POLL_SECONDS."""
    return postgres.run(
        """UPDATE usage_providerobject o SET seen_at = now() FROM usage_call c
           WHERE o.id IN (SELECT w.id FROM usage_providerobject w
                          WHERE w.money_call_id IS NOT NULL AND w.ended_at IS NULL AND w.kind IN ('batch', 'message_batch')
                            AND w.seen_at < now() - %s * interval '1 second'
                          ORDER BY w.seen_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)
             AND c.id = o.money_call_id
           RETURNING o.id, o.tenant_id, o.environment_id, o.kind, o.wire, o.provider, o.credential, o.provider_id, o.call_id,
               o.money_call_id, c.price_id, c.tariff_id, c.is_live, c.model""",
        [settings.BATCH_POLL_SECONDS, AT_ONCE],
    )


async def _look(row: Any, clients: Clients) -> bool:
    if not row.is_live:  # its deadline passed, and the sweeper has ended it
        await asyncio.to_thread(objects.batch_ended, row.money_call_id)
        return False
    book = await asyncio.to_thread(catalogue.current, max_age=5)
    place = book.place(row.provider, row.wire)
    client = clients.get(row.wire, place.base_url, secrets.read(row.credential), door=place.door)
    told = parsed(await _all(await _get(client, row, _path(row))))
    if told is None or told.get("id") != row.provider_id:
        raise NotNow("the provider told no batch")
    await asyncio.to_thread(objects.batch_seen, row, told)
    if (told.get("status") or told.get("processing_status")) not in _ENDED:
        return False
    usage, evidence, done = Usage(variant=batch_lines.VARIANT), "provider", 0
    async for line in _results(client, row, told):
        if (body := _body(row, line)) is not None:
            done += 1
            evidence = "counted" if _add(usage, row, body) else evidence
    if done < _said_done(told):
        raise NotNow("the results are not complete")
    await asyncio.to_thread(_settle, row, usage, evidence)
    return True


def _said_done(told: dict[str, Any]) -> int:
    """How many lines the provider says that it has carried out."""
    counts = told.get("request_counts")
    found = [counts.get(name) for name in ("completed", "succeeded")] if isinstance(counts, dict) else []
    return max((one for one in found if type(one) is int), default=0)


def _path(row: Any) -> str:
    return f"/v1/batches/{row.provider_id}" if row.wire == "openai" else f"/v1/messages/batches/{row.provider_id}"


async def _get(client: Any, row: Any, path: str) -> Reply:
    endpoint = "files.content" if row.wire == "openai" else "message_batches.results"
    reply = await ADAPTERS[row.wire].send(client, endpoint, path, b"", {}, silence=SILENCE_SECONDS)
    if not reply.is_success:
        await reply.aclose()
        raise NotNow(f"status {reply.status}")
    return reply


async def _all(reply: Reply) -> bytes:
    try:
        return b"".join([chunk async for chunk in reply.chunks()])
    finally:
        await reply.aclose()


async def _results(client: Any, row: Any, told: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The lines of its results, however many; none where nothing was done. Raises NotNow for a line that cannot be read."""
    if row.wire == "anthropic":
        path = f"{_path(row)}/results" if told.get("results_url") else ""
    else:
        path = f"/v1/files/{told['output_file_id']}/content" if told.get("output_file_id") else ""
    if not path:
        return
    reply, rest = await _get(client, row, path), b""
    try:
        async for chunk in reply.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield _parsed(line)
            if len(rest) > LONGEST_LINE:
                raise NotNow("a line of the results is too long")
        yield _parsed(rest)
    finally:
        await reply.aclose()


def _parsed(line: bytes) -> dict[str, Any]:
    if not line.strip():
        return {}
    found = parsed(line)
    if found is None:
        raise NotNow("a line of the results cannot be read")
    return found


def _body(row: Any, line: dict[str, Any]) -> dict[str, Any] | None:
    """The reply to one line; None for one that was not carried out, which costs nothing."""
    result: Any = line.get("result" if row.wire == "anthropic" else "response")
    if not isinstance(result, dict):
        return None
    if row.wire == "anthropic":
        found = result.get("message") if result.get("type") == "succeeded" else None
    else:
        found = result.get("body") if result.get("status_code") == 200 else None  # noqa: PLR2004 - what is billed
    return found if isinstance(found, dict) else None


def _add(usage: Usage, row: Any, body: dict[str, Any]) -> bool:
    """Adds what one line used; whether that had to be counted, since the provider does not tell."""
    endpoint = "messages" if row.wire == "anthropic" else _endpoint(body)
    reading = ADAPTERS[row.wire].reader(endpoint).read_whole(orjson.dumps(body))
    one = reading.usage or Usage(output=-(-reading.text_bytes // 4))
    for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"):
        setattr(usage, name, getattr(usage, name) + getattr(one, name))
    for meter, units in one.meters.items():
        usage.meters[meter] = usage.meters.get(meter, 0) + units
    return reading.usage is None


def _settle(row: Any, usage: Usage, evidence: str) -> None:
    cost = catalogue.frozen_rates(row.price_id, row.tariff_id).cost(usage)
    if cost.marked:
        log.error("call.not_priced", call_id=str(row.money_call_id), price=row.price_id, missing=list(cost.marked))
    ending = Ending(
        row.money_call_id,
        "settled",
        200,
        evidence=evidence,
        cost_nano=cost.charge_nano,
        list_nano=cost.list_nano,
        provider_cost_nano=cost.provider_cost_nano,
        usage=usage,
        served_model=row.model,
        provider_request_id=row.provider_id[:200],
        attempt_outcome="answered",
    )
    rows = ledger.settle(None, [ending], from_states=["inflight", "unknown"], patience=30.0)
    done: Any = rows.get(uuid.UUID(str(row.money_call_id)))
    if done is not None and done.platform_loss_nano:
        log.error("call.above_its_hold", call_id=str(done.id), platform_loss_nano=done.platform_loss_nano)
    objects.batch_ended(row.money_call_id)


def _endpoint(body: Any) -> str:
    """Which reader knows a line's reply: a list of vectors, or a completion."""
    kind = body.get("object") if isinstance(body, dict) else None
    return {"list": "embeddings", "response": "responses"}.get(str(kind), "chat")
