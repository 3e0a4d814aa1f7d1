"""OpenAI's counts of tokens, as chat completions and responses tell them, in disjoint classes."""

from typing import Any

from aiplatform.providers.base import Usage, tokens

# The price variant by `service_tier`, as which a reply says that it was served; units of the scale tier are bought beforehand.
VARIANTS = {
    "default": "standard",
    "auto": "standard",
    "scale": "standard",
    "on_demand": "standard",
    "fast": "priority",
}


def usage_of(usage: dict[str, Any]) -> Usage | None:
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


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of an array, and none of anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
