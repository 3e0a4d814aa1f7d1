"""Whose the objects are that providers keep: written before their ids go out, asked before a call may name one."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from aiplatform.lib import postgres

# A list shows an object as the provider last told it; what is larger than this is shown by its id and kind only.
SHOWN_BYTES = 32 * 1024
MOST_LISTED = 1000
_ID = re.compile(r"[!-~]{1,200}")


class Conflict(Exception):
    """The provider told an id that stands for another environment's object already."""


def record(
    call: Any,
    *,
    kind: str,
    provider: str,
    model: str,
    credential: str,
    told: Mapping[str, Any],
    figures: Mapping[str, Any] | None = None,
    items: Mapping[str, Mapping[str, Any]] | None = None,
    money_call_id: uuid.UUID | None = None,
    patience: float = 30.0,
) -> None:
    """Puts on record that the object which `told` describes is the call's environment's; safe to repeat.

    `call` is a claimed call's row, `provider` and `model` are those that served it; `items` are the object's parts that have
    ids of their own, with their figures. The call `money_call_id` belongs to no worker from then on, and may take
    BATCH_DEADLINE_HOURS. Raises Unavailable after `patience`
    seconds, and Conflict.
    """
    rows = postgres.run(
        """WITH made AS (
               INSERT INTO usage_providerobject (tenant_id, environment_id, kind, wire, provider, credential, provider_id,
                   model, call_id, figures, shown, created_at, seen_at, expires_at, money_call_id)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now(), now(), %s, %s)
               ON CONFLICT (provider, provider_id) DO UPDATE SET shown = EXCLUDED.shown, figures = EXCLUDED.figures,
                   seen_at = now()
               WHERE usage_providerobject.environment_id = EXCLUDED.environment_id
                 AND usage_providerobject.kind = EXCLUDED.kind
               RETURNING id, money_call_id
           ), waits AS (
               UPDATE usage_call c SET worker_process = NULL, deadline_at = now() + %s * interval '1 hour'
               FROM made m WHERE c.id = m.money_call_id AND c.state = 'inflight'
           )
           SELECT id FROM made""",
        [
            call.tenant_id, call.environment_id, kind, call.wire, provider, credential, told["id"], model, call.id,
            _json(figures or {}), _json(_shown(told)), _moment(told.get("expires_at")),
            money_call_id, settings.BATCH_DEADLINE_HOURS,
        ],
        patience=patience,
    )  # fmt: skip
    if not rows:
        raise Conflict(f"{provider} told an id that is another's")
    if items:
        _record_items(call, (provider, credential, model), items, patience)


def _record_items(
    call: Any, served: tuple[str, str, str], items: Mapping[str, Mapping[str, Any]], patience: float
) -> None:
    """An item whose id stands for something already is left out: nobody can name it, which costs its owner a repetition.

    `served` is by which provider, credential and model.
    """
    postgres.run(
        """INSERT INTO usage_providerobject (tenant_id, environment_id, kind, wire, provider, credential, provider_id, model,
               call_id, figures, shown, created_at, seen_at)
           SELECT %s, %s, 'item', %s, %s, %s, i.id, %s, %s, i.figures, '{}', now(), now()
           FROM unnest(%s::text[], %s::jsonb[]) AS i(id, figures)
           ON CONFLICT (provider, provider_id) DO NOTHING""",
        [
            call.tenant_id, call.environment_id, call.wire, *served, call.id,
            [name.replace("\0", "")[:200] for name in items], [_json(figures) for figures in items.values()],
        ],
        patience=patience,
    )  # fmt: skip


def find(environment_id: uuid.UUID, wire: str, wanted: Sequence[tuple[str, str]]) -> list[Any]:
    """The rows of these (kind, id), in order; None where the environment has no such object. Kind "" is any.

    A deleted one is found too: its provider says in its own words that it is gone.
    """
    names = [name for _, name in wanted if _ID.fullmatch(name)]
    rows = postgres.run(
        """SELECT o.id, o.kind, o.provider, o.credential, o.provider_id, o.model, o.call_id, o.money_call_id, o.figures,
               o.ended_at, o.shown, o.created_at, o.expires_at, o.deleted_at
           FROM usage_providerobject o WHERE o.environment_id = %s AND o.wire = %s AND o.provider_id = ANY (%s)""",
        [environment_id, wire, names],
    )
    found = {row.provider_id: row for row in rows}
    return [row if (row := found.get(name)) is not None and kind in {"", row.kind} else None for kind, name in wanted]


