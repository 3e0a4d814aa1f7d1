"""What admission must know of a request, and the reading that all wires share."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jiter

from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import Usage
from aiplatform.providers.endpoints import Endpoint
from usage.pricing import Bound

MOST_OUTPUT_TOKENS = 2**31 - 1
MOST_CHOICES = 128
BYTES_PER_TOKEN = 4  # of text as it is on average; a bound takes one byte
AUDIO_MARGIN = 2  # the bound of audio is so many times the documented figure


class BadRequest(ApiError):
    """The request cannot be read."""

    status = 400
    code = "invalid_request"


class TooLarge(ApiError):
    """The request body is too large."""

    status = 413
    code = "request_too_large"


class NotPriced(ApiError):
    """What this call may cost cannot be bounded, so it was not sent."""

    status = 402
    code = "model_not_priced"


class Asked(NamedTuple):
    """A request as it came."""

    endpoint: Endpoint
    body: bytes
    headers: Any
    params: Mapping[str, str]
    """Of its path."""
    query: str


class Named(NamedTuple):
    """An object that a request names, so that it must be its environment's. Kind "" is any."""

    kind: str
    id: str
    param: str = ""


@dataclass(slots=True)
class Facts:
    """A request as admission sees it; the body itself is passed on as it came."""

    wire: str
    endpoint: str
    model: str
    body: bytes
    streamed: bool
    end_user: str
    bound: Bound
    """What it can cost at most."""
    max_tokens: int | None
    max_tokens_field: str
    """The top-level field by which this body limits its output."""
    media_bytes: int = 0
    """How much of the body is images and audio."""
    hide_usage: bool = False
    set_fields: dict[str, Any] = field(default_factory=dict)
    """Top-level fields that are set when the body is sent."""
    forward: dict[str, str] = field(default_factory=dict)
    """Headers that go along to the provider."""
    target: str = ""
    """Path and query at the provider, where they are not the endpoint's own path."""
    names: list[Named] = field(default_factory=list)
    """Kept objects that the request names; each must be its environment's, and all at one provider."""
    objects: list[Any] = field(default_factory=list)
    """Their rows, once they were found."""
    provider: str = ""
    """Where it must go, since what it names is kept there; "" where the model decides."""
    credential: str = ""
    makes: str = ""
    """The kind of kept object that the answer tells."""
    is_free: bool = False
    """The provider takes nothing for it."""
    earlier_tokens: int = 0
    """Text of earlier responses that the request continues."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What later calls need to know of this one's object, besides what its answer tells."""

    @property
    def choices(self) -> int:
        return self.bound.choices

    @property
    def likely(self) -> Usage:
        """The input as it probably is, for limits on tokens per minute and for answers that come without their usage."""
        if self.bound.counted is not None:
            return dataclasses.replace(self.bound.counted)
        text = -(-(len(self.body) - self.media_bytes) // BYTES_PER_TOKEN)
        audio = self.bound.meters.get("input_audio", 0) // AUDIO_MARGIN
        image = self.bound.meters.get("input_image", 0)
        return Usage(text + image + self.earlier_tokens, meters={"input_audio": audio} if audio else {})


class Wire(Protocol):
    """One wire format as our callers speak it."""

    name: str

    def read(self, endpoint: str, body: bytes, headers: Any) -> Facts:
        """The facts of a request; raises ApiError with what was wrong."""

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The body of an error reply."""

    def models(self, names: list[tuple[str, str, int]]) -> dict[str, Any]:
        """The body of the list of models from (name, owner, Unix time)."""

    def broken_event(self, code: str, message: str, endpoint: str, number: int = 0) -> bytes:
        """The server-sent event that ends a stream which cannot go on; `number` is its place, where events have one."""


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object; BadRequest for anything that two readers could read differently."""
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise BadRequest(f"The body is not acceptable JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    return value


def text(value: dict[str, Any], name: str) -> str:
    """A required, non-empty string."""
    found = value.get(name)
    if not isinstance(found, str) or not found.strip():
        raise BadRequest(f"`{name}` must be a non-empty string.", param=name)
    return found


def flag(value: dict[str, Any], name: str) -> bool:
    """An optional boolean, false where absent or null."""
    found = value.get(name)
    if found is not None and not isinstance(found, bool):
        raise BadRequest(f"`{name}` must be true or false.", param=name)
    return bool(found)


def whole(value: dict[str, Any], name: str, most: int) -> int | None:
    """An optional whole number from 1 to `most`; None where absent or null."""
    found = value.get(name)
    if found is None:
        return None
    if type(found) is not int or not 1 <= found <= most:
        raise BadRequest(f"`{name}` must be a whole number from 1 to {most}.", param=name)
    return found


def end_user(value: Any, headers: Any) -> str:
    """Who the call is for: our own header, else the wire's field; at most 256 characters, without NUL."""
    named = headers.get("x-end-user") or (value if isinstance(value, str) else "")
    return named.replace("\0", "")[:256]


def with_fields(body: bytes, fields: dict[str, Any]) -> bytes:
    """The body with top-level fields set, every other byte as it came. `body` is a JSON object that was read before."""
    if not fields:
        return body
    source = body.decode()
    spans, end, empty = _top_level(source)
    pieces, at = [], 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if name in fields:
            pieces += [source[at:start], json.dumps(fields[name])]
            at = stop
    pieces.append(source[at:end])
    added = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields.items() if name not in spans]
    if added:
        pieces.append(("" if empty else ",") + ",".join(added))
    pieces.append(source[end:])
    return "".join(pieces).encode()


def _top_level(source: str) -> tuple[dict[str, tuple[int, int]], int, bool]:
    """Where each top-level value stands, where the object's closing brace stands, and whether it is empty."""
    decode = json.JSONDecoder(strict=False).raw_decode
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(source, source.index("{") + 1)
    while source[at] != "}":
        name, at = decode(source, at)
        start = _skip(source, _skip(source, at) + 1)
        _, stop = decode(source, start)
        spans[name] = (start, stop)
        at = _skip(source, stop)
        if source[at] == ",":
            at = _skip(source, at + 1)
    end = at
    while end and source[end - 1] in " \t\r\n":
        end -= 1
    return spans, end, not spans


def _skip(source: str, at: int) -> int:
    while source[at] in " \t\r\n":
        at += 1
    return at
