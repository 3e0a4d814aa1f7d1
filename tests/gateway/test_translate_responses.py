"""OpenAI's responses on chat completions and on Anthropic's messages: requests, refusals, replies, streams."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import response_create_params

from aiplatform.gateway import translate
from aiplatform.gateway.translate import Asked, Translation, responses_request
from aiplatform.gateway.wires import BadRequest
from tests.gateway import sdks
from tests.gateway.test_translate import (  # fmt: skip
    PDF,
    PICTURE,
    SCHEMA,
    assistant,
    call,
    function,
    listed,
    survives,
    system,
    text,
    use,
    user,
    with_more,
    with_one_odd_value,
)
from tests.gateway.test_translate_replies import (
    NOW,
    anthropic_events,
    anthropic_messages,
    chat_chunks,
    chat_stream,
    completions,
    json_values,
    objects,
    pair,
    run,
    without_nulls,
)

Json = dict[str, Any]

ON_CHAT = pair(("openai", "responses"), "openai")
ON_ANTHROPIC = pair(("openai", "responses"), "anthropic")
ASKED = Asked({"model": "m", "input": "Hi"}, NOW)


def to_chat(request: Json) -> Json:
    outgoing = ON_CHAT.request(
        json.dumps(request).encode(), model="gpt-x", max_tokens=64, limit_field="max_completion_tokens", created=1
    )
    body: Json = json.loads(outgoing.body)
    sdks.check_chat_request(sdks.without(body, {"thinking_blocks"}))
    ON_CHAT.check(request)
    return body


def to_anthropic(request: Json) -> Json:
    outgoing = ON_ANTHROPIC.request(
        json.dumps(request).encode(), model="claude-x", max_tokens=64, limit_field="max_completion_tokens", created=1
    )
    body: Json = json.loads(outgoing.body)
    sdks.check_messages_request(body)
    ON_ANTHROPIC.check(request)
    return body


def asks(given_input: Any = "Hi", **fields: Any) -> Json:
    return {"model": "m", "input": given_input} | fields


def said(words: str, **fields: Any) -> Json:
    content = [{"type": "output_text", "text": words, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content} | fields


def called(identity: str, name: str, arguments: str) -> Json:
    return {"type": "function_call", "id": f"fc_{identity}", "call_id": identity, "name": name, "arguments": arguments, "status": "completed"}  # fmt: skip


def result(identity: str, output: Any) -> Json:
    return {"type": "function_call_output", "call_id": identity, "output": output}


def reasoned(words: str, mark: str | None) -> Json:
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": words}], "encrypted_content": mark}  # fmt: skip


def test_a_whole_conversation_becomes_messages() -> None:
    body = to_chat(
        asks(
            [
                {"role": "developer", "content": "D"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1"}]},
                reasoned("Hm", "reasoning"),
                said("2", phase="commentary"),
                called("a", "f", '{"x":1}'),
                called("b", "g", "{}"),
                result("a", "one"),
                result("b", [{"type": "input_text", "text": "two"}]),
                said("3"),
                said("4"),
                {"role": "user", "content": "5"},
            ],
            instructions="I",
        )
    )
    assert body["messages"] == [
        system("I"),
        system("D", "developer"),
        user("1"),
        assistant("2", reasoning="Hm", tool_calls=[call("a", "f", '{"x":1}'), call("b", "g", "{}")]),
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "content": "two"},
        assistant("3"),
        assistant("4"),
        user("5"),
    ]


def test_images_files_and_refusals_become_parts() -> None:
    parts = [
        {"type": "input_text", "text": "What?"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "auto"},
        {"type": "input_file", "file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"},
    ]
    refusal = said("") | {"content": [{"type": "refusal", "refusal": "No."}]}
    messages = to_chat(asks([{"role": "user", "content": parts}, refusal, {"role": "user", "content": "?"}]))[
        "messages"
    ]
    assert messages[0]["content"] == [
        text("What?"),
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}", "detail": "auto"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
    ]
    assert messages[1]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_images_in_results_stay_there_at_anthropics_and_follow_them_in_chats() -> None:
    image = {"type": "input_image", "image_url": "https://pictures.example/a.jpg", "detail": "auto"}
    items = [{"role": "user", "content": "1"}, called("a", "f", "{}"), result("a", [image])]
    assert to_chat(asks(items))["messages"][2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "See below."},
        user([text("From the result of the tool call a:"), {"type": "image_url", "image_url": {"url": "https://pictures.example/a.jpg", "detail": "auto"}}]),
    ]  # fmt: skip
    source = {"type": "url", "url": "https://pictures.example/a.jpg"}
    assert to_anthropic(asks(items))["messages"][2]["content"][0]["content"] == [{"type": "image", "source": source}]


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"max_output_tokens": 5}, {}),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"user": "u-1"}, {"user": "u-1"}),
        ({"user": "u-1", "safety_identifier": "s-1"}, {"user": "s-1"}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"text": {"verbosity": "low", "format": {"type": "text"}}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
        ),
        ({"store": True, "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"], "max_tool_calls": 3}, {}),
        ({"background": False, "truncation": "disabled", "previous_response_id": None, "parallel_tool_calls": True}, {}),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
            {"tools": [function("f", parameters=SCHEMA, strict=True)], "tool_choice": function("f"), "parallel_tool_calls": False},
        ),
    ],
)  # fmt: skip
def test_fields_of_a_response_for_chat_completions(fields: Json, made: Json) -> None:
    assert to_chat(asks(**fields)) == {"model": "gpt-x", "max_completion_tokens": 64, "messages": [user("Hi")]} | made


def test_a_response_for_anthropic_is_what_its_chat_would_be() -> None:
    body = to_anthropic(
        asks(
            [
                {"role": "user", "content": "1"},
                reasoned("Hm", '{"type":"thinking","thinking":"Hm","signature":"sig"}'),
                reasoned("", '{"type":"redacted_thinking","data":"xx"}'),
                reasoned("other", "gAAAAABo"),
                called("a", "f", '{"x":1}'),
                result("a", "one"),
            ],
            instructions="I",
            reasoning={"effort": "low"},
            tools=[{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
            tool_choice="required",
            temperature=0.5,
        )
    )
    assert body == {
        "model": "claude-x",
        "max_tokens": 64,
        "system": "I",
        "messages": [
            user("1"),
            assistant([
                {"type": "thinking", "thinking": "Hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "xx"},
                use("a", "f", {"x": 1}),
            ]),
            user([{"type": "tool_result", "tool_use_id": "a", "content": "one"}]),
        ],
        "temperature": 0.5,
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low"},
    }  # fmt: skip


def test_sampling_is_sent_under_the_version_that_knows_it() -> None:
    for fields, version in (({}, "2026-10-21"), ({"top_p": 0.5}, "2023-06-01")):
        outgoing = ON_ANTHROPIC.request(
            json.dumps(asks(**fields)).encode(), model="m", max_tokens=1, limit_field="max_completion_tokens", created=1
        )
        assert outgoing.headers == {"anthropic-version": version}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asks(previous_response_id="resp_1"), "previous_response_id"),
        (asks(conversation="conv_1"), "conversation"),
        (asks(background=True), "background"),
        (asks(background_options={"completion_window": "2h"}), "background_options"),
        (asks(prompt={"id": "p"}), "prompt"),
        (asks(truncation="auto"), "truncation"),
        (asks(top_logprobs=2), "top_logprobs"),
        (asks(include=["message.output_text.logprobs"]), "include"),
        (asks(context_management=[{"type": "compaction"}]), "context_management"),
        (asks(moderation={"model": "omni"}), "moderation"),
        (asks(image={"context_compression": "enabled"}), "image"),
        (asks(access_programs={"cyber": "daybreak_blue"}), "access_programs"),
        (asks(a_field_of_tomorrow=1), "a_field_of_tomorrow"),
        (asks(reasoning={"mode": "pro"}), "reasoning.mode"),
        (asks(text={"of_tomorrow": 1}), "text.of_tomorrow"),
        (asks(text={"format": {"type": "grammar"}}), "text.format.type"),
        (asks(tools=[{"type": "web_search"}]), "tools[0].type"),
        (asks(tools=[{"type": "function", "name": "f", "defer_loading": True}]), "tools[0].defer_loading"),
        (asks(tool_choice={"type": "mcp", "server_label": "a"}), "tool_choice"),
        (asks(5), "input"),
        (asks(["Hi"]), "input[0]"),
        (asks([{"type": "item_reference", "id": "msg_1"}]), "input[0].type"),
        (asks([{"type": ["message"]}]), "input[0].type"),
        (asks([{"type": "web_search_call", "id": "ws_1"}]), "input[0].type"),
        (asks([{"role": "tool", "content": "a"}]), "input[0].role"),
        (asks([{"role": ["user"], "content": "a"}]), "input[0].role"),
        (asks([{"role": "user"}]), "input[0].content"),
        (asks([{"role": "user", "content": "a", "of_tomorrow": 1}]), "input[0].of_tomorrow"),
        (asks([{"role": "user", "content": [{"type": "input_audio"}]}]), "input[0].content[0].type"),
        (asks([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]), "input[0].content[0].file_id"),
        (asks([{"role": "user", "content": [{"type": "input_file", "file_url": "https://a"}]}]), "input[0].content[0].file_url"),
        (asks([called("a", "f", "{}"), result("a", [{"type": "input_audio"}])]), "input[1].output[0].type"),
        (asks([called("a", "f", "{}"), result("a", None)]), "input[1].output"),
        (asks([called("a", "f", "{}") | {"namespace": "n"}]), "input[0].namespace"),
    ],
)  # fmt: skip
def test_what_chat_completions_cannot_be_told_is_refused_by_name(request_: Json, param: str) -> None:
    for refusing in (ON_CHAT.check, to_chat, ON_ANTHROPIC.check, to_anthropic):
        with pytest.raises(BadRequest) as caught:
            refusing(request_)
        assert caught.value.details["param"] == param
        assert f"`{param}`" in caught.value.message


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asks(temperature=1.5), "temperature"),
        (asks(service_tier="flex"), "service_tier"),
        (asks(reasoning={"effort": "minimal"}), "reasoning.effort"),
        (asks(text={"verbosity": "high"}), "text.verbosity"),
        (asks(text={"format": {"type": "json_object"}}), "text.format"),
        (asks(text={"format": {"type": "json_schema", "name": "a"}}), "text.format.schema"),
        (asks([]), "input"),
        (asks([{"role": "user", "content": "1"}, said("2")], instructions="I"), "input[1]"),
        (asks([{"role": "user", "content": [{"type": "input_image", "image_url": "data:,a"}]}]), "input[0].content[0]"),
        (asks([{"role": "user", "content": "1"}, called("a", "f", "{"), result("a", "b")]), "input[1]"),
    ],
)  # fmt: skip
def test_what_anthropic_cannot_be_told_is_refused_by_the_name_that_it_has_here(request_: Json, param: str) -> None:
    for refusing in (ON_ANTHROPIC.check, to_anthropic):
        with pytest.raises(BadRequest) as caught:
            refusing(request_)
        assert caught.value.details["param"] == param
        assert f"`{param}`" in caught.value.message


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*responses_request.FIELDS]), json_values, max_size=4))
def test_no_object_makes_translating_crash(fields: Json) -> None:
    for translation in (ON_CHAT, ON_ANTHROPIC):
        try:
            translation.check(fields)
        except BadRequest as error:
            assert error.details["param"]


FULL = asks(
    [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}, {"type": "input_image", "image_url": "https://a", "detail": "auto"}, {"type": "input_file", "file_data": f"data:application/pdf;base64,{PDF}", "filename": "c"}]},
        reasoned("d", "reasoning"),
        reasoned("e", '{"type":"thinking","thinking":"Hm","signature":"sig"}'),
        said("f"),
        called("g", "h", "{}"),
        result("g", [{"type": "input_text", "text": "i"}]),
        {"role": "user", "content": "j"},
    ],
    instructions="k", stream_options={"include_obfuscation": False}, stream=True, temperature=1, top_p=1, user="l", service_tier="default", reasoning={"effort": "low", "summary": "auto", "mode": "standard"},
    text={"format": {"type": "json_schema", "name": "m", "schema": SCHEMA, "strict": True}}, include=["reasoning.encrypted_content"],
    tools=[{"type": "function", "name": "h", "description": "n", "parameters": SCHEMA, "strict": True, "defer_loading": False}],
    tool_choice={"type": "function", "name": "h"}, parallel_tool_calls=False,
)  # fmt: skip


@pytest.mark.parametrize("translation", [ON_CHAT, ON_ANTHROPIC])
def test_no_odd_value_anywhere_makes_translating_crash(translation: Translation) -> None:
    translation.check(FULL)
    for name, value in FULL.items():
        for odd in with_one_odd_value(value):
            survives(translation, FULL | {name: odd})
        survives(translation, {other: one for other, one in FULL.items() if other != name})


@pytest.mark.parametrize("translation", [ON_CHAT, ON_ANTHROPIC])
def test_no_field_of_tomorrow_is_left_out_silently(translation: Translation) -> None:
    for place, request in with_more(FULL):
        with pytest.raises(BadRequest, match="of_tomorrow"):  # noqa: PT012 - the failure says where
            translation.check(request)
            pytest.fail(f"{place} took it")


# --- replies -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(completions(), st.integers(1, 7))
def test_openais_sdk_gathers_from_a_chats_stream_what_it_reads_from_its_plain_reply(
    completion: Json, size: int
) -> None:
    plain = sdks.response(ON_CHAT.whole(json.dumps(completion).encode(), ASKED))
    streamed = sdks.streamed_response(run(ON_CHAT.stream(ASKED), chat_chunks(completion, size), done=b"[DONE]"))
    assert without_nulls(streamed) == without_nulls(plain)


@settings(max_examples=60, deadline=None)
@given(anthropic_messages(), st.integers(1, 7))
def test_openais_sdk_gathers_from_anthropics_stream_what_it_reads_from_its_plain_reply(
    message: Json, size: int
) -> None:
    plain = sdks.response(ON_ANTHROPIC.whole(json.dumps(message).encode(), ASKED))
    events = anthropic_events(message, size, spaced=False)
    streamed = sdks.streamed_response(run(ON_ANTHROPIC.stream(ASKED), events))
    for found in (plain, streamed):
        for item in found["output"]:
            if item["type"] == "function_call":
                item["arguments"] = json.loads(item["arguments"])
    assert without_nulls(streamed) == without_nulls(plain)


@settings(deadline=None)
@given(anthropic_messages())
def test_what_anthropic_said_goes_back_to_it_as_it_was_said(message: Json) -> None:
    message |= {"stop_details": None}  # an explanation of a refusal would be words too
    found = json.loads(ON_ANTHROPIC.whole(json.dumps(message).encode(), ASKED))
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    history = [{"role": "user", "content": "1"}, *found["output"]]
    after = [result(block["id"], "r") for block in calls]
    made = to_anthropic(asks([*history, *after, {"role": "user", "content": "2"}]))
    texts = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    words = [{"type": "text", "text": texts}] if texts else []
    rest = [block for block in message["content"] if block["type"] != "text"]
    thoughts = [block for block in rest if block["type"] != "tool_use"]
    turns = [turn for turn in made["messages"] if turn["role"] == "assistant"]
    if not calls and not texts:
        assert turns == []
    else:
        content = turns[0]["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        assert blocks == [*thoughts, *words, *calls]


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        (None, "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_every_finish_reason_has_a_status(finish: str | None, status: str, reason: str | None) -> None:
    body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": finish}]}).encode()
    found = sdks.response(ON_CHAT.whole(body, ASKED))
    assert found["status"] == found["output"][0]["status"] == status
    assert (found["incomplete_details"] or {}).get("reason") == reason


def test_a_response_repeats_what_was_asked() -> None:
    tools = [{"type": "function", "name": "f", "description": None, "parameters": SCHEMA, "strict": True}]
    fields = {
        "instructions": "I",
        "metadata": {"a": "b"},
        "tools": tools,
        "tool_choice": {"type": "function", "name": "f"},
        "temperature": 0.5,
        "max_output_tokens": 9,
        "text": {"verbosity": "low"},
    }
    body = json.dumps({"id": "chatcmpl-1", "model": "gpt-x", "choices": []}).encode()
    found = sdks.response(ON_CHAT.whole(body, Asked(asks(**fields), NOW)))
    assert {name: found[name] for name in fields} == fields
    assert (found["id"], found["created_at"], found["model"], found["store"]) == ("resp_1", NOW, "gpt-x", False)


def test_a_stream_of_responses_is_numbered_and_tells_each_item_from_its_beginning_to_its_end() -> None:
    deltas: list[Json] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"content": "Hey"},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    ]
    told = run(ON_CHAT.stream(ASKED), chat_stream(*deltas), done=b"[DONE]").split(b"\n\n")
    assert told.pop() == b""
    events = [json.loads(event.split(b"\ndata: ")[1]) for event in told]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip


def test_the_end_of_a_response_waits_for_the_end() -> None:
    stream = ON_CHAT.stream(ASKED)
    for chunk in chat_stream({"content": "a"}):
        assert b"response.completed" not in stream.feed(json.dumps(chunk).encode())
    assert stream.end() == b"", "the provider has not said [DONE]"
    assert stream.feed(b"[DONE]") == b""
    assert stream.end().count(b"event: response.completed") == 1


def test_an_error_amid_a_stream_is_the_last_thing_that_openais_sdk_hears() -> None:
    failed = {"error": {"message": "Too much.", "type": "server_error", "code": "overloaded"}}
    told = run(ON_CHAT.stream(ASKED), [*chat_stream({"content": "a"})[:1], failed], done=b"[DONE]")
    with pytest.raises(ValueError, match="Too much"):
        sdks.streamed_response(told)
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Too much."}}
    begun = {"type": "message_start", "message": {"id": "msg_1"}}
    block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
    stream = ON_ANTHROPIC.stream(ASKED)
    told = run(stream, [begun, block, overloaded])
    assert not stream.complete
    with pytest.raises(ValueError, match="Too much"):
        sdks.streamed_response(told)


def test_errors_keep_the_providers_words() -> None:
    body = json.dumps({"error": {"message": "Why.", "type": "t", "param": "p", "code": "c"}}).encode()
    assert json.loads(ON_CHAT.error(400, body)) == json.loads(body)
    assert json.loads(ON_CHAT.error(502, b"Bad gateway")) == {
        "error": {"message": "Bad gateway", "type": "server_error", "param": None, "code": None}
    }
    body = json.dumps({"type": "error", "error": {"type": "not_found_error", "message": "Why."}}).encode()
    assert json.loads(ON_ANTHROPIC.error(404, body))["error"]["message"] == "Why."


@settings(deadline=None)
@given(objects, st.sampled_from(["choices", "content", "usage", "message"]), json_values)
def test_no_reply_makes_translating_crash(fields: Json, name: str, value: Any) -> None:
    body = json.dumps(fields | {name: value}).encode()
    for translation in (ON_CHAT, ON_ANTHROPIC):
        translation.whole(body, ASKED)
        translation.error(500, body)
        run(translation.stream(ASKED), [json.loads(body)], done=b"[DONE]")


def test_an_answer_that_is_no_object_is_refused() -> None:
    for translation in (ON_CHAT, ON_ANTHROPIC):
        with pytest.raises(translate.UnreadableAnswer):
            translation.whole(b"[]", ASKED)


def test_the_page_lists_what_becomes_of_every_field_that_the_sdk_knows() -> None:
    fields = responses_request.FIELDS
    assert listed("Responses on chat completions") == {name: (one.verdict, one.how) for name, one in fields.items()}
    known = response_create_params.ResponseCreateParamsStreaming
    assert fields.keys() == known.__required_keys__ | known.__optional_keys__
