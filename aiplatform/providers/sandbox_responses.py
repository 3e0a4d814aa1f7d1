"""The built-in provider's Responses: as deterministic as its chat, and stored for a day so that they can be looked up.

A response's text, usage and events follow from its body alone. Its id follows from the body and, where it is stored, from
`x-client-request-id` as well, so that the same body of two callers makes two responses.

One in the background is `queued` at first. It has ended at the first look, or as long after its creation as `sandbox:slow:…ms`
says; cancelled before, it stays cancelled. What is stored is in Redis, so that every worker finds it.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aiplatform.lib import redis
from aiplatform.providers import sandbox
from aiplatform.providers.sandbox import Json, Prompt

KEPT_SECONDS = 24 * 3600
_BAD, _NOT_FOUND, _UNAVAILABLE = 400, 404, 503


def routes() -> list[Route]:
    """The endpoints, below the sandbox's origin."""
    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
        Route("/v1/responses/{id}", retrieve, methods=["GET"]),
        Route("/v1/responses/{id}", delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", input_items, methods=["GET"]),
    ]


@dataclass(frozen=True, slots=True)
class Kept:
    """A response and the body that asked for it."""

    id: str
    asked: Json
    prompt: Prompt
    ends_at: float
    """Unix time, of one in the background."""
    was_cancelled: bool = False

    @property
    def is_background(self) -> bool:
        return self.asked.get("background") is True

    @property
    def is_stored(self) -> bool:
        return self.asked.get("store") is not False

    @property
    def status(self) -> str:
        """As it stands now."""
        if self.was_cancelled:
            return "cancelled"
        return "in_progress" if self.is_background and time.time() < self.ends_at else self.end

    @property
    def end(self) -> str:
        return "incomplete" if self.prompt.is_cut else "completed"


async def create(request: Request) -> Response:
    """Answer, and keep the answer unless `store` is false."""
    try:
        asked, prompt = await _read(request)
    except ValueError as error:
        return sandbox.openai_error(_BAD, str(error))
    is_background = asked.get("background") is True
    if not is_background:
        await asyncio.sleep(prompt.delay_seconds)
    if prompt.error_status:
        return sandbox.openai_error(prompt.error_status, f"The sandbox was asked for status {prompt.error_status}.")
    salt = "" if asked.get("store") is False else request.headers.get("x-client-request-id", "")
    name = f"resp_{hashlib.sha256(f'{prompt.digest}{salt}'.encode()).hexdigest()[:48]}"
    kept = Kept(name, asked, prompt, time.time() + prompt.delay_seconds)
    if kept.is_stored and not await _keep(kept):
        return sandbox.openai_error(_UNAVAILABLE, "The sandbox cannot keep this response now.")
    headers = {"x-request-id": f"req_{prompt.digest[:24]}"}
    if prompt.stream:
        return sandbox.event_stream(events(kept), headers)
    return sandbox.json_response(told(kept, "queued" if is_background else kept.end), headers=headers)


async def input_tokens(request: Request) -> Response:
    """Count an input."""
    try:
        _, prompt = await _read(request)
    except ValueError as error:
        return sandbox.openai_error(_BAD, str(error))
    return sandbox.json_response({"object": "response.input_tokens", "input_tokens": _given(prompt)})


async def retrieve(request: Request) -> Response:
    """Tell how a response stands, or stream it again from `starting_after` on."""
    kept = await _found(request)
    if kept is None:
        return _unknown(request)
    if request.query_params.get("stream") != "true":
        return sandbox.json_response(told(kept, kept.status))
    if not (kept.is_background and kept.prompt.stream):
        return sandbox.openai_error(_BAD, "Only a response that was streamed in the background can be streamed again.")
    after = request.query_params.get("starting_after", "-1")
    if not after.removeprefix("-").isdigit():
        return sandbox.openai_error(_BAD, "starting_after: Input should be a whole number")
    return sandbox.event_stream(list(events(kept))[int(after) + 1 :], {})


async def delete(request: Request) -> Response:
    """Forget a response."""
    if await asyncio.to_thread(lambda: redis.client().delete(_key(request.path_params["id"]))):
        return sandbox.json_response({"id": request.path_params["id"], "object": "response", "deleted": True})
    return _unknown(request)


async def cancel(request: Request) -> Response:
    """Cancel one in the background; one that has ended is told as it is."""
    kept = await _found(request)
    if kept is None:
        return _unknown(request)
    if not kept.is_background:
        return sandbox.openai_error(_BAD, "Cannot cancel a synchronous response.")
    if kept.status == "in_progress":
        kept = Kept(kept.id, kept.asked, kept.prompt, kept.ends_at, was_cancelled=True)
        await _keep(kept)
    return sandbox.json_response(told(kept, kept.status))


async def input_items(request: Request) -> Response:
    """List what the input was made of, the last one first unless `order` is asc."""
    kept = await _found(request)
    if kept is None:
        return _unknown(request)
    items = [
        {"id": f"msg_{kept.id[5:37]}{at}", "type": "message", "status": "completed"} | turn
        for at, turn in enumerate(_turns(kept.asked))
    ]
    if request.query_params.get("order") != "asc":
        items.reverse()
    ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return sandbox.json_response({"object": "list", "data": items, "has_more": False} | ends)


