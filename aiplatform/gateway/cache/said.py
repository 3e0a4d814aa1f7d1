"""What a kept answer says, as one text: to be held against another answer to a like question."""

from collections.abc import Callable, Iterator
from typing import Any

from aiplatform.gateway.cache import forms
from aiplatform.gateway.cache.forms_events import dumps
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.providers.base import parsed


def said(entry: Entry) -> str | None:
    """Its text, and the tools that it calls with what; None where that cannot be read. Thoughts are not said."""
    try:
        body = forms.plain(entry.endpoint, entry.body) if entry.is_stream else entry.body
        answer, parts = parsed(body), _PARTS.get(entry.endpoint)
        return "\n".join(parts(answer)) if answer is not None and parts is not None else None
    except (
        forms.NotRenderable,
        KeyError,
        TypeError,
        AttributeError,
    ):  # a provider wrote it, who may leave out anything
        return None


def _chat(answer: Any) -> Iterator[str]:
    for choice in answer["choices"]:
        message = choice["message"]
        yield message.get("content") or message.get("refusal") or ""
        for call in message.get("tool_calls") or []:
            yield _called(call["function"]["name"], call["function"]["arguments"])


def _messages(answer: Any) -> Iterator[str]:
    for block in answer["content"]:
        if block["type"] == "text":
            yield block["text"]
        elif block["type"] == "tool_use":
            yield _called(block["name"], dumps(block["input"]).decode())


def _responses(answer: Any) -> Iterator[str]:
    for item in answer["output"]:
        if item["type"] == "message":
            yield from (part.get("text") or part.get("refusal") or "" for part in item["content"])
        elif item["type"] == "function_call":
            yield _called(item["name"], item["arguments"])


def _called(name: str, arguments: str) -> str:
    return f"{name} {arguments}"


_PARTS: dict[str, Callable[[Any], Iterator[str]]] = {"chat": _chat, "messages": _messages, "responses": _responses}
