"""One of Anthropic's messages' requests as a chat completion."""

from typing import Any

from aiplatform.gateway.translate.base import (
    Field,
    Json,
    a_string,
    an_object,
    dumps,
    given,
    objects,
    only,
    refuse,
    refused,
    text_of,
)
from aiplatform.gateway.translate.reasoning import FROM_FIELDS
from aiplatform.gateway.translate.results import told_apart

OTHER = "OpenAI's wire"
FIELDS: dict[str, Field] = {
    "model": Field("mapped", "the model's name at the provider"),
    "max_tokens": Field("mapped", "`max_completion_tokens` or `max_tokens`, which the server knows, as it was held"),
    "messages": Field("mapped", "see below"),
    "system": Field("mapped", "a `system` message in front"),
    "stream": Field("mapped", "as it is, and usage is asked for"),
    "stop_sequences": Field("mapped", "`stop`; which of them was found is not told, unless the server does"),
    "temperature": Field("carried", "as it is"),
    "top_p": Field("carried", "as it is"),
    "tools": Field("mapped", "client tools as functions, with `strict`; tools of the vendor's are refused"),
    "tool_choice": Field("mapped", "`auto`, `required`, `none` or the named function; `disable_parallel_tool_use`"),
    "thinking": Field(
        "mapped",
        "`disabled` is effort `none`, whatever `output_config` says; `adaptive` leaves the effort to the model; a budget below "
        "4,096 tokens is `low`, below 16,384 `medium`, else `high`; `display` is the server's; `between_tools` is refused",
    ),
    "output_config": Field("mapped", "`effort` is `reasoning_effort`; `format` is `response_format`, strict"),
    "metadata": Field("mapped", "`user_id` is `user`"),
    "service_tier": Field("mapped", "`auto` is the default, `standard_only` is `default`"),
    "cache_control": Field("dropped", "such servers cache by themselves, and caching does not change the answer"),
    "top_k": Field("refused", "it has no such setting"),
    "speed": Field("refused", "it has no such mode", ("standard",)),
    "inference_geo": Field("refused", "it cannot promise a region"),
    "container": Field("refused", "it has none"),
    "diagnostics": Field("refused", "it gives none"),
    "user_profile_id": Field("refused", "it has no such profiles"),
    "workspace_id": Field("refused", "it has no workspaces"),
}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_BUDGETS = ((4096, "low"), (16384, "medium"))
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_LONGEST_NAME = 64
_OF_MESSAGE = frozenset(("role", "content"))
_THOUGHTS = ("thinking", "redacted_thinking")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(asked: Json, *, model: str, limit: Json) -> Json:
    """The body for a server of chat completions; raises BadRequest with the field that cannot be carried over."""
    refuse(asked, FIELDS, OTHER)
    body: Json = {"model": model} | limit | {"messages": _messages(asked)}
    if asked.get("stream") is True:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= given(
        temperature=asked.get("temperature"),
        top_p=asked.get("top_p"),
        stop=_stop(asked.get("stop_sequences")),
        user=_user_id(asked.get("metadata")),
        service_tier=_tier(asked.get("service_tier")),
        tools=[_tool(tool, where) for where, tool in objects(asked.get("tools"), "tools", index=".{}")] or None,
        reasoning_effort=_effort(asked),
        response_format=_format(asked.get("output_config")),
    )
    return body | _tool_choice(asked.get("tool_choice"))


def _messages(asked: Json) -> list[Json]:
    found: list[Json] = []
    if asked.get("system"):
        found.append({"role": "system", "content": _texts(asked["system"], "system")})
    messages = objects(asked.get("messages"), "messages", index=".{}")
    for where, message in messages:
        only(message, _OF_MESSAGE, where)
        role = text_of(message.get("role"))
        if role not in _TURNS:
            raise refused(f"{where}.role", "must be user, assistant or system.")
        found += _TURNS[role](message.get("content"), f"{where}.content")
    if messages and messages[-1][1].get("role") == "assistant":
        raise refused(
            messages[-1][0], "cannot end the conversation: this provider answers, and does not go on with given words."
        )
    return told_apart(found)


def _system(content: Any, where: str) -> list[Json]:
    return [{"role": "system", "content": _texts(content, where)}]


