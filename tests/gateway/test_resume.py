"""A stream goes on after any of its events, byte for byte, and is never made a second time."""

import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import redis

from aiplatform.gateway.relay import stream_key
from tests.fakes.provider import FakeProvider
from tests.gateway.streams import PATHS, Told, a_body, a_canary, before_comment, begun, ended, rest, told, whole
from tests.system import System, set_up_provider, start_system


@pytest.fixture(scope="module")
def two(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own with two web processes."""
    with start_system(far_end, WEB_PROCESSES="2") as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


@pytest.fixture
def webs(two: System) -> Iterator[System]:
    two.far_end.clear()
    yield two
    two.far_end.clear()


def forgotten(system: System, call: str) -> None:
    """Redis loses the call's stream."""
    with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
        assert client.delete(stream_key(uuid.UUID(call.removeprefix("call_")))) == 1


@pytest.mark.parametrize("wire", PATHS)
def test_every_event_has_its_number_and_a_provider_s_own_ids_are_replaced(webs: System, wire: str) -> None:
    canary = a_canary()
    webs.far_end.script(match=canary, before_each=": note\nid: 77\n")
    stream = told(webs, webs.tenant(), canary, wire)
    assert stream.numbers == list(range(1, len(stream.numbers) + 1))
    assert len(stream.numbers) > 8
    assert b"77" not in stream.content
    assert stream.content.count(b": note\n") == len(stream.numbers)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("wire", PATHS)
def test_a_stream_that_has_ended_goes_on_after_every_event(webs: System, wire: str, newline: str) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, newline=newline)
    stream, before = told(webs, customer, canary, wire), webs.far_end.count()["arrived"]
    numbers = [int(each) for each in re.findall(rb"(?:\A|(?<=[\r\n]))id: (\d+)\n", stream.content)]
    assert len(numbers) > 8
    for number in range(len(numbers) + 1):
        at = stream.content.find(b"id: %d\n" % (number + 1))
        expected = before_comment(stream.content[at:]) if at >= 0 else b""
        reply = rest(webs, customer, stream.call, number)
        assert (reply.status_code, before_comment(reply.content)) == (200, expected)
        assert reply.headers["x-call-id"] == stream.call
    assert webs.far_end.count()["arrived"] == before


def test_a_running_stream_goes_on_after_every_event_at_any_web_process(webs: System) -> None:
    """Whoever was cut off after an event asks while the call still runs, and gets exactly what he has not had."""
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, pace_ms=120, output_tokens=24, before_each=": note\n")
    pieces: list[bytes] = []
    with ThreadPoolExecutor(32) as pool:
        with begun(webs, customer, canary) as (reply, chunks):
            asked = {}
            for piece in chunks:
                pieces.append(piece)
                for number in Told("", b"".join(pieces)).numbers:
                    if number not in asked:
                        asked[number] = pool.submit(rest, webs, customer, reply.headers["x-call-id"], number)
        stream = Told(reply.headers["x-call-id"], b"".join(pieces))
        assert len(stream.numbers) > 20
        for number, answer in asked.items():
            got = before_comment(answer.result().content).removeprefix(b": note\n")
            assert got == stream.after(number), number
    assert ended(webs, stream.call)["evidence"] == "provider"


def test_last_event_id_says_the_same_as_the_query(webs: System) -> None:
    customer = webs.tenant()
    stream = told(webs, customer, a_canary())
    with webs.http(customer.key) as http:
        url = f"/v1/calls/{stream.call}/stream"
        assert before_comment(http.get(url, headers={"last-event-id": "3"}).content) == stream.after(3)
        assert before_comment(http.get(url).content) == stream.after(0)
        both = http.get(url, params={"starting_after": "4"}, headers={"last-event-id": "3"})
    assert both.status_code == 400


@pytest.mark.parametrize("word", ["", "abc", "-1", "1.5", " 1", "1-0", "9" * 12, "٣"])
def test_a_number_that_is_none_is_400_and_not_the_stream_from_its_start(webs: System, word: str) -> None:
    customer = webs.tenant()
    stream = told(webs, customer, a_canary())
    reply = rest(webs, customer, stream.call, word)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "starting_after")


def test_an_event_that_was_not_told_yet_cannot_be_gone_on_after(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, pace_ms=100, output_tokens=15)
    with begun(webs, customer, canary) as (reply, chunks):
        next(chunks)
        assert rest(webs, customer, reply.headers["x-call-id"], 500).status_code == 400
        for _ in chunks:
            pass
    assert rest(webs, customer, reply.headers["x-call-id"], 500).status_code == 400


def test_a_stream_is_its_environment_s_alone(webs: System) -> None:
    customer, rival = webs.tenant(), webs.tenant()
    stream = told(webs, customer, a_canary())
    for call in (stream.call, f"call_{uuid.uuid4()}"):
        for reply in (rest(webs, rival, call, 0), whole(webs, rival, call)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "call_not_found")
    assert rest(webs, customer, "call_nonsense", 0).status_code == 400


