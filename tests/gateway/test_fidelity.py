"""What a provider says reaches the client as it was said: the corpus, through the real system, beside the same thing direct."""

import uuid
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import orjson
import pytest
from openai._streaming import SSEDecoder

from aiplatform.gateway.readers import HEARTBEAT
from tests.fakes import scripted, sse
from tests.fakes.provider import FakeProvider
from tests.system import Customer, System

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.rglob("*.*") if path.suffix in {".json", ".sse"})
STREAMS = [case for case in CASES if case.endswith(".sse")]
# The SDKs lose the first event behind a byte order mark, and fail at a comment once there was an id; of ours they do not.
MENDED = ("chat/byte_order_mark.sse", "messages/byte_order_mark.sse", "chat/comments_ids_retries.sse")
NANO = {"input": 150, "cache_read": 75, "output": 600}  # as tests.system prices fake-1


class Played:
    """One case of the corpus as its provider's answer, whatever is asked."""

    def __init__(self, system: System, customer: Customer, case: str) -> None:
        self.system, self.customer, self.case = system, customer, case
        self.said = (CORPUS / case).read_bytes()
        self.stream = case.endswith(".sse")
        self.kind = case.split("/", maxsplit=1)[0]
        self.path = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}[
            self.kind
        ]
        system.far_end.script(match=f"corpus {case}", **scripted.exactly(self.said, stream=self.stream))

    def body(self, **more: Any) -> dict[str, Any]:
        content = f"corpus {self.case}"
        asked: dict[str, Any] = {"model": "fake-1"}
        if self.kind == "responses":
            asked |= {"max_output_tokens": 64, "store": False, "input": content}
        else:
            asked |= {"max_tokens": 64, "messages": [{"role": "user", "content": content}]}
        return asked | ({"stream": True} if self.stream else {}) | more

    @property
    def asking(self) -> dict[str, Any]:
        """So that the provider is asked for its usage, as our gateway does by itself."""
        return {"stream_options": {"include_usage": True}} if self.stream and self.kind == "chat" else {}

    def ours(self, **more: Any) -> httpx2.Response:
        return self.system.http(self.customer.key).post(self.path, json=self.body(**more))

    def seen_by_the_sdk(self, base_url: str, key: str) -> list[Any]:
        """Every object that the wire's own SDK makes of the answer, or the error that it raises."""
        try:
            if self.kind != "messages":
                with openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as client:
                    create: Any = (
                        client.responses.create if self.kind == "responses" else client.chat.completions.create
                    )
                    answer: Any = create(**self.body(**self.asking))
                    return [one.model_dump(warnings=False) for one in (answer if self.stream else [answer])]
            with anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as client:
                answer = client.messages.create(**self.body())
                return [one.model_dump(warnings=False) for one in (answer if self.stream else [answer])]
        except (
            openai.APIError,
            anthropic.APIError,
            ValueError,
        ) as error:  # an id without data makes it fail, direct as well
            return [type(error).__name__, str(error)]


@pytest.fixture
def played(system: System, customer: Customer, request: pytest.FixtureRequest) -> Played:
    return Played(system, customer, request.param)


def charge(system: System, reply: httpx2.Response) -> dict[str, Any]:
    call = uuid.UUID(reply.headers["x-call-id"].removeprefix("call_"))
    (row,) = system.rows("SELECT state, evidence, charged_nano, error_code FROM usage_call WHERE id = %s", call)
    return row


def nano(kind: str, said: bytes, *, stream: bool) -> int:
    """The charge by the usage that the provider told, added up apart from our own code."""
    objects = (
        [orjson.loads(one.data) for one in sse.events(said + b"\n\n") if one.data != "[DONE]"]
        if stream
        else [orjson.loads(said)]
    )
    told: dict[str, Any] = {}
    for one in objects:
        told |= {
            name: figure
            for name, figure in ((one.get("message") or one.get("response") or one).get("usage") or {}).items()
            if figure is not None
        }
    if kind == "responses":
        read = told["input_tokens_details"]["cached_tokens"]
        counts = {"input": told["input_tokens"] - read, "cache_read": read, "output": told["output_tokens"]}
    elif kind == "chat":
        read = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        counts = {"input": told["prompt_tokens"] - read, "cache_read": read, "output": told["completion_tokens"]}
    else:
        read = told.get("cache_read_input_tokens", 0)
        counts = {"input": told["input_tokens"], "cache_read": read, "output": told["output_tokens"]}
    return sum(int(count) * NANO[meter] for meter, count in counts.items())


