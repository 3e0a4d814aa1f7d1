"""OpenAI's wire: chat completions and the list of models."""

import re
from typing import Any

import orjson

from aiplatform.gateway.wires.base import (
    MOST_CHOICES,
    MOST_OUTPUT_TOKENS,
    BadRequest,
    Facts,
    NotPriced,
    end_user,
    flag,
    read_object,
    text,
    whole,
)
from aiplatform.gateway.wires.bounds import TEMPLATE_TOKENS, TOOLS_TOKENS, Media, openai_image
from aiplatform.gateway.wires.media import audio_seconds
from aiplatform.lib.errors import ApiError
from usage.pricing import Bound

_TYPES = {
    401: "invalid_request_error",
    402: "insufficient_quota",
    403: "invalid_request_error",
    429: "rate_limit_error",
}
_SERVER_ERROR = 500
# What is demanded must have a price; what the project's settings may choose is held at where it has one.
# Sources: developers.openai.com/api/reference (service_tier), …/guides/flex-processing, …/guides/fast-mode.
_AS_CONFIGURED = (("standard",), ("priority", "flex"))
_TIERS: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    None: _AS_CONFIGURED,
    "auto": _AS_CONFIGURED,
    "default": (("standard",), ()),
    "flex": (("flex", "standard"), ()),
    "priority": (("priority", "standard"), ()),
    "fast": (("priority", "standard"), ()),
}
_TEXT_OUT, _AUDIO_OUT = ("output",), ("output", "output_audio")
_MODALITIES: dict[Any, tuple[str, ...]] = {("text",): _TEXT_OUT, ("audio",): _AUDIO_OUT, ("audio", "text"): _AUDIO_OUT}
_NO_METERS: dict[str, int] = {}
_RARE_FIELDS = frozenset(
    ("tools", "functions", "modalities", "service_tier", "web_search_options", "prediction", "prompt_cache_options")
)
NO_SEARCH = "What a web search finds is input that nobody can bound before; search by a function tool of your own."
SEARCHES_BY_ITSELF = re.compile(r"search-preview|search-api|deep-research")
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]*;base64,", re.ASCII | re.IGNORECASE)


class OpenAIWire:
    name = "openai"

    def read(self, endpoint: str, body: bytes, headers: Any) -> Facts:
        request = read_object(body)
        if not isinstance(request.get("messages"), list) or not request["messages"]:
            raise BadRequest("`messages` must be a non-empty array.", param="messages")
        model = text(request, "model")
        choices = whole(request, "n", MOST_CHOICES) or 1
        max_tokens, old = (
            whole(request, "max_completion_tokens", MOST_OUTPUT_TOKENS),
            whole(request, "max_tokens", MOST_OUTPUT_TOKENS),
        )
        if max_tokens is not None and old is not None:
            raise BadRequest("Give `max_completion_tokens` or `max_tokens`, not both.", param="max_tokens")
        media = _media(request["messages"], model)
        facts = Facts(
            wire=self.name,
            endpoint=endpoint,
            model=model,
            body=body,
            streamed=flag(request, "stream"),
            end_user=end_user(request.get("user"), headers),
            bound=_bound(request, model, len(body), media, choices),
            max_tokens=max_tokens if old is None else old,
            max_tokens_field="max_completion_tokens" if old is None else "max_tokens",
            media_bytes=media.encoded_bytes if media else 0,
        )
        _ask_for_usage(facts, request)
        if beta := headers.get("openai-beta"):
            facts.forward["openai-beta"] = beta
        return facts

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        kind = _TYPES.get(error.status, "invalid_request_error" if error.status < _SERVER_ERROR else "server_error")
        details = {"param": None} | error.details
        return {
            "error": {"message": error.message, "type": kind, "code": error.code, "request_id": request_id} | details
        }

    def models(self, names: list[tuple[str, str, int]]) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": at, "owned_by": owner} for name, owner, at in names],
        }

    def broken_event(self, code: str, message: str, endpoint: str, number: int = 0) -> bytes:
        """Of a response it has the documented fields, and the object that the provider sends, at which SDKs raise."""
        error: dict[str, Any] = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
        if not endpoint.startswith("responses"):
            return b"data: " + orjson.dumps(error) + b"\n\n"
        event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": number} | error
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"


def _ask_for_usage(facts: Facts, request: dict[str, Any]) -> None:
    """A stream's cost is known only if the provider is asked; the answer is hidden again from who did not ask."""
    options = request.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("`stream_options` must be an object.", param="stream_options")
    if not facts.streamed or (options and flag(options, "include_usage")):
        return
    facts.hide_usage = True
    facts.set_fields["stream_options"] = (options or {}) | {"include_usage": True}


def _bound(request: dict[str, Any], model: str, body_bytes: int, media: Media | None, choices: int) -> Bound:
    """What the request can cost at most; raises NotPriced for what nothing bounds."""
    text = body_bytes + TEMPLATE_TOKENS
    if "search" in model and SEARCHES_BY_ITSELF.search(model):
        raise NotPriced(NO_SEARCH, param="model")
    if media is None and _RARE_FIELDS.isdisjoint(request):
        return Bound(text, _NO_METERS, _TEXT_OUT, choices, *_AS_CONFIGURED)
    _refuse_what_has_no_bound(request)
    if request.get("tools") or request.get("functions"):
        text += TOOLS_TOKENS
    meters = media.meters if media else _NO_METERS
    text -= media.encoded_bytes if media else 0
    return Bound(text, meters, output_meters(request), choices, *variants(request))