def _user(content: Any, where: str) -> list[Json]:
    """Results first, each a message of its own, then what the user says: the order that Anthropic demands of a turn."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Json] = []
    parts: list[Json] = []
    for place, block in _blocks(content, where):
        if block.get("type") == "tool_result":
            if parts:
                raise refused(place, "must stand before everything else in its turn.")
            results.append(_result(block, place))
        else:
            parts.append(_part(block, place))
    return [*results, {"role": "user", "content": _simple(parts)}] if parts or not results else results


def _assistant(content: Any, where: str) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "assistant", "content": content}]
    parts: list[Json] = []
    calls: list[Json] = []
    reasoning: Json = {}
    for place, block in _blocks(content, where):
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_call(block, place))
        elif kind in _THOUGHTS:
            only(block, _OF_THOUGHT, place)
            name = block.get("signature")
            if name in FROM_FIELDS:
                reasoning[name] = reasoning.get(name, "") + a_string(block.get("thinking"), f"{place}.thinking")
        elif calls:
            raise refused(place, "cannot follow a tool_use: on this provider's wire the calls come last.")
        else:
            parts.append(_part(block, place, kinds=("text",)))
    message = {"role": "assistant", "content": _simple(parts) if parts else None} | reasoning
    return [message | {"tool_calls": calls} if calls else message]


_TURNS = {"user": _user, "assistant": _assistant, "system": _system}


def _blocks(content: Any, where: str) -> list[tuple[str, Json]]:
    if content is None:
        raise refused(where, "is required.")
    return objects(content, where, index=".{}")


def _texts(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    return _simple([_part(block, place, kinds=("text",)) for place, block in _blocks(content, where)])


def _simple(parts: list[Json]) -> Any:
    """One text alone as a string, which every server of this wire understands."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


_OF_SOURCE = {"url": frozenset(("type", "url")), "base64": frozenset(("type", "media_type", "data"))}
_OF_THOUGHT = frozenset(("type", "thinking", "signature", "data"))


def _part(block: Json, where: str, *, kinds: tuple[str, ...] = ("text", "image", "document")) -> Json:
    kind = block.get("type")
    if kind not in kinds:
        raise refused(f"{where}.type", f"cannot be {str(kind)[:60]!r} here for the provider of this model.")
    if kind == "text":
        only(block, frozenset(("type", "text", "cache_control")), where)
        return {"type": "text", "text": a_string(block.get("text"), f"{where}.text")}
    source = an_object(block.get("source"), f"{where}.source")
    known = _OF_SOURCE.get(text_of(source.get("type")))
    if known is None:
        raise refused(
            f"{where}.source.type", "must be base64 or url for the provider of this model, or send it as text."
        )
    only(source, known, f"{where}.source")
    return _image(block, source, where) if kind == "image" else _document(block, source, where)


def _image(block: Json, source: Json, where: str) -> Json:
    only(block, frozenset(("type", "source", "cache_control")), where)
    is_elsewhere = source.get("type") == "url"
    url = a_string(source.get("url"), f"{where}.source.url") if is_elsewhere else _data_url(source, where)
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Json, source: Json, where: str) -> Json:
    """Only a PDF in the body has a counterpart; a plain text sent as a document would lose what marks it as one."""
    only(block, frozenset(("type", "source", "title", "cache_control", "citations")), where)
    citations = an_object(block.get("citations") or {}, f"{where}.citations")
    only(citations, frozenset(("enabled",)), f"{where}.citations")
    if citations.get("enabled"):
        raise refused(f"{where}.citations", "cannot be given by the provider of this model.")
    if source.get("type") != "base64":
        raise refused(f"{where}.source.type", "must be base64 for the provider of this model, or send it as text.")
    name = block.get("title")
    return {"type": "file", "file": {"file_data": _data_url(source, where)} | given(filename=name)}


def _data_url(source: Json, where: str) -> str:
    kind = a_string(source.get("media_type"), f"{where}.source.media_type")
    return f"data:{kind};base64,{a_string(source.get('data'), f'{where}.source.data')}"


def _result(block: Json, where: str) -> Json:
    """A failed result says so in its text, since this wire has no mark for it."""
    only(block, frozenset(("type", "tool_use_id", "content", "is_error", "cache_control")), where)
    content = block.get("content")
    if not isinstance(content, str):
        blocks = objects(content, f"{where}.content", index=".{}")
        content = _simple([_part(one, place) for place, one in blocks])
    if block.get("is_error") is True:
        content = f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error:"}, *content]
    identity = a_string(block.get("tool_use_id"), f"{where}.tool_use_id")
    return {"role": "tool", "tool_call_id": identity, "content": content}


