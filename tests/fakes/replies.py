"""What the far end says on each wire: plain bodies, stream events and errors, good or as a fault wants them.

Tokens follow one rule. Input: one token for each started four characters of message and system text, at
least one, never more than the text's UTF-8 bytes. Output: as many as the server's default or the fault
says, but never more than the request's `max_tokens`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.fakes.codec import dumps, loads
from tests.fakes.faults import Fault
from tests.fakes.responses import Response, Store, tokens_in

CANARY = re.compile(rb"canary-[A-Za-z0-9_-]+")
CREATED = 1_767_225_600  # 2026-01-01
HUGE = 10**18

Json = dict[str, Any]


class Piece(NamedTuple):
    """A part of a reply's body: an event of a stream, or a plain body whole."""

    data: bytes
    output_tokens: int = 0
    usage: Any = None


@dataclass(kw_only=True, slots=True)
class Ask:
    """What a request asks for, and what the script makes of it."""

    wire: str
    number: int
    model: str
    stream: bool
    include_usage: bool
    input_tokens: int
    output_tokens: int
    texts: list[str]
    is_cut: bool
    fault: Fault
    response: Response | None = None
    """Of `/v1/responses`."""


def read(wire: str, number: int, raw: bytes, *, canary: str, output_tokens: int, fault: Fault) -> Ask:
    """Read a request's body; raises ValueError where it is no JSON object."""
    body = loads(raw)
    if type(body) is not dict:
        raise ValueError("The body is no JSON object.")
    wanted = output_tokens if fault.output_tokens is None else fault.output_tokens
    limit = (body.get("max_completion_tokens") if fault.knows_newer_limit else None) or body.get("max_tokens")
    produced = min(wanted, limit) if type(limit) is int else wanted
    options = body.get("stream_options")
    return Ask(
        wire=wire,
        number=number,
        model=str(body.get("model")),
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        input_tokens=input_tokens(body) if fault.input_tokens is None else fault.input_tokens,
        output_tokens=produced,
        texts=texts(fault, canary, produced),
        is_cut=produced < wanted,
        fault=fault,
    )


def read_response(
    store: Store, number: int, raw: bytes, *, canary: str, output_tokens: int, fault: Fault
) -> Ask | None:
    """Read what `/v1/responses` asks for; None where it continues what is not kept. Raises ValueError as `read` does."""
    asked = loads(raw)
    if type(asked) is not dict:
        raise ValueError("The body is no JSON object.")
    earlier = store.earlier_tokens(asked)
    if earlier is None:
        return None
    wanted = output_tokens if fault.output_tokens is None else fault.output_tokens
    limit = asked.get("max_output_tokens")
    produced = min(wanted, limit) if type(limit) is int else wanted
    given = earlier + tokens_in(asked) if fault.input_tokens is None else fault.input_tokens
    response = Response(
        number=number, asked=asked, texts=texts(fault, canary, produced), input_tokens=given, output_tokens=produced,
        is_cut=produced < wanted, fault=fault,
    )  # fmt: skip
    if response.is_stored and fault.status is None:
        store.kept[response.id] = response
    return Ask(
        wire="responses", number=number, model=str(asked.get("model")), stream=asked.get("stream") is True, include_usage=True,
        input_tokens=given, output_tokens=produced, texts=response.texts, is_cut=response.is_cut, fault=fault, response=response,
    )  # fmt: skip


