"""A request of OpenAI's responses as a chat completion, for servers that have no responses."""

import re
from typing import Any

import orjson

from aiplatform.gateway.translate.base import (
    Field,
    Json,
    a_string,
    an_object,
    given,
    objects,
    only,
    refuse,
    refused,
    text_of,
)
from aiplatform.gateway.translate.reasoning import FROM_FIELDS
from aiplatform.gateway.wires.base import BadRequest

OTHER = "a provider of chat completions"
FIELDS: dict[str, Field] = {
    "model": Field("mapped", "the model's name at the provider"),
    "input": Field("mapped", "see below"),
    "instructions": Field("mapped", "a `system` message in front"),
    "max_output_tokens": Field(
        "mapped", "`max_completion_tokens` or `max_tokens`, which the server knows, as it was held"
    ),
    "stream": Field("mapped", "as it is, and usage is asked for"),
    "stream_options": Field("dropped", "obfuscation is padding; anything else in it is refused"),
    "temperature": Field("carried", "as it is"),
    "top_p": Field("carried", "as it is"),
    "tools": Field("mapped", "functions as functions, strict where they say so; all others are refused"),
    "tool_choice": Field("mapped", "`auto`, `none`, `required` or the named function; others are refused"),
    "parallel_tool_calls": Field("carried", "with tools"),
    "text": Field("mapped", "`format` is `response_format`, `verbosity` is `verbosity`"),
    "reasoning": Field(
        "mapped", "`effort` is `reasoning_effort`; a summary is what the provider shows, if it shows any"
    ),
    "include": Field(
        "mapped", "`reasoning.encrypted_content` is always there where it can be; log probabilities are refused"
    ),
    "user": Field("carried", "as it is"),
    "safety_identifier": Field("mapped", "`user`, before `user` itself"),
    "service_tier": Field("carried", "as it is"),
    "metadata": Field("dropped", "labels, which the reply repeats"),
    "store": Field("dropped", "nothing is kept; the answer is the same, and `previous_response_id` is refused"),
    "max_tool_calls": Field("dropped", "it counts the calls of built-in tools, and there are none"),
    "prompt_cache_key": Field("dropped", "finds a cache, and does not change the answer"),
    "prompt_cache_options": Field("dropped", "as `prompt_cache_key`"),
    "prompt_cache_retention": Field("dropped", "as `prompt_cache_key`"),
    "truncation": Field("refused", "it cannot leave out what is too long", ("disabled",)),
    "top_logprobs": Field("refused", "log probabilities are not translated", (0,)),
    "background": Field("refused", "it answers while one waits", (False,)),
    "background_options": Field("refused", "it answers while one waits", ({},)),
    "previous_response_id": Field("refused", "it remembers no earlier answer: send the whole conversation as `input`"),
    "conversation": Field("refused", "it keeps no conversations: send the whole conversation as `input`"),
    "prompt": Field("refused", "it has no templates: send what the template says"),
    "context_management": Field("refused", "it does not compact", ([],)),
    "moderation": Field("refused", "it does not moderate on request"),
    "image": Field("refused", "it has no such setting", ({}, {"context_compression": "auto"})),
    "access_programs": Field("refused", "it has none", ({},)),
}
_LOGPROBS = "message.output_text.logprobs"
_HINTS = frozenset(("type", "prompt_cache_breakpoint"))
_OF_A_MESSAGE = re.compile(r"messages\[(?P<message>\d+)\](?P<part>\.content(\[\d+\])?)?")
_ROLES = ("user", "assistant", "system", "developer")
_OF_MESSAGE = frozenset(("type", "role", "content", "id", "status", "phase"))
_OF_CALL = frozenset(("type", "id", "call_id", "name", "arguments", "status", "parsed_arguments"))
_OF_STREAM = frozenset(("include_obfuscation",))
_OF_REASONING = frozenset(("type", "id", "summary", "content", "encrypted_content", "status"))
_OF_RESULT = frozenset(("type", "id", "call_id", "name", "output", "status"))


