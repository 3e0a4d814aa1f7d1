"""Tool results that hold more than text, for a wire whose tool messages hold only text."""

from typing import Any

from aiplatform.gateway.translate.base import Json


def told_apart(messages: list[Json]) -> list[Json]:
    """Moves what is no text out of tool messages into the user's message that follows them, below the id of its call.

    It cannot stand between them: a server wants the results of one turn in an unbroken row.
    """
    found: list[Json] = []
    moved: list[Json] = []
    for message in [*messages, {"role": "nobody"}]:
        if message["role"] == "tool":
            texts, others = _split(message)
            found.append(message | {"content": texts})
            moved += others
            continue
        if moved and message["role"] == "user":
            found.append(message | {"content": moved + _parts(message["content"])})
        else:
            found += [{"role": "user", "content": moved}, message] if moved else [message]
        moved = []
    return found[:-1]


def _split(message: Json) -> tuple[Any, list[Json]]:
    """A result's texts, and its other parts below a line that says whose they are."""
    content = message["content"]
    others = [] if isinstance(content, str) else [part for part in content if part["type"] != "text"]
    if not others:
        return content, []
    texts = [part for part in content if part["type"] == "text"]
    line = {"type": "text", "text": f"From the result of the tool call {message['tool_call_id']}:"}
    return texts or "See below.", [line, *others]


def _parts(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
