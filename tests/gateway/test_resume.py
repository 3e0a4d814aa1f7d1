"""A stream goes on after any of its events, byte for byte, and is never made a second time."""

import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import redis

from aiplatform.gateway import streaming
from aiplatform.gateway.relay import stream_key
from tests.gateway.streams import PATHS, Told, a_body, a_canary, before_comment, begun, ended, rest, told, whole
from tests.system import System


def forgotten(system: System, call: str) -> None:
    """Redis loses the call's stream."""
    with redis.Redis.from_url(system.stack.facts["redis_url"]) as client:
        assert client.delete(stream_key(uuid.UUID(call.removeprefix("call_")))) == 1


@pytest.mark.parametrize("wire", PATHS)
def test_every_event_has_its_number_and_a_provider_s_own_ids_are_replaced(two_webs: System, wire: str) -> None:
    canary = a_canary()
    two_webs.far_end.script(match=canary, before_each=": note\nid: 77\n")
    stream = told(two_webs, two_webs.tenant(), canary, wire)
    assert stream.numbers == list(range(1, len(stream.numbers) + 1))
    assert len(stream.numbers) > 8
    assert b"id: 77" not in stream.content
    assert stream.content.count(b": note\n") == len(stream.numbers)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("wire", PATHS)
def test_a_stream_that_has_ended_goes_on_after_every_event(two_webs: System, wire: str, newline: str) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, newline=newline)
    stream, before = told(two_webs, customer, canary, wire), two_webs.far_end.count()["arrived"]
    numbers = [int(each) for each in re.findall(rb"(?:\A|(?<=[\r\n]))id: (\d+)\n", stream.content)]
    assert len(numbers) > 8
    for number in range(len(numbers) + 1):
        at = stream.content.find(b"id: %d\n" % (number + 1))
        expected = before_comment(stream.content[at:]) if at >= 0 else b""
        reply = rest(two_webs, customer, stream.call, number)
        assert (reply.status_code, before_comment(reply.content)) == (200, expected)
        assert reply.headers["x-call-id"] == stream.call
    assert two_webs.far_end.count()["arrived"] == before


def test_a_running_stream_goes_on_after_every_event_at_any_web_process(two_webs: System) -> None:
    """Whoever was cut off after an event asks while the call still runs, and gets exactly what he has not had."""
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, pace_ms=120, output_tokens=24, before_each=": note\n")
    pieces: list[bytes] = []
    with ThreadPoolExecutor(32) as pool:
        with begun(two_webs, customer, canary) as (reply, chunks):
            asked = {}
            for piece in chunks:
                pieces.append(piece)
                for number in Told("", b"".join(pieces)).numbers:
                    if number not in asked:
                        asked[number] = pool.submit(rest, two_webs, customer, reply.headers["x-call-id"], number)
        stream = Told(reply.headers["x-call-id"], b"".join(pieces))
        assert len(stream.numbers) > 20
        for number, answer in asked.items():
            got = before_comment(answer.result().content).removeprefix(b": note\n")
            assert got == stream.after(number), number
    assert ended(two_webs, stream.call)["evidence"] == "provider"


def test_who_has_all_that_was_told_still_hears_why_no_more_comes() -> None:
    had, own = b"id: 1\ndata: a\n\nid: 2\ndata: b\r\n\r\n", b'data: {"error":{}}\n\n'
    assert streaming.After(2)(had) == b""
    assert streaming.After(2)(b": note\n") == b""
    assert streaming.After(2)(had + b": cost_usd=0.1\n") == b""
    assert streaming.After(2)(had + own) == own
    assert streaming.After(2)(own) == own
    assert streaming.After(1)(had + own) == had[had.index(b"id: 2") :] + own


def test_last_event_id_says_the_same_as_the_query(two_webs: System) -> None:
    customer = two_webs.tenant()
    stream = told(two_webs, customer, a_canary())
    with two_webs.http(customer.key) as http:
        url = f"/v1/calls/{stream.call}/stream"
        assert before_comment(http.get(url, headers={"last-event-id": "3"}).content) == stream.after(3)
        assert before_comment(http.get(url).content) == stream.after(0)
        both = http.get(url, params={"starting_after": "4"}, headers={"last-event-id": "3"})
    assert both.status_code == 400


@pytest.mark.parametrize("word", ["", "abc", "-1", "1.5", " 1", "1-0", "9" * 12, "٣"])
def test_a_number_that_is_none_is_400_and_not_the_stream_from_its_start(two_webs: System, word: str) -> None:
    customer = two_webs.tenant()
    stream = told(two_webs, customer, a_canary())
    reply = rest(two_webs, customer, stream.call, word)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "starting_after")


def test_an_event_that_was_not_told_yet_cannot_be_gone_on_after(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, pace_ms=100, output_tokens=15)
    with begun(two_webs, customer, canary) as (reply, chunks):
        next(chunks)
        assert rest(two_webs, customer, reply.headers["x-call-id"], 500).status_code == 400
        for _ in chunks:
            pass
    assert rest(two_webs, customer, reply.headers["x-call-id"], 500).status_code == 400


def test_a_stream_is_its_environment_s_alone(two_webs: System) -> None:
    customer, rival = two_webs.tenant(), two_webs.tenant()
    stream = told(two_webs, customer, a_canary())
    for call in (stream.call, f"call_{uuid.uuid4()}"):
        for reply in (rest(two_webs, rival, call, 0), whole(two_webs, rival, call)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "call_not_found")
    assert rest(two_webs, customer, "call_nonsense", 0).status_code == 400


