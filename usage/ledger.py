"""The only writer of money: holds, claims and settles calls in batches, each by one SQL function (usage/sql, docs/money.md)."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from django.conf import settings

from aiplatform.lib import postgres
from aiplatform.lib.postgres import blobs, plain, texts
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
    tariff_id: int | None = None
    idempotency_hash: bytes | None = None
    body_hash: bytes | None = None
    lane: str = "interactive"
    detached: bool = False


_HOLD = """SELECT * FROM usage_hold(%s::uuid, %s::bigint, %s::text[], %s::boolean[], %s::interval[], %s::interval[],
    %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[], %s::jsonb[],
    %s::bytea[])"""


def hold(web: uuid.UUID, revision: int, holds: Sequence[Hold]) -> list[Any]:
    """A row of `usage_hold` for each, in order, with its `verdict`: held, stale (the catalogue has changed), again (a
    call with the same Idempotency-Key is in this batch), key_invalid, suspended, cap_exceeded, cap_contended, replay (of the
    call `call_id`) or key_reused.

    Raises Unavailable, and then nothing is held, or the holds are void soon (no web process waits for them).
    """
    if not holds:
        return []
    return postgres.run(_HOLD, _hold_arguments(web, revision, holds), patience=1.5)


def _hold_arguments(web: uuid.UUID, revision: int, holds: Sequence[Hold]) -> list[Any]:
    starts = [
        settings.BATCH_START_WITHIN_SECONDS if h.lane == "batch" else settings.START_WITHIN_SECONDS for h in holds
    ]
    # That of a batch call counts from its claim, at the latest from the end of its wait.
    waits = [start if h.lane == "batch" else 0 for h, start in zip(holds, starts, strict=True)]
    return [
        web, revision, texts(h.lane for h in holds), plain(h.detached for h in holds),
        texts(f"{start} seconds" for start in starts),
        texts(f"{wait + settings.CALL_DEADLINE_SECONDS} seconds" for wait in waits),
        plain(h.call_id.hex for h in holds), plain(h.key_id.hex for h in holds), texts(h.end_user for h in holds),
        texts(h.request_id for h in holds), texts(h.wire for h in holds), texts(h.endpoint for h in holds),
        texts(h.model for h in holds), texts(h.provider for h in holds), plain(h.streamed for h in holds),
        plain(h.price_id for h in holds), plain(h.tariff_id for h in holds), plain(h.base_nano for h in holds),
        plain(h.output_pico for h in holds), plain(h.wanted_tokens for h in holds), plain(h.floor_tokens for h in holds),
        blobs(h.idempotency_hash for h in holds), blobs(h.body_hash for h in holds),
        texts(orjson.dumps(h.headers).decode() for h in holds), blobs(h.body for h in holds),
    ]  # fmt: skip


@dataclass(slots=True)
class Given:
    """A call that got another's answer; `saved_nano` is what that one was charged, less what this one is."""

    call_id: uuid.UUID
    tenant_id: uuid.UUID
    environment_id: uuid.UUID
    key_id: uuid.UUID
    end_user: str
    request_id: str
    wire: str
    endpoint: str
    model: str
    provider: str
    streamed: bool
    price_id: int
    kind: str
    source: uuid.UUID
    age_seconds: int
    saved_nano: int
    charged_nano: int = 0
    share_bps: int = 0
    status: int = 200
    served_model: str = ""


_RECORD = """INSERT INTO usage_call (
        id, tenant_id, environment_id, api_key_id, end_user, request_id, wire, endpoint, model, provider, streamed, price_id,
        cached, cached_from, cached_age_seconds, saved_nano, cache_share_bps, status, served_model, state, is_live, evidence,
        held_nano, bucket_ids, max_output_tokens, admitted_at, start_by, deadline_at, next_ring_at, web_process, settled_at,
        variant, clamped)
    SELECT u.*, CASE WHEN u.status = 200 THEN 'settled' ELSE 'void' END, false,
        CASE WHEN u.status = 200 THEN 'cache' ELSE '' END, 0, '{}', 0, m.at, m.at, m.at, m.at, %s::uuid, m.at, 'standard', false
    FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
        %s::text[], %s::boolean[], %s::bigint[], %s::text[], %s::uuid[], %s::integer[], %s::bigint[], %s::smallint[],
        %s::smallint[], %s::text[])
        AS u(id, tenant_id, environment_id, api_key_id, end_user, request_id, wire, endpoint, model, provider, streamed,
            price_id, cached, cached_from, cached_age_seconds, saved_nano, cache_share_bps, status, served_model),
        LATERAL (SELECT usage_now() AS at) m
    ON CONFLICT DO NOTHING"""