def chat_request(asked: Json, *, model: str, limit: Json) -> tuple[Json, list[str]]:
    """The body for a server of chat completions, and from which field of the request each of its messages comes.

    Raises BadRequest with the field that cannot be carried over.
    """
    refuse(asked, FIELDS, OTHER)
    only(an_object(asked.get("stream_options") or {}, "stream_options"), _OF_STREAM, "stream_options")
    include = asked.get("include") or []
    if not isinstance(include, list) or _LOGPROBS in include:
        raise refused("include", "must be an array, and cannot ask for log probabilities here.")
    reasoning, text = _settings(asked)
    body: Json = {"model": model} | limit
    turns = _Turns()
    if instructions := asked.get("instructions"):
        turns.add({"role": "system", "content": a_string(instructions, "instructions")}, "instructions")
    _read_input(asked.get("input"), turns)
    body["messages"] = turns.messages
    if asked.get("stream") is True:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    user = asked.get("safety_identifier") or asked.get("user")
    body |= given(
        temperature=asked.get("temperature"),
        top_p=asked.get("top_p"),
        user=None if user is None else a_string(user, "user"),
        service_tier=asked.get("service_tier"),
        reasoning_effort=reasoning.get("effort"),
        verbosity=text.get("verbosity"),
        response_format=_format(text.get("format")),
        tools=[_tool(tool, where) for where, tool in objects(asked.get("tools"), "tools")] or None,
        tool_choice=_tool_choice(asked.get("tool_choice")),
    )
    if body.get("tools"):
        body |= given(parallel_tool_calls=asked.get("parallel_tool_calls"))
    return body, turns.origins


_NAMES = {
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}


def in_its_words(error: BadRequest, origins: list[str]) -> BadRequest:
    """A refusal of the chat completion that was made of a request, with the name that the field has in the request."""
    where = str(error.details.get("param"))
    found = _OF_A_MESSAGE.match(where)
    if found:
        name = origins[int(found["message"])] + (found["part"] or "")
    else:
        whole = next((old for old in _NAMES if where == old or where.startswith(f"{old}.")), "")
        name = _NAMES.get(whole, "") + where.removeprefix(whole) if whole else where
    return BadRequest(error.message.replace(f"`{where}`", f"`{name}`"), param=name)


class _Turns:
    """The messages so far. Items of the assistant's that follow each other, in the order in which he gives them, are one."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.origins: list[str] = []
        self._open: Json | None = None  # the assistant's message that more may be added to

    def add(self, message: Json, origin: str) -> None:
        self._open = message if message["role"] == "assistant" else None
        self.messages.append(message)
        self.origins.append(origin)

    def assistant(self, origin: str, *, fresh_after: tuple[str, ...]) -> Json:
        """The assistant's open message, or a new one where the open one holds what comes after this in a message."""
        if self._open is None or any(self._open.get(name) for name in fresh_after):
            self.add({"role": "assistant", "content": None}, origin)
        assert self._open is not None  # noqa: S101 - `add` has opened it
        return self._open

    def close(self) -> None:
        """Leaves out messages of mere reasoning, which nothing was said or done after."""
        kept = [
            (message, origin)
            for message, origin in zip(self.messages, self.origins, strict=True)
            if message["role"] != "assistant" or message.get("content") or message.get("tool_calls")
        ]
        self.messages, self.origins = [message for message, _ in kept], [origin for _, origin in kept]


def _read_input(value: Any, turns: _Turns) -> None:
    if isinstance(value, str):
        turns.add({"role": "user", "content": value}, "input")
        return
    for where, item in objects(value, "input"):
        kind = "message" if item.get("type") is None else text_of(item["type"])
        if kind not in _ITEMS:
            raise refused(f"{where}.type", f"cannot be {kind[:60]!r} for the provider of this model.")
        _ITEMS[kind](item, where, turns)
    turns.close()


def _message(item: Json, where: str, turns: _Turns) -> None:
    only(item, _OF_MESSAGE, where)
    role = item.get("role")
    if role not in _ROLES:
        raise refused(f"{where}.role", f"must be {', '.join(_ROLES)}.")
    content = _content(item.get("content"), f"{where}.content")
    if role == "assistant":
        turns.assistant(where, fresh_after=("content", "tool_calls"))["content"] = content
    else:
        turns.add({"role": role, "content": content}, where)


def _call(item: Json, where: str, turns: _Turns) -> None:
    only(item, _OF_CALL, where)
    function = {name: a_string(item.get(name), f"{where}.{name}") for name in ("name", "arguments")}
    call = {"id": a_string(item.get("call_id"), f"{where}.call_id"), "type": "function", "function": function}
    turns.assistant(where, fresh_after=()).setdefault("tool_calls", []).append(call)


def _result(item: Json, where: str, turns: _Turns) -> None:
    only(item, _OF_RESULT, where)
    identity = a_string(item.get("call_id"), f"{where}.call_id")
    turns.add(
        {"role": "tool", "tool_call_id": identity, "content": _content(item.get("output"), f"{where}.output")}, where
    )