def input_tokens(body: Json) -> int:
    """Count the prompt by the rule above."""
    messages = body.get("messages")
    characters = text_length(body.get("system"))
    if type(messages) is list:
        characters += sum(text_length(message.get("content")) for message in messages if type(message) is dict)
    return max(1, -(-characters // 4))


def text_length(content: Any) -> int:
    """Return how many characters of text a message's content holds."""
    if type(content) is str:
        return len(content)
    if type(content) is list:
        return sum(len(str(part.get("text", ""))) for part in content if type(part) is dict)
    return 0


def texts(fault: Fault, canary: str, tokens: int) -> list[str]:
    """Return what is said, cut as a stream would send it; a canary always leads."""
    if fault.text is None and fault.chunks is None:
        words = ["tok "] * tokens
        if canary and words:
            words[0] = f"{canary} "
        return words
    said = "".join((f"{canary} " if canary else "", "tok " * tokens if fault.text is None else fault.text))
    count = max(1, fault.chunks or tokens)
    return [said[len(said) * part // count : len(said) * (part + 1) // count] for part in range(count)]


def tokens_of(ask: Ask, part: int) -> int:
    """Return how many of the output tokens a part of the text stands for."""
    count = len(ask.texts)
    return ask.output_tokens * (part + 1) // count - ask.output_tokens * part // count


def body(ask: Ask) -> Piece:
    """Return a plain reply."""
    if ask.response is not None:
        told = ask.response.told("queued" if ask.response.is_background else ask.response.end)
        return Piece(dumps(told), ask.output_tokens, told.get("usage"))
    reply, usage = (openai_reply if ask.wire == "openai" else anthropic_reply)(ask)
    if ask.fault.usage != "missing":
        reply["usage"] = usage
    if ask.fault.extra:
        reply |= ask.fault.extra
    return Piece(dumps(reply), ask.output_tokens, reply.get("usage"))


def events(ask: Ask) -> Iterator[Piece]:
    """Yield a streamed reply, an event each."""
    if ask.response is not None:
        return response_events(ask.response)
    return (openai_events if ask.wire == "openai" else anthropic_events)(ask)


def response_events(response: Response) -> Iterator[Piece]:
    """Yield a streamed response; the last event tells the usage, and may be left out."""
    told = [Piece(event, tokens) for event, tokens in response.events()]
    last = told.pop()
    yield from told
    if response.fault.done:
        yield last._replace(usage=response.told(response.end).get("usage"))


def error(wire: str, status: int) -> bytes:
    """Return an error in the wire's own shape."""
    message = f"The far end was told to answer {status}."
    if wire != "anthropic":
        kind = {429: "rate_limit_exceeded"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return dumps({"error": {"message": message, "type": kind, "param": None, "code": kind}})
    known = {
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        529: "overloaded_error",
    }
    kind = known.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return dumps({"type": "error", "error": {"type": kind, "message": message}})


def error_event(wire: str) -> Piece:
    """Return the event by which a stream fails midway."""
    if wire == "responses":
        told = {"type": "error", "sequence_number": 99} | loads(error(wire, 500))
        return Piece(b"event: error\ndata: %s\n\n" % dumps(told))
    if wire == "openai":
        return Piece(b"data: %s\n\n" % error(wire, 500))
    return Piece(b"event: error\ndata: %s\n\n" % error(wire, 529))


# --- OpenAI: https://platform.openai.com/docs/api-reference/chat ----------------------------------------------------


def openai_reply(ask: Ask) -> tuple[Json, Any]:
    """Return a chat completion without its usage, and the usage."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(ask.texts), "refusal": None},
        "logprobs": None,
        "finish_reason": ask.fault.finish_reason or ("length" if ask.is_cut else "stop"),
    }
    return openai_head(ask, "chat.completion") | {"choices": [choice]}, openai_usage(ask)


def openai_events(ask: Ask) -> Iterator[Piece]:
    """Yield the chunks of a chat completion."""
    head = openai_head(ask, "chat.completion.chunk") | ask.fault.extra
    shows_usage = ask.include_usage and ask.fault.usage != "missing"
    if shows_usage:
        head["usage"] = None

    def chunk(delta: Json, finish_reason: str | None = None, tokens: int = 0) -> Piece:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return Piece(b"data: %s\n\n" % dumps(head | {"choices": [choice]}), tokens)

    usage = openai_usage(ask)
    usage_chunk = Piece(b"data: %s\n\n" % dumps(head | {"choices": [], "usage": usage}), 0, usage)
    is_early = ask.fault.usage in ("first", "start_only")  # a tuple, since an object has no hash
    if shows_usage and is_early:
        yield usage_chunk
    yield chunk({"role": "assistant", "content": ""})
    for part, text in enumerate(ask.texts):
        yield chunk({"content": text}, tokens=tokens_of(ask, part))
    yield chunk({}, ask.fault.finish_reason or ("length" if ask.is_cut else "stop"))
    if shows_usage and not is_early:
        yield usage_chunk
        if ask.fault.usage == "twice":
            yield usage_chunk
    for _ in range(ask.fault.done):
        yield Piece(b"data: [DONE]\n\n")


def openai_head(ask: Ask, kind: str) -> Json:
    """Return what every object of one completion shares."""
    return {"id": f"chatcmpl-{ask.number}", "object": kind, "created": CREATED, "model": ask.model}


def openai_usage(ask: Ask) -> Any:
    """Return the usage, as it is or as the fault wants it."""
    if isinstance(ask.fault.usage, dict):
        return ask.fault.usage
    if ask.fault.usage == "null":
        return None
    figure = FIGURES.get(ask.fault.usage or "", as_it_is)
    cached = ask.input_tokens + 100 if ask.fault.usage == "cached_above_input" else 0
    return {
        "prompt_tokens": figure(ask.input_tokens),
        "completion_tokens": figure(ask.output_tokens),
        "total_tokens": figure(ask.input_tokens + ask.output_tokens),
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


# --- Anthropic: https://platform.claude.com/docs/en/api/messages ----------------------------------------------------


def anthropic_reply(ask: Ask) -> tuple[Json, Any]:
    """Return a message without its usage, and the usage."""
    message = anthropic_head(ask)
    message["content"] = [{"type": "text", "text": "".join(ask.texts)}]
    message["stop_reason"] = anthropic_stop_reason(ask)
    return message, anthropic_usage(ask, ask.output_tokens)


def anthropic_events(ask: Ask) -> Iterator[Piece]:
    """Yield the events of a message; the usage in `message_delta` is cumulative."""
    begun, ended = anthropic_usage(ask, 1), anthropic_usage(ask, ask.output_tokens)
    shows_usage = ask.fault.usage != "missing"

    def event(name: str, fields: Json, tokens: int = 0, usage: Any = None) -> Piece:
        return Piece(b"event: %s\ndata: %s\n\n" % (name.encode(), dumps({"type": name} | fields)), tokens, usage)

    stop = {"delta": {"stop_reason": anthropic_stop_reason(ask), "stop_sequence": None}}
    ends = shows_usage and ask.fault.usage != "start_only"
    delta = event("message_delta", stop | ({"usage": ended} if ends else {}), 0, ended if ends else None)

    message = anthropic_head(ask) | ask.fault.extra | ({"usage": begun} if shows_usage else {})
    yield event("message_start", {"message": message}, 0, begun if shows_usage else None)
    if ask.fault.usage == "first":
        yield delta
    yield event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}} | ask.fault.extra)
    yield event("ping", {})
    for part, text in enumerate(ask.texts):
        fields = {"index": 0, "delta": {"type": "text_delta", "text": text}} | ask.fault.extra
        yield event("content_block_delta", fields, tokens_of(ask, part))
    yield event("content_block_stop", {"index": 0})
    if ask.fault.usage != "first":
        yield delta
        if ask.fault.usage == "twice":
            yield delta
    for _ in range(ask.fault.done):
        yield event("message_stop", {})


def anthropic_head(ask: Ask) -> Json:
    """Return a message before its first word."""
    return {
        "id": f"msg_{ask.number}",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def anthropic_stop_reason(ask: Ask) -> str:
    """Return why the message ends."""
    return ask.fault.finish_reason or ("max_tokens" if ask.is_cut else "end_turn")


def anthropic_usage(ask: Ask, output_tokens: int) -> Any:
    """Return the usage, as it is or as the fault wants it."""
    if isinstance(ask.fault.usage, dict):
        return ask.fault.usage
    if ask.fault.usage == "null":
        return None
    figure = FIGURES.get(ask.fault.usage or "", as_it_is)
    cached = ask.input_tokens + 100 if ask.fault.usage == "cached_above_input" else 0
    return {
        "input_tokens": figure(ask.input_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": figure(output_tokens),
    }


def as_it_is(figure: int) -> int:
    """Leave a figure alone."""
    return figure


FIGURES: dict[str, Callable[[int], Any]] = {
    "zero": lambda _figure: 0,
    "negative": lambda figure: -figure,
    "huge": lambda _figure: HUGE,
    "string": str,
}