def test_a_plain_answer_is_no_stream(two_webs: System) -> None:
    customer = two_webs.tenant()
    with two_webs.http(customer.key) as http:
        plain = http.post(PATHS["openai"], json=a_body(a_canary(), stream=False))
    assert rest(two_webs, customer, plain.headers["x-call-id"], 0).status_code == 400
    assert whole(two_webs, customer, plain.headers["x-call-id"]).content == plain.content


def test_what_is_on_record_goes_on_when_redis_has_forgotten_it(two_webs: System) -> None:
    customer = two_webs.tenant()
    stream = told(two_webs, customer, a_canary())
    forgotten(two_webs, stream.call)
    assert before_comment(rest(two_webs, customer, stream.call, 5).content) == stream.after(5)
    assert before_comment(whole(two_webs, customer, stream.call).content) == stream.after(0)


def test_a_running_stream_whose_beginning_is_lost_says_so_and_is_whole_after_its_end(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, pace_ms=150, output_tokens=20)
    pieces = []
    with begun(two_webs, customer, canary) as (reply, chunks):
        call = reply.headers["x-call-id"]
        pieces += [next(chunks), next(chunks)]
        forgotten(two_webs, call)
        pieces.append(next(chunks))
        lost = rest(two_webs, customer, call, 1)
        assert (lost.status_code, lost.json()["error"]["code"]) == (410, "not_resumable")
        pieces += list(chunks)
    stream = Told(call, b"".join(pieces))
    ended(two_webs, call)
    assert before_comment(rest(two_webs, customer, call, 1).content) == stream.after(1)


def test_a_stream_too_large_to_be_stored_is_told_again_from_redis_and_then_no_more(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, text="x" * 6_000_000, chunks=120, output_tokens=100)
    stream = told(two_webs, customer, canary)
    assert len(stream.content) > 6_000_000
    ended(two_webs, stream.call)
    assert before_comment(rest(two_webs, customer, stream.call, 60).content) == stream.after(60)
    assert before_comment(whole(two_webs, customer, stream.call).content) == stream.after(0)
    forgotten(two_webs, stream.call)
    gone = rest(two_webs, customer, stream.call, 60)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "not_resumable")
    assert whole(two_webs, customer, stream.call).json()["error"]["code"] == "answer_not_kept"


def test_a_large_stream_is_replayed_by_its_idempotency_key_with_every_byte_as_it_was(two_webs: System) -> None:
    customer, canary, key = two_webs.tenant(), a_canary(), {"idempotency-key": uuid.uuid4().hex}
    two_webs.far_end.script(match=canary, text="x" * 6_000_000, chunks=120, output_tokens=100)
    with two_webs.http(customer.key) as http:
        first = http.post(PATHS["openai"], json=a_body(canary), headers=key)
        again = http.post(PATHS["openai"], json=a_body(canary), headers=key)
    assert (again.content == first.content, again.headers["idempotent-replayed"]) == (True, "true")


def test_a_stream_that_broke_off_ends_the_same_way_again(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, cut_after_chunks=6, cut="reset")
    stream = told(two_webs, customer, canary)
    assert b"stream_broken" in stream.content
    ended(two_webs, stream.call)
    assert before_comment(rest(two_webs, customer, stream.call, 2).content) == stream.after(2)


def test_a_stream_that_was_handed_in_is_read_as_it_comes(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, pace_ms=100, output_tokens=20)
    with two_webs.http(customer.key) as http:
        call = http.post(PATHS["openai"], json=a_body(canary), headers={"prefer": "respond-async"}).json()["id"]
        while (reply := http.get(f"/v1/calls/{call}/stream")).status_code == 202:
            time.sleep(0.05)
    stream = Told(call, reply.content)
    assert stream.numbers == list(range(1, len(stream.numbers) + 1))
    assert b"[DONE]" in stream.content
    assert before_comment(whole(two_webs, customer, call).content) == stream.after(0)


def test_the_sdk_reads_the_rest_of_a_stream(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    words = [
        chunk.choices[0].delta.content
        for chunk in two_webs.openai(customer.key).chat.completions.create(**a_body(canary))
        if chunk.choices and chunk.choices[0].delta.content
    ]
    stream = told(two_webs, customer, canary)
    again = openai.Stream(
        cast_to=openai.types.chat.ChatCompletionChunk,
        response=rest(two_webs, customer, stream.call, 2),
        client=two_webs.openai(customer.key),
    )
    said = [chunk.choices[0].delta.content for chunk in again if chunk.choices and chunk.choices[0].delta.content]
    assert said == words[-len(said) :]
    assert len(said) >= len(words) - 2


def test_many_read_one_running_stream_and_one_of_them_slowly(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, pace_ms=60, output_tokens=25)
    found: list[bytes] = []

    def read(call: str) -> None:
        reply: httpx2.Response = rest(two_webs, customer, call, 0)
        found.append(before_comment(reply.content))

    with begun(two_webs, customer, canary) as (reply, chunks):
        readers = [threading.Thread(target=read, args=[reply.headers["x-call-id"]]) for _ in range(12)]
        for one in readers:
            one.start()
        content = b"".join(chunks)
        for one in readers:
            one.join()
    assert set(found) == {before_comment(content)}
