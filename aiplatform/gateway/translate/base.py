"""What all translations share: what they give and take, how a refusal names its field, and one way to write JSON."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import jiter
import orjson

from aiplatform.gateway.wires.base import BadRequest
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import parsed

Json = dict[str, Any]
DONE = b"[DONE]"
LONGEST_MESSAGE = 2000
_OK = 200
_CONVERSATION = ("messages", "system", "input")
_PREFIX = re.compile("^(?:msg_|chatcmpl-|resp_)")


class UnreadableAnswer(ApiError):
    """The provider's answer cannot be read, so it cannot be given in the wire that was asked in."""

    status = 502
    code = "answer_unreadable"


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of a top-level field of a request in the other wire."""

    verdict: Literal["carried", "mapped", "refused", "dropped"]
    how: str
    neutral: tuple[Any, ...] = ()
    """Values of a refused field that ask for nothing: they say what happens anyway."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reply must know of the request that it answers."""

    request: Json
    created: int
    """Unix time, for wires whose replies carry one where the provider's do not."""

    @classmethod
    def by(cls, request: Json, created: int) -> Self:
        """Without the conversation, which may be large, and which no reply repeats."""
        return cls({name: value for name, value in request.items() if name not in _CONVERSATION}, created)

    def with_usage(self) -> Self:
        """The same, asked with its usage at the end of a stream."""
        return replace(self, request=self.request | {"stream_options": {"include_usage": True}})

    @property
    def include_usage(self) -> bool:
        options = self.request.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A translated request."""

    body: bytes
    headers: dict[str, str]
    """Headers to set on the way to the provider; those of the caller's wire do not go along."""
    asked: Asked


class Replies(Protocol):
    """One call's answer as it comes in events, each a JSON object, from the provider's wire into the caller's."""

    @property
    def complete(self) -> bool:
        """Whether the provider has said its last word; without it the stream broke off."""

    def take(self, event: Json) -> Iterable[Json]:
        """The events for the caller that this one leads to, but for the last ones."""

    def done(self) -> None:
        """The provider's stream has said that it is done where its wire has a word for that."""

    def last(self) -> Iterable[Json]:
        """The events that end a stream which came to its end."""


class Both:
    """One translation of a stream after the other."""

    def __init__(self, first: Replies, second: Replies) -> None:
        self._first, self._second = first, second

    @property
    def complete(self) -> bool:
        return self._first.complete

    def take(self, event: Json) -> Iterable[Json]:
        for told in self._first.take(event):
            yield from self._second.take(told)

    def done(self) -> None:
        self._first.done()

    def last(self) -> Iterable[Json]:
        for told in self._first.last():
            yield from self._second.take(told)
        yield from self._second.last()


class StreamTranslator:
    """A provider's stream in the caller's wire. Bytes go out in whole events; the last ones wait for `end`."""

    def __init__(self, replies: Replies, written: Callable[[Json], bytes], tail: bytes = b"") -> None:
        self._replies, self._written, self._tail = replies, written, tail

    @property
    def complete(self) -> bool:
        return self._replies.complete

    def feed(self, data: bytes) -> bytes:
        """What the data of one event lets the caller know at once; never the events that end the stream."""
        if data == DONE:
            self._replies.done()
            return b""
        event = parsed(data)
        return b"" if event is None else b"".join(map(self._written, self._replies.take(event)))

    def end(self) -> bytes:
        """The events that end the stream; nothing where the provider's broke off or failed, which somebody else tells."""
        if not self.complete:
            return b""
        return b"".join(map(self._written, self._replies.last())) + self._tail


class Translation(Protocol):
    """From one wire, as a caller speaks it to one of its endpoints, to a provider's wire, and back. Without state."""

    provider_wire: str
    provider_endpoint: str

    def check(self, request: Json) -> None:
        """Raises BadRequest, with `param`, for what `request` would refuse; the body has been read as an object."""

    def request(self, body: bytes, *, model: str, max_tokens: int, limit_field: str, created: int) -> Outgoing:
        """The body for the provider, by the caller's own body; raises BadRequest as `check` does.

        `model` is its name at the provider, `max_tokens` the output limit that was held, `created` the Unix time. `limit_field`
        is what a server of chat completions calls the limit: OpenAI's reasoning models take `max_completion_tokens` only, while
        servers compatible with it may leave that out of account and know `max_tokens` (github.com/ollama/ollama/issues/7125).
        """

    def whole(self, body: bytes, asked: Asked) -> bytes:
        """A successful plain reply; raises UnreadableAnswer."""

    def error(self, status: int, body: bytes) -> bytes:
        """A provider's error in the shape of the caller's wire, in the provider's own words."""

    def stream(self, asked: Asked) -> StreamTranslator:
        """What turns the events of a successful streamed reply, one call's."""


