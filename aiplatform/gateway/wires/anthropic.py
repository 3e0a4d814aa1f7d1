"""Anthropic's wire: messages and the list of models."""

from datetime import UTC, datetime
from typing import Any

import orjson

from aiplatform.gateway.wires.base import (
    MOST_OUTPUT_TOKENS,
    TEMPLATE_TOKENS,
    TOOLS_TOKENS,
    BadRequest,
    Facts,
    NotPriced,
    end_user,
    flag,
    read_object,
    text,
    whole,
)
from aiplatform.lib.errors import ApiError

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error",
    503: "overloaded_error",
}  # fmt: skip
_BOUNDED_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


class AnthropicWire:
    name = "anthropic"

    def read(self, endpoint: str, body: bytes, headers: Any) -> Facts:
        request = read_object(body)
        if not isinstance(request.get("messages"), list) or not request["messages"]:
            raise BadRequest("messages: must be a non-empty array", param="messages")
        _refuse_what_has_no_bound(request)
        max_tokens = whole(request, "max_tokens", MOST_OUTPUT_TOKENS)
        if max_tokens is None:
            raise BadRequest("max_tokens: Field required", param="max_tokens")
        metadata = request.get("metadata")
        facts = Facts(
            wire=self.name,
            endpoint=endpoint,
            model=text(request, "model"),
            body=body,
            streamed=flag(request, "stream"),
            choices=1,
            end_user=end_user(metadata.get("user_id") if isinstance(metadata, dict) else None, headers),
            input_bound_tokens=len(body) + TEMPLATE_TOKENS + (TOOLS_TOKENS if request.get("tools") else 0),
            max_tokens=max_tokens,
            max_tokens_field="max_tokens",
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

    def broken_event(self, code: str, message: str) -> bytes:
        error = {"type": "error", "error": {"type": "api_error", "message": message, "code": code}}
        return b"event: error\ndata: " + orjson.dumps(error) + b"\n\n"


def _refuse_what_has_no_bound(request: dict[str, Any]) -> None:
    """What may cost more than the body's bytes and its output limit account for."""
    for at, message in enumerate(request["messages"]):
        _check_blocks(message.get("content") if isinstance(message, dict) else None, f"messages.{at}")
    tools = request.get("tools")
    for at, tool in enumerate(tools if isinstance(tools, list) else []):
        if isinstance(tool, dict) and tool.get("type") not in (None, "custom"):
            raise NotPriced(f"tools.{at}: the server tool {tool['type']!r} has no price per call", param="tools")
    for name in ("mcp_servers", "container"):
        if request.get(name) is not None:
            raise NotPriced(f"{name}: has no price per call", param=name)
    if request.get("service_tier") not in (None, "auto", "standard_only"):
        raise NotPriced("service_tier: only `auto` and `standard_only` have a price", param="service_tier")
    if request.get("speed") not in (None, "standard"):
        raise NotPriced("speed: only `standard` has a price", param="speed")


def _check_blocks(blocks: Any, where: str) -> None:
    for block in blocks if isinstance(blocks, list) else []:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in _BOUNDED_BLOCKS:
            raise NotPriced(
                f"{where}: the cost of a content block of type {kind!r} cannot be bounded; send text", param=where
            )
        if kind == "tool_result":
            _check_blocks(block.get("content"), where)
