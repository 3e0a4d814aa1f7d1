"""Requests in the other wire: everything arrives, or the refusal names the field; the page says what the code does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_create_params
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params

from aiplatform.gateway import translate
from aiplatform.gateway.translate import Translation, chat_request, messages_request
from aiplatform.gateway.translate.base import Field
from aiplatform.gateway.wires import ANTHROPIC, OPENAI, BadRequest
from tests.gateway import sdks

Json = dict[str, Any]
PAGE = (Path(__file__).resolve().parents[2] / "docs/translation.md").read_text()
PICTURE = "iVBORw0KGgo="
PDF = "JVBERi0xLjQ="


def pair(caller: tuple[str, str], provider: str) -> Translation:
    found = translate.between(*caller, provider)
    assert found is not None
    return found


ON_ANTHROPIC = pair(("openai", "chat"), "anthropic")
ON_OPENAI = pair(("anthropic", "messages"), "openai")


def to_anthropic(request: Json) -> Json:
    """The body for Anthropic, which its SDK would send, and no other."""
    outgoing = ON_ANTHROPIC.request(
        json.dumps(request).encode(), model="claude-x", max_tokens=64, limit_field="max_completion_tokens", created=1
    )
    body: Json = json.loads(outgoing.body)
    sdks.check_messages_request(body)
    ON_ANTHROPIC.check(request)
    return body


def to_openai(request: Json) -> Json:
    """The body for OpenAI, which its SDK would send, and no other."""
    outgoing = ON_OPENAI.request(
        json.dumps(request).encode(), model="gpt-x", max_tokens=64, limit_field="max_completion_tokens", created=1
    )
    body: Json = json.loads(outgoing.body)
    sdks.check_chat_request(body)
    ON_OPENAI.check(request)
    return body


def chat(*messages: Json, **fields: Any) -> Json:
    return {"model": "m", "messages": list(messages) or [{"role": "user", "content": "Hi"}]} | fields


def asks(*messages: Json, **fields: Any) -> Json:
    return {"model": "m", "max_tokens": 9, "messages": list(messages) or [{"role": "user", "content": "Hi"}]} | fields


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> Json:
    return {"role": "assistant", "content": content} | fields


def system(content: Any, role: str = "system") -> Json:
    return {"role": role, "content": content}


def text(words: str, **fields: Any) -> Json:
    return {"type": "text", "text": words} | fields


def call(identity: str, name: str, arguments: str) -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def use(identity: str, name: str, value: Json) -> Json:
    return {"type": "tool_use", "id": identity, "name": name, "input": value}


def function(name: str, **fields: Any) -> Json:
    return {"type": "function", "function": {"name": name} | fields}


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


# --- a conversation of chat completions for Anthropic ------------------------------------------------------------------


def test_the_systems_opening_words_are_anthropics_system_prompt() -> None:
    assert to_anthropic(chat(system("Be kind."), user("Hi"))) | {"max_tokens": 0} == {
        "model": "claude-x",
        "max_tokens": 0,
        "system": "Be kind.",
        "messages": [user("Hi")],
    }
    several = to_anthropic(chat(system("A"), system([text("B"), text("C")], "developer"), user("Hi")))
    assert several["system"] == [text("A"), text("B"), text("C")]


def test_what_the_system_says_later_stays_in_its_turn() -> None:
    body = to_anthropic(chat(user("1"), system("S"), assistant("2"), system("T"), system("U", "developer"), user("3")))
    assert body["messages"] == [user("1"), system("S"), assistant("2"), user("3"), system([text("T"), text("U")])]
    assert "system" not in body


def test_parallel_calls_and_their_results_become_blocks_of_one_turn_each() -> None:
    body = to_anthropic(
        chat(
            user("Hi"),
            assistant("Looking.", tool_calls=[call("a", "f", '{"x": 1}'), call("b", "g", "")]),
            {"role": "tool", "tool_call_id": "a", "content": "one"},
            {"role": "tool", "tool_call_id": "b", "content": [text("two")], "name": "g", "is_error": True},
            user("And?"),
        )
    )
    assert body["messages"][1:] == [
        assistant([text("Looking."), use("a", "f", {"x": 1}), use("b", "g", {})]),
        user([
            {"type": "tool_result", "tool_use_id": "a", "content": "one"},
            {"type": "tool_result", "tool_use_id": "b", "content": [text("two")], "is_error": True},
        ]),
        user("And?"),
    ]  # fmt: skip


def test_images_and_files_become_blocks() -> None:
    parts = [
        text("What?"),
        {"type": "image_url", "image_url": {"url": f"data:image/PNG;base64,{PICTURE}", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/a.jpg"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
    ]
    assert to_anthropic(chat(user(parts)))["messages"][0]["content"] == [
        text("What?"),
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
        {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.jpg"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "a.pdf",
        },
    ]


def test_cache_hints_stay_where_they_are() -> None:
    hint = {"type": "ephemeral", "ttl": "1h"}
    body = to_anthropic(
        chat(
            system([text("S", cache_control=hint)]),
            user("Hi") | {"cache_control": hint},
            assistant("x"),
            user([text("a"), text("b", cache_control=hint)]),
            tools=[function("f") | {"cache_control": hint}],
        )
    )
    assert body["system"] == [text("S", cache_control=hint)]
    assert body["messages"][0]["content"] == [text("Hi", cache_control=hint)]
    assert body["messages"][2]["content"] == [text("a"), text("b", cache_control=hint)]
    assert body["tools"][0]["cache_control"] == hint


def test_signed_thinking_goes_back_in_front_and_anothers_reasoning_does_not() -> None:
    thinking = {"type": "thinking", "thinking": "Hm", "signature": "sig"}
    redacted = {"type": "redacted_thinking", "data": "xx"}
    foreign = {"type": "thinking", "thinking": "Ah", "signature": "reasoning_content"}
    said = assistant("2", thinking_blocks=[thinking | {"index": 0}, redacted, foreign], reasoning_content="Hm")
    body = to_anthropic(chat(user("1"), said, user("3")))
    assert body["messages"][1]["content"] == [thinking, redacted, text("2")]
    body = to_anthropic(chat(user("1"), assistant("2", reasoning_content="Hm"), user("3")))
    assert body["messages"][1]["content"] == "2"


def test_refusals_are_the_assistants_words_and_empty_turns_are_nobodys() -> None:
    body = to_anthropic(
        chat(user("1"), assistant(None, refusal="No."), user("2"), assistant(""), assistant([{"type": "refusal", "refusal": "No"}]), user("3"))
    )  # fmt: skip
    assert body["messages"] == [user("1"), assistant([text("No.")]), user("2"), assistant([text("No")]), user("3")]


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"max_completion_tokens": 5}, {}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
        ({"user": "u-1", "safety_identifier": "s-1"}, {"metadata": {"user_id": "s-1"}}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "high"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        (
            {"reasoning_effort": "low", "thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"thinking": {"type": "enabled", "budget_tokens": 2000}, "output_config": {"effort": "low"}},
        ),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a_name", "description": "Why.", "schema": SCHEMA, "strict": True}}},
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA | {"title": "a_name", "description": "Why."}}}},
        ),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
        ({"store": True, "metadata": {"a": "b"}, "prompt_cache_key": "k", "prompt_cache_retention": "24h"}, {}),
        ({"n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "modalities": ["text"]}, {}),
        ({"seed": None, "verbosity": "medium", "logit_bias": {}}, {}),
    ],
)  # fmt: skip
def test_fields_of_a_chat_for_anthropic(fields: Json, made: Json) -> None:
    assert to_anthropic(chat(**fields)) == {"model": "claude-x", "max_tokens": 64, "messages": [user("Hi")]} | made


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": function("f")}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"tool_choice": "required", "parallel_tool_calls": False}, {"type": "any", "disable_parallel_tool_use": True}),
    ],
)
def test_tools_of_a_chat_for_anthropic(fields: Json, made: Json | None) -> None:
    tools = [function("f", description="Does.", parameters=SCHEMA, strict=True), function("g")]
    body = to_anthropic(chat(tools=tools, **fields))
    assert body["tools"] == [
        {"name": "f", "description": "Does.", "input_schema": SCHEMA, "strict": True},
        {"name": "g", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert body.get("tool_choice") == made


def test_sampling_is_sent_under_the_version_that_knows_it() -> None:
    def version(**fields: Any) -> str:
        body = json.dumps(chat(**fields)).encode()
        outgoing = ON_ANTHROPIC.request(body, model="m", max_tokens=1, limit_field="max_completion_tokens", created=1)
        return outgoing.headers["anthropic-version"]

    assert version() == "2026-10-21"
    assert version(temperature=0) == version(top_p=1) == "2023-06-01"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (chat(n=2), "n"),
        (chat(logprobs=True), "logprobs"),
        (chat(top_logprobs=3), "top_logprobs"),
        (chat(seed=0), "seed"),
        (chat(frequency_penalty=0.1), "frequency_penalty"),
        (chat(presence_penalty=-1), "presence_penalty"),
        (chat(logit_bias={"1": 5}), "logit_bias"),
        (chat(modalities=["text", "audio"]), "modalities"),
        (chat(audio={"voice": "a", "format": "wav"}), "audio"),
        (chat(prediction={"type": "content", "content": "a"}), "prediction"),
        (chat(verbosity="low"), "verbosity"),
        (chat(moderation={"model": "omni"}), "moderation"),
        (chat(web_search_options={"search_context_size": "low"}), "web_search_options"),
        (chat(functions=[{"name": "f"}]), "functions"),
        (chat(function_call={"name": "f"}), "function_call"),
        (chat(a_field_of_tomorrow=1), "a_field_of_tomorrow"),
        (chat(top_k=5), "top_k"),
        (chat(temperature=1.2), "temperature"),
        (chat(temperature="hot"), "temperature"),
        (chat(stop=5), "stop"),
        (chat(reasoning_effort="minimal"), "reasoning_effort"),
        (chat(service_tier="flex"), "service_tier"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(response_format={"type": "json_schema", "json_schema": {"name": "a"}}), "response_format.json_schema.schema"),
        (chat(tools=[{"type": "custom", "custom": {"name": "c"}}]), "tools[0].type"),
        (chat(tools=[function("f"), function("g", of_tomorrow=1)]), "tools[1].function.of_tomorrow"),
        (chat(tools=[function("f")], tool_choice={"type": "allowed_tools", "allowed_tools": {}}), "tool_choice"),
        (chat(user(None)), "messages[0].content"),
        (chat(user("")), "messages[0].content"),
        (chat(user("Hi") | {"name": "Ann"}), "messages[0].name"),
        (chat(user("Hi") | {"of_tomorrow": 1}), "messages[0].of_tomorrow"),
        (chat(user([text("a", of_tomorrow=1)])), "messages[0].content[0].of_tomorrow"),
        (chat(user([{"type": "input_audio", "input_audio": {}}])), "messages[0].content[0].type"),
        (chat(user([{"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA"}}])), "messages[0].content[0].image_url.url"),
        (chat(user([{"type": "image_url", "image_url": {"url": "data:,a"}}])), "messages[0].content[0].image_url.url"),
        (chat(user([{"type": "image_url", "image_url": {"url": "https://a", "detail": "low"}}])), "messages[0].content[0].image_url.detail"),
        (chat(user([{"type": "file", "file": {"file_id": "f-1"}}])), "messages[0].content[0].file.file_id"),
        (chat({"role": "function", "name": "f", "content": "a"}), "messages[0].role"),
        (chat({"role": "tool", "content": "a"}), "messages[0].tool_call_id"),
        (chat(system("Only this.")), "messages"),
        (chat(system([{"type": "image_url", "image_url": {"url": "https://a"}}]), user("Hi")), "messages[0].content[0].type"),
        (chat(user("1"), assistant("2")), "messages[1]"),
        (chat(user("1"), assistant("2"), system("3")), "messages[2]"),
        (chat(user("1"), assistant("2", audio={"id": "a"}), user("3")), "messages[1].audio"),
        (chat(user("1"), assistant("2", function_call={"name": "f", "arguments": ""}), user("3")), "messages[1].function_call"),
        (chat(user("1"), assistant(None, tool_calls=[call("a", "f", "{")]), user("3")), "messages[1].tool_calls[0].function.arguments"),
        (chat(user("1"), assistant(None, tool_calls=[call("a", "f", '{"a": NaN}')]), user("3")), "messages[1].tool_calls[0].function.arguments"),
        (chat(user("1"), assistant(None, tool_calls=[{"id": "a", "type": "custom", "custom": {"name": "c", "input": ""}}]), user("3")), "messages[1].tool_calls[0].custom"),
        (chat({"role": ["user"], "content": "a"}), "messages[0].role"),
        (chat({"role": {}, "content": "a"}), "messages[0].role"),
        (chat(user([{"type": ["text"]}])), "messages[0].content[0].type"),
        (chat(user([["text"]])), "messages[0].content[0]"),
        (chat(user({"text": "a"})), "messages[0].content"),
        (chat(user("1"), assistant(None, tool_calls={"id": "a"}), user("3")), "messages[1].tool_calls"),
        (chat(tools={"a": 1}), "tools"),
        (chat(tools=[function("f")], tool_choice=["auto"]), "tool_choice"),
        (chat(response_format="json"), "response_format"),
        (chat(service_tier=["flex"]), "service_tier"),
        (chat(reasoning_effort={}), "reasoning_effort"),
        (chat("Hi"), "messages[0]"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_anthropic_cannot_be_told_is_refused_by_name(request_: Json, param: str) -> None:
    for refusing in (ON_ANTHROPIC.check, to_anthropic):
        with pytest.raises(BadRequest) as caught:
            refusing(request_)
        assert caught.value.details["param"] == param
        assert f"`{param}`" in caught.value.message


# --- a conversation of messages for OpenAI -----------------------------------------------------------------------------


def test_systems_and_turns_become_messages() -> None:
    body = to_openai(asks(user("1"), system("S"), assistant([text("2"), text("3")]), user([text("4")]), system=[text("A"), text("B", cache_control={"type": "ephemeral"})]))  # fmt: skip
    assert body == {
        "model": "gpt-x",
        "max_completion_tokens": 64,
        "messages": [
            system([text("A"), text("B")]),
            user("1"),
            system("S"),
            assistant([text("2"), text("3")]),
            user("4"),
        ],
    }


def test_calls_become_a_field_and_results_messages_in_front_of_what_the_user_says() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [text("one")], "cache_control": {"type": "ephemeral"}},
        {"type": "tool_result", "tool_use_id": "b", "content": "two", "is_error": True},
        {"type": "tool_result", "tool_use_id": "c"},
        {"type": "tool_result", "tool_use_id": "d", "content": [text("x"), text("y")], "is_error": True},
    ]
    calls = [use("a", "f", {"x": [1]}), use("b", "g", {}) | {"caller": {"type": "direct"}}]
    body = to_openai(asks(user("Hi"), assistant([text("Looking."), *calls]), user([*results, text("And?")])))
    assert body["messages"][1:] == [
        assistant("Looking.", tool_calls=[call("a", "f", '{"x":[1]}'), call("b", "g", "{}")]),
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: two"},
        {"role": "tool", "tool_call_id": "c", "content": ""},
        {"role": "tool", "tool_call_id": "d", "content": [text("Error:"), text("x"), text("y")]},
        user("And?"),
    ]


def test_images_and_pdfs_become_parts() -> None:
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
        {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.jpg"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "a.pdf",
        },
    ]
    assert to_openai(asks(user(blocks)))["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/a.jpg"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
    ]


def test_images_in_results_follow_all_results_of_the_turn() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.jpg"}}
    part = {"type": "image_url", "image_url": {"url": "https://pictures.example/a.jpg"}}
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [text("one"), image]},
        {"type": "tool_result", "tool_use_id": "b", "content": [image], "is_error": True},
        {"type": "tool_result", "tool_use_id": "c", "content": [image]},
        {"type": "tool_result", "tool_use_id": "d", "content": "four"},
    ]
    tools = [
        {"role": "tool", "tool_call_id": "a", "content": [text("one")]},
        {"role": "tool", "tool_call_id": "b", "content": [text("Error:")]},
        {"role": "tool", "tool_call_id": "c", "content": "See below."},
        {"role": "tool", "tool_call_id": "d", "content": "four"},
    ]
    lines = [text(f"From the result of the tool call {identity}:") for identity in "abc"]
    moved = [lines[0], part, lines[1], part, lines[2], part]
    calls = assistant([use(identity, "f", {}) for identity in "abcd"])
    alone = to_openai(asks(user("Hi"), calls, user(results)))["messages"]
    assert alone[2:] == [*tools, user(moved)]
    followed = to_openai(asks(user("Hi"), calls, user([*results, text("And?")]), assistant("1"), user("2")))["messages"]
    assert followed[2:] == [*tools, user([*moved, text("And?")]), assistant("1"), user("2")]


def test_reasoning_goes_back_under_the_name_under_which_it_came_and_anthropics_does_not() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm", "signature": "reasoning_content"},
        {"type": "thinking", "thinking": "Ah", "signature": "EqoBCkgIARAB"},
        {"type": "redacted_thinking", "data": "xx"},
        text("2"),
    ]
    body = to_openai(asks(user("1"), assistant(blocks), user("3")))
    assert body["messages"][1] == assistant("2", reasoning_content="Hm")


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"stop_sequences": ["END"]}, {"stop": ["END"]}),
        ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}),
        ({"metadata": {"user_id": None}}, {}),
        ({"service_tier": "auto", "cache_control": {"type": "ephemeral"}, "speed": "standard"}, {}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, {"reasoning_effort": "high"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "xhigh"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA | {"title": "a_name"}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a_name", "schema": SCHEMA | {"title": "a_name"}, "strict": True}}},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA | {"title": "A name!"}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA | {"title": "A name!"}, "strict": True}}},
        ),
    ],
)  # fmt: skip
def test_fields_of_a_message_for_openai(fields: Json, made: Json) -> None:
    assert to_openai(asks(**fields)) == {"model": "gpt-x", "max_completion_tokens": 64, "messages": [user("Hi")]} | made


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        (None, {}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": function("f")}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
    ],
)
def test_tools_of_a_message_for_openai(choice: Json | None, made: Json) -> None:
    tools = [
        {"name": "f", "description": "Does.", "input_schema": SCHEMA, "strict": True, "cache_control": {"type": "ephemeral"}},
        {"name": "g", "type": "custom", "input_schema": {"type": "object"}, "allowed_callers": ["direct"], "defer_loading": False},
    ]  # fmt: skip
    body = to_openai(asks(tools=tools, tool_choice=choice))
    assert body["tools"] == [
        function("f", description="Does.", parameters=SCHEMA, strict=True),
        function("g", parameters={"type": "object"}),
    ]
    assert {name: body[name] for name in ("tool_choice", "parallel_tool_calls") if name in body} == made


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asks(top_k=5), "top_k"),
        (asks(speed="fast"), "speed"),
        (asks(inference_geo="eu"), "inference_geo"),
        (asks(container="c"), "container"),
        (asks(diagnostics={"previous_message_id": "a"}), "diagnostics"),
        (asks(user_profile_id="u"), "user_profile_id"),
        (asks(workspace_id="w"), "workspace_id"),
        (asks(mcp_servers=[{"name": "a"}]), "mcp_servers"),
        (asks(context_management={"edits": []}), "context_management"),
        (asks(a_field_of_tomorrow=1), "a_field_of_tomorrow"),
        (asks(metadata={"of_tomorrow": 1}), "metadata.of_tomorrow"),
        (asks(stop_sequences="END"), "stop_sequences"),
        (asks(service_tier="priority"), "service_tier"),
        (asks(thinking={"type": "between_tools"}), "thinking"),
        (asks(output_config={"effort": "huge"}), "output_config.effort"),
        (asks(output_config={"task_budget": {"total": 1}}), "output_config.task_budget"),
        (asks(output_config={"format": {"type": "grammar"}}), "output_config.format.type"),
        (asks(tools=[{"type": "bash_20250124", "name": "bash"}]), "tools.0.type"),
        (asks(tools=[{"name": "f", "input_schema": {}, "input_examples": [{"a": 1}]}]), "tools.0.input_examples"),
        (asks(tools=[{"name": "f", "input_schema": {}, "defer_loading": True}]), "tools.0.defer_loading"),
        (asks(tools=[{"name": "f", "input_schema": {}, "allowed_callers": ["code_execution_20250825"]}]), "tools.0.allowed_callers"),
        (asks(tool_choice={"type": "some"}), "tool_choice.type"),
        (asks(user("1"), assistant("2")), "messages.1"),
        (asks({"role": "tool", "content": "1"}), "messages.0.role"),
        (asks(user("1") | {"of_tomorrow": 1}), "messages.0.of_tomorrow"),
        (asks(user(None)), "messages.0.content"),
        (asks(user([text("a", citations=[{"type": "char_location"}])])), "messages.0.content.0.citations"),
        (asks(user([text("a"), {"type": "tool_result", "tool_use_id": "a"}])), "messages.0.content.1"),
        (asks(user([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "search_result"}]}])), "messages.0.content.0.content.0.type"),
        (asks(user([{"type": "tool_result", "tool_use_id": "a", "content": {"a": 1}}])), "messages.0.content.0.content"),
        (asks(user([{"type": "image", "source": {"type": "file", "file_id": "f"}}])), "messages.0.content.0.source.type"),
        (asks(user([{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}])), "messages.0.content.0.source.type"),
        (asks(user([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "a"}, "context": "c"}])), "messages.0.content.0.context"),
        (asks(user([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "a"}, "citations": {"enabled": True}}])), "messages.0.content.0.citations"),
        (asks(user([{"type": "search_result", "source": "a"}])), "messages.0.content.0.type"),
        (asks(user("1"), assistant([use("a", "f", {}), text("b")]), user("3")), "messages.1.content.1"),
        (asks(user("1"), assistant([{"type": "server_tool_use", "id": "a"}]), user("3")), "messages.1.content.0.type"),
        (asks(user("1"), assistant([use("a", "f", {}) | {"caller": {"type": "code_execution_20250825"}}]), user("3")), "messages.1.content.0.caller"),
        (asks(user("Hi"), system=[{"type": "image"}]), "system.0.type"),
        (asks({"role": ["user"], "content": "a"}), "messages.0.role"),
        (asks(user([{"type": ["text"]}])), "messages.0.content.0.type"),
        (asks(user([{"type": {}, "text": "a"}])), "messages.0.content.0.type"),
        (asks(user({"text": "a"})), "messages.0.content"),
        (asks(tool_choice="auto"), "tool_choice"),
        (asks(tool_choice={"type": ["auto"]}), "tool_choice.type"),
        (asks(thinking="on"), "thinking"),
        (asks(thinking={"type": ["enabled"]}), "thinking"),
        (asks(output_config="high"), "output_config"),
        (asks(output_config={"effort": ["high"]}), "output_config.effort"),
        (asks(metadata="u-1"), "metadata"),
        (asks("Hi"), "messages.0"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_openai_cannot_be_told_is_refused_by_name(request_: Json, param: str) -> None:
    for refusing in (ON_OPENAI.check, to_openai):
        with pytest.raises(BadRequest) as caught:
            refusing(request_)
        assert caught.value.details["param"] == param
        assert f"`{param}`" in caught.value.message


# --- there and back ----------------------------------------------------------------------------------------------------

characters = st.characters(exclude_categories=["Cs"])
words = st.text(characters, min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, json_values, max_size=3)
pictures = st.sampled_from([f"data:image/png;base64,{PICTURE}", "https://pictures.example/a.jpg"]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)
texts = words.map(text)
several = st.lists(texts, min_size=2, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """What both wires can say: instructions in front, turns in alternation, calls with their results."""
    found = [system(draw(words | several))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(0, 3))):
        found.append(user(draw(words | several)))
        found.append(assistant(draw(words)))
        if names := draw(st.lists(st.sampled_from(["f", "g"]), max_size=3)):
            calls = [call(f"c{turn}_{at}", name, json.dumps(draw(objects))) for at, name in enumerate(names)]
            found[-1] |= {"tool_calls": calls, "content": draw(st.none() | words)}
            found += [{"role": "tool", "tool_call_id": one["id"], "content": draw(words | several)} for one in calls]
    return [*found, user(draw(words | st.tuples(texts, pictures).map(list)))]


options = st.fixed_dictionaries({}, optional={
    "temperature": st.floats(0, 1),
    "top_p": st.floats(0, 1),
    "stop": st.lists(words, min_size=1, max_size=3),
    "user": words,
    "service_tier": st.just("default"),
    "reasoning_effort": st.sampled_from(["none", "low", "medium", "high", "xhigh", "max"]),
    "tools": st.just([function("f", description="Does.", parameters=SCHEMA, strict=True), function("g", parameters=SCHEMA)]),
    "tool_choice": st.sampled_from(["auto", "none", "required", function("f")]),
    "response_format": st.just({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA | {"title": "a"}, "strict": True}}),
})  # fmt: skip


def with_read_arguments(request: Json) -> Json:
    found: Json = json.loads(json.dumps(request))
    for message in found["messages"]:
        for one in message.get("tool_calls") or []:
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    return found


@settings(deadline=None)
@given(conversations(), options)
def test_a_chat_comes_back_from_anthropics_wire_as_it_went(messages: list[Json], fields: Json) -> None:
    there = to_anthropic(chat(*messages, **fields))
    back = to_openai(there)
    wanted = {"model": "gpt-x", "max_completion_tokens": 64, "messages": messages} | fields
    if "tools" not in fields:
        wanted.pop("tool_choice", None)  # without tools it chooses nothing
    assert with_read_arguments(back) == with_read_arguments(wanted)


@settings(deadline=None)
@given(conversations(), options)
def test_anthropics_request_comes_back_from_openais_wire_as_it_went(messages: list[Json], fields: Json) -> None:
    there = to_anthropic(chat(*messages, **fields))
    assert to_anthropic(to_openai(there)) == there


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*chat_request.FIELDS, *messages_request.FIELDS]), json_values, max_size=4))
def test_no_object_makes_translating_crash(fields: Json) -> None:
    for translation in (ON_ANTHROPIC, ON_OPENAI):
        try:
            translation.check(fields)
        except BadRequest as error:
            assert error.details["param"]


ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    "",
    "odd",
    [],
    {},
    [None],
    [[]],
    [{}],
    ["odd"],
    {"odd": 1},
    {"type": "odd"},
    {"type": []},
]


def with_one_odd_value(value: Any) -> Iterator[Any]:
    """The value with each of its parts, however deep, replaced by something odd."""
    yield from ODD
    if isinstance(value, dict):
        for name, inner in value.items():
            for odd in with_one_odd_value(inner):
                yield value | {name: odd}
            yield {other: one for other, one in value.items() if other != name}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for odd in with_one_odd_value(inner):
                yield [*value[:at], odd, *value[at + 1 :]]


FULL_CHAT = chat(
    system([text("S", cache_control={"type": "ephemeral"})]),
    user([text("a"), {"type": "image_url", "image_url": {"url": "https://a", "detail": "auto"}}, {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "f"}}]),
    assistant([text("b"), {"type": "refusal", "refusal": "c"}], refusal="d", reasoning_content="e", thinking_blocks=[{"type": "thinking", "thinking": "f", "signature": "g"}, {"type": "redacted_thinking", "data": "h"}], tool_calls=[call("i", "j", "{}")]),
    {"role": "tool", "tool_call_id": "i", "content": [text("k")], "is_error": True},
    user("l"),
    stream=True, stream_options={"include_usage": True}, temperature=1, top_p=1, stop=["m"], tools=[function("j", description="n", parameters=SCHEMA, strict=True)],
    tool_choice=function("j"), parallel_tool_calls=False, reasoning_effort="low", user="o", safety_identifier="p", service_tier="default", thinking={"type": "adaptive"},
    response_format={"type": "json_schema", "json_schema": {"name": "q", "description": "r", "schema": SCHEMA, "strict": True}},
)  # fmt: skip
FULL_ASKS = asks(
    user([text("a"), {"type": "image", "source": {"type": "url", "url": "https://a"}}, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}, {"type": "document", "title": "b", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}, "citations": {"enabled": False}}]),
    assistant([{"type": "thinking", "thinking": "c", "signature": "reasoning"}, {"type": "redacted_thinking", "data": "d"}, text("e"), use("f", "g", {}) | {"caller": {"type": "direct"}}]),
    user([{"type": "tool_result", "tool_use_id": "f", "content": [text("h"), {"type": "image", "source": {"type": "url", "url": "https://a"}}], "is_error": True}, text("i")]),
    system("j"),
    system=[text("k", cache_control={"type": "ephemeral"})], stream=True, stop_sequences=["l"], temperature=1, top_p=1, metadata={"user_id": "m"}, service_tier="standard_only",
    tools=[{"name": "g", "type": "custom", "description": "n", "input_schema": SCHEMA, "strict": True, "allowed_callers": ["direct"], "defer_loading": False}],
    tool_choice={"type": "tool", "name": "g", "disable_parallel_tool_use": True}, thinking={"type": "enabled", "budget_tokens": 2000, "display": "omitted"},
    output_config={"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
)  # fmt: skip


def survives(translation: Translation, request: Any) -> None:
    """It is refused with a name, or becomes a body."""
    try:
        translation.check(request)
        made = translation.request(
            json.dumps(request).encode(), model="m", max_tokens=1, limit_field="max_tokens", created=1
        )
        assert json.loads(made.body)["messages"]
    except BadRequest as error:
        assert error.details["param"]


@pytest.mark.parametrize(("translation", "full"), [(ON_ANTHROPIC, FULL_CHAT), (ON_OPENAI, FULL_ASKS)])
def test_no_odd_value_anywhere_makes_translating_crash(translation: Translation, full: Json) -> None:
    translation.check(full)
    for name, value in full.items():
        for odd in with_one_odd_value(value):
            survives(translation, full | {name: odd})
        survives(translation, {other: one for other, one in full.items() if other != name})


FREE = {"input_schema", "parameters", "schema", "cache_control", "provider_specific_fields"}


def with_more(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The value with a field that nobody knows, in each of its objects whose fields have a meaning; and which it was."""
    if isinstance(value, dict):
        yield place, value | {"of_tomorrow": 1}
        for name, inner in value.items():
            for where, more in with_more(inner, f"{place}.{name}") if name not in FREE else ():
                yield where, value | {name: more}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for where, more in with_more(inner, f"{place}[{at}]"):
                yield where, [*value[:at], more, *value[at + 1 :]]


