"""OpenAI's wire, and that of every server compatible with it."""

from typing import Any

import httpx2
import openai

from aiplatform.providers.base import FREE, Reader, Reading, Reply, Usage, parsed, raw_send, tokens, variant
from aiplatform.providers.endpoints import ENDPOINTS
from aiplatform.providers.openai_media import Embeddings, Images, Speech, Transcription

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

    def client(self, base_url: str, secret: str, http_client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=secret or "none",
            base_url=base_url,
            max_retries=0,
            http_client=http_client,
        )

    async def send(
        self, client: Any, endpoint: str, target: str, body: bytes, headers: dict[str, str], *, silence: float
    ) -> Reply:
        one = ENDPOINTS[self.wire, endpoint]
        path = (target or one.path).removeprefix(self.root)
        return await raw_send(client, one.method, path, body, headers, silence=silence, api_error=openai.APIError)

    def reader(self, endpoint: str) -> Reader:
        return FREE if ENDPOINTS[self.wire, endpoint].is_free else _READERS[endpoint]

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
            reading.complete = True
            return
        chunk = parsed(event)
        if chunk is None:
            return
        _learn(reading, chunk)
        if isinstance(chunk.get("error"), dict):
            reading.error = str(chunk["error"].get("code") or chunk["error"].get("type") or "error")
        for choice in _objects(chunk.get("choices")):
            delta = choice.get("delta")
            if isinstance(delta, dict):
                reading.text_bytes += _text_bytes(delta)


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
        for name in ("content", "reasoning_content", "refusal")
        if isinstance(message.get(name), str)
    )
    for call in _objects(message.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            total += len(function["arguments"].encode(errors="replace"))
    return total


_READERS: dict[str, Reader] = {
    "chat": OpenAI(),
    "embeddings": Embeddings(),
    "moderations": Embeddings(),
    "images": Images(),
    "images.edits": Images(),
    "speech": Speech(),
    "transcriptions": Transcription(),
    "translations": Transcription(),
}
