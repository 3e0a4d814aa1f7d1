"""Anthropic's wire: messages and the list of models."""

from datetime import UTC, datetime
from typing import Any

import orjson

from aiplatform.gateway.wires.base import (
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
from aiplatform.gateway.wires.bounds import TEMPLATE_TOKENS, TOOLS_TOKENS, Media, anthropic_image
from aiplatform.lib.errors import ApiError
from usage.pricing import Bound

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error",
    503: "overloaded_error",
}  # fmt: skip
_OF_BYTES = frozenset(("text", "thinking", "redacted_thinking", "tool_use"))
# Client tools whose definition is the vendor's: 245 tokens for bash and up to 700 for the text editor are documented.
# Source: platform.claude.com/docs/en/about-claude/pricing (tool use pricing).
_VENDOR_TOOLS = ("bash_", "text_editor_")
_UNBOUNDED = {
    "mcp_servers": "what its tools bring in is input that nobody can bound before",
    "container": "its hours have no price per call",
    "thread": "the provider adds turns to the input that are not in this request",
    "fallbacks": "another model has another price",
    "compaction": "its tokens are billed beyond max_tokens",
    "billing_policy": "it decides who is billed",
}
_RARE_FIELDS = frozenset((*_UNBOUNDED, "tools", "service_tier", "speed", "inference_geo", "context_management"))


class AnthropicWire:
    name = "anthropic"

    def read(self, endpoint: str, body: bytes, headers: Any) -> Facts:
        request = read_object(body)
        if not isinstance(request.get("messages"), list) or not request["messages"]:
            raise BadRequest("messages: must be a non-empty array", param="messages")
        model = text(request, "model")
        max_tokens = whole(request, "max_tokens", MOST_OUTPUT_TOKENS)
        if max_tokens is None:
            raise BadRequest("max_tokens: Field required", param="max_tokens")
        media = _media(request, model)
        metadata = request.get("metadata")
        facts = Facts(
            wire=self.name,
            endpoint=endpoint,
            model=model,
            body=body,
            streamed=flag(request, "stream"),
            end_user=end_user(metadata.get("user_id") if isinstance(metadata, dict) else None, headers),
            bound=_bound(request, len(body), media),
            max_tokens=max_tokens,
            max_tokens_field="max_tokens",
            media_bytes=media.encoded_bytes if media else 0,
        )
        facts.forward |= {name: headers[name] for name in ("anthropic-version", "anthropic-beta") if name in headers}
        return facts

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        kind = _TYPES.get(error.status, "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": error.message, "code": error.code} | error.details,
            "request_id": request_id,
        }

    def models(self, names: list[tuple[str, str, int]]) -> dict[str, Any]:
        data = [
            {
                "type": "model",
                "id": name,
                "display_name": name,
                "created_at": datetime.fromtimestamp(at, UTC).isoformat(),
            }
            for name, _, at in names
        ]
        ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}

    def broken_event(self, code: str, message: str, endpoint: str, number: int = 0) -> bytes:  # noqa: ARG002 - all of this wire is alike
        error = {"type": "error", "error": {"type": "api_error", "message": message, "code": code}}
        return b"event: error\ndata: " + orjson.dumps(error) + b"\n\n"


def _bound(request: dict[str, Any], body_bytes: int, media: Media | None) -> Bound:
    """What the request can cost at most; raises NotPriced for what nothing bounds."""
    text = body_bytes + TEMPLATE_TOKENS
    if media is None and _RARE_FIELDS.isdisjoint(request):
        return Bound(text)
    _refuse_what_has_no_bound(request)
    if request.get("tools"):
        text += TOOLS_TOKENS + _vendor_tools(request["tools"]) * TOOLS_TOKENS
    meters = media.meters if media else {}
    text -= media.encoded_bytes if media else 0
    return Bound(text, meters, variants=("standard", "fast") if request.get("speed") == "fast" else ("standard",))


