"""A kept answer in its other form: the official SDKs take both for the same answer, and a stream comes again as it was relayed."""

import json
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiplatform.gateway.cache import forms
from aiplatform.gateway.cache.forms import NotRenderable
from aiplatform.gateway.streaming import Stream
from aiplatform.gateway.translate import Asked
from aiplatform.providers.registry import ADAPTERS
from tests.fakes import scripted, sse
from tests.gateway import sdks
from tests.gateway.test_fidelity import CASES, CORPUS, STREAMS
from tests.gateway.test_translate_replies import (
    NOW,
    anthropic_events,
    anthropic_messages,
    chat_chunks,
    completions,
    json_values,
    names,
    pair,
    without_nulls,
)

Json = dict[str, Any]
WIRES = {"chat": "openai", "messages": "anthropic", "responses": "openai"}
PLAIN = [case for case in CASES if case.endswith(".json")]
# What the SDKs forget of a stream, since it came behind the first chunk, or they do not know it.
BESIDES: dict[str, Json] = {
    "chat/byte_order_mark.sse": {"usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}},
    "chat/unknown_and_nested.sse": {"x_meta": {"n": 12345678901234567890123}, "x": {"choices": [1]}},
    "messages/unknown_and_nested.sse": {"x_context": {"edits": []}},
}
TOOLS = [("weather", {"city": "Paris", "days": [1, 2.5]}), ("clock", {})]
HIDDEN = pytest.mark.parametrize("hide_usage", [False, True])


def corpus(case: str) -> tuple[str, bytes]:
    return case.split("/", maxsplit=1)[0], (CORPUS / case).read_bytes()


def scripted_calls(endpoint: str, *, stream: bool) -> bytes:
    wire = "responses" if endpoint == "responses" else WIRES[endpoint]
    _, events = scripted._WIRES[wire]
    reply, _ = scripted._WIRES[wire]
    return b"".join(events(TOOLS)) if stream else json.dumps(reply(TOOLS)).encode()


def gathered(endpoint: str, events: bytes) -> Json:
    """What the endpoint's own SDK gathers from a stream."""
    read = {"chat": sdks.streamed_completion, "messages": sdks.streamed_message, "responses": sdks.told_response}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Pydantic serializer")  # it says so of each block that it does not know
        return bare(read[endpoint](events))


def bare(answer: Json) -> Json:
    """Without what only the SDK's objects have: nulls, and the places of tool calls within a stream."""
    for choice in answer.get("choices", []):
        for call in choice["message"].get("tool_calls") or []:
            call.pop("index", None)
    found: Json = without_nulls(answer)
    return found


def plain(endpoint: str, events: bytes) -> Json:
    found: Json = json.loads(forms.plain(endpoint, events))
    return found


def streamed(endpoint: str, answer: Any, *, hide_usage: bool = False) -> bytes:
    return forms.stream(endpoint, json.dumps(answer).encode(), hide_usage=hide_usage)


def events_alone(said: bytes) -> bytes:
    """Without what makes the SDKs stumble: ids, comments, a byte order mark, a last event that is not ended."""
    return "".join(
        f"event: {one.name}\n" * bool(one.name) + "".join(f"data: {line}\n" for line in one.data.split("\n")) + "\n"
        for one in sse.events(said + b"\n\n")
    ).encode()


def told(events: bytes) -> list[Json]:
    return [json.loads(one.data) for one in sse.events(events) if one.data != "[DONE]"]


def written(endpoint: str, events: list[Json]) -> bytes:
    """As a provider sends them."""
    if endpoint == "chat":
        return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events) + b"data: [DONE]\n\n"
    return b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in events)


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_is_put_together_as_the_sdk_gathers_it(case: str) -> None:
    endpoint, said = corpus(case)
    expected = gathered(endpoint, events_alone(said))
    assert bare(plain(endpoint, said)) == expected | BESIDES.get(case, {})


