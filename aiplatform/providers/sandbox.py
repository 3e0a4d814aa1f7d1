"""A deterministic built-in provider on both wires, so that the CI of our users is free and never flickers.

The same body always gets the same reply: ids and times come from a hash of the body. The reply is
`sandbox: ` and the last user text.

Tokens are counted by one rule: a text of n characters is ceil(n / 4) tokens. The prompt is the sum over
all message texts and the system text, 85 tokens for each image and 30 for each sound; the reply is cut
into pieces of four characters, and `max_tokens` keeps that many pieces.

A model name or a last user text that holds one of these directives changes what happens:

    sandbox:error:429     the reply is an error of that status (400 to 599) in the wire's own shape
    sandbox:slow:250ms    the reply starts after that time (at most 60000 ms)

The application runs inside the caller's process: `httpx2.AsyncClient(transport=httpx2.ASGITransport(application()))`
is a client for either official SDK. That transport hands a stream over whole, which costs nothing here:
there is no pace to keep.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

MODELS = ("sandbox-1", "sandbox-1-mini")
CHARACTERS_PER_TOKEN = 4
IMAGE_TOKENS = 85
AUDIO_TOKENS = 30
DIRECTIVE = re.compile(r"sandbox:(?:error:(?P<status>[45]\d\d)(?!\d)|slow:(?P<delay>\d{1,5})ms)")
LONGEST_DELAY_MS = 60_000
MOST_CHOICES = 128
EPOCH = 1_735_689_600  # 2025-01-01: `created` must be a plausible time, but may not be the clock's

Json = dict[str, Any]


def application(more: Iterable[Route] = ()) -> Starlette:
    """Return the provider as an ASGI application, with the endpoints of other modules where they are given."""
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/messages", messages, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            *more,
        ]
    )


async def chat_completions(request: Request) -> Response:
    """Answer on OpenAI's wire: https://platform.openai.com/docs/api-reference/chat."""
    try:
        prompt = openai_prompt(await request.body())
    except ValueError as error:
        return openai_error(400, str(error))
    await asyncio.sleep(prompt.delay_seconds)
    if prompt.error_status:
        return openai_error(prompt.error_status, f"The sandbox was asked for status {prompt.error_status}.")
    headers = {"x-request-id": f"req_{prompt.digest[:24]}"}
    if prompt.stream:
        return event_stream(openai_events(prompt), headers)
    return json_response(openai_completion(prompt), headers=headers)


async def messages(request: Request) -> Response:
    """Answer on Anthropic's wire: https://platform.claude.com/docs/en/api/messages."""
    try:
        prompt = anthropic_prompt(await request.body())
    except ValueError as error:
        return anthropic_error(400, str(error))
    await asyncio.sleep(prompt.delay_seconds)
    if prompt.error_status:
        return anthropic_error(prompt.error_status, f"The sandbox was asked for status {prompt.error_status}.")
    headers = {"request-id": f"req_{prompt.digest[:24]}"}
    if prompt.stream:
        return event_stream(anthropic_events(prompt), headers)
    return json_response(anthropic_message(prompt), headers=headers)


async def models(request: Request) -> Response:
    """List the models in the shape of the wire that asks; any other name is served as well."""
    if "anthropic-version" in request.headers:
        listed: list[Json] = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"} for name in MODELS
        ]
        return json_response({"data": listed, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})
    listed = [{"id": name, "object": "model", "created": EPOCH, "owned_by": "sandbox"} for name in MODELS]
    return json_response({"object": "list", "data": listed})


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the sandbox needs to know of a request, whatever its wire."""

    digest: str
    model: str
    last_user_text: str
    input_tokens: int
    image_tokens: int
    audio_tokens: int
    max_tokens: int | None
    choices: int
    stream: bool
    include_usage: bool

    @property
    def pieces(self) -> list[str]:
        """The reply, a token each."""
        text = f"sandbox: {self.last_user_text}"
        whole = [text[start : start + CHARACTERS_PER_TOKEN] for start in range(0, len(text), CHARACTERS_PER_TOKEN)]
        return whole[: self.max_tokens]

    @property
    def is_cut(self) -> bool:
        """Whether `max_tokens` kept the reply from its end."""
        return self.max_tokens is not None and count_tokens(f"sandbox: {self.last_user_text}") > self.max_tokens

    @property
    def error_status(self) -> int:
        """The status that was asked for by a directive, or 0."""
        return max((int(found["status"]) for found in self.directives() if found["status"]), default=0)

    @property
    def delay_seconds(self) -> float:
        """The delay that was asked for by a directive."""
        asked = sum(int(found["delay"]) for found in self.directives() if found["delay"])
        return min(asked, LONGEST_DELAY_MS) / 1000

    def directives(self) -> Iterator[re.Match[str]]:
        """Yield every directive in the model's name and the last user text."""
        for text in (self.model, self.last_user_text):
            yield from DIRECTIVE.finditer(text)


