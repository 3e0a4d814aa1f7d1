"""What is read of a request for a response: its bound, what it names, and what is refused."""

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.gateway.wires import OPENAI, Asked, Facts, Named, NotPriced, responses
from aiplatform.lib.errors import ApiError
from aiplatform.providers.endpoints import ENDPOINTS
from tests.gateway.pictures import encoded, picture, wav
from tests.gateway.test_wires import json_values, objects

CREATE, COUNT = ENDPOINTS["openai", "responses"], ENDPOINTS["openai", "responses.input_tokens"]


class Row(NamedTuple):
    """An object as it is on record."""

    model: str
    figures: dict[str, Any]


def read(body: Any = None, **more: Any) -> Facts:
    raw = body if isinstance(body, bytes) else json.dumps({"model": "gpt-4o", "input": "hello"} | more).encode()
    return responses.read(Asked(CREATE, raw, {}, {}, ""))


def continued(figures: dict[str, Any], made_by: str = "gpt-4o", **more: Any) -> Facts:
    facts = read(previous_response_id="resp_1", **more)
    facts.objects = [Row(made_by, figures)]
    responses.bound_earlier(facts)
    return facts


@given(st.binary(max_size=60))
def test_no_bytes_make_reading_crash(body: bytes) -> None:
    for reader, endpoint in ((responses.read, CREATE), (responses.read_count, COUNT)):
        try:
            reader(Asked(endpoint, body, {}, {}, ""))
        except ApiError as error:
            assert error.status in {400, 402}


@given(objects)
def test_no_object_makes_reading_crash(fields: dict[str, Any]) -> None:
    _must_not_crash({"model": "m", "input": "x"} | fields)


@given(
    st.sampled_from(
        ["input", "instructions", "tools", "previous_response_id", "prompt_cache_options", "reasoning", "background",
         "background_options", "service_tier", "max_output_tokens", "user", "safety_identifier", "modalities", "stream"]
    ),
    json_values,
)  # fmt: skip
def test_no_value_of_a_known_field_makes_reading_crash(name: str, value: Any) -> None:
    _must_not_crash({"model": "m", "input": "x", name: value})
    _must_not_crash({"model": "m", "input": [{"role": "user", "content": [{"type": "input_image", name: value}]}]})
    _must_not_crash({"model": "m", "input": [{"type": value, "content": value, "output": value, "id": value}]})
    _must_not_crash({"model": "m", "input": [value, {"role": "user", "content": [value]}], "tools": [value]})


def _must_not_crash(request: Any) -> None:
    for reader, endpoint in ((responses.read, CREATE), (responses.read_count, COUNT)):
        try:
            reader(Asked(endpoint, json.dumps(request).encode(), {}, {}, ""))
        except ApiError as error:
            assert error.status in {400, 402}