def test_a_plain_answer_is_no_stream(webs: System) -> None:
    customer = webs.tenant()
    with webs.http(customer.key) as http:
        plain = http.post(PATHS["openai"], json=a_body(a_canary(), stream=False))
    assert rest(webs, customer, plain.headers["x-call-id"], 0).status_code == 400
    assert whole(webs, customer, plain.headers["x-call-id"]).content == plain.content


def test_what_is_on_record_goes_on_when_redis_has_forgotten_it(webs: System) -> None:
    customer = webs.tenant()
    stream = told(webs, customer, a_canary())
    forgotten(webs, stream.call)
    assert before_comment(rest(webs, customer, stream.call, 5).content) == stream.after(5)
    assert before_comment(whole(webs, customer, stream.call).content) == stream.after(0)


def test_a_running_stream_whose_beginning_is_lost_says_so_and_is_whole_after_its_end(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, pace_ms=150, output_tokens=20)
    pieces = []
    with begun(webs, customer, canary) as (reply, chunks):
        call = reply.headers["x-call-id"]
        pieces += [next(chunks), next(chunks)]
        forgotten(webs, call)
        pieces.append(next(chunks))
        lost = rest(webs, customer, call, 1)
        assert (lost.status_code, lost.json()["error"]["code"]) == (410, "not_resumable")
        pieces += list(chunks)
    stream = Told(call, b"".join(pieces))
    ended(webs, call)
    assert before_comment(rest(webs, customer, call, 1).content) == stream.after(1)


def test_a_stream_too_large_to_be_stored_is_told_again_from_redis_and_then_no_more(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, text="x" * 6_000_000, chunks=120, output_tokens=100)
    stream = told(webs, customer, canary)
    assert len(stream.content) > 6_000_000
    ended(webs, stream.call)
    assert before_comment(rest(webs, customer, stream.call, 60).content) == stream.after(60)
    assert before_comment(whole(webs, customer, stream.call).content) == stream.after(0)
    forgotten(webs, stream.call)
    gone = rest(webs, customer, stream.call, 60)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "not_resumable")
    assert whole(webs, customer, stream.call).json()["error"]["code"] == "answer_not_kept"


def test_a_large_stream_is_replayed_by_its_idempotency_key_with_every_byte_as_it_was(webs: System) -> None:
    customer, canary, key = webs.tenant(), a_canary(), {"idempotency-key": uuid.uuid4().hex}
    webs.far_end.script(match=canary, text="x" * 6_000_000, chunks=120, output_tokens=100)
    with webs.http(customer.key) as http:
        first = http.post(PATHS["openai"], json=a_body(canary), headers=key)
        again = http.post(PATHS["openai"], json=a_body(canary), headers=key)
    assert (again.content == first.content, again.headers["idempotent-replayed"]) == (True, "true")


def test_a_stream_that_broke_off_ends_the_same_way_again(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, cut_after_chunks=6, cut="reset")
    stream = told(webs, customer, canary)
    assert b"stream_broken" in stream.content
    ended(webs, stream.call)
    assert before_comment(rest(webs, customer, stream.call, 2).content) == stream.after(2)


def test_a_stream_that_was_handed_in_is_read_as_it_comes(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, pace_ms=100, output_tokens=20)
    with webs.http(customer.key) as http:
        call = http.post(PATHS["openai"], json=a_body(canary), headers={"prefer": "respond-async"}).json()["id"]
        while (reply := http.get(f"/v1/calls/{call}/stream")).status_code == 202:
            time.sleep(0.05)
    stream = Told(call, reply.content)
    assert stream.numbers == list(range(1, len(stream.numbers) + 1))
    assert b"[DONE]" in stream.content
    assert before_comment(whole(webs, customer, call).content) == stream.after(0)


def test_the_sdk_reads_the_rest_of_a_stream(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    words = [
        chunk.choices[0].delta.content
        for chunk in webs.openai(customer.key).chat.completions.create(**a_body(canary))
        if chunk.choices and chunk.choices[0].delta.content
    ]
    stream = told(webs, customer, canary)
    again = openai.Stream(
        cast_to=openai.types.chat.ChatCompletionChunk,
        response=rest(webs, customer, stream.call, 2),
        client=webs.openai(customer.key),
    )
    said = [chunk.choices[0].delta.content for chunk in again if chunk.choices and chunk.choices[0].delta.content]
    assert said == words[-len(said) :]
    assert len(said) >= len(words) - 2


def test_many_read_one_running_stream_and_one_of_them_slowly(webs: System) -> None:
    customer, canary = webs.tenant(), a_canary()
    webs.far_end.script(match=canary, pace_ms=60, output_tokens=25)
    found: list[bytes] = []

    def read(call: str) -> None:
        reply: httpx2.Response = rest(webs, customer, call, 0)
        found.append(before_comment(reply.content))

    with begun(webs, customer, canary) as (reply, chunks):
        readers = [threading.Thread(target=read, args=[reply.headers["x-call-id"]]) for _ in range(12)]
        for one in readers:
            one.start()
        content = b"".join(chunks)
        for one in readers:
            one.join()
    assert set(found) == {before_comment(content)}