def openai_prompt(raw: bytes) -> Prompt:
    """Read a chat completion's body; raises ValueError with a message for the user."""
    body = json_object(raw)
    limit = whole_number(body, "max_completion_tokens")
    turns = message_list(body)
    return Prompt(
        digest=hashlib.sha256(raw).hexdigest(),
        model=model_name(body),
        last_user_text=last_user_text(turns),
        input_tokens=sum(count_tokens(text_of(turn)) for turn in turns),
        image_tokens=IMAGE_TOKENS * count_parts(turns, "image_url"),
        audio_tokens=AUDIO_TOKENS * count_parts(turns, "input_audio"),
        max_tokens=whole_number(body, "max_tokens") if limit is None else limit,
        choices=whole_number(body, "n", at_most=MOST_CHOICES) or 1,
        stream=body.get("stream") is True,
        include_usage=(body.get("stream_options") or {}).get("include_usage") is True,
    )


def anthropic_prompt(raw: bytes) -> Prompt:
    """Read a message's body; raises ValueError with a message for the user."""
    body = json_object(raw)
    limit = whole_number(body, "max_tokens")
    if limit is None:
        raise ValueError("max_tokens: Field required")
    turns = message_list(body)
    system = count_tokens(text_of({"content": body.get("system")}))
    return Prompt(
        digest=hashlib.sha256(raw).hexdigest(),
        model=model_name(body),
        last_user_text=last_user_text(turns),
        input_tokens=system + sum(count_tokens(text_of(turn)) for turn in turns),
        image_tokens=IMAGE_TOKENS * count_parts(turns, "image"),
        audio_tokens=0,
        max_tokens=limit,
        choices=1,
        stream=body.get("stream") is True,
        include_usage=True,
    )


def json_object(raw: bytes) -> Json:
    """Parse a body that must be one JSON object."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise ValueError("The body must be a JSON object.")  # noqa: TRY004 - the caller answers 400 to ValueError
    if not isinstance(body.get("stream_options") or {}, dict):
        raise ValueError("stream_options: Input should be an object")  # noqa: TRY004 - as above
    return body


def model_name(body: Json) -> str:
    """Return the model, which must be named."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ValueError("model: Field required")
    return name


def message_list(body: Json) -> list[Json]:
    """Return the messages, of which there must be one."""
    turns = body.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("messages: at least one message is required")
    return turns


def whole_number(body: Json, field: str, *, at_most: int | None = None) -> int | None:
    """Return a positive whole number, or None where the field is absent or null."""
    value = body.get(field)
    if value is None:
        return None
    if type(value) is not int or value < 1 or (at_most is not None and value > at_most):
        raise ValueError(f"{field}: Input should be a positive whole number")
    return value


def last_user_text(turns: list[Json]) -> str:
    """Return the text of the last message by the user, or an empty one."""
    return next((text_of(turn) for turn in reversed(turns) if turn.get("role") == "user"), "")


def text_of(turn: Json) -> str:
    """Return a message's text; parts that are no text (images, tool results) add nothing."""
    content = turn.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def count_parts(turns: list[Json], kind: str) -> int:
    """Count the parts of one type in all messages."""
    contents = (turn.get("content") for turn in turns)
    return sum(
        isinstance(part, dict) and part.get("type") == kind
        for content in contents
        for part in (content if isinstance(content, list) else [])
    )


def count_tokens(text: str) -> int:
    """Count by the sandbox's rule: four characters a token, rounded up."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def openai_completion(prompt: Prompt) -> Json:
    """Return the plain reply on OpenAI's wire."""
    choices: list[Json] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": "".join(prompt.pieces), "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "length" if prompt.is_cut else "stop",
        }
        for index in range(prompt.choices)
    ]
    return openai_head(prompt, "chat.completion") | {"choices": choices, "usage": openai_usage(prompt)}


