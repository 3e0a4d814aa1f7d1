"""Chat completions' replies as OpenAI's responses."""

from collections.abc import Iterator
from typing import Any

from aiplatform.gateway.translate.base import (
    Asked,
    Json,
    bare,
    count,
    dicts,
    dumps,
    error_read,
    reply_read,
    text_of,
)
from aiplatform.gateway.translate.chat_pieces import INTERLEAVED, Piece, Pieces, failure, has_begun
from aiplatform.gateway.translate.reasoning import FROM_FIELDS

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# What a response repeats of its request, and what it says where the request said nothing.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_SERVER_ERROR = 500


def response(body: bytes, asked: Asked) -> bytes:
    reply = reply_read(body, "choices")
    choice = next(iter(dicts(reply.get("choices"))), {})
    message = choice.get("message")
    items = _Items(bare(reply))
    for piece in _whole_pieces(message if isinstance(message, dict) else {}):
        for _ in items.say(piece):
            pass
    for _ in items.close(cut=_cut(choice)):
        pass
    return dumps(_ended(_response(reply, asked), items.done, choice, reply.get("usage"), asked))


def error(status: int, body: bytes) -> bytes:
    said = error_read(status, body)
    kind = "invalid_request_error" if status < _SERVER_ERROR else "server_error"
    return dumps({"error": {"type": kind, "param": None, "code": None} | said})


def event_written(event: Json) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + dumps(event) + b"\n\n"


class Events:
    """Chunks of a chat completion as the events of a response, one item open at a time."""

    def __init__(self, asked: Asked) -> None:
        self.complete = False
        self._asked = asked
        self._pieces = Pieces()
        self._items = _Items("")
        self._base: Json = {}
        self._failed = False
        self._number = 0

    def take(self, chunk: Json) -> Iterator[Json]:
        if error := failure(chunk):
            yield self._fail(error)
        elif not self._failed:
            if not self._base and has_begun(chunk):
                self._base, self._items = _response(chunk, self._asked), _Items(bare(chunk))
                yield self._numbered({"type": "response.created", "response": self._base})
                yield self._numbered({"type": "response.in_progress", "response": self._base})
            for piece in self._pieces.read(chunk):
                if piece.kind == "call" and piece.begins is None and not self._items.is_open(piece):
                    yield self._fail({"message": INTERLEAVED})
                    return
                yield from map(self._numbered, self._items.say(piece))

    def done(self) -> None:
        self.complete = bool(self._base) and not self._failed

    def last(self) -> Iterator[Json]:
        choice = self._pieces.choice
        yield from map(self._numbered, self._items.close(cut=_cut(choice)))
        ended = _ended(self._base, self._items.done, choice, self._pieces.usage, self._asked)
        yield self._numbered({"type": f"response.{ended['status']}", "response": ended})

    def _numbered(self, event: Json) -> Json:
        self._number += 1
        return event | {"sequence_number": self._number - 1}

    def _fail(self, error: Json) -> Json:
        self._failed = True
        code = text_of(error.get("code")) or "server_error"
        message = text_of(error.get("message")) or "The provider failed."
        return self._numbered({"type": "error", "code": code, "message": message, "param": None})


