"""Chat completions' replies as Anthropic's messages."""

from collections.abc import Iterator
from typing import Any

from aiplatform.gateway.translate.base import (
    Asked,
    Json,
    arguments_read,
    arguments_text,
    bare,
    count,
    dicts,
    dumps,
    error_read,
    reply_read,
    text_of,
    words,
)
from aiplatform.gateway.translate.chat_pieces import INTERLEAVED, Piece, Pieces, failure, has_begun
from aiplatform.gateway.translate.reasoning import FROM_FIELDS

_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_TIERS = {"default": "standard", "priority": "priority"}
_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_SERVER_ERROR = 500
_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def message(body: bytes, asked: Asked) -> bytes:
    reply = reply_read(body, "choices")
    choice = next(iter(dicts(reply.get("choices"))), {})
    said = choice.get("message")
    said = said if isinstance(said, dict) else {}
    content: list[Json] = [
        {"type": "thinking", "thinking": said[name], "signature": name}
        for name in FROM_FIELDS
        if text_of(said.get(name))
    ][:1]
    texts = words(said.get("content")), text_of(said.get("refusal"))
    content += [{"type": "text", "text": text} for text in texts if text]
    calls = [_tool_use(call) for call in dicts(said.get("tool_calls"))]
    return dumps(
        _head(reply, asked)
        | {"content": content + calls}
        | _stopped(choice, texts[1], asked, has_calls=bool(calls))
        | {"usage": usage(reply.get("usage"), reply.get("service_tier"))}
    )


def error(status: int, body: bytes) -> bytes:
    return dumps(_error(error_read(status, body), status))


def event_written(event: Json) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + dumps(event) + b"\n\n"


def usage(said: Any, tier: Any) -> Json:
    """Anthropic's `input_tokens` leave out what was read from or written to the cache; OpenAI's hold it."""
    prompt = count(said, "prompt_tokens")
    given, spent = (
        said.get(name) if isinstance(said, dict) else None
        for name in ("prompt_tokens_details", "completion_tokens_details")
    )
    read = min(count(given, "cached_tokens"), prompt)
    written = min(count(given, "cache_write_tokens"), prompt - read)
    output = count(said, "completion_tokens")
    figures: Json = {
        "input_tokens": prompt - read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": output,
    }
    if isinstance(spent, dict) and "reasoning_tokens" in spent:
        figures["output_tokens_details"] = {"thinking_tokens": min(count(spent, "reasoning_tokens"), output)}
    return figures | ({"service_tier": _TIERS[tier]} if isinstance(tier, str) and tier in _TIERS else {})


class Events:
    """Chunks of a chat completion as Anthropic's events, one block open at a time."""

    def __init__(self, asked: Asked) -> None:
        self.complete = False
        self._asked = asked
        self._pieces = Pieces()
        self._begun = self._failed = False
        self._blocks = 0
        self._open: Piece | None = None  # the first piece of the block that is open
        self._refusal = ""

    def take(self, chunk: Json) -> Iterator[Json]:
        if error := failure(chunk):
            yield self._fail(error)
        elif not self._failed:
            if not self._begun and has_begun(chunk):
                self._begun = True
                yield self._start(chunk)
            for piece in self._pieces.read(chunk):
                yield from self._say(piece)

    def done(self) -> None:
        self.complete = self._begun and not self._failed

    def last(self) -> Iterator[Json]:
        yield from self._close()
        choice, has_calls = self._pieces.choice, self._pieces.calls > 0
        stopped = _stopped(choice, self._refusal, self._asked, has_calls=has_calls)
        yield {"type": "message_delta", "delta": stopped, "usage": usage(self._pieces.usage, None)}
        yield {"type": "message_stop"}

    def _start(self, chunk: Json) -> Json:
        stopped = {"stop_reason": None, "stop_sequence": None, "stop_details": None}
        figures = usage(chunk.get("usage"), chunk.get("service_tier"))
        begun = _head(chunk, self._asked) | {"content": []} | stopped | {"usage": figures}
        return {"type": "message_start", "message": begun}

    def _say(self, piece: Piece) -> Iterator[Json]:
        if self._failed or piece.kind == "thought":
            return
        if self._open is None or (self._open.kind, self._open.of) != (piece.kind, piece.of):
            if piece.kind == "call" and piece.begins is None:
                yield self._fail({"message": INTERLEAVED})
                return
            yield from self._close()
            self._open = piece
            yield {"type": "content_block_start", "index": self._blocks, "content_block": _begun(piece)}
        self._refusal += piece.text if piece.kind == "refusal" else ""
        if piece.text:
            kind, name = _DELTAS[piece.kind]
            yield self._more({"type": kind, name: piece.text})

    def _more(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _close(self) -> Iterator[Json]:
        if self._open is None:
            return
        if self._open.kind == "reasoning":
            yield self._more({"type": "signature_delta", "signature": self._open.of})
        yield {"type": "content_block_stop", "index": self._blocks}
        self._open = None
        self._blocks += 1

    def _fail(self, error: Json) -> Json:
        self._failed = True
        return _error(error, _SERVER_ERROR)


def _begun(piece: Piece) -> Json:
    if piece.begins is not None:
        return {"type": "tool_use", "id": piece.begins["id"], "name": piece.begins["name"], "input": {}}
    if piece.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _head(reply: Json, asked: Asked) -> Json:
    model = text_of(reply.get("model")) or text_of(asked.request.get("model"))
    return {"id": f"msg_{bare(reply)}", "type": "message", "role": "assistant", "model": model}


def _tool_use(call: Json) -> Json:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    value = arguments_read(arguments_text(function))
    return {"type": "tool_use", "id": text_of(call.get("id")), "name": text_of(function.get("name")), "input": value}


def _stopped(choice: Json, refusal: str, asked: Asked, *, has_calls: bool) -> Json:
    """Why the answer ended. Servers that tell which stop sequence they found (vLLM) do so in the choice's `stop_reason`."""
    reason = _STOP.get(text_of(choice.get("finish_reason")), "end_turn")
    if has_calls and reason == "end_turn":
        reason = "tool_use"
    found, wanted = choice.get("stop_reason"), asked.request.get("stop_sequences")
    sequence = found if isinstance(found, str) and isinstance(wanted, list) and found in wanted else None
    if sequence is not None and reason == "end_turn":
        reason = "stop_sequence"
    if refusal and reason == "end_turn":
        reason = "refusal"
    details = {"type": "refusal", "category": None, "explanation": refusal or None} if reason == "refusal" else None
    sequence = sequence if reason == "stop_sequence" else None
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}


def _error(said: Json, status: int) -> Json:
    kind = _ERRORS.get(status, "invalid_request_error" if status < _SERVER_ERROR else "api_error")
    return {"type": "error", "error": {"type": kind, "message": text_of(said.get("message")) or "The provider failed."}}