def told(kept: Kept, status: str) -> Json:
    """The response object; its output and usage only once it has ended."""
    prompt, has_ended = kept.prompt, status in {"completed", "incomplete"}
    asked = {
        name: kept.asked.get(name) for name in ("instructions", "previous_response_id", "max_output_tokens", "user")
    }
    return asked | {
        "id": kept.id,
        "object": "response",
        "created_at": sandbox.EPOCH + int(prompt.digest[:6], 16),
        "status": status,
        "background": kept.is_background,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "metadata": kept.asked.get("metadata") or {},
        "model": prompt.model,
        "output": [_message(kept, "".join(prompt.pieces), "completed")] if has_ended else [],
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": kept.is_stored,
        "temperature": 1.0,
        "text": kept.asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": kept.asked.get("tool_choice") or "auto",
        "tools": kept.asked.get("tools") or [],
        "top_p": 1.0,
        "truncation": kept.asked.get("truncation") or "disabled",
        "usage": _usage(prompt) if has_ended else None,
    }


def events(kept: Kept) -> Iterator[bytes]:
    """Yield the response as OpenAI's server-sent events, each with its number."""
    for number, (kind, fields) in enumerate(_events(kept)):
        yield sandbox.named_event(kind, fields | {"sequence_number": number})


def _events(kept: Kept) -> Iterator[tuple[str, Json]]:
    item, text = _message(kept, "", "in_progress"), "".join(kept.prompt.pieces)
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    yield "response.created", {"response": told(kept, "queued" if kept.is_background else "in_progress")}
    yield "response.in_progress", {"response": told(kept, "in_progress")}
    yield "response.output_item.added", {"output_index": 0, "item": item}
    yield "response.content_part.added", place | {"part": part | {"text": ""}}
    for piece in kept.prompt.pieces:
        yield "response.output_text.delta", place | {"delta": piece, "logprobs": []}
    yield "response.output_text.done", place | {"text": text, "logprobs": []}
    yield "response.content_part.done", place | {"part": part}
    yield "response.output_item.done", {"output_index": 0, "item": _message(kept, text, "completed")}
    yield f"response.{kept.end}", {"response": told(kept, kept.end)}


def _message(kept: Kept, text: str, status: str) -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    name = f"msg_{kept.id.removeprefix('resp_')}"
    content = [part] if status == "completed" else []
    return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}


def _usage(prompt: Prompt) -> Json:
    given, said = _given(prompt), len(prompt.pieces)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + said,
    }


def _given(prompt: Prompt) -> int:
    return prompt.input_tokens + prompt.image_tokens + prompt.audio_tokens


async def _read(request: Request) -> tuple[Json, Prompt]:
    """The body; raises ValueError with a message for the user. An earlier response counts with all of its tokens."""
    raw = await request.body()
    asked = sandbox.json_object(raw)
    earlier = 0
    if name := asked.get("previous_response_id"):
        found = await _load(str(name))
        if found is None:
            raise ValueError(f"Previous response with id '{name}' not found.")
        earlier = _given(found.prompt) + len(found.prompt.pieces)
    return asked, _prompt(asked, hashlib.sha256(raw).hexdigest(), earlier)


def _prompt(asked: Json, digest: str, earlier: int) -> Prompt:
    turns = _turns(asked)
    told_text = asked.get("instructions") if isinstance(asked.get("instructions"), str) else ""
    return Prompt(
        digest=digest,
        model=sandbox.model_name(asked),
        last_user_text=sandbox.last_user_text(turns),
        input_tokens=earlier + sandbox.count_tokens(told_text or "") + sum(map(_turn_tokens, turns)),
        image_tokens=sandbox.IMAGE_TOKENS * sandbox.count_parts(turns, "input_image"),
        audio_tokens=sandbox.AUDIO_TOKENS * sandbox.count_parts(turns, "input_audio"),
        max_tokens=sandbox.whole_number(asked, "max_output_tokens"),
        choices=1,
        stream=asked.get("stream") is True,
        include_usage=True,
    )


def _turn_tokens(turn: Json) -> int:
    said = turn.get("output") if isinstance(turn.get("output"), str) else ""
    return sandbox.count_tokens(sandbox.text_of(turn)) + sandbox.count_tokens(said or "")


def _turns(asked: Json) -> list[Json]:
    given = asked.get("input")
    if isinstance(given, list):
        return [turn for turn in given if isinstance(turn, dict)]
    return [{"role": "user", "content": [{"type": "input_text", "text": given}]}] if isinstance(given, str) else []


# --- what is kept ---------------------------------------------------------------------------------------------------


async def _found(request: Request) -> Kept | None:
    return await _load(request.path_params["id"])


async def _load(name: str) -> Kept | None:
    packed: Any = await asyncio.to_thread(lambda: redis.client().get(_key(name)))
    if packed is None:
        return None
    asked, digest, earlier, ends_at, was_cancelled = json.loads(packed)
    return Kept(name, asked, _prompt(asked, digest, earlier), ends_at, was_cancelled)


async def _keep(kept: Kept) -> bool:
    plain = _prompt(kept.asked, kept.prompt.digest, 0)
    earlier = kept.prompt.input_tokens - plain.input_tokens
    packed = json.dumps([kept.asked, kept.prompt.digest, earlier, kept.ends_at, kept.was_cancelled])
    try:
        await asyncio.to_thread(lambda: redis.client().set(_key(kept.id), packed, ex=KEPT_SECONDS))
    except redis.LOST:
        return False
    return True


def _key(name: str) -> str:
    return f"sandbox:response:{name[:100]}"


def _unknown(request: Request) -> Response:
    return sandbox.openai_error(_NOT_FOUND, f"Response with id '{request.path_params['id']}' not found.")
