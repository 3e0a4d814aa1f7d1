"""A chat completion's request as one of Anthropic's messages."""

import re
from collections.abc import Iterator
from typing import Any

import jiter

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

OTHER = "Anthropic's wire"
FIELDS: dict[str, Field] = {
    "model": Field("mapped", "the model's name at the provider"),
    "messages": Field("mapped", "see below"),
    "max_completion_tokens": Field("mapped", "`max_tokens`, as it was held"),
    "max_tokens": Field("mapped", "`max_tokens`, as it was held"),
    "stream": Field("carried", "as it is"),
    "stream_options": Field(
        "mapped", "`include_usage` decides on the usage chunk; obfuscation is padding and left out"
    ),
    "temperature": Field("carried", "0 to 1, and `anthropic-version: 2023-06-01` is sent; above 1 it is refused"),
    "top_p": Field("carried", "as it is, and `anthropic-version: 2023-06-01` is sent"),
    "stop": Field("mapped", "`stop_sequences`"),
    "tools": Field("mapped", "functions as client tools, with `strict`; custom tools are refused"),
    "tool_choice": Field("mapped", "`auto`, `any`, `none` or the named tool; `allowed_tools` is refused"),
    "parallel_tool_calls": Field("mapped", "`false` is `tool_choice.disable_parallel_tool_use`"),
    "response_format": Field("mapped", "`json_schema` is `output_config.format`; `json_object` is refused"),
    "reasoning_effort": Field(
        "mapped", "adaptive `thinking` with `output_config.effort`; `none` disables `thinking`; `minimal` is refused"
    ),
    "thinking": Field("carried", "not OpenAI's: Anthropic's own field is let through, and outweighs the effort's"),
    "user": Field("mapped", "`metadata.user_id`"),
    "safety_identifier": Field("mapped", "`metadata.user_id`, before `user`"),
    "service_tier": Field("mapped", "`auto` is the default, `default` is `standard_only`; the others are refused"),
    "store": Field("dropped", "keeps the answer for later, and does not change it"),
    "metadata": Field("dropped", "labels for what `store` keeps"),
    "prompt_cache_key": Field("dropped", "finds a cache, and does not change the answer"),
    "prompt_cache_options": Field("dropped", "as `prompt_cache_key`"),
    "prompt_cache_retention": Field("dropped", "as `prompt_cache_key`"),
    "n": Field("refused", "it gives one answer to a request", (1,)),
    "logprobs": Field("refused", "it tells no probabilities", (False,)),
    "top_logprobs": Field("refused", "it tells no probabilities", (0,)),
    "seed": Field("refused", "its sampling cannot be seeded"),
    "frequency_penalty": Field("refused", "it has no penalties", (0,)),
    "presence_penalty": Field("refused", "it has no penalties", (0,)),
    "logit_bias": Field("refused", "it has no biases", ({},)),
    "modalities": Field("refused", "it answers in text only", (["text"],)),
    "audio": Field("refused", "it answers in text only"),
    "prediction": Field("refused", "it takes no predicted output"),
    "verbosity": Field("refused", "it has no such setting", ("medium",)),
    "moderation": Field("refused", "it does not moderate on request"),
    "web_search_options": Field("refused", "its search is a tool of its own"),
    "functions": Field("refused", "send `tools` instead", ([],)),
    "function_call": Field("refused", "send `tool_choice` instead", ("none", "auto")),
}
EFFORTS = ("low", "medium", "high", "xhigh", "max")
IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
OLD_VERSION, VERSION = "2023-06-01", "2026-10-21"
"""Under the new version sampling parameters are refused, even at their defaults."""

_DATA_URL = re.compile(r"data:([\w.+/-]+);base64,", re.ASCII | re.IGNORECASE)
_SYSTEM = ("system", "developer")
_OF_MESSAGE = {
    "system": frozenset(("role", "content", "cache_control")),
    "user": frozenset(("role", "content", "cache_control")),
    # The last three are what replies hold and nobody's words: links of a search, and the arguments once more.
    "assistant": frozenset((
        "role", "content", "refusal", "tool_calls", "thinking_blocks", "cache_control", *FROM_FIELDS, "annotations",
        "parsed", "provider_specific_fields",
    )),
    "tool": frozenset(("role", "content", "tool_call_id", "name", "is_error", "cache_control")),
}  # fmt: skip
_OF_THOUGHT = frozenset(("type", "thinking", "signature", "data", "index"))
_OF_CALL = frozenset(("name", "arguments", "parsed_arguments"))
_OF_STREAM = frozenset(("include_usage", "include_obfuscation"))
_HINTS = frozenset(("type", "cache_control", "prompt_cache_breakpoint"))


