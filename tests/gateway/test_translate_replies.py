"""Replies and streams in the other wire: what the caller's SDK makes of them, plain and streamed."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiplatform.gateway import translate
from aiplatform.gateway.translate import Asked, StreamTranslator, Translation
from tests.gateway import sdks

Json = dict[str, Any]


def pair(caller: tuple[str, str], provider: str) -> Translation:
    found = translate.between(*caller, provider)
    assert found is not None
    return found


ON_ANTHROPIC = pair(("openai", "chat"), "anthropic")
ON_OPENAI = pair(("anthropic", "messages"), "openai")
NOW = 1_800_000_000
USAGE_WANTED = Asked({"model": "m", "stream_options": {"include_usage": True}}, NOW)
NO_USAGE_WANTED = Asked({"model": "m"}, NOW)

characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, min_size=1, max_size=20)
names = st.text("abc_-9", min_size=1, max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(characters, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(characters, max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
objects = st.dictionaries(st.text(characters, max_size=5), json_values, max_size=4)
counts = st.integers(0, 2**31)


# --- what Anthropic answers --------------------------------------------------------------------------------------------

thoughts = st.builds(lambda text, signature: {"type": "thinking", "thinking": text, "signature": signature}, st.text(characters, max_size=20), names)  # fmt: skip
redacted = st.builds(lambda data: {"type": "redacted_thinking", "data": data}, names)
said = st.builds(lambda text: {"type": "text", "text": text}, texts)
uses = st.builds(lambda name, value: {"type": "tool_use", "name": name, "input": value}, names, objects)


@st.composite
def anthropic_messages(draw: st.DrawFn) -> Json:
    blocks = [*draw(st.lists(thoughts | redacted, max_size=2)), *draw(st.lists(said, max_size=2)), *draw(st.lists(uses, max_size=3))]  # fmt: skip
    content = [
        block | {"id": f"toolu_{at}"} if block["type"] == "tool_use" else block for at, block in enumerate(blocks)
    ]
    output = draw(counts)
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": content,
        "stop_reason": draw(st.sampled_from(["end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded"])),
        "stop_sequence": None,
        "stop_details": draw(st.sampled_from([None, {"type": "refusal", "category": None, "explanation": "No."}])),
        "usage": {
            "input_tokens": draw(counts),
            "output_tokens": output,
            "cache_read_input_tokens": draw(st.none() | counts),
            "cache_creation_input_tokens": draw(st.none() | counts),
            "output_tokens_details": {"thinking_tokens": draw(st.integers(0, output))},
            "service_tier": draw(st.sampled_from(["standard", "priority", "batch", None])),
        },
    }  # fmt: skip


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def anthropic_events(message: Json, size: int, *, spaced: bool) -> Iterator[Json]:
    """The message as Anthropic streams it; `spaced` writes a call's arguments as other servers would."""
    yield {"type": "message_start", "message": message | {"content": [], "stop_reason": None, "stop_details": None, "usage": message["usage"] | {"output_tokens": 1, "output_tokens_details": None}}}  # fmt: skip
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        kind = block["type"]
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
        yield {"type": "content_block_start", "index": index, "content_block": block | empty.get(kind, {})}
        deltas: list[Json] = []
        if kind == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"], size)]
        elif kind == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"], size)]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif kind == "tool_use":
            written = json.dumps(block["input"], indent=1 if spaced else None) if block["input"] or spaced else ""
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(written, size)]]
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ended = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    usage = {name: message["usage"][name] for name in ("output_tokens", "output_tokens_details")}
    yield {"type": "message_delta", "delta": ended, "usage": usage}
    yield {"type": "message_stop"}


def run(stream: StreamTranslator, events: Iterator[Json] | list[Json], *, done: bytes = b"") -> bytes:
    told = b"".join(stream.feed(json.dumps(event).encode()) for event in events)
    return told + (stream.feed(done) if done else b"") + stream.end()


