"""Calls that nobody waits for: handed in with `Prefer: respond-async`, fetched later by their id (docs/async.md)."""

import re
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response

from aiplatform.gateway import replies
from aiplatform.gateway.wires import BadRequest
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_id as parsed
from aiplatform.lib.ids import call_name

PATH = "/v1/calls/{call_id}"
LANE_HEADER = "x-lane"
LANES = ("interactive", "batch")
MOST_WAIT_SECONDS = 60
_WAIT = re.compile(r"wait=(\d{1,9})", re.ASCII)


class CallNotFound(ApiError):
    """This environment has made no such call."""

    status = 404
    code = "call_not_found"


class AnswerNotKept(ApiError):
    """The call has ended and was charged, but its answer was too large to be kept, or was deleted."""

    status = 410
    code = "answer_not_kept"


@dataclass(slots=True)
class Preference:
    """What a request prefers: not to wait for its answer, to wait so many seconds, and the lane it takes."""

    is_async: bool = False
    wait_seconds: int = 0
    lane: str = "interactive"


def preference(headers: Headers) -> Preference:
    """What the headers Prefer (RFC 7240) and X-Lane say; raises BadRequest for a lane that is not to be had."""
    wishes = {wish.split(";")[0].strip().lower() for line in headers.getlist("prefer") for wish in line.split(",")}
    waits = [int(found[1]) for wish in wishes if (found := _WAIT.fullmatch(wish))]
    lane = headers.get(LANE_HEADER, "interactive")
    if lane not in LANES:
        raise BadRequest(f"X-Lane must be one of {', '.join(LANES)}.", param=LANE_HEADER)
    if lane == "batch" and "respond-async" not in wishes:
        raise BadRequest(
            "X-Lane: batch is for calls that nobody waits for; send Prefer: respond-async with it.", param=LANE_HEADER
        )
    return Preference("respond-async" in wishes, min([*waits, MOST_WAIT_SECONDS]) if waits else 0, lane)


def asked(name: str) -> uuid.UUID:
    """The call that a path names; raises BadRequest."""
    try:
        return parsed(name)
    except ValueError as error:
        raise BadRequest("A call's id is call_ and a UUID, as in x-call-id.", param="call_id") from error


def accepted(call_id: uuid.UUID, state: str, headers: dict[str, str]) -> Response:
    """202 for a call that is held and durable, and whose answer is still to come."""
    name = call_name(call_id)
    url = f"/v1/calls/{name}"
    body = {"id": name, "object": "call", "status": state, "urls": {"get": url}}
    ours = {"location": url, "retry-after": "1", "cache-control": "no-store"}
    return Response(orjson.dumps(body), 202, headers | ours, media_type="application/json")


def refuse_lost(row: Any) -> None:
    """Raises AnswerNotKept for a call that has ended with an answer that nobody has any more."""
    if row.state == "settled" and not row.body:
        name = call_name(row.id)
        raise AnswerNotKept(
            f"The answer of {name} was too large to be kept, or was deleted; what it cost is on record: GET /api/calls/{name}.",
            headers=replies.headers_of_row(row),
            call=name,
        )