def messages_request(asked: Json, *, model: str, max_tokens: int) -> Json:
    """The body for Anthropic; raises BadRequest with the field that cannot be carried over."""
    refuse(asked, FIELDS, OTHER)
    only(an_object(asked.get("stream_options") or {}, "stream_options"), _OF_STREAM, "stream_options")
    system, messages = _conversation(objects(asked.get("messages"), "messages"))
    body = {"model": model, "max_tokens": max_tokens} | given(system=system) | {"messages": messages}
    body |= given(
        stream=asked.get("stream"),
        temperature=_temperature(asked.get("temperature")),
        top_p=asked.get("top_p"),
        stop_sequences=_stop(asked.get("stop")),
        service_tier=_tier(asked.get("service_tier")),
        tools=[_tool(tool, where) for where, tool in objects(asked.get("tools"), "tools")] or None,
    )
    user = asked.get("safety_identifier") or asked.get("user")
    if user is not None:
        body["metadata"] = {"user_id": a_string(user, "user")}
    if body.get("tools"):
        body |= given(tool_choice=_tool_choice(asked.get("tool_choice"), asked.get("parallel_tool_calls")))
    return body | _output(asked)


def version(body: Json) -> str:
    """The `anthropic-version` under which the body is acceptable."""
    return OLD_VERSION if "temperature" in body or "top_p" in body else VERSION


def _conversation(messages: list[tuple[str, Json]]) -> tuple[Any, list[Json]]:
    """The system prompt, and the turns. What the system says later stays in the user's turn in which it stands, at its end:
    Anthropic takes it only between a user's turn and the assistant's.

    Source: platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages (placement).
    """
    opening: list[tuple[str, Json]] = []
    turns: list[Json] = []
    pending: list[tuple[str, Json]] = []
    for where, message in messages:
        role = "system" if message.get("role") in _SYSTEM else text_of(message.get("role"))
        if role not in _OF_MESSAGE:
            raise refused(f"{where}.role", "must be system, developer, user, assistant or tool.")
        only(message, _OF_MESSAGE[role], where)
        if role == "system":
            (pending if turns else opening).append((where, message))
            continue
        turn = _TURNS[role](message, where)
        if role == "assistant":
            if not turn["content"]:
                continue  # nothing was said, and Anthropic takes no empty turn
            _place(pending, turns)
        _append(turn, turns)
    _place(pending, turns)
    if not turns:
        raise refused(
            "messages", "must hold a message of the user: instructions alone cannot be sent to this provider."
        )
    if turns[-1]["role"] == "assistant":
        raise refused(
            messages[-1][0],
            "cannot end the conversation: the provider would go on with the assistant's words instead of answering them.",
        )
    return _instructions(opening) or None, turns


def _place(pending: list[tuple[str, Json]], turns: list[Json]) -> None:
    if not pending:
        return
    if not turns or turns[-1]["role"] != "user":
        raise refused(pending[0][0], "cannot stand here: the provider takes instructions only within a user's turn.")
    turns.append({"role": "system", "content": _instructions(pending)})
    pending.clear()


def _instructions(messages: list[tuple[str, Json]]) -> Any:
    """One plain text as it is; several as blocks, so that they stay apart."""
    if len(messages) == 1 and isinstance(messages[0][1].get("content"), str) and "cache_control" not in messages[0][1]:
        return messages[0][1]["content"]
    return [block for where, message in messages for block in _blocks(message, where, only_text=True)]


def _append(turn: Json, turns: list[Json]) -> None:
    """Results that follow each other are one turn, as Anthropic wants those of parallel calls."""
    if _is_results(turn) and turns and _is_results(turns[-1]):
        turns[-1]["content"] += turn["content"]
    else:
        turns.append(turn)


def _is_results(turn: Json) -> bool:
    return turn["role"] == "user" and isinstance(turn["content"], list) and turn["content"][0]["type"] == "tool_result"


def _user(message: Json, where: str) -> Json:
    content = _plain(message) or list(_blocks(message, where))
    if not content:
        raise refused(f"{where}.content", "must not be empty for the provider of this model.")
    return {"role": "user", "content": content}