def with_read_arguments(completion: Json) -> Json:
    """Arguments are JSON in a text, which may be written in more than one way; a list's places say what its order says."""
    found = sdks.without(completion, {"index"})
    for choice in found["choices"]:
        for call in choice["message"].get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return sdks.without(found, {"logprobs"})  # type: ignore[no-any-return]


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(anthropic_messages(), st.integers(1, 7), st.booleans())
def test_openais_sdk_gathers_from_anthropics_stream_what_it_reads_from_anthropics_plain_reply(
    message: Json, size: int, spaced: bool
) -> None:
    plain = sdks.completion(ON_ANTHROPIC.whole(json.dumps(message).encode(), USAGE_WANTED))
    events = anthropic_events(message, size, spaced=spaced)
    streamed = sdks.streamed_completion(run(ON_ANTHROPIC.stream(USAGE_WANTED), events))
    assert without_nulls(with_read_arguments(streamed)) == without_nulls(with_read_arguments(plain))


@settings(deadline=None)
@given(anthropic_messages())
def test_a_completion_says_all_that_anthropics_message_says(message: Json) -> None:
    found = sdks.completion(ON_ANTHROPIC.whole(json.dumps(message).encode(), USAGE_WANTED))
    answer = found["choices"][0]["message"]
    blocks = {kind: [block for block in message["content"] if block["type"] == kind] for kind in ("text", "tool_use")}
    assert (answer["content"] or "") == "".join(block["text"] for block in blocks["text"])
    calls = answer.get("tool_calls") or []
    assert [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        (block["id"], block["name"], block["input"]) for block in blocks["tool_use"]
    ]
    thinking = [block for block in message["content"] if block["type"].endswith("thinking")]
    assert answer.get("thinking_blocks", []) == thinking
    usage, given_usage = found["usage"], message["usage"]
    read, written = (given_usage[name] or 0 for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
    assert usage["prompt_tokens"] == given_usage["input_tokens"] + read + written
    assert usage["prompt_tokens_details"] == {"cached_tokens": read, "cache_write_tokens": written}
    assert usage["completion_tokens"] == given_usage["output_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("one_of_tomorrow", "stop"),
    ],
)
def test_every_stop_reason_of_anthropics_has_a_finish_reason(reason: str, finish: str) -> None:
    body = json.dumps({"content": [{"type": "text", "text": "a"}], "stop_reason": reason}).encode()
    assert sdks.completion(ON_ANTHROPIC.whole(body, NO_USAGE_WANTED))["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize("identity", ["msg_1", "chatcmpl-1", "resp_1", "1"])
def test_an_id_has_the_form_of_the_callers_wire(identity: str) -> None:
    body = json.dumps({"id": identity, "content": [], "choices": []}).encode()
    assert sdks.completion(ON_ANTHROPIC.whole(body, NO_USAGE_WANTED))["id"] == "chatcmpl-1"
    assert sdks.message(ON_OPENAI.whole(body, NO_USAGE_WANTED))["id"] == "msg_1"


def test_a_refusals_explanation_is_the_completions_refusal() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "Not this."}
    body = json.dumps({"content": [], "stop_reason": "refusal", "stop_details": details}).encode()
    choice = sdks.completion(ON_ANTHROPIC.whole(body, NO_USAGE_WANTED))["choices"][0]
    assert choice["message"]["refusal"] == "Not this."


