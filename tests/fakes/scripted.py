"""Replies that are written out: exact bytes, and answers that call tools, as arguments of `FakeProvider.script`."""

import base64
import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]
USAGE: dict[str, Json] = {"openai": {"prompt_tokens": 61, "completion_tokens": 30, "total_tokens": 91},
         "anthropic": {"input_tokens": 61, "output_tokens": 30},
         "responses": {"input_tokens": 61, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 30,
                       "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 91}}  # fmt: skip


def exactly(data: bytes, *, stream: bool) -> Json:
    """These bytes as the body."""
    return {"raw": base64.b64encode(data).decode(), "content_type": _type(stream=stream)}


def gzipped(data: bytes, *, stream: bool) -> Json:
    """These bytes, compressed though nobody asked for it."""
    return exactly(gzip.compress(data), stream=stream) | {"headers": {"content-encoding": "gzip"}}


def tool_calls(wire: str, calls: list[tuple[str, Json]], *, stream: bool) -> Json:
    """An answer that calls these tools (name, arguments) in parallel; it costs USAGE."""
    reply, events = _WIRES[wire]
    if stream:
        return exactly(b"".join(events(calls)), stream=True)
    return exactly(json.dumps(reply(calls)).encode(), stream=False)


def _type(*, stream: bool) -> str:
    return "text/event-stream; charset=utf-8" if stream else "application/json"


def _openai_reply(calls: list[tuple[str, Json]]) -> Json:
    message = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [_function(at, name, json.dumps(given)) for at, (name, given) in enumerate(calls)],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    return _openai_head("chat.completion") | {"choices": [choice], "usage": USAGE["openai"]}


def _openai_events(calls: list[tuple[str, Json]]) -> Iterator[bytes]:
    head = _openai_head("chat.completion.chunk")

    def chunk(delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data(head | {"choices": [choice], "usage": None})

    yield chunk({"role": "assistant", "content": None})
    for at, (name, given) in enumerate(calls):
        yield chunk({"tool_calls": [{"index": at} | _function(at, name, "")]})
        for part in _halves(json.dumps(given)):
            yield chunk({"tool_calls": [{"index": at, "function": {"arguments": part}}]})
    yield chunk({}, "tool_calls")
    yield _data(head | {"choices": [], "usage": USAGE["openai"]})
    yield b"data: [DONE]\n\n"


def _openai_head(kind: str) -> Json:
    return {"id": "chatcmpl-tools", "object": kind, "created": 1_767_225_600, "model": "fake-1"}


def _function(at: int, name: str, arguments: str) -> Json:
    return {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _anthropic_reply(calls: list[tuple[str, Json]]) -> Json:
    blocks = [{"type": "tool_use", "id": f"toolu_{at}", "name": name, "input": given} for at, (name, given) in enumerate(calls)]  # fmt: skip
    return _anthropic_head() | {"content": blocks, "stop_reason": "tool_use", "usage": USAGE["anthropic"]}


def _anthropic_events(calls: list[tuple[str, Json]]) -> Iterator[bytes]:
    yield _event("message_start", {"message": _anthropic_head() | {"usage": USAGE["anthropic"] | {"output_tokens": 1}}})
    for at, (name, given) in enumerate(calls):
        block = {"type": "tool_use", "id": f"toolu_{at}", "name": name, "input": {}}
        yield _event("content_block_start", {"index": at, "content_block": block})
        for part in _halves(json.dumps(given)):
            delta = {"type": "input_json_delta", "partial_json": part}
            yield _event("content_block_delta", {"index": at, "delta": delta})
        yield _event("content_block_stop", {"index": at})
    stop = {"stop_reason": "tool_use", "stop_sequence": None}
    yield _event("message_delta", {"delta": stop, "usage": {"output_tokens": USAGE["anthropic"]["output_tokens"]}})
    yield _event("message_stop", {})


def _anthropic_head() -> Json:
    return {
        "id": "msg_tools",
        "type": "message",
        "role": "assistant",
        "model": "fake-1",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _response(calls: list[tuple[str, Json]]) -> Json:
    items = [_call_item(at, name, json.dumps(given)) for at, (name, given) in enumerate(calls)]
    return _response_head("completed") | {"output": items, "usage": USAGE["responses"]}


def _response_events(calls: list[tuple[str, Json]]) -> Iterator[bytes]:
    numbers = itertools.count()

    def event(name: str, fields: Json) -> bytes:
        return _event(name, fields | {"sequence_number": next(numbers)})

    yield event("response.created", {"response": _response_head("in_progress") | {"output": [], "usage": None}})
    for at, (name, given) in enumerate(calls):
        item, place = _call_item(at, name, json.dumps(given)), {"output_index": at, "item_id": f"fc_{at}"}
        yield event(
            "response.output_item.added",
            {"output_index": at, "item": item | {"arguments": "", "status": "in_progress"}},
        )
        for part in _halves(item["arguments"]):
            yield event("response.function_call_arguments.delta", place | {"delta": part})
        yield event("response.function_call_arguments.done", place | {"arguments": item["arguments"], "name": name})
        yield event("response.output_item.done", {"output_index": at, "item": item})
    yield event("response.completed", {"response": _response(calls)})


def _response_head(status: str) -> Json:
    return {
        "id": "resp_tools", "object": "response", "created_at": 1_767_225_600, "status": status, "model": "fake-1", "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0,
        "tool_choice": "auto", "tools": [], "top_p": 1.0,
    }  # fmt: skip


def _call_item(at: int, name: str, arguments: str) -> Json:
    return {
        "id": f"fc_{at}", "type": "function_call", "status": "completed", "call_id": f"call_{at}", "name": name,
        "arguments": arguments,
    }  # fmt: skip


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _data(value: Json) -> bytes:
    return b"data: %s\n\n" % json.dumps(value).encode()


def _event(name: str, fields: Json) -> bytes:
    return b"event: %s\n%s" % (name.encode(), _data({"type": name} | fields))


_Calls = list[tuple[str, Json]]
_WIRES: dict[str, tuple[Callable[[_Calls], Json], Callable[[_Calls], Iterator[bytes]]]] = {
    "openai": (_openai_reply, _openai_events),
    "anthropic": (_anthropic_reply, _anthropic_events),
    "responses": (_response, _response_events),
}