@pytest.mark.parametrize("endpoint", WIRES)
def test_tools_called_in_a_stream_are_put_together_as_the_plain_answer_has_them(endpoint: str) -> None:
    events, whole = scripted_calls(endpoint, stream=True), json.loads(scripted_calls(endpoint, stream=False))
    assert bare(plain(endpoint, events)) == gathered(endpoint, events) == bare(plain(endpoint, events))
    if endpoint == "chat":
        whole["choices"][0]["message"].pop("refusal")  # its stream does not say that there is none
    assert plain(endpoint, events) == whole


@pytest.mark.parametrize("case", CASES)
def test_the_sdk_gathers_a_plain_answer_from_the_stream_that_is_made_of_it(case: str) -> None:
    endpoint, said = corpus(case)
    answer = json.loads(said) if case in PLAIN else plain(endpoint, said)
    events = streamed(endpoint, answer)
    assert gathered(endpoint, events) == bare(json.loads(json.dumps(answer)))
    assert plain(endpoint, events) == answer


@pytest.mark.parametrize("case", [case for case in PLAIN if case.startswith("responses/")])
def test_every_item_of_a_response_is_told_in_events_that_the_sdk_knows(case: str) -> None:
    endpoint, said = corpus(case)
    answer = json.loads(said)
    for one in sse.events(streamed(endpoint, answer))[2:-1]:  # between the response's own
        if "unknown" not in case:
            read = sdks._RESPONSE_EVENT.validate_json(one.data, strict=True)
            assert (read.type, sdks.extras(read) - {"name", "bytes"}) == (one.name, set())
    events = told(streamed(endpoint, answer))
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert done == answer["output"]
    words = "".join(one["delta"] for one in events if one["type"].endswith((".output_text.delta", ".refusal.delta")))
    parts = [part for item in answer["output"] for part in item.get("content") or []]
    assert words == "".join(part.get("text") or part.get("refusal") or "" for part in parts)


@pytest.mark.parametrize("case", PLAIN)
@HIDDEN
def test_a_made_stream_is_numbered_from_one_and_usage_is_hidden_in_chats_alone(case: str, hide_usage: bool) -> None:
    endpoint, said = corpus(case)
    events = forms.stream(endpoint, said, hide_usage=hide_usage)
    numbers = [int(line[4:]) for line in events.splitlines() if line.startswith(b"id: ")]
    assert numbers == list(range(1, len(sse.events(events)) + 1))
    assert all(one.startswith(b"id: ") for one in events.split(b"\n\n")[:-1])
    chunks = told(events)
    if endpoint != "chat":
        assert events == forms.stream(endpoint, said, hide_usage=False)
        assert [one.name for one in sse.events(events)] == [one["type"] for one in chunks]
    elif hide_usage:
        assert not any("usage" in one for one in chunks)
    else:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], json.loads(said)["usage"])
        assert all(one["usage"] is None for one in chunks[:-1])


# --- answers of all kinds -----------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("😀👩‍🚀é\r\n\u2028"), max_size=12)
token = st.fixed_dictionaries({"token": words, "logprob": st.floats(-9, 0), "bytes": st.just([1]), "top_logprobs": st.just([])})  # fmt: skip
logprobs = st.none() | st.fixed_dictionaries({"content": st.lists(token, min_size=1, max_size=3), "refusal": st.none()})
unknown = st.dictionaries(names.map(lambda name: f"x_{name}"), json_values, max_size=2)


@st.composite
def chat_messages(draw: st.DrawFn) -> Json:
    message: Json = {"role": "assistant", "content": draw(st.none() | words), "refusal": draw(st.none() | words)}
    message |= draw(st.sampled_from([{}, {"annotations": []}])) | draw(unknown)
    if draw(st.booleans()):
        message["reasoning_content"] = draw(words)
    calls = draw(st.lists(st.tuples(names, words), max_size=3))
    if calls:
        message["tool_calls"] = [scripted._function(at, name, arguments) for at, (name, arguments) in enumerate(calls)]
    elif draw(st.integers(0, 4)) == 0:
        message["function_call"] = {"name": "f", "arguments": draw(words)}
    return message