def anthropic_stream(*deltas: str) -> list[Json]:
    message = {"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 3, "output_tokens": 1}}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one}} for one in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]


def test_a_chat_stream_is_what_openai_sends_event_for_event() -> None:
    events = run(ON_ANTHROPIC.stream(USAGE_WANTED), anthropic_stream("He", "y")).split(b"\n\n")
    assert events.pop() == b""
    assert events.pop() == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-1", "chat.completion.chunk", NOW, "claude-x")
    }
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "He"},
        {"content": "y"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert (chunks[-1]["usage"]["prompt_tokens"], chunks[-1]["usage"]["completion_tokens"]) == (3, 2)


def test_a_chat_stream_tells_a_thought_whole_at_its_end_and_arguments_even_of_a_call_without_any() -> None:
    deltas: list[Json] = [
        {"type": "thinking_delta", "thinking": "H"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "signature_delta", "signature": "sig"},
    ]
    events: list[Json] = [
        {"type": "message_start", "message": {"id": "msg_1"}},
        {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
        *({"type": "content_block_delta", "delta": delta} for delta in deltas),
        {"type": "content_block_stop"},
        {"type": "content_block_start", "content_block": {"type": "tool_use", "id": "a", "name": "f", "input": {}}},
        {"type": "content_block_stop"},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    ]
    told = run(ON_ANTHROPIC.stream(NO_USAGE_WANTED), events).split(b"\n\n")[:-2]
    thought = {"index": 0, "type": "thinking", "thinking": "Hm", "signature": "sig"}
    called = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert [json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"] for event in told] == [
        {"role": "assistant", "content": None},
        {"reasoning_content": "H"},
        {"reasoning_content": "m"},
        {"thinking_blocks": [thought]},
        {"tool_calls": [called]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {},
    ]


def test_the_usage_chunk_comes_only_to_who_asked_for_it() -> None:
    assert b"usage" not in run(ON_ANTHROPIC.stream(NO_USAGE_WANTED), anthropic_stream("a"))


def test_a_stream_that_tells_no_reason_for_its_end_has_one_for_its_caller() -> None:
    events = [event for event in anthropic_stream("a") if event["type"] != "message_delta"]
    choice = sdks.streamed_completion(run(ON_ANTHROPIC.stream(NO_USAGE_WANTED), events))["choices"][0]
    assert choice["finish_reason"] == "stop"


def test_what_ends_a_stream_waits_for_the_end() -> None:
    *events, last = anthropic_stream("a")
    stream = ON_ANTHROPIC.stream(NO_USAGE_WANTED)
    for event in events:
        assert b"[DONE]" not in stream.feed(json.dumps(event).encode())
    assert stream.end() == b"", "the provider has not come to its end"
    assert stream.feed(json.dumps(last).encode()) == b""
    assert stream.end() == b"data: [DONE]\n\n"


def test_anthropics_error_amid_a_stream_is_raised_by_openais_sdk() -> None:
    stream = ON_ANTHROPIC.stream(NO_USAGE_WANTED)
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "Too much."}}
    told = run(stream, [*anthropic_stream("a")[:3], failed])
    assert not stream.complete
    with pytest.raises(openai.APIError, match="Too much") as caught:
        sdks.streamed_completion(told)
    assert caught.value.code == "overloaded_error"


# --- what OpenAI and servers compatible with it answer -----------------------------------------------------------------


@st.composite
def completions(draw: st.DrawFn) -> Json:
    message: Json = {"role": "assistant", "content": draw(st.none() | texts), "refusal": None}
    name = draw(st.sampled_from(["reasoning_content", "reasoning", ""]))
    if name:
        message[name] = draw(texts)
    calls = draw(st.lists(st.tuples(names, objects), max_size=3))
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{at}", "type": "function", "function": {"name": one, "arguments": json.dumps(value)}}
            for at, (one, value) in enumerate(calls)
        ]
    if not calls and draw(st.integers(0, 9)) == 0:
        message["refusal"] = draw(texts)
    prompt, output = draw(counts), draw(counts)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": draw(st.integers(0, prompt // 2)), "cache_write_tokens": draw(st.integers(0, prompt // 2))},
        "completion_tokens_details": {"reasoning_tokens": draw(st.integers(0, output))},
    }  # fmt: skip
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    tier = draw(st.sampled_from([None, "default", "priority"]))
    return {"id": "chatcmpl-7", "object": "chat.completion", "created": 1, "model": "gpt-x", "choices": [choice], "usage": usage, "service_tier": tier}  # fmt: skip


def chat_chunks(completion: Json, size: int) -> Iterator[Json]:
    head = {name: completion[name] for name in ("id", "created", "model", "service_tier")} | {"object": "chat.completion.chunk"}  # fmt: skip
    choice = completion["choices"][0]

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "usage": None}

    message = choice["message"]
    yield chunk({"role": "assistant", "content": "" if message["content"] else None, "refusal": None})
    for name in ("reasoning_content", "reasoning", "content", "refusal"):
        for piece in pieces(message.get(name) or "", size):
            yield chunk({name: piece})
    for index, call in enumerate(message.get("tool_calls", [])):
        yield chunk({"tool_calls": [call | {"index": index, "function": call["function"] | {"arguments": ""}}]})
        for piece in pieces(call["function"]["arguments"], size):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, choice["finish_reason"])
    yield head | {"choices": [], "usage": completion["usage"]}


