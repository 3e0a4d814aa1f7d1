"""OpenAI's wire: chat completions and the list of models."""

from typing import Any

import orjson

from aiplatform.gateway.wires.base import (
    MOST_CHOICES,
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
    401: "invalid_request_error",
    402: "insufficient_quota",
    403: "invalid_request_error",
    429: "rate_limit_error",
}
_SERVER_ERROR = 500


class OpenAIWire:
    name = "openai"

    def read(self, endpoint: str, body: bytes, headers: Any) -> Facts:
        request = read_object(body)
        if not isinstance(request.get("messages"), list) or not request["messages"]:
            raise BadRequest("`messages` must be a non-empty array.", param="messages")
        _refuse_what_has_no_bound(request)
        limits = {name: whole(request, name, MOST_OUTPUT_TOKENS) for name in ("max_completion_tokens", "max_tokens")}
        given = [name for name, limit in limits.items() if limit is not None]
        if len(given) > 1:
            raise BadRequest("Give `max_completion_tokens` or `max_tokens`, not both.", param="max_tokens")
        field = given[0] if given else "max_completion_tokens"
        facts = Facts(
            wire=self.name,
            endpoint=endpoint,
            model=text(request, "model"),
            body=body,
            streamed=flag(request, "stream"),
            choices=whole(request, "n", MOST_CHOICES) or 1,
            end_user=end_user(request.get("user"), headers),
            input_bound_tokens=len(body) + TEMPLATE_TOKENS + (TOOLS_TOKENS if request.get("tools") else 0),
            max_tokens=limits[field],
            max_tokens_field=field,
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

    def broken_event(self, code: str, message: str) -> bytes:
        error = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
        return b"data: " + orjson.dumps(error) + b"\n\n"


def _ask_for_usage(facts: Facts, request: dict[str, Any]) -> None:
    """A stream's cost is known only if the provider is asked; the answer is hidden again from who did not ask."""
    options = request.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("`stream_options` must be an object.", param="stream_options")
    if not facts.streamed or (options and flag(options, "include_usage")):
        return
    facts.hide_usage = True
    facts.set_fields["stream_options"] = (options or {}) | {"include_usage": True}


def _refuse_what_has_no_bound(request: dict[str, Any]) -> None:
    """What may cost more than the body's bytes and its output limit account for."""
    for at, message in enumerate(request["messages"]):
        parts = message.get("content") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                raise NotPriced(
                    f"The cost of a content part of type {kind!r} cannot be bounded; send text parts.",
                    param=f"messages[{at}]",
                )
    if request.get("service_tier") not in (None, "auto", "default"):
        raise NotPriced("Only the service tiers `auto` and `default` have a price.", param="service_tier")
    if request.get("modalities") not in (None, ["text"]):
        raise NotPriced("Only text output has a price.", param="modalities")
    if request.get("web_search_options") is not None:
        raise NotPriced("Web search has no price per call.", param="web_search_options")