def _media(messages: list[Any], model: str) -> Media | None:
    """What the messages hold besides text; None where their contents are plain strings."""
    media: Media | None = None
    for at, message in enumerate(messages):
        if type(message) is not dict:
            continue
        if type(parts := message.get("content")) is list:
            media = media or Media()
            for part in parts:
                if type(part) is not dict or part.get("type") != "text" or "prompt_cache_breakpoint" in part:
                    _add_part(part, model, media, at)
        if "audio" in message and message["audio"] is not None:
            raise NotPriced(
                "The length of an earlier answer's audio cannot be known; send its text instead.",
                param=f"messages[{at}]",
            )
    return media


def _add_part(part: Any, model: str, media: Media, at: int) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        pass
    elif kind == "image_url":
        add_image(part.get("image_url"), model, media, f"messages[{at}]")
    elif kind == "input_audio":
        add_audio(part.get("input_audio"), media, f"messages[{at}]")
    elif kind != "refusal":
        raise NotPriced(
            f"The cost of a content part of type {shown(kind)} cannot be bounded; send text, image_url or input_audio parts.",
            param=f"messages[{at}]",
        )
    if "prompt_cache_breakpoint" in part:
        check_cache(part["prompt_cache_breakpoint"], f"messages[{at}]")


def add_image(image: Any, model: str, media: Media, where: str) -> None:
    """Counts an image; raises BadRequest, or NotPriced where nothing bounds it."""
    url, detail = (image.get("url"), image.get("detail")) if isinstance(image, dict) else (None, None)
    if not isinstance(url, str) or detail not in (None, "auto", "low", "high", "original"):
        raise BadRequest("An image needs a `url`, and `detail` is auto, low, high or original.", param=where)
    prefix = _DATA_URL.match(url)
    encoded = url[prefix.end() :] if prefix else ""
    tokens = openai_image(model, encoded or None, detail or "auto")
    if tokens is None:
        raise NotPriced(
            f"Nothing bounds what this image costs with {model[:200]!r}, which does not scale images down: send it as a base64 "
            "data URL of a PNG, JPEG, GIF or WebP, whose size can be read, or with `detail` low or high.",
            param=where,
        )
    media.add_image(encoded, tokens)


def add_audio(audio: Any, media: Media, where: str) -> None:
    """Counts audio; raises NotPriced where its length cannot be read."""
    data, form = (audio.get("data"), audio.get("format")) if isinstance(audio, dict) else (None, None)
    seconds = audio_seconds(data, form) if isinstance(data, str) and isinstance(form, str) else None
    if not isinstance(data, str) or seconds is None:
        raise NotPriced(
            "The length of this audio cannot be read; send base64 of PCM as `wav`, or of `mp3`.",
            param=where,
        )
    media.add_audio(data, seconds)


def output_meters(request: dict[str, Any]) -> tuple[str, ...]:
    """What its output may be billed as; raises NotPriced."""
    given = request.get("modalities")
    if given is None:
        return _TEXT_OUT
    names = tuple(sorted(set(given))) if isinstance(given, list) and all(isinstance(one, str) for one in given) else ()
    if names not in _MODALITIES:
        raise NotPriced("modalities: only `text` and `audio` have a price; leave others out.", param="modalities")
    return _MODALITIES[names]


def variants(request: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ways of serving that are demanded, and those that the provider may choose; raises NotPriced."""
    tier = request.get("service_tier")
    if not isinstance(tier, str | None) or tier not in _TIERS:
        raise NotPriced(
            f"The service tier {shown(tier)} has no price for each token; use auto, default, flex or priority.",
            param="service_tier",
        )
    return _TIERS[tier]


def _refuse_what_has_no_bound(request: dict[str, Any]) -> None:
    """What may cost more than the body and its output limit account for."""
    tools = request.get("tools")
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and tool.get("type") not in (None, "function", "custom"):
            raise NotPriced(
                f"tools[{at}]: the cost of the tool {shown(tool['type'])} cannot be bounded; use function or custom tools.",
                param="tools",
            )
    if request.get("web_search_options") is not None:
        raise NotPriced(NO_SEARCH, param="web_search_options")
    if request.get("prediction") is not None:
        raise NotPriced(
            "Predicted tokens that are rejected are billed beyond the output limit; leave `prediction` out.",
            param="prediction",
        )
    if request.get("prompt_cache_options") is not None:
        check_cache(request["prompt_cache_options"], "prompt_cache_options")


def check_cache(options: Any, where: str) -> None:
    """Raises NotPriced for a cache lifetime without a price."""
    if isinstance(options, dict) and options.get("ttl") not in (None, "30m"):
        raise NotPriced("Only the cache lifetime `30m` has a price.", param=where)


def shown(value: Any) -> str:
    """A value of the request, for a message."""
    return repr(value)[:60]