def _reasoning(item: Json, where: str, turns: _Turns) -> None:
    """Reasoning that a reply of ours gave goes back as it came; any other only its own provider could read."""
    only(item, _OF_REASONING, where)
    mark = item.get("encrypted_content")
    for name in ("content", "summary"):
        for place, part in objects(item.get(name), f"{where}.{name}"):
            only(part, frozenset(("type", "text")), place)
    thought = _thought(mark)
    texts = [text_of(part.get("text")) for _, part in objects(item.get("content"), f"{where}.content")]
    if thought is not None:
        message = turns.assistant(where, fresh_after=("content", "tool_calls"))
        message.setdefault("thinking_blocks", []).append(thought)
    elif texts and (mark is None or mark in FROM_FIELDS):
        message = turns.assistant(where, fresh_after=("content", "tool_calls"))
        name = mark or FROM_FIELDS[0]
        message[name] = message.get(name, "") + "".join(texts)


def _thought(mark: Any) -> Json | None:
    """The signed thinking block that stands in `encrypted_content`."""
    if not isinstance(mark, str) or not mark.startswith("{"):
        return None
    try:
        value = orjson.loads(mark)
    except ValueError:
        return None
    return value if value.get("type") in ("thinking", "redacted_thinking") else None


_ITEMS = {"message": _message, "function_call": _call, "function_call_output": _result, "reasoning": _reasoning}


def _content(value: Any, where: str) -> Any:
    """One text alone as a string, which every server understands."""
    if isinstance(value, str):
        return value
    if value is None:
        raise refused(where, "is required.")
    parts = [_part(part, place) for place, part in objects(value, where)]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: Json, where: str) -> Json:
    kind = text_of(part.get("type"))
    if kind in ("input_text", "output_text"):
        only(part, _HINTS | {"text", "annotations", "logprobs", "parsed"}, where)
        return {"type": "text", "text": a_string(part.get("text"), f"{where}.text")}
    if kind == "refusal":
        only(part, _HINTS | {"refusal"}, where)
        return {"type": "refusal", "refusal": a_string(part.get("refusal"), f"{where}.refusal")}
    if kind == "input_image":
        only(part, _HINTS | {"image_url", "detail"}, where)
        url = a_string(part.get("image_url"), f"{where}.image_url")
        return {"type": "image_url", "image_url": {"url": url} | given(detail=part.get("detail"))}
    if kind == "input_file":
        known = _HINTS | {"file_data", "filename"} | ({"detail"} if part.get("detail") == "auto" else set())
        only(part, known, where)
        data = a_string(part.get("file_data"), f"{where}.file_data")
        return {"type": "file", "file": {"file_data": data} | given(filename=part.get("filename"))}
    raise refused(f"{where}.type", f"cannot be {kind[:60]!r} for the provider of this model.")


def _settings(asked: Json) -> tuple[Json, Json]:
    reasoning = an_object(asked.get("reasoning") or {}, "reasoning")
    neutral = {name for name, value in (("context", "auto"), ("mode", "standard")) if reasoning.get(name) == value}
    only(reasoning, frozenset(("effort", "summary", "generate_summary", *neutral)), "reasoning")
    text = an_object(asked.get("text") or {}, "text")
    only(text, frozenset(("format", "verbosity")), "text")
    return reasoning, text


def _format(wanted: Any) -> Json | None:
    if wanted is None:
        return None
    kind = an_object(wanted, "text.format").get("type")
    known = ("name", "description", "schema", "strict") if kind == "json_schema" else ()
    only(wanted, frozenset(("type", *known)), "text.format")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        raise refused("text.format.type", "must be text, json_object or json_schema.")
    return {"type": "json_schema", "json_schema": given(**{name: wanted.get(name) for name in known})}


_OF_TOOL = frozenset(("type", "name", "description", "parameters", "strict"))
_AS_USUAL = (("allowed_callers", ["direct"]), ("defer_loading", False), ("async", False))


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") != "function":
        raise refused(f"{where}.type", "must be function: the provider of this model has no tools of its own.")
    known = {name for name, value in _AS_USUAL if tool.get(name) == value} | _OF_TOOL
    only(tool, frozenset(known), where)
    function = {"name": a_string(tool.get("name"), f"{where}.name")} | given(
        description=tool.get("description"), parameters=tool.get("parameters"), strict=tool.get("strict") or None
    )
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        only(choice, frozenset(("type", "name")), "tool_choice")
        return {"type": "function", "function": {"name": a_string(choice.get("name"), "tool_choice.name")}}
    raise refused("tool_choice", "must be auto, none, required or a function for the provider of this model.")