@st.composite
def chat_answers(draw: st.DrawFn) -> Json:
    answer = draw(completions()) | draw(unknown)
    finish = st.sampled_from(["stop", "length", "tool_calls"])
    answer["choices"] = [
        {"index": at, "message": message, "logprobs": draw(logprobs), "finish_reason": draw(finish)} | draw(unknown)
        for at, message in enumerate(draw(st.lists(chat_messages(), min_size=1, max_size=3)))
    ]
    return answer


block = st.one_of(
    st.builds(lambda text, cited: {"type": "text", "text": text, "citations": cited}, words, st.none() | st.just([{"type": "char_location", "cited_text": "é", "document_index": 0, "document_title": None, "start_char_index": 0, "end_char_index": 1}])),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "c2ln"}, words),
    st.just({"type": "redacted_thinking", "data": "ZGF0YQ=="}),
    st.builds(lambda kind, given: {"type": kind, "id": "toolu_1", "name": "f", "input": given}, st.sampled_from(["tool_use", "server_tool_use"]), st.dictionaries(words, json_values, max_size=3)),
    st.builds(lambda given: {"type": "x_future", "payload": given}, json_values),
)  # fmt: skip


@st.composite
def message_answers(draw: st.DrawFn) -> Json:
    return draw(anthropic_messages()) | {"content": draw(st.lists(block, max_size=4))} | draw(unknown)


@settings(max_examples=80, deadline=None)
@given(chat_answers())
def test_a_chat_completion_comes_back_from_its_stream(answer: Json) -> None:
    assert plain("chat", streamed("chat", answer)) == answer


@settings(max_examples=80, deadline=None)
@given(message_answers())
def test_a_message_comes_back_from_its_stream(answer: Json) -> None:
    assert plain("messages", streamed("messages", answer)) == answer


@settings(max_examples=25, deadline=None)
@given(chat_answers())
def test_openais_sdk_gathers_a_chat_completion_from_its_stream(answer: Json) -> None:
    assert gathered("chat", streamed("chat", answer)) == bare(json.loads(json.dumps(answer)))


@settings(max_examples=25, deadline=None)
@given(message_answers())
def test_anthropics_sdk_gathers_a_message_from_its_stream(answer: Json) -> None:
    assert gathered("messages", streamed("messages", answer)) == bare(json.loads(json.dumps(answer)))


@settings(max_examples=25, deadline=None)
@given(completions(), st.integers(1, 5))
def test_a_chats_stream_in_small_pieces_is_the_completion(answer: Json, size: int) -> None:
    found = plain("chat", written("chat", list(chat_chunks(answer, size))))
    assert without_nulls(found | {"usage": None}) == without_empty(answer)
    assert found["usage"] == answer["usage"]


def without_empty(answer: Json) -> Json:
    """As `chat_chunks` tells it: of empty words it says nothing."""
    (choice,) = answer["choices"]
    message = {name: value for name, value in choice["message"].items() if value != ""}
    found: Json = without_nulls(answer | {"choices": [choice | {"message": message}], "usage": None})
    return found


@settings(max_examples=25, deadline=None)
@given(anthropic_messages(), st.integers(1, 5), st.booleans())
def test_a_messages_stream_in_small_pieces_is_the_message(answer: Json, size: int, spaced: bool) -> None:
    found = plain("messages", written("messages", list(anthropic_events(answer, size, spaced=spaced))))
    assert without_nulls(found) == without_nulls(answer)


def test_half_an_emoji_stays_half() -> None:
    answer = json.loads(corpus("chat/ordinary.json")[1])
    answer["choices"][0]["message"]["content"] = "\ud83d"
    assert plain("chat", streamed("chat", answer)) == answer


# --- as it was relayed --------------------------------------------------------------------------------------------------


def live(stream: Stream, said: bytes, size: int) -> bytes:
    parts = [said[at : at + size] for at in range(0, len(said), size)]
    return b"".join(map(stream.feed, parts)) + stream.end() + stream.last()