@pytest.mark.parametrize("played", CASES, indirect=True)
def test_what_the_provider_says_arrives_as_it_was_said_and_is_charged_by_its_usage(played: Played) -> None:
    reply = played.ours(**played.asking)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == scripted.exactly(b"", stream=played.stream)["content_type"]
    if played.stream:
        said = sse.events(played.said + b"\n\n")  # some do not end their last event; we do
        assert sse.events(reply.content) == said
        assert b": cost_usd=" in reply.content
    else:
        assert reply.content == played.said
    assert charge(played.system, reply) == {
        "state": "settled", "evidence": "provider", "error_code": "",
        "charged_nano": nano(played.kind, played.said, stream=played.stream),
    }  # fmt: skip


@pytest.mark.parametrize("played", CASES, indirect=True)
def test_the_sdk_makes_the_same_of_our_answer_as_of_the_providers(played: Played) -> None:
    if played.case in MENDED:
        played.system.far_end.clear()
        played.system.far_end.script(
            match=f"corpus {played.case}", **scripted.exactly(events_alone(played.said), stream=True)
        )
    direct = played.seen_by_the_sdk(played.system.far_end.base_url, "unused")
    played.system.far_end.clear()
    played.system.far_end.script(match=f"corpus {played.case}", **scripted.exactly(played.said, stream=played.stream))
    assert played.seen_by_the_sdk(played.system.base_url, played.customer.key) == direct


def events_alone(said: bytes) -> bytes:
    return "".join(
        (f"event: {one.name}\n" if one.name else "") + f"data: {one.data}\n\n" for one in sse.events(said)
    ).encode()


@pytest.mark.parametrize("played", [case for case in STREAMS if case.startswith("chat/")], indirect=True)
def test_a_stream_that_nobody_asked_for_usage_lacks_that_and_nothing_else(played: Played) -> None:
    reply = played.ours()
    said = [one for one in sse.events(played.said + b"\n\n") if not is_usage(one)]
    assert sse.events(reply.content) == said
    assert charge(played.system, reply)["evidence"] == "provider"


def is_usage(event: sse.Event) -> bool:
    if event.data == "[DONE]":
        return False
    told = orjson.loads(event.data)
    return told.get("usage") is not None and told.get("choices") == []


def test_a_null_usage_that_nobody_asked_for_goes_and_nested_ones_stay(system: System, customer: Customer) -> None:
    head = b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"fake-1","x":{"usage":null,"y":1},'
    choice = b'"choices":[{"index":0,"delta":{"content":"\\"usage\\":null,"},"finish_reason":"stop"}]'
    usage = b'{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    said = b'data: %s%s, "usage" : null}\n\ndata: %s\n\ndata: [DONE]\n\n' % (head, choice, usage)
    system.far_end.script(match="nested usage", **scripted.exactly(said, stream=True))
    reply = system.http(customer.key).post(
        "/v1/chat/completions",
        json={"model": "fake-1", "stream": True, "messages": [{"role": "user", "content": "nested usage"}]},
    )
    assert sse.events(reply.content)[0].data.encode() == head + choice + b"}"
    assert len(sse.events(reply.content)) == 2


@pytest.mark.parametrize("played", CASES, indirect=True)
def test_a_compressed_answer_arrives_as_it_was_before(played: Played) -> None:
    played.system.far_end.clear()
    played.system.far_end.script(
        match=f"corpus {played.case}", split_bytes=7, **scripted.gzipped(played.said, stream=played.stream)
    )
    reply = played.ours(**played.asking)
    assert "content-encoding" not in reply.headers
    assert charge(played.system, reply)["evidence"] == "provider"
    if played.stream:
        assert sse.events(reply.content) == sse.events(played.said + b"\n\n")
    else:
        assert reply.content == played.said


@pytest.mark.parametrize("case", [f"{kind}/unknown_and_nested.sse" for kind in ("chat", "messages", "responses")])
def test_a_stream_cut_at_every_byte_is_the_same_stream(system: System, customer: Customer, case: str) -> None:
    one = Played(system, customer, case)
    said = one.said.replace(b"\\u00e9 \\ud83d\\ude00", "é 😀".encode())
    system.far_end.clear()
    system.far_end.script(match=f"corpus {case}", split_bytes=1, **scripted.exactly(said, stream=True))
    assert sse.events(one.ours(**one.asking).content) == sse.events(said)


def test_a_heartbeat_after_a_numbered_event_is_no_event_to_the_sdk() -> None:
    numbered = b"id: 1\ndata: {}\n\n"
    said = numbered + HEARTBEAT + numbered
    assert [one.data for one in SSEDecoder().iter_bytes(iter([said]))] == ["{}", "{}"]


def test_the_corpus_is_read_by_this_file(system: System, far_end: FakeProvider) -> None:
    """A case that no test plays, or a folder that is empty, would prove nothing."""
    assert len(CASES) >= 45
    assert {case.split("/")[0] for case in CASES} == {"chat", "messages", "responses"}