def _call(block: Json, where: str) -> Json:
    only(block, frozenset(("type", "id", "name", "input", "cache_control", "caller")), where)
    _directly(block.get("caller"), f"{where}.caller")
    arguments = dumps(an_object(block.get("input"), f"{where}.input")).decode()
    name = a_string(block.get("name"), f"{where}.name")
    function = {"name": name, "arguments": arguments}
    return {"id": a_string(block.get("id"), f"{where}.id"), "type": "function", "function": function}


def _directly(caller: Any, where: str) -> None:
    if caller is None:
        return
    only(an_object(caller, where), frozenset(("type",)), where)
    if caller.get("type") != "direct":
        raise refused(where, "must be direct for the provider of this model.")


_OF_TOOL = frozenset(
    ("type", "name", "description", "input_schema", "strict", "cache_control", "eager_input_streaming")
)


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise refused(f"{where}.type", "must be custom: the provider of this model has no tools of Anthropic's.")
    known = _OF_TOOL | {"allowed_callers"} if tool.get("allowed_callers") == ["direct"] else _OF_TOOL
    only(tool, known | {"defer_loading"} if tool.get("defer_loading") is False else known, where)
    function = {"name": a_string(tool.get("name"), f"{where}.name")} | given(
        description=tool.get("description"),
        parameters=an_object(tool.get("input_schema"), f"{where}.input_schema"),
        strict=tool.get("strict") or None,
    )
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Json:
    if choice is None:
        return {}
    only(an_object(choice, "tool_choice"), frozenset(("type", "name", "disable_parallel_tool_use")), "tool_choice")
    kind = text_of(choice.get("type"))
    if kind == "tool":
        name = a_string(choice.get("name"), "tool_choice.name")
        wanted: Any = {"type": "function", "function": {"name": name}}
    elif kind in _CHOICES:
        wanted = _CHOICES[kind]
    else:
        raise refused("tool_choice.type", "must be auto, any, tool or none.")
    alone = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") is True else {}
    return {"tool_choice": wanted} | alone


def _effort(asked: Json) -> str | None:
    """The effort that is asked for; where there is none, what a budget for thinking comes to."""
    config, thinking = asked.get("output_config") or {}, asked.get("thinking")
    only(an_object(config, "output_config"), frozenset(("effort", "format")), "output_config")
    effort = config.get("effort")
    if effort not in (None, *_EFFORTS):
        raise refused("output_config.effort", f"must be {', '.join(_EFFORTS)}.")
    if thinking is None:
        return effort
    only(an_object(thinking, "thinking"), frozenset(("type", "budget_tokens", "display")), "thinking")
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    if kind == "disabled":
        return "none"
    if kind == "adaptive" or (kind == "enabled" and effort):
        return effort
    if kind == "enabled" and type(budget) is int:
        return next((name for below, name in _BUDGETS if budget < below), "high")
    raise refused("thinking", "must be adaptive, disabled, or enabled with a budget for the provider of this model.")


def _format(config: Any) -> Json | None:
    """Strict, as Anthropic's is; the schema's title is its name where it can be one."""
    wanted = (config or {}).get("format")
    if wanted is None:
        return None
    if an_object(wanted, "output_config.format").get("type") != "json_schema":
        raise refused("output_config.format.type", "must be json_schema.")
    only(wanted, frozenset(("type", "schema")), "output_config.format")
    schema = an_object(wanted.get("schema"), "output_config.format.schema")
    title = schema.get("title")
    fits = isinstance(title, str) and 0 < len(title) <= _LONGEST_NAME and _NAME_CHARACTERS.issuperset(title)
    named = {"name": title if fits else "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}


def _user_id(metadata: Any) -> str | None:
    if metadata is None:
        return None
    only(an_object(metadata, "metadata"), frozenset(("user_id",)), "metadata")
    user = metadata.get("user_id")
    return None if user is None else a_string(user, "metadata.user_id")


def _stop(value: Any) -> list[str] | None:
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise refused("stop_sequences", "must be an array of strings.")
    return value or None


def _tier(value: Any) -> str | None:
    if value not in (None, "auto", "standard_only"):
        raise refused("service_tier", "must be auto or standard_only.")
    return "default" if value == "standard_only" else None
