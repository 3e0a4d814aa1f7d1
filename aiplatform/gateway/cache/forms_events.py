"""A stored stream as its events, and events as bytes again."""

import json
from collections.abc import Iterable
from typing import Any

from aiplatform.gateway.streaming import Events, Stream
from aiplatform.providers.base import FREE, Broken, Reading, parsed
from aiplatform.providers.registry import ADAPTERS

Json = dict[str, Any]
WIRES = {"chat": "openai", "messages": "anthropic", "responses": "openai"}
_DONE = b"[DONE]"


class NotRenderable(Exception):
    """A kept answer that cannot be put in the other form without guessing."""


def read(endpoint: str, events: bytes) -> list[Json]:
    """Each event's data, of a stream that came to its end as the relay understands it; raises NotRenderable."""
    reader, reading, found = ADAPTERS[WIRES[endpoint]].reader(endpoint), Reading(), []
    for data in _told(events):
        reader.read_event(reading, data)
        if data == _DONE and endpoint == "chat":
            break  # the SDK reads no further either
        event = parsed(data)
        if event is None or event.get("type") == "error" or reading.error:
            raise NotRenderable("an event that says that it failed, or that cannot be read")
        found.append(event)
    if not (reading.complete or reading.has_stopped):
        raise NotRenderable("the stream has no last event")
    return found


def written(endpoint: str, events: Iterable[Json]) -> bytes:
    """These events as a provider of the endpoint sends them; raises NotRenderable for what is no JSON."""
    if endpoint == "chat":
        return b"".join(b"data: %b\n\n" % dumps(event) for event in events) + b"data: %b\n\n" % _DONE
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), dumps(event)) for event in events)


def dumps(value: Any) -> bytes:
    """As JSON in ASCII, since half an emoji may be all that a model said of it; raises NotRenderable."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotRenderable(str(error)) from error


def again(events: bytes, *, hide_usage: bool) -> bytes:
    """A stored stream as it is relayed live: by the same code, with numbers, and without usage where it is hidden.

    Raises NotRenderable for what no relay would take.
    """
    reader = (
        ADAPTERS["openai"].reader("chat") if hide_usage else FREE
    )  # usage is hidden in chats alone, until they are done
    stream = Stream(reader, None, hide_usage=hide_usage)
    try:
        return stream.feed(events) + stream.end() + stream.last()
    except Broken as error:
        raise NotRenderable(str(error)) from error


def _told(events: bytes) -> list[bytes]:
    try:
        return [data for _, data in Events().feed(events + b"\n\n") if data]
    except Broken as error:
        raise NotRenderable(str(error)) from error
