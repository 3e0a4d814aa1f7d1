"""A message and the events of its stream, one made from the other.

Source: platform.claude.com/docs/en/build-with-claude/streaming, and `accumulate_event` of Anthropic's SDK.
"""

from collections.abc import Iterator
from typing import Any

from aiplatform.gateway.cache.forms_events import Json, NotRenderable, dumps
from aiplatform.providers.base import parsed

# Said at the end: the SDK forgets those that message_delta does not say.
_LAST = ("stop_reason", "stop_sequence", "stop_details", "container")
_WITH_INPUT = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
# The field of a block that a delta's type adds to; the delta calls it the same.
_TEXTS = {"text_delta": "text", "thinking_delta": "thinking"}


def together(events: list[Json]) -> Json:
    """The message; raises NotRenderable."""
    whole = _Whole()
    for event in events:
        whole.take(event)
    return whole.message()


class _Whole:
    """A message as far as it has been told."""

    def __init__(self) -> None:
        self._message: Json | None = None
        self._open: Json | None = None
        self._input = ""

    def take(self, event: Json) -> None:
        """Events of types that nobody knows have no place in a message."""
        kind = event.get("type")
        if kind == "message_start":
            if self._message is not None:
                raise NotRenderable("it begins twice")
            self._message = dict(event["message"]) | {"content": list(event["message"].get("content") or [])}
        elif kind == "content_block_start":
            self._start(event)
        elif kind == "content_block_delta":
            self._add(event["delta"], self._block(event))
        elif kind == "content_block_stop":
            self._stop(self._block(event))
        elif kind == "message_delta":
            self._end(event)

    def message(self) -> Json:
        if self._message is None or self._open is not None:
            raise NotRenderable("its beginning or the end of a block is missing")
        return self._message

    @property
    def _begun(self) -> Json:
        if self._message is None:
            raise NotRenderable("an event before the beginning")
        return self._message

    def _start(self, event: Json) -> None:
        content = self._begun["content"]
        if self._open is not None or event["index"] != len(content):
            raise NotRenderable("blocks out of order")
        self._open, self._input = dict(event["content_block"]), ""
        content.append(self._open)

    def _block(self, event: Json) -> Json:
        if self._open is None or event["index"] != len(self._begun["content"]) - 1:
            raise NotRenderable("no such block is open")
        return self._open

    def _add(self, delta: Json, block: Json) -> None:
        kind = delta["type"]
        if kind in _TEXTS and block["type"] == _TEXTS[kind]:
            block[_TEXTS[kind]] += delta[_TEXTS[kind]]
        elif kind == "input_json_delta" and "input" in block:
            self._input += delta["partial_json"]
        elif kind == "citations_delta" and block["type"] == "text":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        elif kind == "signature_delta" and not block.get("signature"):
            block["signature"] = delta["signature"]
        else:
            raise NotRenderable(f"{kind} within {block['type']}")

    def _stop(self, block: Json) -> None:
        if self._input:
            given = parsed(self._input.encode(errors="surrogatepass"))
            if given is None:
                raise NotRenderable("the input of a tool is cut off")
            block["input"] = given
        self._open = None

    def _end(self, event: Json) -> None:
        """Its figures are cumulative and may leave out what the beginning said."""
        message = self._begun
        more = {name: value for name, value in event.items() if name not in {"type", "delta", "usage"}}
        message |= more | event["delta"]
        usage = message["usage"] = dict(message.get("usage") or {})
        for name, value in (event.get("usage") or {}).items():
            if value is not None or name not in usage:
                usage[name] = value


def apart(answer: Json) -> list[Json]:
    """The events of a message; raises NotRenderable."""
    if answer.get("type") != "message":
        raise NotRenderable("no message")
    last: Json = {name: answer[name] for name in _LAST if name in answer}
    usage = answer["usage"]
    begun = answer | {"content": []} | dict.fromkeys(last)
    blocks = [event for at, block in enumerate(answer["content"]) for event in _block_apart(at, block)]
    told = {"output_tokens": usage["output_tokens"]}
    return [
        {"type": "message_start", "message": begun},
        *blocks,
        {"type": "message_delta", "delta": last, "usage": told},
        {"type": "message_stop"},
    ]


def _block_apart(at: int, block: Json) -> Iterator[Json]:
    deltas = list(_deltas(block))
    begun = dict(block)
    for delta in deltas:
        begun |= _BEFORE[delta["type"]]
    yield {"type": "content_block_start", "index": at, "content_block": begun}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": at, "delta": delta}
    yield {"type": "content_block_stop", "index": at}


_BEFORE: dict[str, dict[str, Any]] = {
    "text_delta": {"text": ""},
    "citations_delta": {"citations": []},
    "thinking_delta": {"thinking": ""},
    "signature_delta": {"signature": ""},
    "input_json_delta": {"input": {}},
}


def _deltas(block: Json) -> Iterator[Json]:
    """What is said of a block bit by bit; all of it stands in its beginning where its type is not known."""
    kind = block["type"]
    if kind == "text":
        if block["text"]:
            yield {"type": "text_delta", "text": block["text"]}
        for citation in block.get("citations") or []:
            yield {"type": "citations_delta", "citation": citation}
    elif kind == "thinking":
        if block["thinking"]:
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
        if block.get("signature"):
            yield {"type": "signature_delta", "signature": block["signature"]}
    elif kind in _WITH_INPUT and block["input"]:
        yield {"type": "input_json_delta", "partial_json": dumps(block["input"]).decode()}
