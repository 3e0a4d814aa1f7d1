"""How answers of OpenAI's Responses are read: plain, streamed, and those that are still being worked on.

Source: developers.openai.com/api/reference/resources/responses (the response object, streaming events).
"""

import json
from collections.abc import Iterator
from typing import Any

from aiplatform.providers.base import Reading, Usage, parsed, tokens, variant
from aiplatform.providers.openai_usage import VARIANTS, objects, usage_of

PENDING = frozenset(("queued", "in_progress"))
_NOT_DONE = frozenset(("failed", "cancelled"))
_TERMINAL = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))
# What the model generates; a summary of its reasoning is written besides, and audio comes in base64.
_SAID = frozenset(
    f"response.{name}.delta"
    for name in (
        "output_text", "refusal", "reasoning_text", "function_call_arguments", "custom_tool_call_input", "audio.transcript",
    )
)  # fmt: skip


class Responses:
    """Reads what `POST /v1/responses` answers, and what is told of a response later."""

    def read_whole(self, body: bytes) -> Reading:
        reply = parsed(body)
        if reply is None:
            return Reading()
        reading = Reading()
        _learn(reading, reply)
        reading.complete = not reading.is_pending
        reading.text_bytes = sum(_item_bytes(item) for item in objects(reply.get("output")))
        return reading

    def read_event(self, reading: Reading, event: bytes) -> None:
        """A terminal event completes the reading; a stream without one was cut."""
        told = parsed(event)
        if told is None:
            return
        kind = str(told.get("type"))
        if type(number := told.get("sequence_number")) is int:
            reading.sequence_number = number
        if isinstance(told.get("response"), dict):
            _learn(reading, told["response"])
        if kind in _SAID and isinstance(told.get("delta"), str):
            reading.text_bytes += _bytes(told["delta"])
        elif kind in _TERMINAL:
            reading.complete, reading.is_pending = True, False
            reading.is_kept = False  # the object that is on record had not ended yet
        elif kind == "error":
            reading.error, reading.has_failed = _code(told.get("error")) or _code(told) or "error", True


class Looks:
    """Reads what is told of a response that was made before, for nothing."""

    def read_whole(self, body: bytes) -> Reading:
        reading = Responses().read_whole(body)
        reading.usage, reading.complete, reading.has_failed, reading.error = Usage(), True, False, ""
        return reading

    def read_event(self, reading: Reading, event: bytes) -> None:
        Responses().read_event(reading, event)
        reading.usage, reading.has_failed, reading.error = Usage(), False, ""


def _learn(reading: Reading, response: dict[str, Any]) -> None:
    status = str(response.get("status"))
    if isinstance(response.get("model"), str):
        reading.model = response["model"][:200]
    if isinstance(response.get("service_tier"), str):
        reading.variant = variant(response["service_tier"], VARIANTS)
    if isinstance(response.get("usage"), dict):
        reading.usage = _usage(response) or reading.usage
    if reading.usage is not None:
        reading.usage.variant = reading.variant
        reading.figures = {"tokens": _total(reading.usage), "served": reading.model}
    reading.is_pending, reading.has_failed = status in PENDING, status == "failed"
    reading.is_background = response.get("background") is True
    if status in _NOT_DONE:
        reading.error = _code(response.get("error")) or status
    if isinstance(response.get("id"), str) and response.get("store") is not False:
        reading.object, reading.items = response, dict(_items(reading, response))


def _items(reading: Reading, response: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The most that each item of the output can count as input of a later call.

    Its bytes, whatever model reads them; of reasoning, of which the provider may show nothing, all tokens of its kind.
    """
    for item in objects(response.get("output")):
        name, usage = item.get("id"), reading.usage
        if not isinstance(name, str):
            continue
        if item.get("type") != "reasoning":
            yield name, {"tokens": _bytes(json.dumps(item, ensure_ascii=False)), "is_bytes": True}
        elif usage is not None:
            yield name, {"tokens": usage.reasoning or usage.output, "served": reading.model}


def _total(usage: Usage) -> int:
    """All tokens that went in and came out."""
    rare = sum(count for meter, count in usage.meters.items() if meter != "web_search")
    return usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h + usage.output + rare


def _usage(response: dict[str, Any]) -> Usage | None:
    """The same counts as of a chat completion, under other names; searches are counted beside them."""
    usage = response["usage"]
    found = usage_of(
        {
            "prompt_tokens": usage.get("input_tokens"),
            "completion_tokens": usage.get("output_tokens"),
            "prompt_tokens_details": usage.get("input_tokens_details"),
            "completion_tokens_details": usage.get("output_tokens_details"),
        }
    )
    tools = response.get("tool_usage")
    searches = tools.get("web_search") if isinstance(tools, dict) else None
    if found is not None and isinstance(searches, dict) and (count := tokens(searches, "num_requests")):
        found.meters["web_search"] = count
    return found


def _code(error: Any) -> str:
    """An error's code or type."""
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return code[:100] if isinstance(code, str) else ""


def _item_bytes(item: dict[str, Any]) -> int:
    total = sum(_bytes(item[name]) for name in ("arguments", "input") if isinstance(item.get(name), str))
    for part in objects(item.get("content")):
        total += sum(
            _bytes(part[name]) for name in ("text", "refusal", "transcript") if isinstance(part.get(name), str)
        )
    return total


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
