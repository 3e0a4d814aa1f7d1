"""A chat completion and its chunks, one made from the other.

Source: developers.openai.com/api/reference/resources/chat (the completion object, the chunk object).
"""

from collections.abc import Iterator
from typing import Any

from aiplatform.gateway.cache.forms_events import Json, NotRenderable

_CHUNK = "chat.completion.chunk"
# Of a chunk itself: what it says is put together apart, or hides how long it is.
_OF_CHUNKS = frozenset(("object", "choices", "usage", "obfuscation"))
_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier")
_FIRST = frozenset(("id", "created", "model"))
# Some servers repeat them in every chunk; no text goes on in them.
_ONCE = frozenset(("id", "type", "role", "name", "index"))
_SAID = ("content", "refusal", "function_call")


def together(chunks: list[Json]) -> Json:
    """The completion; raises NotRenderable."""
    answer: Json = {"object": "chat.completion"}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        if chunk.get("object", _CHUNK) != _CHUNK:
            if chunk.get("choices"):
                raise NotRenderable("choices in what is no chunk")
            continue  # as the SDK does
        _add_head(answer, chunk)
        for choice in chunk.get("choices") or []:
            _add_choice(choices.setdefault(_index(choice), {"index": choice["index"], "message": {}}), choice)
        if chunk.get("usage") is not None:
            answer["usage"] = chunk["usage"]
    if not choices:
        raise NotRenderable("no choices")
    return answer | {"choices": [_whole(choices[at]) for at in sorted(choices)]}


def apart(answer: Json) -> list[Json]:
    """The chunks of a completion, its usage the last of them; raises NotRenderable."""
    if answer.get("object") != "chat.completion":
        raise NotRenderable("no chat completion")
    head = {name: answer[name] for name in _HEAD if name in answer} | {"object": _CHUNK}
    usage = {"usage": None} if answer.get("usage") else {}
    chunks = [head | {"choices": [one]} | usage for choice in answer["choices"] for one in _choice_apart(choice)]
    if chunks:
        chunks[0] |= {name: one for name, one in answer.items() if name not in _OF_CHUNKS and name not in head}
    return [*chunks, head | {"choices": [], "usage": answer["usage"]}] if usage else chunks


def _add_head(answer: Json, chunk: Json) -> None:
    for name, value in chunk.items():
        if name in _OF_CHUNKS or (name in _FIRST and answer.get(name)):
            continue
        if value is not None or name not in answer:
            answer[name] = value


def _index(choice: Json) -> int:
    if type(at := choice.get("index")) is not int:
        raise NotRenderable("a choice without an index")
    return at


def _add_choice(whole: Json, choice: Json) -> None:
    for name, value in choice.items():
        if name == "delta":
            _add(whole["message"], value or {})
        elif name == "logprobs":
            _add(whole, {name: value})
        elif value is not None or name not in whole:
            whole[name] = value


def _add(whole: Json, delta: Json) -> None:
    """Adds what a delta says: text goes on, lists grow, objects are added to, each by its own fields."""
    if delta.get("audio") is not None:
        raise NotRenderable("audio comes in other formats in streams")
    for name, value in delta.items():
        if isinstance(value, list):
            whole[name] = _longer([] if whole.get(name) is None else whole[name], value)
        elif whole.get(name) is None:
            whole[name] = {}
            if isinstance(value, dict):
                _add(whole[name], value)
            else:
                whole[name] = value
        elif value is not None:
            whole[name] = _more(name, whole[name], value)


def _more(name: str, had: Any, value: Any) -> Any:
    if isinstance(had, str) and isinstance(value, str):
        if name not in _ONCE or not had or not value:
            return had + value
    elif isinstance(had, dict) and isinstance(value, dict):
        _add(had, value)
        return had
    if type(had) is type(value) and had == value and (name in _ONCE or isinstance(value, bool)):
        return had
    raise NotRenderable(f"{name} is told in ways that do not add up")


def _longer(had: Any, more: list[Any]) -> list[Any]:
    """A list with more entries. Those with an index go on where that one was."""
    if not isinstance(had, list):
        raise NotRenderable("a list where there was none")
    grown = list(had)
    for entry in more:
        at = entry.get("index") if isinstance(entry, dict) else None
        if type(at) is not int:
            grown.append(entry)
            continue
        known = next((one for one in grown if isinstance(one, dict) and one.get("index") == at), None)
        if known is None:
            grown.append(known := {})
        _add(known, entry)
    return grown


def _whole(choice: Json) -> Json:
    calls = choice["message"].get("tool_calls")
    if calls:
        if any(type(call.get("index")) is not int for call in calls):
            raise NotRenderable("a tool call without an index")
        ordered = sorted(calls, key=lambda call: call["index"])
        choice["message"]["tool_calls"] = [
            {name: one for name, one in call.items() if name != "index"} for call in ordered
        ]
    return choice


def _choice_apart(choice: Json) -> Iterator[Json]:
    """The choice of each chunk: the SDK keeps unknown fields of the first one alone, and takes logprobs twice from there."""
    rest = {name: value for name, value in choice.items() if name not in {"message", "logprobs", "finish_reason"}}
    silent: Json = {"index": choice["index"]} | ({"logprobs": None} if "logprobs" in choice else {})
    telling = silent | {name: choice[name] for name in ("logprobs",) if name in choice}
    deltas = [_opening(choice["message"]), *_said(choice["message"])]
    yield silent | rest | {"delta": deltas[0], "finish_reason": None}
    for delta in deltas[1:]:
        yield telling | {"delta": delta, "finish_reason": None}
        telling = silent
    yield telling | {"delta": {}, "finish_reason": choice["finish_reason"]}


def _opening(message: Json) -> Json:
    """The first delta: who speaks, what he does not say, and fields that nobody knows, such as his reasoning."""
    opening: Json = {}
    for name, value in message.items():
        if name == "content" and isinstance(value, str):
            opening[name] = ""
        elif value is None or (name not in _SAID and (name != "tool_calls" or not value)):
            opening[name] = value
    return opening


def _said(message: Json) -> Iterator[Json]:
    for name in _SAID:
        if message.get(name) is not None and (name != "content" or message[name] != ""):
            yield {name: message[name]}
    for at, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
            yield {"tool_calls": [{"index": at} | call]}
            continue
        yield {"tool_calls": [{"index": at} | call | {"function": function | {"arguments": ""}}]}
        yield {"tool_calls": [{"index": at, "function": {"arguments": function["arguments"]}}]}
