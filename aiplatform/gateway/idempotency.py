"""Idempotency-Key: which call a request stands for when it is sent again (docs/calls.md)."""

import hashlib
import re
import uuid
from collections.abc import Sequence

from starlette.requests import Request

from aiplatform.gateway.wires import BadRequest
from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_name

HEADER = "idempotency-key"
_BOUNDARY = re.compile(r"multipart/form-data;.*boundary=\"?([^\";\s]{1,70})", re.ASCII | re.IGNORECASE)
_KEY = re.compile(r"[\x20-\x7e]{1,255}")


class KeyReused(ApiError):
    """This Idempotency-Key stands for another request of the last 24 hours: method, path or body differ."""

    status = 422
    code = "idempotency_key_reused"

    def __init__(self, call_id: uuid.UUID) -> None:
        super().__init__(
            "This Idempotency-Key was used in this environment within 24 hours for another path or body; it stands for "
            f"{call_name(call_id)}. Send the same bytes to get that call's answer, or a new key for a new call.",
            headers={"x-should-retry": "false"},
            call=call_name(call_id),
        )


def hashes(request: Request, body: bytes) -> tuple[bytes | None, bytes | None]:
    """SHA-256 of the key and of what it stands for (method, path and body); Nones without the header. Raises BadRequest."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None, None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise BadRequest("Idempotency-Key must be one header of 1 to 255 printable ASCII characters.", param=HEADER)
    query = f"?{request.url.query}" if request.url.query else ""
    asked = f"{request.method} {request.url.path}{query}\n".encode() + _without_boundary(request, body)
    return hashlib.sha256(given[0].encode()).digest(), hashlib.sha256(asked).digest()


def _without_boundary(request: Request, body: bytes) -> bytes:
    """SDKs draw a new boundary each time that they send a form; it is no part of what is asked."""
    found = _BOUNDARY.search(request.headers.get("content-type", ""))
    return body.replace(b"--" + found[1].encode(), b"--") if found else body


def in_use(keys: Sequence[tuple[uuid.UUID, bytes]]) -> set[tuple[uuid.UUID, bytes]]:
    """Which of these (environment, key hash) stand for a call that runs or was answered."""
    rows = postgres.run(
        """SELECT i.environment_id, i.key_hash FROM unnest(%s::uuid[], %s::bytea[]) AS u(environment_id, key_hash)
           JOIN usage_idempotencykey i USING (environment_id, key_hash) JOIN usage_call c ON c.id = i.call_id
           WHERE c.state <> 'void' AND i.created_at > now() - interval '24 hours'""",
        [[environment for environment, _ in keys], [key for _, key in keys]],
    )
    return {(row.environment_id, bytes(row.key_hash)) for row in rows}


def forget(at_once: int) -> int:
    """Deletes what is older than a day, so many at most; how many there were."""
    rows = postgres.run(
        """DELETE FROM usage_idempotencykey i USING (
               SELECT o.environment_id, o.key_hash FROM usage_idempotencykey o
               WHERE o.created_at < now() - interval '24 hours' ORDER BY o.created_at LIMIT %s FOR UPDATE SKIP LOCKED) old
           WHERE i.environment_id = old.environment_id AND i.key_hash = old.key_hash RETURNING 1""",
        [at_once],
    )
    return len(rows)
