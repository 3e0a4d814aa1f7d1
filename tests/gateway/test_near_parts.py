"""What near matches keep in a bucket, and what of an answer is held against another."""

import json
import time
import uuid
from typing import Any

import pytest
from pytest_django import Settings

from aiplatform.gateway.cache import buckets, shelf
from aiplatform.gateway.cache.buckets import Member
from aiplatform.gateway.cache.said import said
from aiplatform.gateway.cache.shelf import Entry
from aiplatform.lib import embedding
from aiplatform.lib.ids import uuid7


def a_member(age: float = 0) -> Member:
    """One whose call came in so many seconds ago."""
    at = int((time.time() - age) * 1000)
    call_id = uuid.UUID(int=(at << 80) | (uuid7().int & ((1 << 80) - 1)))
    return Member(uuid.uuid4().hex + "00000000", call_id, bytes(range(128)) * 3)


def an_answer(endpoint: str, body: Any, *, is_stream: bool = False) -> Entry:
    text = body if isinstance(body, str) else json.dumps(body)
    return Entry(uuid7(), 0, uuid7(), "m", "p", "m", endpoint, "", is_stream, text.encode())


@pytest.fixture
def bucket(settings: Settings) -> str:
    """A bucket in a cache of this test's own."""
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": uuid.uuid4().hex}
    }
    return uuid.uuid4().hex


def kept_in(bucket: str) -> list[Member]:
    return buckets.unpacked(shelf.get([bucket]).get(bucket))


def test_a_bucket_is_read_as_it_was_written() -> None:
    members = [a_member() for _ in range(3)]
    assert len(members[0].vector) == embedding.BYTES
    assert buckets.unpacked(buckets.packed(members)) == members


@pytest.mark.parametrize("kept", [None, b"", b"\x02" + b"a" * 420, b"\x01abc", "text", 7], ids=str)
def test_what_is_no_bucket_holds_nothing(kept: Any) -> None:
    assert buckets.unpacked(kept) == []


def test_a_bucket_keeps_the_newest_and_each_question_once(bucket: str) -> None:
    members = [a_member() for _ in range(buckets.MOST + 3)]
    buckets.add([(bucket, member, 300) for member in members], now=time.time())
    assert kept_in(bucket) == members[:2:-1]
    again = Member(members[-2].question, uuid7(), members[-2].vector)
    buckets.add([(bucket, again, 300)], now=time.time())
    kept = kept_in(bucket)
    assert kept[0] == again
    assert len(kept) == buckets.MOST
    assert members[-2] not in kept


def test_a_bucket_drops_what_is_older_than_answers_are_kept(bucket: str) -> None:
    old, young, new = a_member(age=301), a_member(age=200), a_member()
    shelf.put([(bucket, buckets.packed([young, old]), 300)])
    buckets.add([(bucket, new, 300)], now=time.time())
    assert kept_in(bucket) == [new, young]


CHAT_CALL = {"function": {"name": "look", "arguments": '{"at":1}'}}


@pytest.mark.parametrize(
    ("endpoint", "body", "text"),
    [
        ("chat", {"choices": [{"message": {"content": "Yes."}}]}, "Yes."),
        ("chat", {"choices": [{"message": {"content": None, "refusal": "No."}}]}, "No."),
        ("chat", {"choices": [{"message": {"content": None, "tool_calls": [CHAT_CALL]}}]}, '\nlook {"at":1}'),
        ("chat", {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}, "a\nb"),
        ("messages", {"content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yes."}]}, "Yes."),
        ("messages", {"content": [{"type": "tool_use", "name": "look", "input": {"at": 1}}]}, 'look {"at":1}'),
        ("responses", {"output": [{"type": "reasoning"}, {"type": "message", "content": [{"text": "Yes."}]}]}, "Yes."),
        ("responses", {"output": [{"type": "function_call", "name": "look", "arguments": "{}"}]}, "look {}"),
        ("chat", {"error": {}}, None), ("chat", "no JSON", None), ("embeddings", {"data": []}, None),
        ("messages", {"content": [{"text": "no type"}]}, None), ("chat", {"choices": [{"message": None}]}, None),
    ],
    ids=str,
)  # fmt: skip
def test_what_an_answer_says(endpoint: str, body: Any, text: str | None) -> None:
    assert said(an_answer(endpoint, body)) == text


def test_a_stream_says_what_its_plain_answer_says_and_a_broken_one_nothing() -> None:
    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return f"data: {json.dumps({**common, 'choices': [choice]})}\n\n"

    events = event({"role": "assistant", "content": "It is "}) + event({"content": "so."}) + event({}, "stop")
    assert said(an_answer("chat", events + "data: [DONE]\n\n", is_stream=True)) == "It is so."
    assert said(an_answer("chat", event({"content": "It is "}), is_stream=True)) is None