@pytest.mark.parametrize("case", STREAMS)
@HIDDEN
def test_a_stream_comes_again_byte_for_byte_as_it_was_relayed(case: str, hide_usage: bool) -> None:
    endpoint, said = corpus(case)
    hides = hide_usage and endpoint == "chat"
    for size in (1, 7, len(said)):
        stream = Stream(ADAPTERS[WIRES[endpoint]].reader(endpoint), None, hide_usage=hides, keeps=True)
        relayed = live(stream, said, size)
        given = forms.again(bytes(stream.whole), hide_usage=hides)
        if size == len(said) or "crlf" not in case:
            assert given == relayed
        assert sse.events(given) == sse.events(relayed)  # where CR LF was cut in two, its LF was relayed later
    if hides:
        assert b'"total_tokens"' not in relayed


@settings(max_examples=20, deadline=None)
@given(anthropic_messages(), st.booleans())
def test_a_translated_stream_comes_again_byte_for_byte_as_it_was_relayed(answer: Json, hide_usage: bool) -> None:
    asked = Asked({"model": "m"}, NOW).with_usage()
    translator = pair(("openai", "chat"), "anthropic").stream(asked)
    reader = ADAPTERS["anthropic"].reader("messages")
    stream = Stream(reader, translator, hide_usage=hide_usage, keeps=True)
    relayed = live(stream, written("messages", list(anthropic_events(answer, 3, spaced=False))), 50)
    assert forms.again(bytes(stream.whole), hide_usage=hide_usage) == relayed
    assert (b'"total_tokens"' in relayed) is not hide_usage


def test_what_comes_behind_the_end_of_a_chat_is_told_again_as_it_was() -> None:
    """The relay lets it pass as it is, its usage too."""
    said = corpus("chat/ordinary.sse")[1]
    said += b'data: {"object":"chat.completion.chunk","choices":[],"usage":{"total_tokens":1}}\n\n'
    stream = Stream(ADAPTERS["openai"].reader("chat"), None, hide_usage=True, keeps=True)
    relayed = live(stream, said, 100)
    assert forms.again(bytes(stream.whole), hide_usage=True) == relayed
    assert relayed.count(b"total_tokens") == 1


# --- what has no other form ---------------------------------------------------------------------------------------------


def chunk(delta: Json, finish: str | None = "stop", **more: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} | more


def message_events(*deltas: Json, block: Json) -> list[Json]:
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]


TEXT: Json = {"type": "text", "text": ""}
TOOL: Json = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
ERROR = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Later."}}\n\n'


@pytest.mark.parametrize("case", ["chat/ordinary.sse", "messages/ordinary.sse", "responses/ordinary.sse", "responses/incomplete.sse"])  # fmt: skip
def test_a_stream_that_broke_off_or_failed_is_no_answer(case: str) -> None:
    endpoint, said = corpus(case)
    events = said.strip().split(b"\n\n")
    stop = {"chat": 3, "messages": 2, "responses": 1}[endpoint]  # whoever has said why he stops has said all
    for number in range(len(events) - stop + 1):
        cut = b"".join(one + b"\n\n" for one in events[:number])
        with pytest.raises(NotRenderable):
            forms.plain(endpoint, cut)
        with pytest.raises(NotRenderable):
            forms.plain(endpoint, cut + ERROR + b"".join(one + b"\n\n" for one in events[number:]))
    for number in (1, len(events) - 2):
        broken = [*events[:number], b"data: {", *events[number:]]
        with pytest.raises(NotRenderable):
            forms.plain(endpoint, b"".join(one + b"\n\n" for one in broken))


