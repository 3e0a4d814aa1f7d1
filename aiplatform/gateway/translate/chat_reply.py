"""Anthropic's replies as chat completions."""

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
    given,
    reply_read,
    text_of,
)

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",  # it is unfinished, and goes on if it is sent back
    "refusal": "content_filter",
}
_TIERS = {"standard": "default", "priority": "priority"}
_ERROR_TYPES = {"rate_limit_error": "rate_limit_error", "billing_error": "insufficient_quota"}
_ERROR_CODES = {
    "authentication_error": "invalid_api_key",
    "rate_limit_error": "rate_limit_exceeded",
    "not_found_error": "not_found",
}
_SERVER_ERROR = 500


def completion(body: bytes, asked: Asked) -> bytes:
    reply = reply_read(body, "content")
    blocks = dicts(reply.get("content"))
    texts = [text_of(block.get("text")) for block in blocks if block.get("type") == "text"]
    message: Json = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": _refusal(reply)}
    message |= _thinking(blocks)
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    if calls:
        message["tool_calls"] = [_tool_call(block) for block in calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply, has_calls=bool(calls))}
    head = _head(reply, asked, "chat.completion")
    return dumps(head | {"choices": [choice], "usage": usage(reply.get("usage"))} | _tier(reply.get("usage")))


def error(status: int, body: bytes) -> bytes:
    return dumps(_error(error_read(status, body), status))


def chunk_written(chunk: Json) -> bytes:
    return b"data: " + dumps(chunk) + b"\n\n"


def usage(said: Any) -> Json:
    """OpenAI counts what was read from and written to the cache within the prompt; Anthropic counts each for itself."""
    read, written = count(said, "cache_read_input_tokens"), count(said, "cache_creation_input_tokens")
    prompt, output = count(said, "input_tokens") + read + written, count(said, "output_tokens")
    details = said.get("output_tokens_details") if isinstance(said, dict) else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": min(count(details, "thinking_tokens"), output)},
    }


class Chunks:
    """Anthropic's events as chunks of a chat completion."""

    def __init__(self, asked: Asked) -> None:
        self.complete = False
        self._asked = asked
        self._base: Json = {}
        self._usage: Json = {}
        self._begun = self._finished = False
        self._calls = self._thoughts = 0
        self._block: Json = {}
        self._arguments = False  # whether the open call has told any

    def take(self, event: Json) -> Iterator[Json]:
        kind = event.get("type")
        if kind == "message_start":
            self._start(event.get("message"))
        elif kind == "content_block_start":
            yield from self._open(event.get("content_block"))
        elif kind == "content_block_delta":
            yield from self._delta(event.get("delta"))
        elif kind == "content_block_stop":
            yield from self._close()
        elif kind == "message_delta":
            yield from self._finish(event)
        elif kind == "message_stop":
            self.complete = True
        elif kind == "error":
            said = event.get("error")
            yield _error(said if isinstance(said, dict) else {}, _SERVER_ERROR)

    def done(self) -> None:
        """Anthropic's wire has no such word."""

    def last(self) -> Iterator[Json]:
        if not self._finished:
            yield self._chunk({}, _finish({}, has_calls=self._calls > 0))
        if self._asked.include_usage:
            yield self._base | {"choices": [], "usage": usage(self._usage)}

    def _start(self, message: Any) -> None:
        message = message if isinstance(message, dict) else {}
        self._usage = _known(message.get("usage"))
        self._base = _head(message, self._asked, "chat.completion.chunk") | _tier(self._usage)
        if self._asked.include_usage:
            self._base["usage"] = None

    def _open(self, block: Any) -> Iterator[Json]:
        self._block = block if isinstance(block, dict) else {}
        kind = self._block.get("type")
        self._arguments = False
        if not self._begun:
            self._begun = True
            yield self._chunk({"role": "assistant", "content": "" if kind == "text" else None})
        if kind == "text" and text_of(self._block.get("text")):
            yield self._chunk({"content": self._block["text"]})
        elif kind == "tool_use":
            call = _tool_call(self._block | {"input": None})
            yield self._chunk({"tool_calls": [{"index": self._calls} | call]})
            self._calls += 1

    def _delta(self, delta: Any) -> Iterator[Json]:
        delta = delta if isinstance(delta, dict) else {}
        if text := text_of(delta.get("text")):
            yield self._chunk({"content": text})
        elif part := text_of(delta.get("partial_json")):
            if self._block.get("type") == "tool_use":
                self._arguments = True
                yield self._chunk(self._more(part))
        elif text := text_of(delta.get("thinking")):
            self._block["thinking"] = text_of(self._block.get("thinking")) + text
            yield self._chunk({"reasoning_content": text})
        elif signature := text_of(delta.get("signature")):
            self._block["signature"] = signature

    def _close(self) -> Iterator[Json]:
        """What is told of a block when it is whole: its thinking with the signature; the arguments of a call without any."""
        kind = self._block.get("type")
        if kind == "tool_use" and not self._arguments:
            yield self._chunk(self._more(dumps(self._block.get("input") or {}).decode()))
        elif kind in ("thinking", "redacted_thinking"):
            yield self._chunk({"thinking_blocks": [{"index": self._thoughts} | _thought(self._block)]})
            self._thoughts += 1
        self._block = {}

    def _finish(self, event: Json) -> Iterator[Json]:
        self._usage |= _known(event.get("usage"))
        delta = event.get("delta")
        if isinstance(delta, dict) and delta.get("stop_reason"):
            begin = {} if self._begun else {"role": "assistant", "content": None}
            self._begun = self._finished = True
            said = begin | given(refusal=_refusal(delta))
            yield self._chunk(said, _finish(delta, has_calls=self._calls > 0))

    def _more(self, arguments: str) -> Json:
        return {"tool_calls": [{"index": self._calls - 1, "function": {"arguments": arguments}}]}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._base | {"choices": [choice]}