def record(web: uuid.UUID, given: Sequence[Given], *, patience: float = 600.0) -> None:
    """Puts calls on record that cost nothing, since another call had made their answers; once, however often it is repeated.

    Raises Unavailable.
    """
    postgres.run(
        _RECORD,
        [
            web, plain(g.call_id.hex for g in given), plain(g.tenant_id.hex for g in given),
            plain(g.environment_id.hex for g in given), plain(g.key_id.hex for g in given),
            texts(g.end_user for g in given), texts(g.request_id for g in given), texts(g.wire for g in given),
            texts(g.endpoint for g in given), texts(g.model for g in given), texts(g.provider for g in given),
            plain(g.streamed for g in given), plain(g.price_id for g in given), texts(g.kind for g in given),
            plain(g.source.hex for g in given), plain(g.age_seconds for g in given), plain(g.saved_nano for g in given),
            plain(g.share_bps for g in given), plain(g.status for g in given),
            texts(_clean(g.served_model) for g in given),
        ],
        patience=patience,
    )  # fmt: skip


_GIVE = """SELECT * FROM usage_give(%s::uuid, %s::bigint, %s::text[], %s::boolean[], %s::interval[], %s::interval[],
    %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[], %s::jsonb[],
    %s::bytea[], %s::text[], %s::uuid[], %s::integer[], %s::bigint[], %s::smallint[], %s::text[], %s::jsonb[], %s::bytea[])"""


def give(
    web: uuid.UUID,
    revision: int,
    given: Sequence[tuple[Hold, Given]],
    answers: Sequence[tuple[dict[str, str], bytes] | None],
) -> list[Any]:
    """Holds and settles calls that got another's answer, in one transaction: a row as of `hold` for each, in order.

    Each is charged its hold's `base_nano`. `answers` are (headers, body) of those that can be asked for once more. Raises
    Unavailable, and then nothing is charged, or all of it was, and the same can be asked again.
    """
    told = [one for _, one in given]
    return postgres.run(
        _GIVE,
        [
            *_hold_arguments(web, revision, [hold for hold, _ in given]),
            texts(g.kind for g in told), plain(g.source.hex for g in told), plain(g.age_seconds for g in told),
            plain(g.saved_nano for g in told), plain(g.share_bps for g in told),
            texts(_clean(g.served_model) for g in told),
            texts(orjson.dumps(answer[0] if answer else {}).decode() for answer in answers),
            blobs(answer[1] if answer else None for answer in answers),
        ],
        patience=1.5,
    )  # fmt: skip


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
    """The end of a try that is followed by another after `wait_ms`.

    `cost_nano` is what the provider charges for it all the same, `charge_nano` what of that the tenant pays by his plan.
    """

    call_id: uuid.UUID
    wait_ms: int
    outcome: str
    error: str
    status: int | None = None
    provider_request_id: str = ""
    cost_nano: int = 0
    charge_nano: int = 0
    model: str = ""
    credential: str = ""
    next_model: str = ""
    next_credential: str = ""
    step: "Step | None" = None
    """Where the next try goes to another step of the call's chain: its frozen figures."""
    n: int = 0
    """The number of the try that ended; 0 is the last one, whichever that is."""


@dataclass(frozen=True, slots=True)
class Step:
    """One way in which a call may be served, frozen when it was held."""

    provider: str
    wire: str
    model: str
    price_id: int
    tariff_id: int | None


_RETRY = """SELECT id FROM usage_retry(%s::uuid, %s::uuid[], %s::smallint[], %s::text[], %s::text[], %s::smallint[],
    %s::integer[], %s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
    %s::bigint[], %s::bigint[])"""