def _tool_result(message: Json, where: str) -> Json:
    identity = a_string(message.get("tool_call_id"), f"{where}.tool_call_id")
    block: Json = {"type": "tool_result", "tool_use_id": identity}
    if content := _plain(message) or list(_blocks(message, where)):
        block["content"] = content
    if message.get("is_error") is True:
        block["is_error"] = True
    return {"role": "user", "content": [block]}


def _assistant(message: Json, where: str) -> Json:
    blocks = list(_thoughts(message, where))
    plain = _plain(message)
    blocks += [{"type": "text", "text": plain}] if plain else _blocks(message, where)
    if message.get("refusal"):
        blocks.append({"type": "text", "text": a_string(message["refusal"], f"{where}.refusal")})
    blocks += [_tool_use(call, place) for place, call in objects(message.get("tool_calls"), f"{where}.tool_calls")]
    return {"role": "assistant", "content": plain if plain and len(blocks) == 1 else blocks}


_TURNS = {"user": _user, "assistant": _assistant, "tool": _tool_result}


def _plain(message: Json) -> str | None:
    """A content that is one text without hints."""
    content = message.get("content")
    return content if isinstance(content, str) and message.get("cache_control") is None else None


def _blocks(message: Json, where: str, *, only_text: bool = False) -> Iterator[Json]:
    """The content in blocks, without empty texts, which Anthropic refuses. A message's own cache hint is its last block's."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    found = []
    for place, part in objects(parts, f"{where}.content"):
        kind = text_of(part.get("type"))
        if kind not in _PARTS or (only_text and kind != "text"):
            raise refused(f"{place}.type", f"cannot be {kind[:60]!r} here for the provider of this model.")
        block = _PARTS[kind](part, place)
        if block.get("text") != "":
            found.append(block | given(cache_control=part.get("cache_control")))
    if found and message.get("cache_control") is not None:
        found[-1]["cache_control"] = message["cache_control"]
    yield from found


def _text(part: Json, where: str) -> Json:
    only(part, _HINTS | {"text"}, where)
    return {"type": "text", "text": a_string(part.get("text"), f"{where}.text")}


def _refusal(part: Json, where: str) -> Json:
    only(part, _HINTS | {"refusal"}, where)
    return {"type": "text", "text": a_string(part.get("refusal"), f"{where}.refusal")}


def _image(part: Json, where: str) -> Json:
    only(part, _HINTS | {"image_url"}, where)
    image = an_object(part.get("image_url"), f"{where}.image_url")
    only(image, frozenset(("url", "detail")), f"{where}.image_url")
    if image.get("detail") not in (None, "auto", "high"):
        raise refused(f"{where}.image_url.detail", "cannot be carried over: images are looked at as well as can be.")
    url = a_string(image.get("url"), f"{where}.image_url.url")
    if url[:5].lower() != "data:":
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, data = _data(url, f"{where}.image_url.url")
    kind = "image/jpeg" if kind == "image/jpg" else kind
    if kind not in IMAGES:
        raise refused(f"{where}.image_url.url", "must be a JPEG, PNG, GIF or WebP for the provider of this model.")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _file(part: Json, where: str) -> Json:
    only(part, _HINTS | {"file"}, where)
    file = an_object(part.get("file"), f"{where}.file")
    only(file, frozenset(("file_data", "filename")), f"{where}.file")
    kind, data = _data(a_string(file.get("file_data"), f"{where}.file.file_data"), f"{where}.file.file_data")
    if kind != "application/pdf":
        raise refused(f"{where}.file.file_data", "must be a PDF for the provider of this model.")
    source = {"type": "base64", "media_type": kind, "data": data}
    return {"type": "document", "source": source} | given(title=file.get("filename"))


_PARTS = {"text": _text, "refusal": _refusal, "image_url": _image, "file": _file}


def _data(url: str, where: str) -> tuple[str, str]:
    """The media type and the base64 of a data URL."""
    found = _DATA_URL.match(url)
    if not found:
        raise refused(where, "must be a data URL in base64 with its media type.")
    return found[1].lower(), url[found.end() :]


def _thoughts(message: Json, where: str) -> Iterator[Json]:
    """Thinking that Anthropic signed, as it was given with the reply. Unsigned reasoning is another model's: Anthropic leaves
    out what the model could not have thought.
    """
    for place, block in objects(message.get("thinking_blocks"), f"{where}.thinking_blocks"):
        only(block, _OF_THOUGHT, place)
        if block.get("type") == "redacted_thinking":
            yield {"type": "redacted_thinking", "data": a_string(block.get("data"), f"{place}.data")}
        elif block.get("signature") not in (None, "", *FROM_FIELDS):
            thinking = a_string(block.get("thinking"), f"{place}.thinking")
            yield {"type": "thinking", "thinking": thinking, "signature": a_string(block["signature"], place)}


def _tool_use(call: Json, where: str) -> Json:
    only(call, frozenset(("id", "type", "function", "index")), where)
    function = an_object(call.get("function"), f"{where}.function")
    only(function, _OF_CALL, f"{where}.function")
    text = a_string(function.get("arguments") or "{}", f"{where}.function.arguments")
    try:
        value = jiter.from_json(text.encode(errors="replace"), allow_inf_nan=False)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise refused(f"{where}.function.arguments", "must be a JSON object for the provider of this model.")
    name = a_string(function.get("name"), f"{where}.function.name")
    return {"type": "tool_use", "id": a_string(call.get("id"), f"{where}.id"), "name": name, "input": value}


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") != "function":
        raise refused(f"{where}.type", "must be `function` for the provider of this model.")
    only(tool, frozenset(("type", "function", "cache_control")), where)
    function = an_object(tool.get("function"), f"{where}.function")
    only(function, frozenset(("name", "description", "parameters", "strict", "cache_control")), f"{where}.function")
    parameters = an_object(function.get("parameters") or {}, f"{where}.function.parameters")
    schema = {"type": "object"} | parameters if parameters else {"type": "object", "properties": {}}
    hint = tool.get("cache_control") or function.get("cache_control")
    return (
        {"name": a_string(function.get("name"), f"{where}.function.name")}
        | given(description=function.get("description"))
        | {"input_schema": schema}
        | given(strict=function.get("strict") or None, cache_control=hint)
    )


def _tool_choice(choice: Any, parallel: Any) -> Json | None:
    one_by_one = {"disable_parallel_tool_use": True} if parallel is False else {}
    if choice is None or choice == "auto":
        return {"type": "auto"} | one_by_one if one_by_one or choice else None
    if choice == "none":
        return {"type": "none"}
    if choice == "required":
        return {"type": "any"} | one_by_one
    if isinstance(choice, dict) and choice.get("type") == "function":
        only(choice, frozenset(("type", "function")), "tool_choice")
        function = an_object(choice.get("function"), "tool_choice.function")
        only(function, frozenset(("name",)), "tool_choice.function")
        return {"type": "tool", "name": a_string(function.get("name"), "tool_choice.function.name")} | one_by_one
    raise refused("tool_choice", "must be auto, none, required or a function for the provider of this model.")


def _output(asked: Json) -> Json:
    """How hard to think, and in which form to answer."""
    config, thinking = {}, asked.get("thinking")
    effort = asked.get("reasoning_effort")
    if effort == "none":
        thinking = thinking or {"type": "disabled"}
    elif effort is not None:
        if effort not in EFFORTS:
            raise refused("reasoning_effort", f"must be none, {', '.join(EFFORTS)} for the provider of this model.")
        thinking, config["effort"] = thinking or {"type": "adaptive"}, effort
    config |= given(format=_format(asked.get("response_format")))
    return given(thinking=thinking, output_config=config or None)


def _format(wanted: Any) -> Json | None:
    """The name and description of the schema go into it, where the model sees them."""
    if wanted is None:
        return None
    only(an_object(wanted, "response_format"), frozenset(("type", "json_schema")), "response_format")
    if wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema":
        raise refused("response_format", "must be text or json_schema for the provider of this model.")
    where = "response_format.json_schema"
    named = an_object(wanted.get("json_schema"), where)
    only(named, frozenset(("name", "description", "schema", "strict")), where)
    schema = an_object(named.get("schema"), f"{where}.schema")
    texts = [text for text in (named.get("description"), schema.get("description")) if isinstance(text, str) and text]
    described = {"description": "\n\n".join(texts)} if texts else {}
    return {"type": "json_schema", "schema": given(title=named.get("name")) | schema | described}


def _temperature(value: Any) -> Any:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise refused("temperature", "must be from 0 to 1 for the provider of this model.")
    return value


def _stop(value: Any) -> list[str] | None:
    found = [value] if isinstance(value, str) else value
    if found is not None and not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
        raise refused("stop", "must be a string or an array of strings.")
    return found or None


def _tier(value: Any) -> str | None:
    if value not in (None, "auto", "default"):
        raise refused("service_tier", "must be auto or default for the provider of this model.")
    return "standard_only" if value == "default" else None