def refuse(request: Json, fields: Mapping[str, Field], other: str) -> None:
    """Raises BadRequest for each top-level field that the other wire does not know, unless it asks for nothing."""
    for name, value in request.items():
        field = fields.get(name)
        if value is None or (field and (field.verdict != "refused" or value in field.neutral)):
            continue
        why = field.how if field else f"this gateway does not know how to say it to {other}"
        raise refused(name, f"cannot be carried over to {other}: {why}.")


def refused(where: str, why: str) -> BadRequest:
    return BadRequest(f"`{where}` {why}", param=where)


def only(value: Json, known: frozenset[str], where: str, *, dot: str = ".") -> None:
    """Raises BadRequest for a nested field that is not known; null and empty ones ask for nothing."""
    for name, found in value.items():
        if name not in known and found not in (None, [], {}, ""):
            raise refused(f"{where}{dot}{name}", "cannot be carried over to the provider of this model.")


def objects(value: Any, where: str, *, index: str = "[{}]") -> list[tuple[str, Json]]:
    """The objects of an array, each with its place; none where the array is absent."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise refused(where, "must be an array.")
    found = [(where + index.format(at), one) for at, one in enumerate(value)]
    for place, one in found:
        if not isinstance(one, dict):
            raise refused(place, "must be an object.")
    return found


def an_object(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise refused(where, "must be an object.")
    return value


def a_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise refused(where, "must be a string.")
    return value


def given(**fields: Any) -> Json:
    """Those fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer above 64 bits, or a lone surrogate: both are JSON, and models do emit them
        return json.dumps(value, separators=(",", ":")).encode()


def arguments_read(text: str) -> Json:
    """A tool call's arguments as they came from a model, which may have been cut off or may have written no object."""
    try:
        value = jiter.from_json(text.encode(errors="replace"), partial_mode=True) if text.strip() else {}
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def reply_read(body: bytes, answer: str) -> Json:
    """A provider's plain reply, whose field `answer` holds what was said; raises UnreadableAnswer, also for an error that came
    with the status of a success.
    """
    reply = parsed(body)
    if reply is None:
        raise UnreadableAnswer
    if answer not in reply and isinstance(reply.get("error"), dict | str):
        raise UnreadableAnswer(f"The provider gave an error for an answer: {error_read(_OK, body)['message']}")
    return reply


def error_read(status: int, body: bytes) -> Json:
    """The provider's error object, or one made of what it said instead."""
    said = parsed(body)
    error = said.get("error") if said else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return error
    for text in (error, (said or {}).get("message"), (said or {}).get("detail")):
        if isinstance(text, str):
            return {"message": text}
    text = "" if said else body.decode(errors="replace").strip()[:LONGEST_MESSAGE]
    return {"message": text or f"The provider answered with status {status}."}


def count(of: Any, name: str) -> int:
    """A token count; 0 where the provider gives none that makes sense."""
    value = of.get(name) if isinstance(of, dict) else None
    return value if type(value) is int and value >= 0 else 0


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def words(value: Any) -> str:
    """A content as a text; some servers give it in parts."""
    return "".join(text_of(part.get("text")) for part in dicts(value)) if isinstance(value, list) else text_of(value)


def arguments_text(function: Json) -> str:
    """A call's arguments as JSON; some servers give the object itself."""
    value = function.get("arguments")
    return dumps(value).decode() if isinstance(value, dict) else text_of(value)


def bare(reply: Json) -> str:
    """A reply's id without what its wire puts in front; some servers say the same on all wires."""
    return _PREFIX.sub("", text_of(reply.get("id")), count=1)


def dicts(value: Any) -> list[Json]:
    """The objects in what a provider sent as an array."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
