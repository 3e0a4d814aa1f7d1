"""How OpenAI's answers other than chat are read: embeddings, images, audio.

Source: developers.openai.com/api/reference (create embeddings, images, image streaming events, audio, transcript events).
"""

from typing import Any

from aiplatform.providers.base import Reading, Usage, parsed, tokens


class Embeddings:
    """Tokens of the input are all that is billed; a moderation has no usage."""

    def read_whole(self, body: bytes) -> Reading:
        return _whole(body, _of_embeddings)

    def read_event(self, reading: Reading, event: bytes) -> None:
        """Neither streams."""


class Images:
    """Tokens, in and out, or nothing where images are priced by the piece."""

    def read_whole(self, body: bytes) -> Reading:
        return _whole(body, _of_images)

    def read_event(self, reading: Reading, event: bytes) -> None:
        data = _event(reading, event)
        if str(data.get("type", "")).endswith(".completed"):
            found = _of_images(_details(data, "usage"))
            reading.usage = _sum(reading.usage, found) if found else reading.usage
            reading.complete = True


class Speech:
    """Sound, of which nothing can be read, or events of which the last one tells the tokens."""

    def read_whole(self, body: bytes) -> Reading:
        return Reading(complete=bool(body))

    def read_event(self, reading: Reading, event: bytes) -> None:
        data = _event(reading, event)
        if data.get("type") == "speech.audio.done":
            usage = _details(data, "usage")
            given, made = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
            if given is not None and made is not None:
                reading.usage = Usage(given, meters={"output_audio": made} if made else {})
            reading.complete = True


class Transcription:
    """Tokens, or seconds; text, subtitles and older servers tell nothing."""

    def read_whole(self, body: bytes) -> Reading:
        reading = _whole(body, _of_transcription)
        reading.complete = bool(body)
        told = parsed(body)
        if reading.usage is None and told is not None:
            reading.usage = _of_length(told.get("duration"))
        return reading

    def read_event(self, reading: Reading, event: bytes) -> None:
        data = _event(reading, event)
        if data.get("type") == "transcript.text.done":
            reading.usage = _of_transcription(_details(data, "usage"))
            reading.complete = True


def _whole(body: bytes, usage_of: Any) -> Reading:
    reply = parsed(body)
    if reply is None:
        return Reading()
    reading = Reading(complete=True)
    if isinstance(reply.get("model"), str):
        reading.model = reply["model"][:200]
    if isinstance(reply.get("usage"), dict):
        reading.usage = usage_of(reply["usage"])
    return reading


def _event(reading: Reading, event: bytes) -> dict[str, Any]:
    data = parsed(event) or {}
    if isinstance(data.get("error"), dict):
        reading.error = str(data["error"].get("code") or data["error"].get("type") or "error")
    return data


def _of_embeddings(usage: dict[str, Any]) -> Usage | None:
    given = tokens(usage, "prompt_tokens")
    return None if given is None else Usage(given)


def _of_images(usage: dict[str, Any]) -> Usage | None:
    given, made = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
    if given is None or made is None:
        return None
    inside, outside = _details(usage, "input_tokens_details"), _details(usage, "output_tokens_details")
    shown = min(tokens(inside, "image_tokens") or 0, given)
    cached = min(tokens(inside, "cached_tokens") or 0, given - shown)
    said = min(tokens(outside, "text_tokens") or 0, made)
    meters = {"input_image": shown, "output_image": made - said}
    return Usage(given - shown - cached, cached, output=said, meters={name: n for name, n in meters.items() if n})


def _of_transcription(usage: dict[str, Any]) -> Usage | None:
    if usage.get("type") == "duration":
        return _of_length(usage.get("seconds"))
    given, made = tokens(usage, "input_tokens"), tokens(usage, "output_tokens")
    if given is None or made is None:
        return None
    heard = min(tokens(_details(usage, "input_token_details"), "audio_tokens") or 0, given)
    return Usage(given - heard, output=made, meters={"input_audio": heard} if heard else {})


def _of_length(seconds: Any) -> Usage | None:
    """A duration is billed in whole seconds, rounded to the nearest."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1 << 31:
        return None
    whole = round(seconds)
    return Usage(meters={"input_seconds": whole} if whole else {})


def _sum(one: Usage | None, other: Usage) -> Usage:
    """Of several images, each of which tells its own."""
    if one is None:
        return other
    meters = {name: one.meters.get(name, 0) + other.meters.get(name, 0) for name in one.meters | other.meters}
    return Usage(
        one.input + other.input, one.cache_read + other.cache_read, output=one.output + other.output, meters=meters
    )


def _details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}
