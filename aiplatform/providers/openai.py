"""OpenAI's wire, and that of every server compatible with it."""

from typing import Any

import httpx2
import openai

from aiplatform.providers.base import Reading, Reply, Usage, parsed, raw_post, tokens, variant

# The price variant by `service_tier`, as which a reply says that it was served; units of the scale tier are bought beforehand.
_VARIANTS = {
    "default": "standard",
    "auto": "standard",
    "scale": "standard",
    "on_demand": "standard",
    "fast": "priority",
}


class OpenAI:
    wire = "openai"
    root = "/v1"  # of the API below a provider's origin, by the SDK's custom
    paths = {"chat": "/chat/completions"}

    def client(self, base_url: str, secret: str, http_client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=secret or "none",
            base_url=base_url,
            max_retries=0,
            http_client=http_client,
        )

    async def post(self, client: Any, endpoint: str, body: bytes, headers: dict[str, str], *, silence: float) -> Reply:
        return await raw_post(client, self.paths[endpoint], body, headers, silence=silence, api_error=openai.APIError)

    def read_whole(self, body: bytes) -> Reading:
        reply = parsed(body)
        if reply is None:
            return Reading()
        reading = Reading(complete=True)
        _learn(reading, reply)
        for choice in _objects(reply.get("choices")):
            message = choice.get("message")
            if isinstance(message, dict):
                reading.text_bytes += _text_bytes(message)
        return reading

    def read_event(self, reading: Reading, event: bytes) -> None:
        if event == b"[DONE]":
            reading.complete, reading.is_partial = True, False
            return
        chunk = parsed(event)
        if chunk is None:
            return
        _learn(reading, chunk)
        if isinstance(chunk.get("error"), dict):
            reading.error = str(chunk["error"].get("code") or chunk["error"].get("type") or "error")[:200]
        elif chunk.get("error"):
            reading.error = "error"
        for choice in _objects(chunk.get("choices")):
            delta = choice.get("delta")
            if isinstance(delta, dict):
                reading.text_bytes += _text_bytes(delta)
            index = choice["index"] if type(choice.get("index")) is int else 0
            reading.stops[index] = reading.stops.get(index, False) or isinstance(choice.get("finish_reason"), str)
        reading.has_stopped = bool(reading.stops) and all(reading.stops.values())
        if isinstance(chunk.get("usage"), dict):  # some servers tell it with every chunk, as far as they are
            reading.is_partial = not reading.has_stopped


def _learn(reading: Reading, reply: dict[str, Any]) -> None:
    if isinstance(reply.get("model"), str):
        reading.model = reply["model"][:200]
    if isinstance(reply.get("service_tier"), str):
        reading.variant = variant(reply["service_tier"], _VARIANTS)
    usage = reply.get("usage")
    if isinstance(usage, dict):
        reading.usage = _usage(usage) or reading.usage
    if reading.usage is not None:
        reading.usage.variant = reading.variant


def _usage(usage: dict[str, Any]) -> Usage | None:
    """OpenAI counts cached, written, audio and image tokens within `prompt_tokens`, each kind for itself, so that an audio
    token may be a cached one as well; here the classes are disjoint and add up to its totals.

    Source: developers.openai.com/api/reference (chat completion object: usage and its details).
    """
    prompt, completion = tokens(usage, "prompt_tokens"), tokens(usage, "completion_tokens")
    if prompt is None or completion is None:
        return None
    given, spent = _details(usage, "prompt_tokens_details"), _details(usage, "completion_tokens_details")
    read = min(tokens(given, "cached_tokens") or 0, prompt)
    written = min(tokens(given, "cache_write_tokens") or 0, prompt - read)
    fresh = prompt - read - written
    audio = min(tokens(given, "audio_tokens") or 0, prompt)
    image = min(tokens(given, "image_tokens") or 0, prompt - audio)
    # What does not fit into the fresh tokens was cached for certain.
    meters = {"input_audio": min(audio, fresh), "cache_audio_read": min(max(audio - fresh, 0), read)}
    fresh, read = fresh - meters["input_audio"], read - meters["cache_audio_read"]
    meters["input_image"] = min(image, fresh)  # cached, it costs what cached text costs
    fresh -= meters["input_image"]
    said = min(tokens(spent, "audio_tokens") or 0, completion)
    meters["output_audio"] = said
    reasoning = min(tokens(spent, "reasoning_tokens") or 0, completion - said)
    return Usage(
        fresh,
        read,
        written,
        0,
        completion - said,
        reasoning,
        {meter: count for meter, count in meters.items() if count},
    )


def _details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text_bytes(message: dict[str, Any]) -> int:
    """A lower bound of what was generated, for streams that break before their usage."""
    total = sum(
        len(message[name].encode(errors="replace"))
        for name in ("content", "reasoning_content", "reasoning", "refusal")
        if isinstance(message.get(name), str)
    )
    calls = [call.get("function") or call.get("custom") for call in _objects(message.get("tool_calls"))]
    for function in (*calls, message.get("function_call")):
        if isinstance(function, dict):
            said = (function.get(name) for name in ("name", "arguments", "input"))
            total += sum(len(one.encode(errors="replace")) for one in said if isinstance(one, str))
    return total