def _head(message: Json, asked: Asked, kind: str) -> Json:
    model = text_of(message.get("model")) or text_of(asked.request.get("model"))
    return {"id": f"chatcmpl-{bare(message)}", "object": kind, "created": asked.created, "model": model}


def _thinking(blocks: list[Json]) -> Json:
    thoughts = [_thought(block) for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    if not thoughts:
        return {}
    text = "".join(thought.get("thinking", "") for thought in thoughts)
    return ({"reasoning_content": text} if text else {}) | {"thinking_blocks": thoughts}


def _thought(block: Json) -> Json:
    if block["type"] == "redacted_thinking":
        return {"type": "redacted_thinking", "data": text_of(block.get("data"))}
    thinking, signature = text_of(block.get("thinking")), text_of(block.get("signature"))
    return {"type": "thinking", "thinking": thinking, "signature": signature}


def _tool_call(block: Json) -> Json:
    arguments = "" if block.get("input") is None else dumps(block["input"]).decode()
    function = {"name": text_of(block.get("name")), "arguments": arguments}
    return {"id": text_of(block.get("id")), "type": "function", "function": function}


def _finish(said: Json, *, has_calls: bool) -> str:
    """A reason that is newer than this table is no reason to call an answer cut off."""
    return _FINISH.get(text_of(said.get("stop_reason")), "tool_calls" if has_calls else "stop")


def _refusal(said: Json) -> str | None:
    details = said.get("stop_details")
    if said.get("stop_reason") != "refusal" or not isinstance(details, dict):
        return None
    return text_of(details.get("explanation")) or None


def _known(said: Any) -> Json:
    """The figures of message_delta are cumulative, and may leave out what message_start said."""
    return {name: value for name, value in said.items() if value is not None} if isinstance(said, dict) else {}


def _tier(said: Any) -> Json:
    tier = said.get("service_tier") if isinstance(said, dict) else None
    return {"service_tier": _TIERS[tier]} if isinstance(tier, str) and tier in _TIERS else {}


def _error(said: Json, status: int) -> Json:
    name = text_of(said.get("type")) or "api_error"
    kind = _ERROR_TYPES.get(name, "invalid_request_error" if status < _SERVER_ERROR else "server_error")
    message = text_of(said.get("message")) or "The provider failed."
    return {"error": {"message": message, "type": kind, "param": None, "code": _ERROR_CODES.get(name, name)}}
