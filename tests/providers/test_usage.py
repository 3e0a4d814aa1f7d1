"""What providers report is read into disjoint classes that add up to their totals; zero is zero, and missing is unknown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.providers.anthropic import Anthropic
from aiplatform.providers.base import Usage
from aiplatform.providers.openai import OpenAI

count = st.integers(0, 10**6)
hostile = st.one_of(
    count, st.none(), st.integers(-(2**70), 2**70), st.booleans(), st.floats(allow_nan=False), st.sampled_from(["", "7"]), st.just([]), st.just({})
)  # fmt: skip
OPENAI_DETAILS = ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens")
OPENAI_SPENT = ("reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
IN = ("input_audio", "cache_audio_read", "input_image")


def read_openai(usage: Any, **more: Any) -> Usage | None:
    return OpenAI().read_whole(json.dumps({"usage": usage} | more).encode()).usage


def read_anthropic(usage: Any) -> Usage | None:
    return Anthropic().read_whole(json.dumps({"usage": usage}).encode()).usage


def went_in(usage: Usage) -> int:
    return usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h + rare(usage, *IN)


def rare(usage: Usage, *meters: str) -> int:
    return sum(usage.meters.get(meter, 0) for meter in meters)


def everything(usage: Usage) -> list[int]:
    classes = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")
    return [getattr(usage, name) for name in classes] + list(usage.meters.values())


@given(
    count,
    count,
    st.dictionaries(st.sampled_from(OPENAI_DETAILS), hostile),
    st.dictionaries(st.sampled_from(OPENAI_SPENT), hostile),
)
def test_openais_classes_add_up_to_its_totals(
    prompt: int, completion: int, given_details: dict[str, Any], spent: dict[str, Any]
) -> None:
    usage = read_openai(
        {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": given_details,
            "completion_tokens_details": spent,
        }
    )
    assert usage is not None
    assert went_in(usage) == prompt
    assert usage.output + rare(usage, "output_audio") == completion
    assert usage.reasoning <= usage.output
    assert min(everything(usage)) >= 0


@given(count, count, count, count, count, st.booleans())
def test_openais_parts_keep_their_size_where_they_fit(
    text: int, audio: int, image: int, cached: int, said: int, whole: bool
) -> None:
    """Cached text beside fresh audio and images: each class is what the provider said."""
    details = {"cached_tokens": cached, "audio_tokens": audio, "image_tokens": image}
    prompt = text + cached + audio + image
    usage = read_openai(
        {
            "prompt_tokens": prompt,
            "completion_tokens": said + 5,
            "prompt_tokens_details": details | ({"text_tokens": text + cached} if whole else {}),
            "completion_tokens_details": {"audio_tokens": said, "reasoning_tokens": 5},
        }
    )
    meters = {"input_audio": audio, "input_image": image, "output_audio": said}
    assert usage == Usage(text, cached, 0, 0, 5, 5, {meter: tokens for meter, tokens in meters.items() if tokens})


def test_audio_that_was_cached_for_certain_is_no_cached_text() -> None:
    usage = read_openai(
        {
            "prompt_tokens": 100,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 90, "audio_tokens": 60},
        }
    )
    assert usage == Usage(0, 40, 0, 0, 1, 0, {"input_audio": 10, "cache_audio_read": 50})


def test_cached_images_are_cached_text() -> None:
    details = {"cached_tokens": 90, "image_tokens": 60}
    usage = read_openai({"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": details})
    assert usage == Usage(0, 90, 0, 0, 1, 0, {"input_image": 10})


@given(st.dictionaries(st.sampled_from(("input_tokens", "output_tokens")), count, min_size=2), st.dictionaries(
    st.sampled_from(("cache_read_input_tokens", "cache_creation_input_tokens", "service_tier", "speed")), hostile
), st.dictionaries(st.sampled_from(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")), hostile), hostile)  # fmt: skip
def test_anthropics_classes_add_up_to_its_totals(
    base: dict[str, int], more: dict[str, Any], split: dict[str, Any], searches: Any
) -> None:
    usage = read_anthropic(
        base | more | {"cache_creation": split, "server_tool_use": {"web_search_requests": searches}}
    )
    assert usage is not None
    assert (usage.input, usage.output) == (base["input_tokens"], base["output_tokens"])
    written = more.get("cache_creation_input_tokens")
    if type(written) is int and 0 <= written < 2**40:
        assert usage.cache_write_5m + usage.cache_write_1h == written
    assert min(everything(usage)) >= 0
    assert usage.reasoning <= usage.output


def test_anthropics_split_of_cache_writes_counts_where_their_sum_is_missing() -> None:
    split = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}
    usage = read_anthropic({"input_tokens": 1, "output_tokens": 2, "cache_creation": split})
    assert usage == Usage(1, 0, 3, 4, 2)


def test_searches_and_thinking_are_read() -> None:
    usage = read_anthropic(
        {
            "input_tokens": 1,
            "output_tokens": 20,
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "output_tokens_details": {"thinking_tokens": 15},
        }
    )
    assert usage == Usage(1, 0, 0, 0, 20, 15, {"web_search": 2})


@pytest.mark.parametrize("missing", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("value", ["absent", None, "7", -1, 1.5, True, 2**40])
def test_a_missing_figure_of_openai_is_unknown_never_zero(missing: str, value: Any) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 1, missing: value}
    if value == "absent":
        del usage[missing]
    assert read_openai(usage) is None


@pytest.mark.parametrize("missing", ["input_tokens", "output_tokens"])
@pytest.mark.parametrize("value", ["absent", None, "7", -1, 1.5, True, 2**40])
def test_a_missing_figure_of_anthropic_is_unknown_never_zero(missing: str, value: Any) -> None:
    usage: dict[str, Any] = {"input_tokens": 1, "output_tokens": 1, missing: value}
    if value == "absent":
        del usage[missing]
    assert read_anthropic(usage) is None


def test_an_explicit_zero_is_zero() -> None:
    assert read_openai({"prompt_tokens": 0, "completion_tokens": 0}) == Usage()
    assert read_anthropic({"input_tokens": 0, "output_tokens": 0}) == Usage()


@pytest.mark.parametrize(
    ("said", "variant"),
    [
        ("default", "standard"), ("auto", "standard"), ("scale", "standard"), ("flex", "flex"), ("priority", "priority"),
        ("fast", "priority"), ("turbo", "turbo"), ("x" * 99, "x" * 16), ("<b>", "standard"), ("", "standard"), (None, "standard"), (7, "standard"),
    ],
)  # fmt: skip
def test_the_tier_by_which_openai_served_is_read(said: Any, variant: str) -> None:
    usage = read_openai({"prompt_tokens": 1, "completion_tokens": 1}, service_tier=said)
    assert usage is not None
    assert usage.variant == variant


@pytest.mark.parametrize(
    ("said", "variant"),
    [
        ({}, "standard"),
        ({"service_tier": "standard"}, "standard"),
        ({"service_tier": "priority"}, "standard"),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": "priority", "speed": "fast"}, "fast"),
        ({"speed": "standard"}, "standard"),
        ({"speed": 3, "service_tier": []}, "standard"),
    ],
)
def test_the_way_in_which_anthropic_served_is_read(said: dict[str, Any], variant: str) -> None:
    usage = read_anthropic({"input_tokens": 1, "output_tokens": 1} | said)
    assert usage is not None
    assert usage.variant == variant


def test_a_stream_tells_its_tier_before_or_after_its_usage() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    for chunks in ([{"service_tier": "flex"}, {"usage": usage}], [{"usage": usage}, {"service_tier": "flex"}]):
        reading = OpenAI().read_whole(b"")
        for chunk in chunks:
            OpenAI().read_event(reading, json.dumps(chunk).encode())
        assert reading.usage == Usage(3, 0, 0, 0, 4, variant="flex")