def seen(environment_id: uuid.UUID, wire: str, told: Mapping[str, Any]) -> None:
    """Keeps what the provider has last told of an object of this environment."""
    gone = told.get("deleted") is True or str(told.get("type", "")).endswith("_deleted")
    postgres.run(
        """UPDATE usage_providerobject SET seen_at = now(), shown = CASE WHEN %s THEN shown ELSE %s::jsonb END,
               deleted_at = CASE WHEN %s THEN coalesce(deleted_at, now()) ELSE deleted_at END,
               expires_at = coalesce(%s, expires_at)
           WHERE environment_id = %s AND wire = %s AND provider_id = %s""",
        [gone, _json(_shown(told)), gone, _moment(told.get("expires_at")), environment_id, wire, told["id"]],
    )


def batch_seen(row: Any, told: Mapping[str, Any]) -> None:
    """Keeps what the provider tells of a batch: the files that it names are its environment's from then on."""
    seen(row.environment_id, row.wire, told)
    for name in ("output_file_id", "error_file_id"):
        if isinstance(told.get(name), str):
            postgres.run(
                """INSERT INTO usage_providerobject (tenant_id, environment_id, kind, wire, provider, credential, provider_id,
                       model, call_id, money_call_id, figures, shown, created_at, seen_at, ended_at)
                   SELECT b.tenant_id, b.environment_id, 'file', b.wire, b.provider, b.credential, %s, '', b.call_id,
                       b.money_call_id, '{}', %s, now(), now(), b.ended_at
                   FROM usage_providerobject b WHERE b.environment_id = %s AND b.wire = %s AND b.provider_id = %s
                   ON CONFLICT DO NOTHING""",
                [told[name], _json(_output_file(told, name)), row.environment_id, row.wire, told["id"]],
            )


def batch_ended(money_call_id: uuid.UUID) -> None:
    """The money of a batch is settled: it and its files may be deleted now."""
    postgres.run(
        "UPDATE usage_providerobject SET ended_at = now() WHERE money_call_id = %s AND ended_at IS NULL",
        [money_call_id],
    )


def _output_file(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A file as lists show it until its provider has been asked."""
    return {
        "id": told[name],
        "object": "file",
        "bytes": 0,
        "created_at": told.get("created_at"),
        "filename": f"{told['id']}_{name.removesuffix('_file_id')}.jsonl",
        "purpose": "batch_output",
        "status": "processed",
    }


def listed(environment_id: uuid.UUID, wire: str, kind: str) -> list[dict[str, Any]]:
    """The environment's objects of this kind that are not deleted, the newest first, as their provider last told them."""
    rows = postgres.run(
        """SELECT o.shown FROM usage_providerobject o
           WHERE o.environment_id = %s AND o.wire = %s AND o.kind = %s AND o.deleted_at IS NULL
             AND (o.expires_at IS NULL OR o.expires_at > now() OR o.kind <> 'file')
           ORDER BY o.id DESC LIMIT %s""",
        [environment_id, wire, kind, MOST_LISTED],
    )
    return [row.shown for row in rows]


def _shown(told: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(_json(told)) <= SHOWN_BYTES:
        return told
    return {name: told[name] for name in ("id", "object", "type", "created_at", "status") if name in told}


def _json(value: Mapping[str, Any]) -> str:
    """As Postgres takes it: without NUL and lone surrogates, which providers do send."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode().replace("\\u0000", "\\ufffd")


def _moment(told: Any) -> datetime | None:
    """A Unix time or an ISO date; None for anything else."""
    try:
        if isinstance(told, int | float) and not isinstance(told, bool):
            return datetime.fromtimestamp(told, UTC)
        moment = datetime.fromisoformat(told) if isinstance(told, str) else None
    except (ValueError, OverflowError, OSError):
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
