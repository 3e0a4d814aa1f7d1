"""The only writer of money: holds, claims and settles calls in batches, each by one SQL function (usage/sql, docs/money.md)."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from django.conf import settings

from aiplatform.lib import postgres
from aiplatform.providers.base import Usage


@dataclass(slots=True)
class Hold:
    """A call that asks to be admitted; amounts in nano-USD, `output_pico` in pico-USD per output token."""

    call_id: uuid.UUID
    key_id: uuid.UUID
    end_user: str
    request_id: str
    wire: str
    endpoint: str
    model: str
    provider: str
    streamed: bool
    price_id: int
    base_nano: int
    output_pico: int
    wanted_tokens: int
    floor_tokens: int
    headers: dict[str, Any]
    body: bytes


_HOLD = """SELECT * FROM usage_hold(%s::uuid, %s::bigint, %s * interval '1 second', %s * interval '1 second', %s::uuid[],
    %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::jsonb[], %s::bytea[]) ORDER BY n"""


def hold(web: uuid.UUID, revision: int, holds: Sequence[Hold]) -> list[Any]:
    """A row of `usage_hold` for each, in order: `verdict` held, stale, key_invalid, cap_exceeded or cap_contended.

    Raises Unavailable, and then nothing is held, or the holds are void soon (no web process waits for them).
    """
    if not holds:
        return []
    columns = zip(
        *(
            (h.call_id, h.key_id, h.end_user, h.request_id, h.wire, h.endpoint, h.model, h.provider, h.streamed, h.price_id,
             h.base_nano, h.output_pico, h.wanted_tokens, h.floor_tokens, orjson.dumps(h.headers).decode(), h.body)
            for h in holds
        ),
        strict=True,
    )  # fmt: skip
    return postgres.run(
        _HOLD,
        [web, revision, settings.START_WITHIN_SECONDS, settings.CALL_DEADLINE_SECONDS, *map(list, columns)],
        patience=1.5,
    )


def idle_seconds() -> float:
    """How long ago the last call was admitted, as far as an hour back."""
    (row,) = postgres.run(
        """SELECT coalesce(extract(epoch FROM now() - max(admitted_at)), 3600)::float8 AS idle FROM usage_call
           WHERE id >= usage_uuid_at(now() - interval '1 hour')"""
    )
    return float(row.idle)


def claim(worker: uuid.UUID, call_ids: Sequence[uuid.UUID]) -> list[Any]:
    """The rows of the calls that are now this worker's to send; those that others took are not among them."""
    return postgres.run(
        "SELECT * FROM usage_claim(%s::uuid, %s::uuid[])",
        [worker, sorted(call_ids)],
        patience=settings.LEASE_LOST_SECONDS,
    )


@dataclass(slots=True)
class Retry:
    """The end of a try that is followed by another after `wait_ms`."""

    call_id: uuid.UUID
    wait_ms: int
    outcome: str
    error: str
    status: int | None
    provider_request_id: str


def retry(retries: Sequence[Retry]) -> None:
    """Closes the last attempt of each call and opens the next one; durable before its first byte may leave."""
    columns = zip(
        *((r.call_id, r.outcome, _clean(r.error), r.status, r.wait_ms, _clean(r.provider_request_id)) for r in retries),
        strict=True,
    )
    postgres.run(
        """WITH u AS (SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::smallint[], %s::integer[], %s::text[])
                      AS u(call_id, outcome, error, status, wait, provider_request_id)),
            last AS (SELECT a.call_id, max(a.n) AS n FROM usage_attempt a JOIN u USING (call_id) GROUP BY a.call_id),
            ended AS (UPDATE usage_attempt a SET outcome = u.outcome, error = u.error, status = u.status,
                        provider_request_id = u.provider_request_id, ended_at = clock_timestamp()
                      FROM u JOIN last USING (call_id)
                      WHERE a.call_id = u.call_id AND a.n = last.n AND a.outcome = 'sent'
                      RETURNING a.call_id, a.n, a.provider, u.wait)
           INSERT INTO usage_attempt (call_id, n, provider, started_at, backoff_ms)
           SELECT e.call_id, e.n + 1, e.provider, clock_timestamp() + e.wait * interval '1 millisecond', e.wait
           FROM ended e""",
        [list(column) for column in columns],
        patience=settings.LEASE_LOST_SECONDS,
    )


@dataclass(slots=True)
class Ending:
    """How a call ended. `cost_nano` is what its tokens cost by the price row; the tenant pays at most his hold."""

    call_id: uuid.UUID
    state: str
    status: int
    error_code: str = ""
    evidence: str = ""
    cost_nano: int = 0
    provider_cost_nano: int = 0
    exposure_nano: int = 0
    usage: Usage = field(default_factory=Usage)
    served_model: str = ""
    provider_request_id: str = ""
    first_byte_at: datetime | None = None
    attempt_outcome: str | None = None
    attempt_error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


_SETTLE = """SELECT * FROM usage_settle(%s::uuid, %s::text[], %s::uuid[], %s::text[], %s::smallint[], %s::text[], %s::text[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::text[], %s::jsonb[], %s::bytea[])"""


def settle(
    worker: uuid.UUID | None,
    endings: Sequence[Ending],
    *,
    from_states: Sequence[str] = ("inflight",),
    patience: float = 2.0,
) -> dict[uuid.UUID, Any]:
    """Ends calls, once: rows (charged_nano, platform_loss_nano, remaining_nano) by id of those that this statement ended.

    `worker` is the owner whose calls they must be, None for the sweeper. Raises Unavailable after `patience` seconds; the
    holds stay, and the same endings can be settled again.
    """
    if not endings:
        return {}
    columns = zip(
        *(
            (e.call_id, e.state, e.status, _clean(e.error_code), e.evidence, e.cost_nano, e.provider_cost_nano, e.exposure_nano,
             e.usage.input, e.usage.cache_read, e.usage.cache_write_5m, e.usage.cache_write_1h, e.usage.output,
             e.usage.reasoning, _clean(e.served_model), _clean(e.provider_request_id), e.first_byte_at, e.attempt_outcome,
             _clean(e.attempt_error), orjson.dumps(e.headers).decode(), e.body)
            for e in endings
        ),
        strict=True,
    )  # fmt: skip
    rows = postgres.run(_SETTLE, [worker, list(from_states), *map(list, columns)], patience=patience)
    return {row.id: row for row in rows}


def _clean(text: str) -> str:
    """Text that Postgres takes: without NUL and lone surrogates, which providers do send."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