def test_text_images_audio_and_tools_are_bounded_as_in_a_chat() -> None:
    image, sound = encoded(picture("png", 64, 64)), encoded(wav(2))
    url = f"data:image/png;base64,{image}"
    chat = {"model": "gpt-4o", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    ]}]}  # fmt: skip
    bound = read(input=[{"role": "user", "content": [
        {"type": "input_image", "image_url": url}, {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    ]}]).bound  # fmt: skip
    assert bound.meters == OPENAI.read("chat", json.dumps(chat).encode(), {}).bound.meters
    assert bound.input_tokens < 1000
    assert read(tools=[{"type": "function", "name": "f"}]).bound.input_tokens > read().bound.input_tokens + 1024
    output = [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": url}]}]
    assert read(input=output).bound.meters["input_image"] > 0


def test_the_input_bound_is_above_any_tokenizer() -> None:
    text = "a\u00e9\U0001f600" * 50
    assert read(input=text, instructions=text).bound.input_tokens > 2 * len(text.encode())


def test_a_request_tells_what_it_only_names() -> None:
    facts = read(
        previous_response_id="resp_1",
        prompt_cache_options={"comparison_response_id": "resp_2"},
        input=[
            {"type": "item_reference", "id": "msg_1"},
            {"id": "rs_1"},
            {"type": "reasoning", "id": "rs_2", "summary": []},
            {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "AAAA"},
            {"type": "message", "id": "msg_2", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
        ],
    )
    assert facts.names == [
        Named("response", "resp_1", "previous_response_id"),
        Named("response", "resp_2", "comparison_response_id"),
        Named("item", "msg_1", "input"),
        Named("item", "rs_1", "input"),
        Named("item", "rs_2", "input"),
    ]


def test_what_was_said_before_is_added_to_the_bound() -> None:
    plain, facts = read(previous_response_id="resp_1"), continued({"tokens": 5000})
    assert facts.bound.input_tokens == plain.bound.input_tokens + 5000
    assert facts.likely.input == plain.likely.input + 5000


@pytest.mark.parametrize("media", [["input_image"], ["input_audio"], ["input_audio", "input_image"]])
def test_what_may_have_been_images_or_audio_is_held_as_each_of_them(media: list[str]) -> None:
    facts = continued({"tokens": 5000, "media": media})
    assert facts.bound.meters == dict.fromkeys(media, 5000)
    assert facts.figures == {"media": media}  # and so it is in whatever continues this


@pytest.mark.parametrize("figures", [{}, {"served": "gpt-4o"}])
def test_what_has_no_known_tokens_is_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(NotPriced, match="is not known"):
        continued(figures)


def test_only_the_model_that_counted_may_go_on_whatever_name_it_was_given() -> None:
    dated = {"tokens": 5, "served": "gpt-4o-2024-08-06"}
    assert continued(dated).bound.input_tokens > 5
    assert continued(dated, "alias", model="gpt-4o-2024-08-06").bound.input_tokens > 5
    with pytest.raises(NotPriced, match="counted for 'gpt-5'"):
        continued({"tokens": 5, "served": "gpt-5-2025"}, "gpt-5")


def test_an_item_counted_in_bytes_may_go_to_any_model() -> None:
    facts = read(input=[{"type": "item_reference", "id": "msg_1"}])
    facts.objects = [Row("gpt-5", {"tokens": 70, "is_bytes": True})]
    before = facts.bound.input_tokens
    responses.bound_earlier(facts)
    assert facts.bound.input_tokens == before + 70


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "namespace", "tools": [{"type": "web_search"}]}]},
        {"tools": [{"type": "local_shell"}]},
        {"input": [{"type": "additional_tools", "role": "developer", "tools": [{"type": "mcp"}]}]},
        {"input": [{"type": "compaction", "encrypted_content": "x"}]},
        {"input": [{"type": "computer_call_output", "output": {}}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "x"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"ttl": "12h"}}]}]},
        {"prompt_cache_options": {"ttl": "12h"}},
        {"model": "gpt-4o-search-preview"},
        {"model": "o3-deep-research"},
        {"service_tier": "scale"},
        {"modalities": ["text", "video"]},
    ],
)  # fmt: skip
def test_an_option_that_nothing_bounds_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(NotPriced):
        read(**more)


@pytest.mark.parametrize(
    "more",
    [
        {
            "tools": [
                {"type": "namespace", "tools": [{"type": "function", "name": "f"}]},
                {"type": "custom", "name": "g"},
            ]
        },
        {"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": "x"}]},
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
        {"reasoning": {"effort": "high", "summary": "auto", "mode": "standard"}},
        {"background": True, "background_options": {"completion_window": "soonest"}},
        {"prompt_cache_options": {"ttl": "30m"}, "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}, "truncation": "auto", "store": False},
        {"conversation": None, "prompt": None, "max_output_tokens": None, "previous_response_id": None},
    ],
)
def test_an_option_that_is_bounded_is_accepted(more: dict[str, Any]) -> None:
    assert read(**more).bound.input_tokens > 256


def test_a_look_is_a_stream_only_where_it_asks_for_one() -> None:
    look = ENDPOINTS["openai", "responses.retrieve"]
    for query, streamed in (("", False), ("stream=true&starting_after=3", True), ("stream=false", False)):
        facts = responses.read_look(Asked(look, b"", {}, {"id": "resp_1"}, query))
        assert (facts.streamed, facts.names) == (streamed, [Named("response", "resp_1")])