@pytest.mark.parametrize(
    ("endpoint", "events"),
    [
        ("chat", [chunk({"content": "a"}), {"error": {"code": "x", "message": "No."}}]),
        ("chat", [chunk({"role": "assistant"}), chunk({"role": "user"})]),
        ("chat", [chunk({"content": "a"}), chunk({"content": ["b"]})]),
        ("chat", [chunk({"x": 1}), chunk({"x": 1})]),
        ("chat", [chunk({"x": 1}), chunk({"x": "b"})]),
        ("chat", [chunk({"audio": {"data": "AAA="}})]),
        ("chat", [chunk({"tool_calls": [{"function": {"arguments": "{}"}}]})]),
        ("chat", [chunk({"content": "a"}, object="x.future")]),
        ("chat", [chunk({"x": float("nan")})]),
        ("chat", [chunk({}, choices=[])]),
        ("chat", [chunk({}, choices=[{"delta": {"content": "a"}}])]),
        ("chat", [chunk({}, choices=["a"])]),
        ("messages", message_events({"type": "x_delta", "x": "a"}, block=TEXT)),
        ("messages", message_events({"type": "thinking_delta", "thinking": "a"}, block=TEXT)),
        ("messages", message_events({"type": "input_json_delta", "partial_json": '{"a'}, block=TOOL)),
        ("messages", message_events({"type": "input_json_delta", "partial_json": "[1]"}, block=TOOL)),
        ("messages", message_events(block=TEXT)[1:]),
        ("messages", [*message_events(block=TEXT)[:1], *message_events(block=TEXT)]),
        ("messages", [one for one in message_events(block=TEXT) if one["type"] != "content_block_stop"]),
        ("messages", [one | ({"index": 1} if "index" in one else {}) for one in message_events(block=TEXT)]),
        ("responses", [{"type": "response.failed", "response": {"status": "failed", "output": []}}]),
        ("responses", [{"type": "response.completed", "response": {"status": "completed", "output": None}}]),
        ("responses", [{"type": "response.completed"}]),
        ("embeddings", []),
    ],
)  # fmt: skip
def test_what_does_not_add_up_has_no_plain_form(endpoint: str, events: list[Json]) -> None:
    with pytest.raises(NotRenderable):
        forms.plain(endpoint, written(endpoint, events))


def test_servers_that_repeat_who_speaks_are_understood() -> None:
    first = {"role": "assistant", "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]}  # fmt: skip
    more = {"role": "assistant", "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"arguments": "}"}}]}  # fmt: skip
    message = plain("chat", written("chat", [chunk(first, None), chunk(more)]))["choices"][0]["message"]
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert message == {"role": "assistant", "tool_calls": [call]}


CHAT: Json = json.loads(corpus("chat/ordinary.json")[1])
MESSAGE: Json = json.loads(corpus("messages/ordinary.json")[1])
RESPONSE: Json = json.loads(corpus("responses/ordinary.json")[1])


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        ("chat", CHAT | {"object": "list"}),
        ("chat", CHAT | {"choices": []}),
        ("chat", CHAT | {"choices": [{"index": 0}]}),
        ("chat", CHAT | {"choices": [CHAT["choices"][0] | {"message": {"role": "assistant", "audio": {"data": "AAA="}}}]}),
        ("chat", CHAT | {"choices": [CHAT["choices"][0] | {"message": {"x": [{"index": 0, "a": "b"}, {"index": 0}]}}]}),
        ("chat", CHAT | {"choices": CHAT["choices"] * 2}),
        ("chat", ["a"]),
        ("messages", MESSAGE | {"type": "error"}),
        ("messages", MESSAGE | {"content": "a"}),
        ("messages", MESSAGE | {"content": [{"text": "no type"}]}),
        ("messages", {name: value for name, value in MESSAGE.items() if name != "usage"}),
        ("responses", RESPONSE | {"status": "in_progress"}),
        ("responses", RESPONSE | {"status": "failed"}),
        ("responses", RESPONSE | {"output": None}),
        ("responses", RESPONSE | {"output": ["a"]}),
        ("embeddings", {"object": "list", "data": []}),
    ],
)  # fmt: skip
def test_what_a_stream_cannot_tell_has_no_streamed_form(endpoint: str, answer: Any) -> None:
    for hide_usage in (False, True):
        with pytest.raises(NotRenderable):
            streamed(endpoint, answer, hide_usage=hide_usage)


@pytest.mark.parametrize("endpoint", WIRES)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 5000])
def test_what_cannot_be_read_has_no_other_form(endpoint: str, body: bytes) -> None:
    with pytest.raises(NotRenderable):
        forms.stream(endpoint, body, hide_usage=False)
    with pytest.raises(NotRenderable):
        forms.plain(endpoint, b"data: %b\n\n" % body)
