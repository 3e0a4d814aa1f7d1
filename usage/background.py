"""Which calls a provider carries out in the background, and who looks at them when: durable, and nobody's own.

A look is free and safe to repeat, so taking one is no claim of the call: it only puts off the next. The money is settled by
whoever sees the end first, and `ledger.settle` lets nobody be the second.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from django.conf import settings

from aiplatform.lib import postgres
from aiplatform.lib.postgres import blobs

LONGEST_PAUSE_SECONDS = 30
# So long before the deadline of a call the provider is told to stop, and how it ended is still heard.
LATE_SECONDS = 30

_CALLS = """SELECT c.id, c.tenant_id, c.environment_id, c.api_key_id, c.price_id, c.tariff_id, c.request_id, c.wire, c.endpoint,
        c.model, c.provider, c.streamed, c.held_nano, c.max_output_tokens, c.web_process, b.response_id, b.credential, b.looks,
        c.deadline_at < now() + %s * interval '1 second' AS is_late, p.headers, ''::bytea AS body
    FROM usage_backgroundcall b JOIN usage_call c ON c.id = b.call_id
    JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'request'"""


def begin(
    call: Any,
    *,
    provider: str,
    response_id: str,
    credential: str,
    is_streaming: bool,
    headers: Mapping[str, str],
    body: bytes | None,
    patience: float,
) -> None:
    """Puts on record that the provider has taken the call, before anybody hears of it; safe to repeat.

    `body` and `headers` are its first answer, None of a stream. Raises Unavailable after `patience` seconds.
    """
    postgres.run(
        """WITH begun AS (
               INSERT INTO usage_backgroundcall (call_id, provider, response_id, credential, is_streaming, looks, next_look_at,
                   begun_at)
               VALUES (%s, %s, %s, %s, %s, 0, now() + %s * interval '1 second', now()) ON CONFLICT DO NOTHING
           ), given_time AS (
               UPDATE usage_call SET deadline_at = greatest(deadline_at, now() + %s * interval '1 second')
               WHERE id = %s AND is_live
           )
           INSERT INTO usage_callpayload (call_id, kind, headers, body)
           SELECT %s, 'response', %s, u.body FROM unnest(%s::bytea[]) AS u(body) WHERE u.body IS NOT NULL
           ON CONFLICT DO NOTHING""",
        [
            call.id, provider, response_id, credential, is_streaming, settings.BACKGROUND_POLL_SECONDS,
            settings.BACKGROUND_DEADLINE_SECONDS, call.id, call.id, orjson.dumps(dict(headers)).decode(), blobs([body]),
        ],
        patience=patience,
    )  # fmt: skip


def leave(call_id: uuid.UUID) -> None:
    """Its worker does not hear of it any more: anybody looks, at once."""
    postgres.run(
        "UPDATE usage_backgroundcall SET is_streaming = false, next_look_at = now() WHERE call_id = %s", [call_id]
    )


def due(most: int) -> list[Any]:
    """Calls that are to be looked at now, and by nobody else for a while: the rows that a claim gives, without their bodies."""
    taken = postgres.run(
        """UPDATE usage_backgroundcall b SET looks = least(b.looks + 1, 30000),
               next_look_at = now() + least(%s * 2 ^ least(b.looks, 10), %s) * (0.75 + random() / 2) * interval '1 second'
           WHERE b.call_id IN (
               SELECT x.call_id FROM usage_backgroundcall x
               JOIN usage_call c ON c.id = x.call_id LEFT JOIN usage_processlease l ON l.id = c.worker_process
               WHERE x.next_look_at < now() AND c.is_live AND NOT (x.is_streaming AND coalesce(l.state, '') = 'alive')
               ORDER BY x.next_look_at LIMIT %s FOR NO KEY UPDATE OF x SKIP LOCKED)
           RETURNING b.call_id""",
        [settings.BACKGROUND_POLL_SECONDS, LONGEST_PAUSE_SECONDS, most],
    )
    if not taken:
        return []
    return postgres.run(f"{_CALLS} WHERE b.call_id = ANY (%s)", [LATE_SECONDS, [row.call_id for row in taken]])


def running(environment_id: uuid.UUID, provider: str, response_id: str) -> Any:
    """The call that this response of the environment came from, as `due` gives it.

    None where its money is not held any more, and where a worker that lives hears its stream to the end.
    """
    rows = postgres.run(
        f"""{_CALLS} LEFT JOIN usage_processlease l ON l.id = c.worker_process
            WHERE b.provider = %s AND b.response_id = %s AND c.environment_id = %s AND c.is_live
              AND NOT (b.is_streaming AND coalesce(l.state, '') = 'alive')""",
        [LATE_SECONDS, provider, response_id, environment_id],
    )
    return rows[0] if rows else None


def keep_result(call_id: uuid.UUID, body: bytes) -> None:
    """Stores what the provider told at the end, beside the first answer."""
    postgres.run(
        """INSERT INTO usage_callpayload (call_id, kind, headers, body) VALUES (%s, 'result', '{}', %s)
           ON CONFLICT DO NOTHING""",
        [call_id, body],
    )


def forget(most: int) -> int:
    """Deletes what is on record of calls that have ended; how many."""
    return len(
        postgres.run(
            """DELETE FROM usage_backgroundcall WHERE call_id IN (
                   SELECT b.call_id FROM usage_backgroundcall b LEFT JOIN usage_call c ON c.id = b.call_id
                   WHERE b.next_look_at < now() AND c.is_live IS NOT TRUE LIMIT %s)
               RETURNING call_id""",
            [most],
        )
    )