@settings(max_examples=60, deadline=None)
@given(completions(), st.integers(1, 7))
def test_anthropics_sdk_gathers_from_openais_stream_what_it_reads_from_openais_plain_reply(
    completion: Json, size: int
) -> None:
    plain = sdks.message(ON_OPENAI.whole(json.dumps(completion).encode(), NO_USAGE_WANTED))
    stream = run(ON_OPENAI.stream(NO_USAGE_WANTED), chat_chunks(completion, size), done=b"[DONE]")
    assert without_nulls(sdks.streamed_message(stream)) == without_nulls(plain)


@settings(deadline=None)
@given(completions())
def test_a_message_says_all_that_openais_completion_says(completion: Json) -> None:
    found = sdks.message(ON_OPENAI.whole(json.dumps(completion).encode(), NO_USAGE_WANTED))
    answer = completion["choices"][0]["message"]
    content = found["content"]
    wanted = [text for text in (answer["content"], answer["refusal"]) if text]
    assert [block["text"] for block in content if block["type"] == "text"] == wanted
    assert [(block["id"], block["name"], block["input"]) for block in content if block["type"] == "tool_use"] == [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in answer.get("tool_calls", [])
    ]
    reasoning = answer.get("reasoning_content") or answer.get("reasoning")
    assert [block["thinking"] for block in content if block["type"] == "thinking"] == ([reasoning] if reasoning else [])
    usage = found["usage"]
    inputs = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert sum(usage[name] for name in inputs) == completion["usage"]["prompt_tokens"]
    assert usage["output_tokens"] == completion["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"finish_reason": "stop"}, "end_turn"),
        ({"finish_reason": "length"}, "max_tokens"),
        ({"finish_reason": "tool_calls"}, "tool_use"),
        ({"finish_reason": "function_call"}, "tool_use"),
        ({"finish_reason": "content_filter"}, "refusal"),
        ({"finish_reason": None}, "end_turn"),
        ({"finish_reason": "stop", "message": {"refusal": "No."}}, "refusal"),
        ({"finish_reason": "stop", "message": {"tool_calls": [{"id": "a", "function": {"name": "f"}}]}}, "tool_use"),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence"),
        ({"finish_reason": "stop", "stop_reason": 128001}, "end_turn"),
    ],
)
def test_every_finish_reason_has_a_stop_reason_of_anthropics(choice: Json, reason: str) -> None:
    asked = Asked({"model": "m", "stop_sequences": ["END"]}, NOW)
    found = sdks.message(ON_OPENAI.whole(json.dumps({"choices": [choice]}).encode(), asked))
    assert found["stop_reason"] == reason
    assert found["stop_sequence"] == ("END" if reason == "stop_sequence" else None)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [("", {}), ('{"a": [1, {"b": "c', {"a": [1, {}]}), ("[1]", {"arguments": "[1]"}), ("{]", {"arguments": "{]"})],
)
def test_arguments_that_a_model_got_wrong_are_not_lost(arguments: str, value: Json) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    body = json.dumps({"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "length"}]}).encode()
    assert sdks.message(ON_OPENAI.whole(body, NO_USAGE_WANTED))["content"][0]["input"] == value


def chat_stream(*deltas: Json) -> list[Json]:
    head = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x"}
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return [*chunks, head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]


def test_a_stream_of_messages_is_what_anthropic_sends_event_for_event() -> None:
    deltas: list[Json] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"content": "He"},
        {"content": "y"},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]
    told = run(ON_OPENAI.stream(NO_USAGE_WANTED), chat_stream(*deltas), done=b"[DONE]")
    events = told.split(b"\n\n")
    assert events.pop() == b""
    names, data = zip(*(event.split(b"\ndata: ") for event in events), strict=True)
    read = [json.loads(one) for one in data]
    assert [name.removeprefix(b"event: ").decode() for name in names] == [one["type"] for one in read]
    assert [(one["type"].removeprefix("content_block_"), one.get("index")) for one in read] == [
        ("message_start", None),
        ("start", 0), ("delta", 0), ("delta", 0), ("stop", 0),
        ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1),
        ("start", 2), ("delta", 2), ("stop", 2),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip


def test_the_end_of_a_message_waits_for_the_end() -> None:
    stream = ON_OPENAI.stream(NO_USAGE_WANTED)
    for chunk in chat_stream({"content": "a"}):
        assert b"message_delta" not in stream.feed(json.dumps(chunk).encode())
    assert stream.end() == b"", "the provider has not said [DONE]"
    assert stream.feed(b"[DONE]") == b""
    assert stream.end().count(b"event: message_stop") == 1


def test_openais_error_amid_a_stream_is_raised_by_anthropics_sdk() -> None:
    stream = ON_OPENAI.stream(NO_USAGE_WANTED)
    failed = {"error": {"message": "Too much.", "type": "server_error", "code": None}}
    told = run(stream, [*chat_stream({"content": "a"})[:1], failed], done=b"[DONE]")
    assert not stream.complete
    with pytest.raises(anthropic.APIStatusError, match="Too much"):
        sdks.streamed_message(told)


def test_a_call_that_is_taken_up_again_after_another_is_an_error_and_no_mixture() -> None:
    def call(index: int, arguments: str) -> Json:
        return {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": arguments}}]}

    stream = ON_OPENAI.stream(NO_USAGE_WANTED)
    told = run(stream, chat_stream(call(0, "{"), call(1, "{"), call(0, "}"), call(1, "}")), done=b"[DONE]")
    assert told.count(b"event: error") == 1
    assert not stream.complete


@pytest.mark.parametrize("index", [{}, {"index": 0}, {"index": None}])
def test_calls_under_one_index_are_told_apart_by_their_ids(index: Json) -> None:
    def call(**fields: Any) -> Json:
        return {"tool_calls": [index | fields]}

    deltas = [
        call(id="a", function={"name": "f", "arguments": '{"x"'}),
        call(function={"arguments": ": 1}"}),
        call(id="b", function={"name": "g", "arguments": "{}"}),
    ]
    told = run(ON_OPENAI.stream(NO_USAGE_WANTED), chat_stream(*deltas), done=b"[DONE]")
    blocks = sdks.streamed_message(told)["content"]
    assert [(block["id"], block["name"], block["input"]) for block in blocks] == [("a", "f", {"x": 1}), ("b", "g", {})]


@settings(deadline=None)
@given(st.lists(st.none() | objects | st.sampled_from(["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "error"]).flatmap(lambda kind: st.builds(lambda fields: {"type": kind, "delta": fields, "content_block": fields, "message": fields, "choices": [{"delta": fields}]}, objects)), max_size=6))  # fmt: skip
def test_no_stream_makes_translating_crash(events: list[Any]) -> None:
    for translation in (ON_ANTHROPIC, ON_OPENAI):
        run(translation.stream(USAGE_WANTED), events, done=b"[DONE]")


@settings(deadline=None)
@given(objects, st.sampled_from(["choices", "content", "usage", "message"]), json_values)
def test_no_reply_makes_translating_crash(fields: Json, name: str, value: Any) -> None:
    body = json.dumps(fields | {name: value}).encode()
    for translation in (ON_ANTHROPIC, ON_OPENAI):
        translation.whole(body, USAGE_WANTED)
        translation.error(500, body)


@pytest.mark.parametrize("odd", [None, 1, "a", [], {}, [[]], [{}], {"a": {}}, [None]])
def test_no_odd_value_at_a_known_place_makes_translating_crash(odd: Any) -> None:
    names = ("role", "content", "tool_calls", "function", "index", "id", "type", "text", "thinking", "signature", "refusal", "input", "arguments")  # fmt: skip
    for name in names:
        inner = {"type": "tool_use", "function": {"name": odd}, name: odd}
        part = {"delta": {"tool_calls": [inner]} | {name: odd}, "message": {"tool_calls": [inner], name: odd}, "finish_reason": odd, "stop_reason": odd}  # fmt: skip
        chunk = {"choices": [part], "usage": odd, "id": odd, "model": odd, "service_tier": odd}
        kinds = ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta")
        events = [{"type": kind, "content_block": inner, "usage": odd} | part for kind in kinds]
        run(ON_OPENAI.stream(USAGE_WANTED), [chunk, chunk], done=b"[DONE]")
        run(ON_ANTHROPIC.stream(USAGE_WANTED), [{"type": odd}, *events, *events])
        ON_OPENAI.whole(json.dumps(chunk).encode(), USAGE_WANTED)
        ON_ANTHROPIC.whole(json.dumps({"content": [inner, odd], "usage": odd, "stop_details": odd} | part).encode(), USAGE_WANTED)  # fmt: skip


@pytest.mark.parametrize("translation", [ON_ANTHROPIC, ON_OPENAI])
def test_an_answer_that_is_no_object_is_refused(translation: Translation) -> None:
    for body in (b"", b"<html>", b"[]"):
        with pytest.raises(translate.UnreadableAnswer):
            translation.whole(body, USAGE_WANTED)


@pytest.mark.parametrize("translation", [ON_ANTHROPIC, ON_OPENAI])
def test_an_error_with_the_status_of_a_success_is_no_answer(translation: Translation) -> None:
    for error in ({"message": "Why.", "type": "x"}, "Why."):
        with pytest.raises(translate.UnreadableAnswer, match="Why"):
            translation.whole(json.dumps({"error": error}).encode(), USAGE_WANTED)


def test_a_content_in_parts_and_arguments_as_an_object_are_read() -> None:
    said = {
        "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "a"}],
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    plain = sdks.message(ON_OPENAI.whole(json.dumps({"choices": [{"message": said}]}).encode(), NO_USAGE_WANTED))
    told = sdks.streamed_message(run(ON_OPENAI.stream(NO_USAGE_WANTED), chat_stream(said), done=b"[DONE]"))
    for found in (plain, told):
        assert [block.get("text") or block["input"] for block in found["content"]] == ["a", {"x": 1}]


def test_what_a_server_tells_before_its_answer_begins_no_message() -> None:
    before = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    told = run(ON_OPENAI.stream(NO_USAGE_WANTED), [before, *chat_stream({"content": "a"})], done=b"[DONE]")
    found = sdks.streamed_message(told)
    assert (found["id"], found["model"], found["content"][0]["text"]) == ("msg_7", "gpt-x", "a")


# --- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "mapped", "code"),
    [
        (400, "invalid_request_error", "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "invalid_request_error", "invalid_api_key"),
        (402, "billing_error", "insufficient_quota", "billing_error"),
        (404, "not_found_error", "invalid_request_error", "not_found"),
        (429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
        (500, "api_error", "server_error", "api_error"),
        (529, "overloaded_error", "server_error", "overloaded_error"),
    ],
)
def test_anthropics_errors_in_openais_shape(status: int, kind: str, mapped: str, code: str) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": "Why."}}).encode()
    assert json.loads(ON_ANTHROPIC.error(status, body)) == {
        "error": {"message": "Why.", "type": mapped, "param": None, "code": code}
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_openais_errors_in_anthropics_shape(status: int, kind: str) -> None:
    body = json.dumps({"error": {"message": "Why.", "type": "x", "param": None, "code": "y"}}).encode()
    assert json.loads(ON_OPENAI.error(status, body)) == {"type": "error", "error": {"type": kind, "message": "Why."}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"Bad gateway\n", "Bad gateway"),
        (b"", "The provider answered with status 502."),
        (b'{"error": "no such model"}', "no such model"),
        (b'{"message": "gone", "type": "x"}', "gone"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [1]}', "The provider answered with status 502."),
    ],
)
def test_errors_of_any_shape_keep_their_words(body: bytes, message: str) -> None:
    assert json.loads(ON_ANTHROPIC.error(502, body))["error"]["message"] == message
    assert json.loads(ON_OPENAI.error(502, body))["error"]["message"] == message
