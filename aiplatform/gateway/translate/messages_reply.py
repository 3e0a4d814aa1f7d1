"""Chat completions' replies as Anthropic's messages."""

from collections.abc import Iterator
from typing import Any

from aiplatform.gateway.translate.base import (
    Asked,
    Json,
    arguments_read,
    count,
    dicts,
    dumps,
    error_read,
    reply_read,
    text_of,
)
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
_INTERLEAVED = "The provider went back to a tool call that it had left, which this wire cannot say."


def message(body: bytes, asked: Asked) -> bytes:
    reply = reply_read(body)
    choice = next(iter(dicts(reply.get("choices"))), {})
    said = choice.get("message")
    said = said if isinstance(said, dict) else {}
    content: list[Json] = [
        {"type": "thinking", "thinking": said[name], "signature": name}
        for name in FROM_FIELDS
        if text_of(said.get(name))
    ][:1]
    texts = text_of(said.get("content")), text_of(said.get("refusal"))
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
        self._begun = False
        self._failed = False
        self._blocks = 0
        self._open: tuple[str, str] | None = None  # the kind of the open block, and which reasoning or call it is
        self._calls: dict[str, tuple[str, str]] = {}  # by index: which call it is, and its id
        self._called = 0
        self._refusal = ""
        self._choice: Json = {}
        self._usage: Any = None

    def take(self, chunk: Json) -> Iterator[Json]:
        if isinstance(chunk.get("error"), dict | str):
            yield self._fail(_error(error_read(_SERVER_ERROR, dumps(chunk)), _SERVER_ERROR))
            return
        if not self._begun:
            self._begun = True
            yield self._start(chunk)
        self._usage = chunk.get("usage") or self._usage
        for choice in dicts(chunk.get("choices"))[:1]:
            delta = choice.get("delta")
            if isinstance(delta, dict) and not self._failed:
                yield from self._delta(delta)
            if choice.get("finish_reason"):
                self._choice = choice

    def done(self) -> None:
        self.complete = self._begun and not self._failed

    def last(self) -> Iterator[Json]:
        yield from self._close()
        stopped = _stopped(self._choice, self._refusal, self._asked, has_calls=bool(self._calls))
        figures = usage(self._usage, None)
        yield {"type": "message_delta", "delta": stopped, "usage": figures}
        yield {"type": "message_stop"}

    def _start(self, chunk: Json) -> Json:
        stopped = {"stop_reason": None, "stop_sequence": None, "stop_details": None}
        figures = usage(chunk.get("usage"), chunk.get("service_tier"))
        return {
            "type": "message_start",
            "message": _head(chunk, self._asked) | {"content": []} | stopped | {"usage": figures},
        }

    def _delta(self, delta: Json) -> Iterator[Json]:
        for name in FROM_FIELDS:
            if text := text_of(delta.get(name)):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._into("thinking", name, block)
                yield self._more({"type": "thinking_delta", "thinking": text})
                break  # a server that gives both names says the same by both
        for name in ("content", "refusal"):
            if text := text_of(delta.get(name)):
                self._refusal += text if name == "refusal" else ""
                yield from self._into("text", name, {"type": "text", "text": ""})
                yield self._more({"type": "text_delta", "text": text})
        for call in dicts(delta.get("tool_calls")):
            yield from self._call(call)

    def _call(self, call: Json) -> Iterator[Json]:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        number, is_new = self._which(str(call.get("index")), text_of(call.get("id")))
        if is_new:
            block = _tool_use({"id": call.get("id"), "function": function | {"arguments": ""}})
            yield from self._into("tool_use", number, block)
        elif self._open != ("tool_use", number):
            yield self._fail(_error({"message": _INTERLEAVED}, _SERVER_ERROR))
            return
        if part := text_of(function.get("arguments")):
            yield self._more({"type": "input_json_delta", "partial_json": part})

    def _which(self, index: str, identity: str) -> tuple[str, bool]:
        """Which call a part belongs to, and whether it begins it. Servers that give every call one index, or none, tell calls
        apart by their ids.
        """
        number, known = self._calls.get(index, ("", ""))
        if number and identity in ("", known):
            return number, False
        self._called += 1
        self._calls[index] = (str(self._called), identity)
        return str(self._called), True

    def _into(self, kind: str, name: str, block: Json) -> Iterator[Json]:
        """Opens the block unless it is open, and closes what was open before it."""
        if self._open == (kind, name):
            return
        yield from self._close()
        self._open = (kind, name)
        yield {"type": "content_block_start", "index": self._blocks, "content_block": block}

    def _more(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _close(self) -> Iterator[Json]:
        if self._open is None:
            return
        if self._open[0] == "thinking":
            yield self._more({"type": "signature_delta", "signature": self._open[1]})
        yield {"type": "content_block_stop", "index": self._blocks}
        self._open = None
        self._blocks += 1

    def _fail(self, error: Json) -> Json:
        self._failed = True
        return error


def _head(reply: Json, asked: Asked) -> Json:
    name = text_of(reply.get("id")).removeprefix("chatcmpl-")
    model = text_of(reply.get("model")) or text_of(asked.request.get("model"))
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": model}


def _tool_use(call: Json) -> Json:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    value = arguments_read(text_of(function.get("arguments")))
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