class _Items:
    """The items of an answer as they grow, and the events that tell of it."""

    def __init__(self, name: str) -> None:
        self.done: list[Json] = []
        self._name = name
        self._item: Json = {}
        self._first: Piece | None = None  # of the open item
        self._part: Json = {}

    def is_open(self, piece: Piece) -> bool:
        return self._first is not None and (self._first.kind, self._first.of) == (piece.kind, piece.of)

    def say(self, piece: Piece) -> Iterator[Json]:
        if piece.kind == "thought":
            yield from self._think(piece.begins or {})
            return
        if not self.is_open(piece):
            is_more = self._first is not None and {self._first.kind, piece.kind} == {"text", "refusal"}
            yield from self._close_part() if is_more else self.close()
            if not is_more:
                yield self._begin(piece)
            self._first = piece
            yield from self._begin_part(piece)
        if piece.text:
            yield from self._more(piece)

    def close(self, *, cut: bool = False) -> Iterator[Json]:
        """Ends the open item; one that was cut off stays incomplete."""
        if self._first is None:
            return
        yield from self._close_part()
        if self._item["type"] == "function_call":
            yield self._event("function_call_arguments.done", {"arguments": self._item["arguments"]})
        if "status" in self._item:
            self._item["status"] = "incomplete" if cut else "completed"
        yield {"type": "response.output_item.done", "output_index": len(self.done), "item": self._item}
        self.done.append(self._item)
        self._first = None

    def _begin(self, piece: Piece) -> Json:
        place = f"{self._name}_{len(self.done)}"
        if piece.kind == "call":
            call = piece.begins or {}
            named = {"call_id": call.get("id", ""), "name": call.get("name", ""), "arguments": ""}
            self._item = {"id": f"fc_{place}", "type": "function_call", "status": "in_progress"} | named
        elif piece.kind == "reasoning":
            self._item = {"id": f"rs_{place}", "type": "reasoning", "summary": [], "encrypted_content": piece.of}
        else:
            self._item = {"id": f"msg_{place}", "type": "message", "status": "in_progress", "role": "assistant"}
            self._item["content"] = []
        begun = {name: [] if isinstance(value, list) else value for name, value in self._item.items()}
        return {"type": "response.output_item.added", "output_index": len(self.done), "item": begun}

    def _begin_part(self, piece: Piece) -> Iterator[Json]:
        if piece.kind in _PARTS:
            self._part = {name: "" if name != "annotations" else [] for name in _PARTS[piece.kind]}
            self._part["type"] = _TYPES[piece.kind]
            parts = self._item.setdefault("content", [])
            parts.append(self._part)
            yield self._event("content_part.added", {"content_index": len(parts) - 1, "part": dict(self._part)})

    def _more(self, piece: Piece) -> Iterator[Json]:
        if piece.kind == "call":
            self._item["arguments"] += piece.text
            yield self._event("function_call_arguments.delta", {"delta": piece.text})
            return
        self._part["refusal" if piece.kind == "refusal" else "text"] += piece.text
        place = {"content_index": len(self._item["content"]) - 1, "delta": piece.text}
        yield self._event(f"{_TYPES[piece.kind]}.delta", place | _logprobs(piece.kind))

    def _close_part(self) -> Iterator[Json]:
        if not self._part:
            return
        kind = self._part["type"]
        place = {"content_index": len(self._item["content"]) - 1}
        said = "refusal" if kind == "refusal" else "text"
        yield self._event(
            f"{kind}.done", place | {said: self._part[said]} | ({"logprobs": []} if kind == "output_text" else {})
        )
        yield self._event("content_part.done", place | {"part": dict(self._part)})
        self._part = {}

    def _think(self, thought: Json) -> Iterator[Json]:
        """A signed thought comes whole, after its text; it is what encrypted reasoning is elsewhere."""
        if self._first is None or self._first.kind != "reasoning":
            yield from self.close()
            self._first = Piece("reasoning", "")
            yield self._begin(self._first)
        block = {name: value for name, value in thought.items() if name != "index"}  # its place in the list of a stream
        self._item["encrypted_content"] = dumps(block).decode()
        yield from self.close()

    def _event(self, kind: str, fields: Json) -> Json:
        return {"type": f"response.{kind}", "item_id": self._item["id"], "output_index": len(self.done)} | fields


_TYPES = {"text": "output_text", "refusal": "refusal", "reasoning": "reasoning_text"}
_PARTS = {"text": ("text", "annotations"), "refusal": ("refusal",), "reasoning": ("text",)}


def _logprobs(kind: str) -> Json:
    return {"logprobs": []} if kind == "text" else {}


def _whole_pieces(message: Json) -> Iterator[Piece]:
    """A plain reply in the pieces in which a stream would tell it."""
    thoughts = dicts(message.get("thinking_blocks"))
    for thought in thoughts:
        if text := text_of(thought.get("thinking")):
            yield Piece("reasoning", FROM_FIELDS[0], text)
        yield Piece("thought", "", begins=thought)
    delta = {name: value for name, value in message.items() if name != "thinking_blocks"}
    if thoughts:
        delta = {name: value for name, value in delta.items() if name not in FROM_FIELDS}
    calls = dicts(message.get("tool_calls"))
    delta["tool_calls"] = [call | {"index": at} for at, call in enumerate(calls)]
    yield from Pieces().read({"choices": [{"delta": delta}]})


def _cut(choice: Json) -> bool:
    return text_of(choice.get("finish_reason")) in _INCOMPLETE


def _response(reply: Json, asked: Asked) -> Json:
    repeated = {
        name: other if (value := asked.request.get(name)) is None else value for name, other in _REPEATED.items()
    }
    return {
        "id": f"resp_{bare(reply)}",
        "object": "response",
        "created_at": asked.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": text_of(reply.get("model")) or text_of(asked.request.get("model")),
        "output": [],
        "service_tier": text_of(reply.get("service_tier")) or "default",
        "store": False,
        "usage": None,
    } | repeated


def _ended(begun: Json, items: list[Json], choice: Json, said: Any, asked: Asked) -> Json:
    reason = _INCOMPLETE.get(text_of(choice.get("finish_reason")))
    ended = {"status": "incomplete", "incomplete_details": {"reason": reason}} if reason else {"status": "completed"}
    completed = {} if reason else {"completed_at": asked.created}
    return begun | ended | completed | {"output": items, "usage": _usage(said)}


def _usage(said: Any) -> Json:
    given, spent = (
        said.get(name) if isinstance(said, dict) else None
        for name in ("prompt_tokens_details", "completion_tokens_details")
    )
    prompt, output = count(said, "prompt_tokens"), count(said, "completion_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": count(given, "cached_tokens"),
            "cache_write_tokens": count(given, "cache_write_tokens"),
        },
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": count(spent, "reasoning_tokens")},
        "total_tokens": prompt + output,
    }
