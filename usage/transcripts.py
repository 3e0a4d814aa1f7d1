"""What was said in a call, read out of bodies of either wire; nothing here is trusted, and pages show it as plain text."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

READABLE_BYTES = 1024 * 1024  # of a longer body only the beginning is loaded
SHOWN_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """Turns in order, none where the body is of no known shape; `raw` is its beginning as it came."""

    turns: list[Turn]
    raw: str
    size: int

    @property
    def is_cut(self) -> bool:
        return self.size > len(self.raw.encode())


def read(body: bytes, size: int) -> Transcript:
    """A transcript of the first bytes of a body that is `size` bytes long."""
    text = body.decode(errors="replace")
    try:
        turns = _stream(text) if _is_stream(text) else _turns(json.loads(text))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        turns = []
    return Transcript([Turn(turn.role, turn.text[:SHOWN_CHARACTERS]) for turn in turns], text[:SHOWN_CHARACTERS], size)


def _is_stream(text: str) -> bool:
    return text.lstrip().startswith(("data:", "event:", ":"))


def _turns(body: Any) -> list[Turn]:
    if body.get("error"):
        return [Turn("error", str(body["error"].get("message", "")))]
    if body.get("object") == "response":
        return [_item(item) for item in body["output"]]
    if "input" in body:
        given = body["input"]
        told = [Turn("system", body["instructions"])] if body.get("instructions") else []
        return told + ([Turn("user", given)] if isinstance(given, str) else [_item(item) for item in given])
    if "choices" in body:
        return [_message(choice["message"]) for choice in body["choices"]]
    if body.get("type") == "message":
        return [Turn(body.get("role", "assistant"), _text(body["content"]))]
    asked = [Turn("system", _text(body["system"]))] if body.get("system") else []
    return asked + [_message(message) for message in body.get("messages", [])]


def _message(message: Any) -> Turn:
    said = [_text(message.get("content")), str(message.get("refusal") or "")]
    said += [
        f"→ {call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or []
    ]
    return Turn(str(message.get("role", "assistant")), "\n".join(part for part in said if part))


def _item(item: Any) -> Turn:
    """A part of a response's input or output."""
    match item.get("type", "message"):
        case "message":
            return _message(item)
        case "function_call" | "custom_tool_call":
            return Turn("assistant", f"→ {item['name']}({item.get('arguments') or item.get('input') or ''})")
        case "function_call_output" | "custom_tool_call_output":
            return Turn("tool", f"← {_text(item.get('output'))}")
        case "reasoning":
            return Turn("assistant", f"(reasoning) {_text(item.get('summary'))}")
        case kind:
            return Turn(str(item.get("role", "")), f"[{kind}]")


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_block(block) for block in content)


def _block(block: Any) -> str:
    if isinstance(block, str):
        return block
    match block.get("type"):
        case "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text":
            return str(block["text"])
        case "thinking":
            return f"(thinking) {block['thinking']}"
        case "tool_use":
            return f"→ {block['name']}({json.dumps(block['input'], ensure_ascii=False)})"
        case "tool_result":
            return f"← {_text(block.get('content'))}"
        case kind:
            return f"[{kind}]"


def _stream(text: str) -> list[Turn]:
    """The pieces of a stream of server-sent events put together, by choice."""
    said: dict[int, str] = {}
    for line in text.splitlines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        with suppress(ValueError):  # "[DONE]", or the last line of a body that was cut
            for place, piece in _pieces(json.loads(data or "{}")):
                said[place] = said.get(place, "") + piece
    return [Turn("assistant", said[place]) for place in sorted(said)]


def _pieces(event: Any) -> list[tuple[int, str]]:
    if event.get("type") == "content_block_delta":
        delta = event["delta"]
        return [(0, delta.get("text") or delta.get("thinking") or delta.get("partial_json") or "")]
    if str(event.get("type")).startswith("response."):
        is_piece = event["type"].endswith(".delta") and isinstance(event.get("delta"), str)
        return [(event.get("output_index", 0), event["delta"])] if is_piece else []
    return [(choice["index"], choice["delta"].get("content") or "") for choice in event.get("choices", [])]
