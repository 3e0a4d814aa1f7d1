"""What a stream of chat completion chunks says, piece by piece, for wires that tell one part of an answer after the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from aiplatform.gateway.translate.base import Json, arguments_text, dicts, dumps, error_read, text_of, words
from aiplatform.gateway.translate.reasoning import FROM_FIELDS

INTERLEAVED = "The provider went back to a tool call that it had left, which this wire cannot say."
_SERVER_ERROR = 500

Kind = Literal["reasoning", "thought", "text", "refusal", "call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a part of the answer; `of` says which part, together with the kind."""

    kind: Kind
    of: str
    """The field that the reasoning came in; which call it is; empty for others."""
    text: str = ""
    begins: Json | None = None
    """The call that begins here, or the whole thought."""


class Pieces:
    """Reads chunks; remembers how the answer ended and what it used."""

    def __init__(self) -> None:
        self.choice: Json = {}
        self.usage: Any = None
        self.calls = 0
        self._calls: dict[str, tuple[str, str]] = {}  # by index: which call it is, and its id

    def read(self, chunk: Json) -> Iterator[Piece]:
        self.usage = chunk.get("usage") or self.usage
        for choice in dicts(chunk.get("choices"))[:1]:
            if choice.get("finish_reason"):
                self.choice = choice
            delta = choice.get("delta")
            if isinstance(delta, dict):
                yield from self._delta(delta)

    def _delta(self, delta: Json) -> Iterator[Piece]:
        for name in FROM_FIELDS:
            if text := text_of(delta.get(name)):
                yield Piece("reasoning", name, text)
                break  # a server that gives both names says the same by both
        for thought in dicts(delta.get("thinking_blocks")):
            yield Piece("thought", "", begins=thought)
        if text := words(delta.get("content")):
            yield Piece("text", "", text)
        for call in dicts(delta.get("tool_calls")):
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            number, is_new = self._which(str(call.get("index")), text_of(call.get("id")))
            begins = {"id": text_of(call.get("id")), "name": text_of(function.get("name"))} if is_new else None
            yield Piece("call", number, arguments_text(function), begins)
        if text := text_of(delta.get("refusal")):
            yield Piece("refusal", "", text)

    def _which(self, index: str, identity: str) -> tuple[str, bool]:
        """Which call a part belongs to, and whether it begins it. Servers that give every call one index, or none, tell calls
        apart by their ids.
        """
        number, known = self._calls.get(index, ("", ""))
        if number and identity in ("", known):
            return number, False
        self.calls += 1
        self._calls[index] = (str(self.calls), identity)
        return str(self.calls), True


def has_begun(chunk: Json) -> bool:
    """Whether the answer has begun: what Azure tells of its filters before has neither an id nor a choice."""
    return bool(chunk.get("id") or chunk.get("choices"))


def failure(chunk: Json) -> Json | None:
    """The error that a chunk tells instead of an answer."""
    return error_read(_SERVER_ERROR, dumps(chunk)) if isinstance(chunk.get("error"), dict | str) else None