def retry(retries: Sequence[Retry], *, worker: uuid.UUID | None = None) -> set[uuid.UUID]:
    """Closes the last attempt of each call and opens the next one; durable before its first byte may leave.

    Returns the calls that may go on; `worker` is the owner whose calls they must be.
    """
    steps = [r.step for r in retries]
    rows = postgres.run(
        _RETRY,
        [
            worker, plain(r.call_id.hex for r in retries), plain(r.n for r in retries), texts(r.outcome for r in retries),
            texts(_clean(r.error) for r in retries), plain(r.status for r in retries), plain(r.wait_ms for r in retries),
            texts(_clean(r.provider_request_id) for r in retries), plain(r.cost_nano for r in retries),
            plain(r.charge_nano for r in retries), texts(r.model for r in retries), texts(r.credential for r in retries),
            texts(step.provider if step else None for step in steps), texts(r.next_model for r in retries),
            texts(r.next_credential for r in retries), plain(step.price_id if step else None for step in steps),
            plain(step.tariff_id if step else None for step in steps),
        ],
        patience=settings.LEASE_LOST_SECONDS,
    )  # fmt: skip
    return {row.id for row in rows}


@dataclass(slots=True)
class Ending:
    """How a call ended: what it costs at the tenant's contract price (he pays at most his hold), at list price, and us."""

    call_id: uuid.UUID
    state: str
    status: int
    error_code: str = ""
    evidence: str = ""
    cost_nano: int = 0
    list_nano: int = 0
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
    attempt_model: str = ""
    attempt_credential: str = ""


_SETTLE = """SELECT * FROM usage_settle(%s::uuid, %s::text[], %s::uuid[], %s::text[], %s::smallint[], %s::text[], %s::text[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::jsonb[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::text[],
    %s::text[], %s::text[], %s::jsonb[], %s::bytea[])"""


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
    rows = postgres.run(_SETTLE, _settle_arguments(worker, endings, from_states), patience=patience)
    return {row.id: row for row in rows}


def _settle_arguments(worker: uuid.UUID | None, endings: Sequence[Ending], from_states: Sequence[str]) -> list[Any]:
    return [
        worker, texts(from_states),
        plain(e.call_id.hex for e in endings), texts(e.state for e in endings), plain(e.status for e in endings),
        texts(_clean(e.error_code) for e in endings), texts(e.evidence for e in endings), plain(e.cost_nano for e in endings),
        plain(e.list_nano for e in endings), plain(e.provider_cost_nano for e in endings),
        plain(e.exposure_nano for e in endings), plain(e.usage.input for e in endings),
        plain(e.usage.cache_read for e in endings), plain(e.usage.cache_write_5m for e in endings),
        plain(e.usage.cache_write_1h for e in endings), plain(e.usage.output for e in endings),
        plain(e.usage.reasoning for e in endings),
        texts(orjson.dumps(e.usage.meters).decode() if e.usage.meters else None for e in endings),
        texts(e.usage.variant for e in endings), texts(_clean(e.served_model) for e in endings),
        texts(_clean(e.provider_request_id) for e in endings),
        texts(e.first_byte_at.isoformat() if e.first_byte_at else None for e in endings),
        texts(e.attempt_outcome for e in endings),
        texts(_clean(e.attempt_error) for e in endings), texts(e.attempt_model for e in endings),
        texts(e.attempt_credential for e in endings), texts(orjson.dumps(e.headers).decode() for e in endings),
        blobs(e.body for e in endings),
    ]  # fmt: skip


@dataclass(slots=True)
class Correction:
    """What an ended call should have been charged, and what it cost us."""

    call_id: uuid.UUID
    charge_nano: int
    provider_cost_nano: int


def correct(
    corrections: Sequence[Correction], *, reason: str, charge_tenant: bool = False, patience: float = 30.0
) -> dict[uuid.UUID, Any]:
    """Books the differences as new entries with their reason: (charged_delta_nano, cost_delta_nano, house_nano) by call.

    What is in the tenant's favour is always his; what is against him only with `charge_tenant`, and at most what his caps
    still afford; the rest is the house's. Safe to repeat: a second time there is no difference left. Calls that have not
    ended are left out.
    """
    if not corrections:
        return {}
    columns = zip(*((c.call_id, c.charge_nano, c.provider_cost_nano) for c in corrections), strict=True)
    rows = postgres.run(
        "SELECT * FROM usage_correct(%s::uuid[], %s::bigint[], %s::bigint[], %s, %s)",
        [*(list(column) for column in columns), _clean(reason), charge_tenant],
        patience=patience,
    )
    return {row.id: row for row in rows}


def _clean(text: str) -> str:
    """Text that Postgres takes: without NUL and lone surrogates, which providers do send."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