@pytest.mark.parametrize(("translation", "full"), [(ON_ANTHROPIC, FULL_CHAT), (ON_OPENAI, FULL_ASKS)])
def test_no_field_of_tomorrow_is_left_out_silently(translation: Translation, full: Json) -> None:
    for place, request in with_more(full):
        if place.endswith(".input") or (place == ".thinking" and translation is ON_ANTHROPIC):
            continue  # a call's arguments are the caller's own, and this field the provider's
        with pytest.raises(BadRequest, match="of_tomorrow"):  # noqa: PT012 - the failure says where
            translation.check(request)
            pytest.fail(f"{place} took it")


# --- the page ----------------------------------------------------------------------------------------------------------


def listed(heading: str) -> dict[str, tuple[str, str]]:
    """The rows of the table below a heading: field, verdict, how."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {
        name: (verdict, how)
        for name, verdict, how in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", section, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("heading", "fields", "known"),
    [
        ("Chat completions on Anthropic's messages", chat_request.FIELDS, completion_create_params.CompletionCreateParamsStreaming),
        ("Anthropic's messages on chat completions", messages_request.FIELDS, message_create_params.MessageCreateParamsStreaming),
    ],
)  # fmt: skip
def test_the_page_lists_what_becomes_of_every_field_that_the_sdk_knows(
    heading: str, fields: dict[str, Field], known: Any
) -> None:
    assert listed(heading) == {name: (field.verdict, field.how) for name, field in fields.items()}
    extra = fields.keys() - known.__required_keys__ - known.__optional_keys__
    assert extra <= {"thinking", "temperature", "top_p", "top_k"}
    assert known.__required_keys__ | known.__optional_keys__ <= fields.keys()


def test_the_limit_has_the_name_that_the_server_knows() -> None:
    for translation, request in (
        (ON_OPENAI, asks()),
        (pair(("openai", "responses"), "openai"), {"model": "m", "input": "Hi"}),
    ):
        for name in ("max_tokens", "max_completion_tokens"):
            made = translation.request(
                json.dumps(request).encode(), model="m", max_tokens=7, limit_field=name, created=1
            )
            assert {field: value for field, value in json.loads(made.body).items() if "tokens" in field} == {name: 7}


def test_only_what_differs_is_translated() -> None:
    assert translate.between("openai", "chat", "openai") is None
    assert translate.between("anthropic", "messages", "anthropic") is None
    assert translate.between("anthropic", "count_tokens", "openai") is None


def test_bodies_that_the_wires_would_read_are_what_translations_read() -> None:
    for wire, endpoint, translation, request in ((OPENAI, "chat", ON_ANTHROPIC, chat()), (ANTHROPIC, "messages", ON_OPENAI, asks())):  # fmt: skip
        body = json.dumps(request).encode()
        facts = wire.read(endpoint, body, {})
        made = translation.request(body, model="other", max_tokens=7, limit_field="max_completion_tokens", created=1)
        assert json.loads(made.body)["model"] == "other"
        assert facts.model == made.asked.request["model"]
