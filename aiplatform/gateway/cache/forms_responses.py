"""A response and the events of its stream, one made from the other.

Source: developers.openai.com/api/reference/resources/responses (the response object, streaming events).
"""

from collections.abc import Iterator
from typing import Any

from aiplatform.gateway.cache.forms_events import Json, NotRenderable

_LAST = frozenset(("completed", "incomplete"))
_NOT_YET: Json = {
    "status": "in_progress",
    "output": [],
    "usage": None,
    "incomplete_details": None,
    "completed_at": None,
}
# Parts whose words are told bit by bit, by the field that they are in.
_PARTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


def together(events: list[Json]) -> Json:
    """The response as its last event says it whole; raises NotRenderable where it failed."""
    last = next((one for one in reversed(events) if isinstance(one.get("response"), dict)), None)
    if last is None or last.get("type") not in {f"response.{status}" for status in _LAST}:
        raise NotRenderable("it was not completed")
    response: Json = last["response"]
    if not isinstance(response.get("output"), list):
        raise NotRenderable("its last event does not say its output")
    return response


def apart(answer: Json) -> list[Json]:
    """The events of a response; raises NotRenderable where it has not ended, or failed."""
    status = answer.get("status")
    if answer.get("object") != "response" or status not in _LAST:
        raise NotRenderable("no response that was completed")
    begun = answer | {name: value for name, value in _NOT_YET.items() if name in answer}
    events = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *(event for at, item in enumerate(answer["output"]) for event in _item(at, item)),
        {"type": f"response.{status}", "response": answer},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


def _item(at: int, item: Json) -> Iterator[Json]:
    """Items of types that nobody knows are begun as they end."""
    begun, inner = dict(item), list(_inner(at, item))
    if inner:
        begun |= {name: value for name, value in _BEFORE[item["type"]].items() if name in item}
        begun |= {"status": "in_progress"} if item.get("status") else {}
    yield {"type": "response.output_item.added", "output_index": at, "item": begun}
    yield from inner
    yield {"type": "response.output_item.done", "output_index": at, "item": item}


_BEFORE: dict[str, dict[str, Any]] = {
    "message": {"content": []},
    "reasoning": {"summary": [], "content": []},
    "function_call": {"arguments": ""},
}


def _inner(at: int, item: Json) -> Iterator[Json]:
    kind, place = item["type"], {"item_id": item.get("id"), "output_index": at}
    if not isinstance(place["item_id"], str):
        return  # events within it would have no name for it
    if kind == "function_call":
        arguments = item["arguments"]
        yield from _words("response.function_call_arguments", place, {"arguments": arguments}, {"name": item["name"]})
    elif kind == "reasoning":
        for index, part in enumerate(item.get("summary") or []):
            yield from _summary(place | {"summary_index": index}, part)
    if kind in {"message", "reasoning"}:
        for index, part in enumerate(item.get("content") or []):
            yield from _part(place | {"content_index": index}, part)


def _summary(place: Json, part: Json) -> Iterator[Json]:
    kind = "response.reasoning_summary_part"
    yield place | {"type": f"{kind}.added", "part": part | {"text": ""}}
    yield from _words("response.reasoning_summary_text", place, {"text": part["text"]})
    yield place | {"type": f"{kind}.done", "part": part}


def _part(place: Json, part: Json) -> Iterator[Json]:
    field = _PARTS.get(part["type"])
    begun = part | ({field: ""} if field else {})
    begun |= {name: [] for name in ("annotations", "logprobs") if field and part.get(name)}
    yield place | {"type": "response.content_part.added", "part": begun}
    if field:
        logprobs = {"logprobs": part.get("logprobs") or []} if part["type"] == "output_text" else {}
        noted = [
            place | {"type": "response.output_text.annotation.added", "annotation_index": index, "annotation": one}
            for index, one in enumerate(part.get("annotations") or [])
        ]
        delta, *done = _words(f"response.{part['type']}", place, {field: part[field]}, logprobs, logprobs)
        yield from (delta, *noted, *done)
    yield place | {"type": "response.content_part.done", "part": part}


def _words(kind: str, place: Json, words: Json, done: Json | None = None, delta: Json | None = None) -> Iterator[Json]:
    """All of the words at once, and that they are all."""
    (said,) = words.values()
    yield place | {"type": f"{kind}.delta", "delta": said} | (delta or {})
    yield place | {"type": f"{kind}.done"} | words | (done or {})
