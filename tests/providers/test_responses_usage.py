"""What is read of a response: its usage in disjoint classes, how it ended, and whether it ended at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiplatform.providers.base import Reading, Usage
from aiplatform.providers.responses import Responses
from tests.fakes.faults import Fault
from tests.fakes.responses import Response

count = st.integers(0, 10**6)
hostile = st.one_of(
    count, st.none(), st.integers(-(2**70), 2**70), st.booleans(), st.floats(allow_nan=False), st.sampled_from(["", "7"]), st.just([]), st.just({})
)  # fmt: skip
DETAILS = ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "cache_write_tokens_details")


def read(**fields: Any) -> Reading:
    return Responses().read_whole(json.dumps({"id": "resp_1", "status": "completed"} | fields).encode())


def read_stream(*events: Any) -> Reading:
    reading = Reading()
    for event in events:
        Responses().read_event(reading, event if isinstance(event, bytes) else json.dumps(event).encode())
    return reading


def far_response(**asked: Any) -> Response:
    fault = asked.pop("fault", Fault())
    return Response(
        number=7, asked={"model": "m", "input": "hi"} | asked, texts=["one ", "two "], input_tokens=3, output_tokens=2,
        is_cut=False, fault=fault,
    )  # fmt: skip


def data_of(event: bytes) -> bytes:
    return event.split(b"\ndata: ")[1].strip()


@given(count, count, st.dictionaries(st.sampled_from(DETAILS), hostile), hostile)
def test_the_classes_add_up_to_the_totals(went_in: int, out: int, details: dict[str, Any], reasoning: Any) -> None:
    usage = read(
        usage={
            "input_tokens": went_in,
            "output_tokens": out,
            "input_tokens_details": details,
            "output_tokens_details": {"reasoning_tokens": reasoning},
        }
    ).usage
    assert usage is not None
    rare = [usage.meters.get(meter, 0) for meter in ("input_audio", "cache_audio_read", "input_image")]
    assert usage.input + usage.cache_read + usage.cache_write_5m + sum(rare) == went_in
    assert usage.output == out
    assert 0 <= usage.reasoning <= usage.output


@given(st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "input_tokens_details"]), hostile))
def test_a_usage_without_both_totals_is_unknown_and_never_zero(usage: dict[str, Any]) -> None:
    known = all(
        type(usage.get(name)) is int and 0 <= usage[name] < 1 << 40 for name in ("input_tokens", "output_tokens")
    )
    assert (read(usage=usage).usage is not None) == known


@given(
    st.recursive(hostile | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)), st.binary()
)
def test_nothing_that_a_provider_sends_makes_reading_crash(value: Any, raw: bytes) -> None:
    for name in ("usage", "output", "status", "error", "store", "id", "model", "service_tier", "tool_usage"):
        read(**{name: value})
        read_stream({"type": "response.completed", "response": {name: value}})
    read(output=[{"content": value, "arguments": value}, {"content": [value, {"text": value}]}])
    read_stream({"type": value, "delta": value, "response": value, "error": value, "sequence_number": value}, raw)
    Responses().read_whole(raw)


def test_cached_and_written_tokens_reasoning_and_the_tier_are_told_apart() -> None:
    usage = read(
        service_tier="priority",
        usage={
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 40},
        },
    ).usage
    assert usage == Usage(10, 60, 30, 0, 50, 40, {}, "priority")


def test_searches_that_the_provider_bills_are_counted() -> None:
    usage = read(
        usage={"input_tokens": 1, "output_tokens": 1}, tool_usage={"web_search": {"num_requests": 2}, "image_gen": {}}
    ).usage
    assert usage is not None
    assert usage.meters == {"web_search": 2}


@pytest.mark.parametrize(
    ("status", "complete", "pending", "failed"),
    [
        ("completed", True, False, False),
        ("incomplete", True, False, False),
        ("failed", True, False, True),
        ("cancelled", True, False, False),
        ("queued", False, True, False),
        ("in_progress", False, True, False),
        (None, True, False, False),
    ],
)
def test_a_plain_answer_has_ended_unless_it_says_that_it_has_not(
    status: str | None, complete: bool, pending: bool, failed: bool
) -> None:
    reading = read(status=status)
    assert (reading.complete, reading.is_pending, reading.has_failed) == (complete, pending, failed)


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_a_stream_is_complete_with_its_terminal_event_and_not_before(end: str) -> None:
    events = [data_of(event) for event, _ in far_response(fault=Fault(ends=end)).events()]
    cut = read_stream(*events[:-1])
    assert not cut.complete
    assert cut.usage is None
    whole = read_stream(*events)
    assert whole.complete
    assert whole.sequence_number == len(events) - 1
    assert whole.usage == (None if end == "failed" else Usage(3, output=2))
    assert whole.has_failed == (end == "failed")


def test_a_stream_and_its_plain_answer_tell_the_same() -> None:
    asked: dict[str, Any] = {
        "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}],
        "tool_choice": "required",
    }
    for one in (far_response(), far_response(**asked)):
        stream = read_stream(*(data_of(event) for event, _ in one.events()))
        plain = Responses().read_whole(json.dumps(one.told("completed")).encode())
        assert stream.text_bytes == plain.text_bytes > 0
        assert (stream.usage, stream.model, stream.object) == (plain.usage, plain.model, plain.object)


def test_what_a_cut_stream_said_is_counted_in_bytes_of_what_was_generated() -> None:
    deltas = [
        ("response.output_text.delta", "é"),
        ("response.refusal.delta", "no"),
        ("response.function_call_arguments.delta", "{}"),
        ("response.custom_tool_call_input.delta", "ls"),
        ("response.reasoning_text.delta", "hm"),
        ("response.reasoning_summary_text.delta", "a summary is written besides"),
        ("response.audio.delta", "AAAA"),
    ]
    assert read_stream(*({"type": kind, "delta": text} for kind, text in deltas)).text_bytes == 10


def test_an_error_event_says_that_it_failed_and_why() -> None:
    for event in (
        {"type": "error", "code": "server_error", "message": "x"},
        {"type": "error", "error": {"type": "server_error", "code": None, "message": "x"}},
    ):
        reading = read_stream(event)
        assert (reading.error, reading.has_failed, reading.complete) == ("server_error", True, False)


@pytest.mark.parametrize(("store", "is_kept"), [(True, True), (False, False), (None, True)])
def test_only_a_stored_response_is_an_object_that_somebody_owns(store: bool | None, is_kept: bool) -> None:
    fields = {} if store is None else {"store": store}
    assert (read(**fields).object is not None) == is_kept
    assert (
        read_stream({"type": "response.created", "response": {"id": "resp_1"} | fields}).object is not None
    ) == is_kept
