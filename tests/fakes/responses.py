"""OpenAI's Responses at the far end: https://developers.openai.com/api/reference/resources/responses.

Answers that may be looked up later are kept in memory. One in the background is at first `queued`, and has ended once it was
looked at as often as its fault says (`polls`). One that was streamed in the background can be streamed again from any event.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.fakes.codec import dumps
from tests.fakes.faults import Fault

CREATED = 1_767_225_600
HUGE = 10**18
PENDING = ("queued", "in_progress")

Json = dict[str, Any]
FIGURES: dict[str, Callable[[int], Any]] = {
    "zero": lambda _: 0,
    "negative": lambda count: -count,
    "huge": lambda _: HUGE,
    "string": str,
}


class Answer(NamedTuple):
    """What a request about a stored response gets: one body, or events."""

    status: int
    body: bytes
    events: list[bytes] | None = None
    fault: Fault | None = None


@dataclass(kw_only=True, slots=True)
class Response:
    """One response, as it ends; what is told of it before follows from that."""

    number: int
    asked: Json
    texts: list[str]
    input_tokens: int
    output_tokens: int
    is_cut: bool
    fault: Fault
    looks: int = 0
    was_cancelled: bool = False

    @property
    def id(self) -> str:
        return f"resp_{self.number}"

    @property
    def is_background(self) -> bool:
        return self.asked.get("background") is True

    @property
    def is_stored(self) -> bool:
        return self.asked.get("store") is not False

    @property
    def status(self) -> str:
        """As it stands at this look."""
        if self.was_cancelled:
            return "cancelled"
        if self.is_background and self.looks < self.fault.polls:
            return "in_progress" if self.looks else "queued"
        return self.end

    @property
    def end(self) -> str:
        return "incomplete" if self.is_cut and self.fault.ends == "completed" else self.fault.ends

    @property
    def functions(self) -> list[str]:
        """The functions that it calls, side by side: all that it must."""
        if self.asked.get("tool_choice") != "required":
            return []
        return [tool["name"] for tool in self.asked.get("tools", []) if tool.get("type") == "function"]

    def told(self, status: str) -> Json:
        """The object, its output and usage only once it has ended."""
        has_ended = status not in PENDING and not self.was_cancelled
        reason = {"incomplete": {"reason": "max_output_tokens"}}.get(status)
        said: Json = {
            "id": self.id,
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "background": self.is_background,
            "error": {"code": "server_error", "message": "The far end was told to fail."}
            if status == "failed"
            else None,
            "incomplete_details": reason,
            "instructions": self.asked.get("instructions"),
            "max_output_tokens": self.asked.get("max_output_tokens"),
            "model": str(self.asked.get("model")),
            "output": self.output() if has_ended and status != "failed" else [],
            "parallel_tool_calls": True,
            "previous_response_id": self.asked.get("previous_response_id"),
            "reasoning": self.asked.get("reasoning") or {"effort": None, "summary": None},
            "service_tier": "default",
            "store": self.is_stored,
            "temperature": 1.0,
            "text": self.asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": self.asked.get("tool_choice", "auto"),
            "tools": self.asked.get("tools", []),
            "top_p": 1.0,
            "truncation": self.asked.get("truncation", "disabled"),
            "metadata": self.asked.get("metadata") or {},
        }
        if self.fault.usage != "missing":
            said["usage"] = self.usage() if has_ended and (status != "failed" or self.fault.usage) else None
        return said | self.fault.extra

    def output(self) -> list[Json]:
        items: list[Json] = []
        if (self.asked.get("reasoning") or {}).get("effort"):
            item: Json = {"id": f"rs_{self.number}", "type": "reasoning", "summary": []}
            if "reasoning.encrypted_content" in (self.asked.get("include") or []):
                item["encrypted_content"] = "gAAAAA=="
            items.append(item)
        if self.functions:
            return items + [self.call(at, name) for at, name in enumerate(self.functions)]
        return [*items, self.message("".join(self.texts))]

    def message(self, text: str, status: str = "completed") -> Json:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        content = [part] if status == "completed" else []
        return {
            "id": f"msg_{self.number}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def call(self, at: int, name: str) -> Json:
        return {
            "id": f"fc_{self.number}_{at}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{self.number}_{at}",
            "name": name,
            "arguments": "".join(self.texts),
        }

    def usage(self) -> Any:
        if isinstance(self.fault.usage, dict):
            return self.fault.usage
        if self.fault.usage == "null":
            return None
        figure: Callable[[int], Any] = FIGURES.get(self.fault.usage or "", lambda count: count)
        cached = self.input_tokens + 100 if self.fault.usage == "cached_above_input" else 0
        return {
            "input_tokens": figure(self.input_tokens),
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": figure(self.output_tokens),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": figure(self.input_tokens + self.output_tokens),
        }

    def events(self) -> Iterator[tuple[bytes, int]]:
        """Every event with the output tokens that it stands for."""
        number = 0

        def event(kind: str, fields: Json, tokens: int = 0) -> tuple[bytes, int]:
            nonlocal number
            data = {"type": kind} | fields | {"sequence_number": number}
            number += 1
            return b"event: %s\ndata: %s\n\n" % (kind.encode(), dumps(data | self.fault.extra)), tokens

        begun = "queued" if self.is_background else "in_progress"
        yield event("response.created", {"response": self.told(begun)})
        if self.is_background:
            yield event("response.queued", {"response": self.told("queued")})
        yield event("response.in_progress", {"response": self.told("in_progress")})
        for at, item in enumerate(self.output() if self.end != "failed" else []):
            yield from self.item_events(event, at, item)
        yield event(f"response.{self.end}", {"response": self.told(self.end)})

    def item_events(self, event: Any, at: int, item: Json) -> Iterator[tuple[bytes, int]]:
        """The events of one item: its parts in pieces, then whole."""
        place = {"item_id": item["id"], "output_index": at}
        if item["type"] == "message":
            part = item["content"][0]
            yield event("response.output_item.added", {"output_index": at, "item": self.message("", "in_progress")})
            place |= {"content_index": 0}
            yield event("response.content_part.added", place | {"part": part | {"text": ""}})
            for index, text in enumerate(self.texts):
                yield event(
                    "response.output_text.delta", place | {"delta": text, "logprobs": []}, self.tokens_of(index)
                )
            yield event("response.output_text.done", place | {"text": part["text"], "logprobs": []})
            yield event("response.content_part.done", place | {"part": part})
        elif item["type"] == "function_call":
            yield event("response.output_item.added", {"output_index": at, "item": item | {"arguments": ""}})
            for index, text in enumerate(self.texts):
                tokens = self.tokens_of(index) if at == len(self.output()) - 1 else 0
                yield event("response.function_call_arguments.delta", place | {"delta": text}, tokens)
            yield event(
                "response.function_call_arguments.done", place | {"arguments": item["arguments"], "name": item["name"]}
            )
        else:
            yield event("response.output_item.added", {"output_index": at, "item": item})
        yield event("response.output_item.done", {"output_index": at, "item": item})

    def tokens_of(self, part: int) -> int:
        count = len(self.texts)
        return self.output_tokens * (part + 1) // count - self.output_tokens * part // count

    def input_items(self) -> list[Json]:
        given = self.asked.get("input")
        if isinstance(given, str):
            given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
        return [
            {"id": f"in_{self.number}_{at}", "type": "message", "status": "completed"} | item
            for at, item in enumerate(given or [])
        ]


@dataclass
class Store:
    """What the far end keeps."""

    kept: dict[str, Response] = field(default_factory=dict)

    def earlier_tokens(self, asked: Json) -> int | None:
        """The tokens of the response that is continued; None where there is none of this id."""
        name = asked.get("previous_response_id")
        if not name:
            return 0
        found = self.kept.get(name)
        return None if found is None else found.input_tokens + found.output_tokens

    def answer(self, method: str, path: str, query: dict[str, str], asked: Json | None) -> Answer:
        """What a request about a stored response gets."""
        name, _, action = path.removeprefix("/v1/responses/").partition("/")
        if (method, name) == ("POST", "input_tokens"):
            return whole({"object": "response.input_tokens", "input_tokens": tokens_in(asked or {})})
        found = self.kept.get(name)
        if found is None:
            return error(404, f"Response with id '{name}' not found.")
        if method == "DELETE":
            del self.kept[name]
            return whole({"id": name, "object": "response", "deleted": True})
        return self.cancelled(found) if method == "POST" else looked_at(found, action, query)

    @staticmethod
    def cancelled(found: Response) -> Answer:
        if not found.is_background:
            return error(400, "Cannot cancel a synchronous response.")
        if found.status in PENDING:
            found.was_cancelled = True
        return whole(found.told(found.status))


def looked_at(found: Response, action: str, query: dict[str, str]) -> Answer:
    """Its input items, its events, or how it stands."""
    if action == "input_items":
        items = found.input_items()
        ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]}
        return whole({"object": "list", "data": items, "has_more": False} | ends)
    if query.get("stream") == "true":
        return again(found, int(query.get("starting_after", -1)))
    status = found.status
    found.looks += 1
    return whole(found.told(status))


def again(found: Response, after: int) -> Answer:
    """The events after one that the caller has."""
    if not (found.is_background and found.asked.get("stream")):
        return error(400, "Only a background response that was created with stream=true can be streamed again.")
    events = [event for at, (event, _) in enumerate(found.events()) if at > after]
    found.looks = found.fault.polls
    return Answer(200, b"", events, found.fault)


def tokens_in(asked: Json) -> int:
    """One token for each started four characters of the input and the instructions, at least one."""
    given = asked.get("input")
    characters = len(given) if isinstance(given, str) else 0
    for item in given if isinstance(given, list) else []:
        for content in (item.get("content"), item.get("output")):
            characters += len(content) if isinstance(content, str) else 0
            characters += (
                sum(len(str(part.get("text", ""))) for part in content if isinstance(part, dict))
                if isinstance(content, list)
                else 0
            )
    return max(1, -(-(characters + len(asked.get("instructions") or "")) // 4))


def whole(value: Json) -> Answer:
    return Answer(200, dumps(value))


def error(status: int, message: str, param: str | None = None, code: str | None = None) -> Answer:
    return Answer(
        status, dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})
    )
