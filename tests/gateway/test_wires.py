"""Reading a body for its facts, and changing a field of it without touching another byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.gateway.execution import Events
from aiplatform.gateway.wires import ANTHROPIC, OPENAI, with_fields
from aiplatform.lib.errors import ApiError

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
    assert [data for _, data in found] == [payload.lstrip(b" ") for payload in payloads]


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
