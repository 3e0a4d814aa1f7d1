"""In the worker: an answer that others may have is kept once it is paid for, and its question is in flight no more."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from aiplatform.gateway.cache import flights, shelf
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.gateway.execution import Finish

OK = 200


@dataclass(frozen=True, slots=True)
class Left:
    """What one call leaves: its answer, where that is of use to others, and the end of its lead, where others wait for it."""

    question: str
    seconds: int
    call_id: uuid.UUID
    environment_id: uuid.UUID
    is_leading: bool
    entry: Entry | None = None
    near: tuple[int, str, str, Any] | None = None
    """As `near.told` said it: matching, bucket, vector in base64, and whose answer it would have got."""


def left(call: Any, finish: Finish | None = None, row: Any = None, *, policy_version: int = -1) -> Left | None:
    """What a call leaves that has ended; None where nobody asked for that.

    `row` is its settlement, `policy_version` that of the content policy that its input has passed. An answer that was cut
    shorter than the question asks, or that another policy let pass, is another question's.
    """
    told = call.headers.get("cache")
    if told is None:
        return None
    question, seconds, named_policy, wanted, is_leading = told
    ending = finish.ending if finish else None
    is_kept = (
        finish is not None
        and ending is not None
        and row is not None
        and finish.answer is not None
        and len(finish.answer) <= settings.CACHE_MAX_BYTES
        and (ending.state, ending.status, ending.error_code, ending.evidence) == ("settled", OK, "", "provider")
        and (policy_version, call.max_output_tokens) == (named_policy, wanted)
    )
    entry = _entry(call, finish, row) if is_kept else None
    if entry is None and not is_leading:
        return None
    near = call.headers.get("near")
    return Left(question, seconds, call.id, call.environment_id, is_leading, entry, tuple(near) if near else None)


def leave(all_left: Sequence[Left]) -> list[None]:
    """Keeps answers, then ends leads: whoever waited finds what he waited for."""
    kept = [(one.question, one.entry, one.seconds) for one in all_left if one.entry is not None]
    if kept:
        shelf.keep(kept)
    if landed := [(one.question, one.call_id) for one in all_left if one.is_leading]:
        flights.land(landed, answered={entry.call_id for _, entry, _ in kept})
    return [None] * len(all_left)


def _entry(call: Any, finish: Any, row: Any) -> Entry:
    ending = finish.ending
    kind = ending.headers.get("content-type", "application/json")
    return Entry(
        call.id, row.charged_nano, call.api_key_id, call.model, call.provider, ending.served_model, call.endpoint, kind,
        call.streamed, finish.answer,
    )  # fmt: skip