def openai_events(prompt: Prompt) -> Iterator[bytes]:
    """Yield the reply as OpenAI's server-sent events, with a usage chunk if it was asked for."""
    head = openai_head(prompt, "chat.completion.chunk")
    if prompt.include_usage:
        head |= {"usage": None}

    def chunk(index: int, delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return data_event(head | {"choices": [choice]})

    for index in range(prompt.choices):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        for piece in prompt.pieces:
            yield chunk(index, {"content": piece})
        yield chunk(index, {}, "length" if prompt.is_cut else "stop")
    if prompt.include_usage:
        yield data_event(head | {"choices": [], "usage": openai_usage(prompt)})
    yield b"data: [DONE]\n\n"


def openai_head(prompt: Prompt, kind: str) -> Json:
    """Return the fields that every OpenAI object of this reply shares."""
    return {
        "id": f"chatcmpl-{prompt.digest[:29]}",
        "object": kind,
        "created": EPOCH + int(prompt.digest[:6], 16),
        "model": prompt.model,
        "service_tier": "default",
        "system_fingerprint": "fp_sandbox",
    }


def openai_usage(prompt: Prompt) -> Json:
    """Return usage on OpenAI's wire, where each choice is paid for."""
    output = len(prompt.pieces) * prompt.choices
    given = prompt.input_tokens + prompt.image_tokens + prompt.audio_tokens
    details = {"cached_tokens": 0, "audio_tokens": prompt.audio_tokens}
    return {
        "prompt_tokens": given,
        "completion_tokens": output,
        "total_tokens": given + output,
        "prompt_tokens_details": details | ({"image_tokens": prompt.image_tokens} if prompt.image_tokens else {}),
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def anthropic_message(prompt: Prompt) -> Json:
    """Return the plain reply on Anthropic's wire."""
    return anthropic_head(prompt) | {
        "content": [{"type": "text", "text": "".join(prompt.pieces)}],
        "stop_reason": anthropic_stop_reason(prompt),
        "usage": anthropic_usage(prompt, len(prompt.pieces)),
    }


def anthropic_events(prompt: Prompt) -> Iterator[bytes]:
    """Yield the reply as Anthropic's server-sent events; the usage in `message_delta` is cumulative."""
    yield named_event("message_start", {"message": anthropic_head(prompt) | {"usage": anthropic_usage(prompt, 1)}})
    yield named_event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    yield named_event("ping", {})
    for piece in prompt.pieces:
        yield named_event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}})
    yield named_event("content_block_stop", {"index": 0})
    stop = {"stop_reason": anthropic_stop_reason(prompt), "stop_sequence": None}
    yield named_event("message_delta", {"delta": stop, "usage": anthropic_usage(prompt, len(prompt.pieces))})
    yield named_event("message_stop", {})


def anthropic_head(prompt: Prompt) -> Json:
    """Return the message before its first word."""
    return {
        "id": f"msg_{prompt.digest[:24]}",
        "type": "message",
        "role": "assistant",
        "model": prompt.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def anthropic_usage(prompt: Prompt, output_tokens: int) -> Json:
    """Return usage on Anthropic's wire, where the input excludes what touches the cache."""
    return {
        "input_tokens": prompt.input_tokens + prompt.image_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def anthropic_stop_reason(prompt: Prompt) -> str:
    """Return why the message ended, in Anthropic's words."""
    return "max_tokens" if prompt.is_cut else "end_turn"


def openai_error(status: int, message: str) -> Response:
    """Return an error as OpenAI shapes it."""
    kind, code = {
        400: ("invalid_request_error", None),
        401: ("invalid_request_error", "invalid_api_key"),
        404: ("invalid_request_error", "model_not_found"),
        429: ("requests", "rate_limit_exceeded"),
    }.get(status, ("invalid_request_error" if status < 500 else "server_error", None))  # noqa: PLR2004
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_response({"error": error}, status=status, headers=retry_headers(status))


def anthropic_error(status: int, message: str) -> Response:
    """Return an error as Anthropic shapes it: https://platform.claude.com/docs/en/api/errors."""
    kind = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        529: "overloaded_error",
    }.get(status, "invalid_request_error" if status < 500 else "api_error")  # noqa: PLR2004
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}
    return json_response(body, status=status, headers=retry_headers(status))


def retry_headers(status: int) -> dict[str, str]:
    """Ask a refused client to wait a second, as providers do."""
    return {"retry-after": "1"} if status in {429, 503, 529} else {}


def json_response(body: Json, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return one JSON object."""
    return Response(encode(body), status, headers, media_type="application/json")


def event_stream(events: Iterable[bytes], headers: dict[str, str]) -> Response:
    """Return server-sent events."""

    async def as_they_come() -> AsyncIterator[bytes]:
        for event in events:
            yield event

    return StreamingResponse(as_they_come(), headers=headers, media_type="text/event-stream")


def data_event(body: Json) -> bytes:
    """Return one event as OpenAI frames it."""
    return b"data: %s\n\n" % encode(body)


def named_event(name: str, body: Json) -> bytes:
    """Return one event as Anthropic frames it, its name in both places."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode({"type": name} | body))


def encode(body: Json) -> bytes:
    """Encode in ASCII: a lone surrogate that came in as an escape has no UTF-8 form to leave in."""
    return json.dumps(body, separators=(",", ":")).encode("ascii")
