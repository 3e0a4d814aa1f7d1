"""OpenAI's wire, and that of every server compatible with it."""

from typing import Any

import httpx2
import openai

from aiplatform.providers.base import FREE, Reader, Reading, Reply, parsed, raw_send, variant
from aiplatform.providers.endpoints import ENDPOINTS
from aiplatform.providers.openai_media import Embeddings, Images, Speech, Transcription
from aiplatform.providers.openai_usage import VARIANTS, objects, usage_of
from aiplatform.providers.responses import Looks, Responses


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
        is_free = ENDPOINTS[self.wire, endpoint].is_free
        return FREE if is_free and endpoint not in _READERS else _READERS[endpoint]

    def read_whole(self, body: bytes) -> Reading:
        reply = parsed(body)
        if reply is None:
            return Reading()
        reading = Reading(complete=True)
        _learn(reading, reply)
        for choice in objects(reply.get("choices")):
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
        for choice in objects(chunk.get("choices")):
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
        reading.variant = variant(reply["service_tier"], VARIANTS)
    usage = reply.get("usage")
    if isinstance(usage, dict):
        reading.usage = usage_of(usage) or reading.usage
    if reading.usage is not None:
        reading.usage.variant = reading.variant


def _text_bytes(message: dict[str, Any]) -> int:
    """A lower bound of what was generated, for streams that break before their usage."""
    total = sum(
        len(message[name].encode(errors="replace"))
        for name in ("content", "reasoning_content", "reasoning", "refusal")
        if isinstance(message.get(name), str)
    )
    calls = [call.get("function") or call.get("custom") for call in objects(message.get("tool_calls"))]
    for function in (*calls, message.get("function_call")):
        if isinstance(function, dict):
            said = (function.get(name) for name in ("name", "arguments", "input"))
            total += sum(len(one.encode(errors="replace")) for one in said if isinstance(one, str))
    return total


_READERS: dict[str, Reader] = {
    "chat": OpenAI(),
    "responses": Responses(),
    "responses.retrieve": Looks(),
    "responses.cancel": Looks(),
    "embeddings": Embeddings(),
    "moderations": Embeddings(),
    "images": Images(),
    "images.edits": Images(),
    "speech": Speech(),
    "transcriptions": Transcription(),
    "translations": Transcription(),
}
