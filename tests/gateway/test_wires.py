"""Reading a body for its facts, and changing a field of it without touching another byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.gateway.streaming import Events
from aiplatform.gateway.wires import ANTHROPIC, OPENAI, NotPriced, with_fields
from aiplatform.lib.errors import ApiError
from aiplatform.providers.base import Usage
from tests.gateway.pictures import encoded, mp3, picture, wav
from usage.pricing import Bound

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
objects = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), json_values, max_size=6)


@given(
    objects,
    st.dictionaries(st.sampled_from(["max_tokens", "stream_options", "é"]), json_values, max_size=3),
    st.sampled_from([None, 0, 2]),
)
def test_setting_fields_changes_these_and_nothing_else(
    before: dict[str, Any], fields: dict[str, Any], indent: int | None
) -> None:
    body = json.dumps(before, indent=indent, ensure_ascii=indent is None).encode()
    after = json.loads(with_fields(body, fields))
    assert after == before | fields
    assert list(after)[: len(before)] == list(before)


def test_setting_a_field_keeps_every_other_byte() -> None:
    body = b'{ "model" : "m",\n\t"max_tokens":1e1 , "x": [1.50, {"max_tokens": 3}] \n}\n'
    assert (
        with_fields(body, {"max_tokens": 7})
        == b'{ "model" : "m",\n\t"max_tokens":7 , "x": [1.50, {"max_tokens": 3}] \n}\n'
    )
    assert with_fields(
        body, {"n": 2}
    ) == b'{ "model" : "m",\n\t"max_tokens":1e1 , "x": [1.50, {"max_tokens": 3}],"n": 2 \n}\n'.replace(
        b'"n": 2', b'"n":2'
    )
    assert with_fields(b"{ }", {"n": 2}) == b'{"n":2 }'


@given(
    st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=8),
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
)
def test_events_are_found_however_the_network_cuts_them(payloads: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    events, found, at = Events(), [], 0
    for turn in range(len(whole) + 1):
        size = cuts[turn % len(cuts)]
        found += events.feed(whole[at : at + size])
        at += size
    assert b"".join(raw for raw, _ in found) == whole
    assert [data for _, data in found] == [payload.strip(b" ") for payload in payloads]


@given(st.binary(max_size=60))
def test_no_bytes_make_reading_crash(body: bytes) -> None:
    for wire, endpoint in ((OPENAI, "chat"), (ANTHROPIC, "messages")):
        try:
            wire.read(endpoint, body, {})
        except ApiError as error:
            assert error.status in {400, 402}


@given(objects)
def test_no_object_makes_reading_crash(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "messages": [{}], "max_tokens": 5} | fields).encode()
    for wire, endpoint in ((OPENAI, "chat"), (ANTHROPIC, "messages")):
        try:
            wire.read(endpoint, body, {})
        except ApiError as error:
            assert error.status in {400, 402}


@given(
    st.sampled_from(
        ["messages", "tools", "metadata", "modalities", "stream_options", "n", "user", "service_tier", "system"]
    ),
    json_values,
)
def test_no_value_of_a_known_field_makes_reading_crash(name: str, value: Any) -> None:
    body = json.dumps({"model": "m", "messages": [{}], "max_tokens": 5, name: value}).encode()
    for wire, endpoint in ((OPENAI, "chat"), (ANTHROPIC, "messages")):
        try:
            wire.read(endpoint, body, {})
        except ApiError as error:
            assert error.status in {400, 402}


@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC])
def test_the_input_bound_is_above_any_tokenizer(wire: Any) -> None:
    text = "a\u00e9\U0001f600" * 50
    facts = wire.read(
        "chat",
        json.dumps({"model": "m", "max_tokens": 5, "messages": [{"content": text}]}, ensure_ascii=False).encode(),
        {},
    )
    assert facts.bound.input_tokens > len(text.encode())


TINY = encoded(picture("png", 64, 64))


def openai_bound(model: str = "gpt-4o", parts: list[Any] | None = None, **more: Any) -> Bound:
    content: Any = "hello" if parts is None else parts
    body = {"model": model, "messages": [{"role": "user", "content": content}]} | more
    return OPENAI.read("chat", json.dumps(body).encode(), {}).bound


def anthropic_bound(model: str = "claude-opus-5", blocks: list[Any] | None = None, **more: Any) -> Bound:
    content: Any = "hello" if blocks is None else blocks
    body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": content}]} | more
    return ANTHROPIC.read("messages", json.dumps(body).encode(), {}).bound


def image_url(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | more}


def test_the_frame_of_a_message_never_costs_more_tokens_than_it_has_bytes() -> None:
    """Vendors wrap a message in 3 to 7 tokens; the shortest that they accept has more bytes than that besides its text."""
    one, many = ({"role": "user", "content": "a"},) * 2
    for wire in (OPENAI, ANTHROPIC):
        body = json.dumps({"model": "m", "max_tokens": 5, "messages": [one, *[many] * 1000]}, separators=(",", ":"))
        assert wire.read("", body.encode(), {}).bound.input_tokens >= 1001 * (7 + len("a")) + 256


def test_the_bytes_of_images_and_audio_are_no_text() -> None:
    sound, big = wav(20), encoded(picture("jpeg_with_profile", 1024, 1024))
    parts = [
        image_url(f"data:image/jpeg;base64,{big}"),
        {"type": "input_audio", "input_audio": {"data": encoded(sound), "format": "wav"}},
    ]
    bound = openai_bound(parts=parts)
    assert bound.input_tokens < 800
    assert bound.meters == {"input_image": 765, "input_audio": 21 * 20}
    source = {"type": "base64", "media_type": "image/jpeg", "data": big}
    assert anthropic_bound(blocks=[{"type": "image", "source": source}]).input_tokens < 600


def test_what_is_likely_counts_images_as_such_and_text_by_four_bytes_a_token() -> None:
    parts = [
        {"type": "text", "text": "x" * 4000},
        image_url(f"data:image/png;base64,{TINY}"),
        {"type": "input_audio", "input_audio": {"data": encoded(mp3(3)), "format": "mp3"}},
    ]
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": parts}]}).encode()
    likely = OPENAI.read("chat", body, {}).likely
    assert 1000 + 765 < likely.input < 1000 + 765 + 100
    assert likely.meters == {"input_audio": 30}
    plain = OPENAI.read("chat", b'{"model":"m","messages":[{"content":"hello"}]}', {})
    assert plain.likely == Usage(-(-len(plain.body) // 4))


def test_a_picture_that_is_not_in_the_body_is_held_at_the_models_greatest() -> None:
    url = "https://x.test/a.png"
    assert openai_bound(parts=[image_url(url)]).meters == {"input_image": 85 + 8 * 170}
    assert openai_bound(parts=[image_url(url, detail="low")]).meters == {"input_image": 85}
    assert openai_bound("gpt-5.5", parts=[image_url(url)]).meters == {"input_image": 12_000}
    assert openai_bound("gpt-6-sol", parts=[image_url(url, detail="high")]).meters == {"input_image": 3000}
    assert openai_bound("unheard-of", parts=[image_url(url, detail="high")]).meters == {"input_image": 2833 + 8 * 5667}
    remote = {"type": "image", "source": {"type": "url", "url": url}}
    assert anthropic_bound(blocks=[remote]).meters == {"input_image": 4904}
    assert anthropic_bound("claude-haiku-4-5", blocks=[remote]).meters == {"input_image": 1608}


@pytest.mark.parametrize(
    "model", ["claude-opus-4-7", "claude-opus-4-8", "claude-sonnet-5", "claude-fable-5-1", "claude-opus-4-20", "new"]
)
def test_a_claude_that_may_see_more_is_held_at_more(model: str) -> None:
    assert (
        anthropic_bound(model, blocks=[{"type": "image", "source": {"type": "url", "url": "u"}}]).meters["input_image"]
        == 4904
    )


@pytest.mark.parametrize(
    "model", ["claude-3-5-sonnet-20241022", "claude-sonnet-4-20250514", "claude-sonnet-4-5-20250929", "claude-opus-4-6", "claude-haiku-4-5", "claude-opus-4-1"]
)  # fmt: skip
def test_a_claude_of_the_old_resolution_is_held_at_less(model: str) -> None:
    assert (
        anthropic_bound(model, blocks=[{"type": "image", "source": {"type": "url", "url": "u"}}]).meters["input_image"]
        == 1608
    )


@pytest.mark.parametrize(
    ("tier", "variants", "may_serve"),
    [
        (None, ("standard",), ("priority", "flex")),
        ("auto", ("standard",), ("priority", "flex")),
        ("default", ("standard",), ()),
        ("flex", ("flex", "standard"), ()),
        ("priority", ("priority", "standard"), ()),
        ("fast", ("priority", "standard"), ()),
    ],
)
def test_what_may_be_served_is_held(tier: str | None, variants: tuple[str, ...], may_serve: tuple[str, ...]) -> None:
    bound = openai_bound(service_tier=tier)
    assert (bound.variants, bound.may_serve) == (variants, may_serve)


def test_fast_mode_tools_and_choices_are_held() -> None:
    assert anthropic_bound(speed="fast").variants == ("standard", "fast")
    assert openai_bound(n=3).choices == 3
    assert openai_bound(modalities=["text", "audio"]).output_meters == ("output", "output_audio")
    assert openai_bound(tools=[{"type": "function"}]).input_tokens - openai_bound().input_tokens > 1024
    bash = [{"type": "bash_20250124", "name": "bash"}]
    assert anthropic_bound(tools=bash).input_tokens - anthropic_bound().input_tokens > 2048


PART_REFUSALS: list[tuple[str, Any]] = [
    ("gpt-6-sol", image_url("https://x.test/a.png")),
    ("gpt-6-sol", image_url("https://x.test/a.png", detail="original")),
    ("unheard-of", image_url("https://x.test/a.png")),
    ("gpt-6-sol", image_url("data:image/png;base64,AAAA")),
    ("gpt-4o", {"type": "file", "file": {"file_id": "f"}}),
    ("gpt-4o", {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}),
    ("gpt-4o", {"type": "input_audio", "input_audio": {"data": encoded(b"fLaC" + bytes(99)), "format": "mp3"}}),
    ("gpt-4o", {"type": "input_audio", "input_audio": {"data": 7, "format": "wav"}}),
    ("gpt-4o", {"type": "input_audio"}),
    ("gpt-4o", {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}),
    ("gpt-4o", {"type": ["video"]}),
    ("gpt-4o", "text"),
]


@pytest.mark.parametrize(("model", "part"), PART_REFUSALS)
def test_a_part_that_nothing_bounds_is_refused_with_what_to_do(model: str, part: Any) -> None:
    with pytest.raises(NotPriced) as refusal:
        openai_bound(model, parts=[{"type": "text", "text": "x"}, part])
    assert refusal.value.details["param"] == "messages[0]"


@pytest.mark.parametrize(
    "more",
    [
        {"service_tier": "scale"},
        {"service_tier": 7},
        {"service_tier": ["auto"]},
        {"modalities": ["text", "video"]},
        {"modalities": "text"},
        {"modalities": [["text"]]},
        {"web_search_options": {}},
        {"prediction": {"type": "content", "content": "x"}},
        {"prompt_cache_options": {"ttl": "12h"}},
        {"tools": [{"type": "web_search_preview"}]},
        {"model": "gpt-4o-search-preview"},
        {"model": "gpt-5-search-api"},
        {"model": "o3-deep-research"},
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
    ],
)
def test_an_openai_option_that_nothing_bounds_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(NotPriced):
        openai_bound(**more)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "file", "file_id": "f"}},
        {"type": "image"},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
        {"type": "document", "source": {"type": "url", "url": "https://x.test"}},
        {"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": True}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "container_upload"}]}},
        {"type": "search_result", "content": [], "citations": {"enabled": True}},
        {"type": "tool_result", "content": [{"type": "document", "source": {"type": "file"}}]},
        {"type": "web_search_tool_result", "content": []},
        {"type": "compaction", "content": "x"},
        "text",
    ],
)
def test_a_block_that_nothing_bounds_is_refused_with_what_to_do(block: Any) -> None:
    with pytest.raises(NotPriced) as refusal:
        anthropic_bound(blocks=[{"type": "text", "text": "x"}, block])
    assert refusal.value.details["param"] == "messages.0"


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]},
        {"tools": [{"type": "code_execution_20250825", "name": "c"}]},
        {"mcp_servers": [{}]},
        {"container": "c"},
        {"thread": {"type": "continue", "previous_message_id": "m"}},
        {"fallbacks": "default"},
        {"compaction": {}},
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        {"billing_policy": {"bill_to": "user_profile"}},
        {"service_tier": "priority"},
        {"speed": "ludicrous"},
        {"inference_geo": "us"},
        {"system": [{"type": "image", "source": {"type": "file"}}]},
    ],
)
def test_an_anthropic_option_that_nothing_bounds_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(NotPriced):
        anthropic_bound(**more)


@pytest.mark.parametrize(
    "more",
    [
        {"service_tier": "auto", "speed": None, "inference_geo": "global"},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"tools": [{"type": "custom", "name": "f", "input_schema": {}}, {"name": "g", "input_schema": {}}]},
        {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    ],
)
def test_an_anthropic_option_that_is_bounded_is_accepted(more: dict[str, Any]) -> None:
    assert anthropic_bound(**more).input_tokens > 256


@pytest.mark.parametrize(
    "part", [image_url("x", detail="best"), {"type": "image_url"}, {"type": "image_url", "image_url": {"url": 7}}]
)
def test_an_image_that_cannot_be_read_is_a_bad_request(part: Any) -> None:
    with pytest.raises(ApiError) as error:
        openai_bound(parts=[part])
    assert error.value.status == 400
