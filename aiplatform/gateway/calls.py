"""Calls that nobody waits for: handed in with `Prefer: respond-async`, fetched later by their id (docs/async.md)."""

import re
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from aiplatform.gateway import replies
from aiplatform.gateway.relay import Inbox
from aiplatform.gateway.wires import BadRequest
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_id as parsed
from aiplatform.lib.ids import call_name

PATH = "/v1/calls/{call_id}"
STREAM_PATH = PATH + "/stream"
LANE_HEADER = "x-lane"
LANES = ("interactive", "batch")
MOST_WAIT_SECONDS = 60
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_WAIT = re.compile(r"wait=(\d{1,9})", re.ASCII)


class CallNotFound(ApiError):
    """This environment has made no such call."""

    status = 404
    code = "call_not_found"


class AnswerNotKept(ApiError):
    """The call has ended and was charged, but its answer was too large to be kept, or was deleted."""

    status = 410
    code = "answer_not_kept"


class NotResumable(ApiError):
    """The stream cannot be continued any more: what came of it is kept in part only, or not at all. It is not made again."""

    status = 410
    code = "not_resumable"
    always = {"x-should-retry": "false"}


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


def after(request: Request) -> int:
    """The number of the last event that the caller has, by Last-Event-ID or `starting_after`; 0 for none. Raises BadRequest."""
    said = {
        word for word in (request.headers.get("last-event-id"), request.query_params.get("starting_after"))
        if word is not None
    }  # fmt: skip
    if len(said) > 1 or any(not _NUMBER.fullmatch(word) for word in said):
        raise BadRequest(
            "Last-Event-ID, or ?starting_after=, is the number of the last event that you have.", param="starting_after"
        )
    return int(said.pop()) if said else 0


def refuse_unheard(number: int, last: int) -> None:
    """Raises BadRequest for the number of an event that was not told yet."""
    if number > last:
        raise BadRequest(f"This stream has told {last} events, not {number}.", param="starting_after")


def refuse_trimmed(inbox: Inbox) -> None:
    """Raises NotResumable for a stream whose beginning is not in Redis any more."""
    if inbox.is_lost:
        raise NotResumable(call=call_name(inbox.call_id))


def refuse_plain(row: Any) -> None:
    """Raises BadRequest for a call whose answer is no stream."""
    if not row.streamed:
        raise BadRequest(f"This call is not streamed; see GET {PATH.format(call_id=call_name(row.id))}.")


def accepted(call_id: uuid.UUID, state: str, headers: dict[str, str]) -> Response:
    """202 for a call that is held and durable, and whose answer is still to come."""
    name = call_name(call_id)
    url = f"/v1/calls/{name}"
    body = {"id": name, "object": "call", "status": state, "urls": {"get": url, "stream": f"{url}/stream"}}
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