def _media(request: dict[str, Any], model: str) -> Media | None:
    """What the messages hold besides text; None where their contents are plain strings."""
    media: Media | None = None
    for at, message in enumerate(request["messages"]):
        if type(message) is dict and type(blocks := message.get("content")) is list:
            media = media or Media()
            _add_blocks(blocks, model, media, f"messages.{at}")
    if type(system := request.get("system")) is list:
        media = media or Media()
        _add_blocks(system, model, media, "system")
    return media


def _add_blocks(blocks: Any, model: str, media: Media, where: str) -> None:
    for block in blocks if isinstance(blocks, list) else ():
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in _OF_BYTES:
            continue
        if kind == "tool_result":
            _add_blocks(block.get("content"), model, media, where)
        elif kind == "image":
            _add_image(block.get("source"), model, media, where)
        elif kind == "document":
            _add_document(block, model, media, where)
        elif kind == "search_result":
            _check_citations(block, where)
            _add_blocks(block.get("content"), model, media, where)
        else:
            raise NotPriced(
                f"{where}: the cost of a content block of type {_shown(kind)} cannot be bounded; send text or images",
                param=where,
            )


def _add_image(source: Any, model: str, media: Media, where: str) -> None:
    kind, data = (source.get("type"), source.get("data")) if isinstance(source, dict) else (None, None)
    if kind == "base64" and isinstance(data, str):
        media.add_image(data, anthropic_image(model, data))
    elif kind == "url":
        media.add_image("", anthropic_image(model, None))
    else:
        raise NotPriced(
            f"{where}: an image from a source of type {_shown(kind)} cannot be bounded; send base64 or a url",
            param=where,
        )


def _add_document(block: dict[str, Any], model: str, media: Media, where: str) -> None:
    source: Any = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    _check_citations(block, where)
    if kind == "content":
        _add_blocks(source.get("content"), model, media, where)
    elif kind != "text":  # a page's text has no limit but the context window, and compresses well
        raise NotPriced(
            f"{where}: the text in a document of type {_shown(kind)} cannot be bounded; send its text, or its pages as images",
            param=where,
        )


def _check_citations(block: dict[str, Any], where: str) -> None:
    citations = block.get("citations")
    if isinstance(citations, dict) and citations.get("enabled"):
        raise NotPriced(
            f"{where}: citations cut a text into pieces with tokens of their own, which cannot be bounded; disable them",
            param=where,
        )


def _vendor_tools(tools: Any) -> int:
    """How many of the tools are defined by the vendor; raises NotPriced for those that the vendor's servers carry out."""
    found = 0
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind.startswith(_VENDOR_TOOLS):
            found += 1
        elif kind not in (None, "custom"):
            raise NotPriced(
                f"tools.{at}: what the server tool {_shown(kind)} brings in is input that nobody can bound before, whatever "
                "its max_uses; use a custom tool of your own",
                param="tools",
            )
    return found


def _refuse_what_has_no_bound(request: dict[str, Any]) -> None:
    """What may cost more than the body and its output limit account for."""
    for name, why in _UNBOUNDED.items():
        if request.get(name) is not None:
            raise NotPriced(f"{name}: {why}; leave it out", param=name)
    management = request.get("context_management")
    if management is not None and "compact" in str(management):
        raise NotPriced(
            "context_management: a compaction is billed beyond max_tokens; use the other edits",
            param="context_management",
        )
    if request.get("service_tier") not in (None, "auto", "standard_only"):
        raise NotPriced("service_tier: only `auto` and `standard_only` have a price", param="service_tier")
    if request.get("speed") not in (None, "standard", "fast"):
        raise NotPriced("speed: only `standard` and `fast` have a price", param="speed")
    if request.get("inference_geo") not in (None, "global"):
        raise NotPriced("inference_geo: only `global` has a price; a region costs more", param="inference_geo")


def _shown(value: Any) -> str:
    return repr(value)[:60]
