"""Streams arrive as they were sent, at their pace; no reader slows anybody, and no death ends in silence."""

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import psutil
import pytest
import redis

from tests.fakes.provider import FakeProvider
from tests.gateway.streams import PATHS, Told, a_body, a_canary, before_comment, begun, ended, rest, the_call, told
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for

# As in production: tests elsewhere shorten these.
PRODUCTION = {
    "LEASE_RENEW_SECONDS": "3",
    "LEASE_LOST_SECONDS": "15",
    "RELAY_SILENCE_SECONDS": "5",
    "SWEEP_SECONDS": "3",
}
PROMISED_SECONDS = 10


@pytest.fixture(scope="module")
def fragile(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own with production's leases, whose processes may be killed."""
    with start_system(far_end, **PRODUCTION, SEND_SECONDS="4") as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


campaign = pytest.mark.campaign("streams")


@pytest.fixture
def gateway(fragile: System) -> Iterator[System]:
    fragile.far_end.clear()
    wait_for(lambda: answers(fragile), seconds=60)
    yield fragile
    fragile.far_end.clear()


def answers(system: System) -> bool:
    with contextlib.suppress(httpx2.HTTPError), system.http(system.tenant().key) as http:
        return http.post(PATHS["openai"], json=a_body("ready?", stream=False), timeout=5).status_code == 200
    return False


def test_events_arrive_at_the_pace_at_which_they_were_sent(two_webs: System) -> None:
    gateway = two_webs
    canary = a_canary()
    gateway.far_end.script(match=canary, pace_ms=200, output_tokens=10)
    arrived = []
    with begun(gateway, gateway.tenant(), canary) as (_, chunks):
        for piece in chunks:
            arrived += [time.monotonic()] * piece.count(b"\ndata: ")
    gaps = [after - before for before, after in itertools.pairwise(arrived)]
    assert len(arrived) > 10
    assert sum(0.1 < gap < 0.5 for gap in gaps) >= len(gaps) - 4  # the last ones leave together, once they are paid
    assert arrived[-1] - arrived[0] > 1.6


def reading(system: System, customer: Customer, canary: str, window: int = 65536) -> socket.socket:
    """A connection that has asked for a stream, with a small window."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    host, port = system.base_url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    body = json.dumps(a_body(canary)).encode()
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (customer.key.encode(), len(body), body)
    )
    return connection


LARGE: dict[str, Any] = {"text": "y" * 24_000_000, "chunks": 600, "output_tokens": 150, "pace_ms": 5}


def test_a_reader_that_never_reads_slows_no_worker_fills_no_memory_and_is_dropped(two_webs: System) -> None:
    gateway = two_webs
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, **LARGE)
    webs = [psutil.Process(pid) for pid in gateway.stack.facts["pids"]["web"]]
    before = memory_of(webs)
    connection, began = reading(gateway, customer, canary), time.monotonic()
    most = 0
    state = "SELECT state, evidence FROM usage_call WHERE api_key_id = %s"
    while not (rows := gateway.rows(state, customer.key_id)) or rows[0]["state"] != "settled":
        most = max(most, memory_of(webs) - before)
        assert time.monotonic() - began < 40
        time.sleep(0.1)
    assert rows[0]["evidence"] == "provider"
    assert most < 12_000_000
    # Its connection is given up, though it is open at the other end and full.
    wait_for(lambda: not any(held_open(web, connection) for web in webs), seconds=15)
    connection.close()


def memory_of(processes: list[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in processes)


def held_open(process: psutil.Process, connection: socket.socket) -> bool:
    port = connection.getsockname()[1]
    return any(one.raddr and one.raddr.port == port for one in process.net_connections("tcp"))


@campaign
def test_a_slow_reader_gets_every_byte_though_the_worker_has_long_ended(gateway: System) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, **LARGE)
    connection, content = reading(gateway, customer, canary), bytearray()
    content += connection.recv(1000)
    state = "SELECT id, state FROM usage_call WHERE api_key_id = %s"
    for _ in range(40):
        content += connection.recv(500_000)
        time.sleep(0.1)
    wait_for(lambda: gateway.rows(state, customer.key_id)[0]["state"] == "settled", seconds=30)
    assert len(content) < 20_100_000
    while piece := connection.recv(1 << 20):
        content += piece
    connection.close()
    call = f"call_{gateway.rows(state, customer.key_id)[0]['id']}"
    assert unchunked(bytes(content)) == before_comment(rest(gateway, customer, call, 0).content)


def unchunked(reply: bytes) -> bytes:
    """The body of a chunked HTTP reply, without comments."""
    _, _, left = reply.partition(b"\r\n\r\n")
    pieces = []
    while (size := int(left[: (at := left.index(b"\r\n"))], 16)) > 0:
        pieces.append(left[at + 2 : at + 2 + size])
        left = left[at + 4 + size :]
    return before_comment(b"".join(pieces))


@campaign
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("wire", PATHS)
def test_a_dead_worker_ends_its_streams_in_an_error_event_within_ten_seconds(
    gateway: System, wire: str, signum: signal.Signals
) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, pace_ms=100, output_tokens=180)
    (worker,) = gateway.stack.facts["pids"]["worker"]
    error: type[Exception] = openai.APIError if wire == "openai" else anthropic.APIError
    client = gateway.openai(customer.key) if wire == "openai" else gateway.anthropic(customer.key)
    asked = a_body(canary)
    stream = client.chat.completions.create(**asked) if wire == "openai" else client.messages.create(**asked)  # type: ignore[union-attr]
    events = iter(stream)
    for _ in range(6):
        next(events)
    os.kill(worker, signum)
    died_at = time.monotonic()
    try:
        with pytest.raises(error, match="call_") as raised:
            list(events)
        assert time.monotonic() - died_at < PROMISED_SECONDS
    finally:
        if signum == signal.SIGSTOP:
            os.kill(worker, signal.SIGCONT)
    assert "answer_lost" in str(raised.value.body)  # type: ignore[attr-defined]


def test_a_killed_worker_ends_its_stream_in_an_error_event_that_names_the_call(two_webs: System) -> None:
    customer, canary = two_webs.tenant(), a_canary()
    two_webs.far_end.script(match=canary, pace_ms=100, output_tokens=180)
    (worker,) = two_webs.stack.facts["pids"]["worker"]
    with begun(two_webs, customer, canary) as (reply, chunks):
        content = next(chunks) + next(chunks)
        os.kill(worker, signal.SIGKILL)
        died_at = time.monotonic()
        content += b"".join(chunks)
    assert time.monotonic() - died_at < PROMISED_SECONDS
    *events, last = content.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"id: ") for event in events)
    assert last.startswith(b"data: ")
    assert json.loads(last[6:])["error"]["code"] == "answer_lost"
    assert reply.headers["x-call-id"].encode() in last


@campaign
@pytest.mark.parametrize("stream", [True, False])
def test_a_worker_that_dies_before_the_first_byte_is_an_error_within_ten_seconds_too(
    gateway: System, stream: bool
) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, latency_ms=60_000)
    (worker,) = gateway.stack.facts["pids"]["worker"]
    with gateway.http(customer.key) as http:

        def kill() -> None:
            wait_for(lambda: any(one["canary"] == canary for one in gateway.far_end.calls()))
            os.kill(worker, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        began = time.monotonic()
        reply = http.post(PATHS["openai"], json=a_body(canary, stream=stream))
        killer.join()
    assert time.monotonic() - began < PROMISED_SECONDS + 2
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "outcome_unknown")
    assert reply.headers["x-should-retry"] == "false"


@campaign
def test_a_live_worker_that_is_only_quiet_is_not_taken_for_dead(gateway: System) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, hang="mid_stream", after=3, hang_seconds=9)
    stream = told(gateway, customer, canary)
    assert b"[DONE]" in stream.content
    assert b"error" not in stream.content


@campaign
def test_a_quiet_stream_has_heartbeats_that_no_sdk_takes_for_events(gateway: System) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, hang="mid_stream", after=3, hang_seconds=9.9)
    chunks = list(gateway.openai(customer.key).chat.completions.create(**a_body(canary)))
    gateway.far_end.clear()
    assert len(chunks) == len(list(gateway.openai(customer.key).chat.completions.create(**a_body(canary))))


@campaign
def test_a_redis_that_is_emptied_in_mid_stream_costs_no_event_of_a_reader_who_keeps_up(gateway: System) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, pace_ms=100, output_tokens=30)
    content = b""
    with begun(gateway, customer, canary) as (reply, chunks):
        content += next(chunks) + next(chunks)
        with redis.Redis.from_url(gateway.stack.facts["redis_url"]) as client:
            client.flushall()
        content += b"".join(chunks)
    stream = Told(reply.headers["x-call-id"], content)
    assert stream.numbers == list(range(1, len(stream.numbers) + 1))
    assert b"[DONE]" in content
    assert ended(gateway, stream.call)["evidence"] == "provider"


@campaign
def test_a_redis_that_dies_and_comes_back_empty_ends_the_stream_in_an_error_and_the_call_is_settled(
    gateway: System,
) -> None:
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, pace_ms=100, output_tokens=80)
    (valkey,) = gateway.stack.facts["pids"]["valkey"]
    content = b""
    with begun(gateway, customer, canary) as (reply, chunks):
        call = reply.headers["x-call-id"]
        content += next(chunks) + next(chunks)
        os.kill(valkey, signal.SIGKILL)
        wait_for(lambda: emptied(gateway, valkey), seconds=20)
        content += b"".join(chunks)
    assert call.encode() in content
    assert b"answer_lost" in content
    assert content.endswith(b"\n\n")
    stream = Told(call, content)
    assert stream.numbers == list(range(1, len(stream.numbers) + 1)), "an event is missing in the middle"
    row = ended(gateway, call, seconds=30)
    assert (row["state"], row["evidence"]) == ("settled", "provider")
    # What was missed is on record.
    whole = content[: content.rindex(b"data: ")] + rest(gateway, customer, call, stream.numbers[-1]).content
    assert before_comment(whole) == before_comment(rest(gateway, customer, call, 0).content)


def emptied(system: System, old: int) -> bool:
    """Started again, and without what it had."""
    if system.stack.facts["pids"]["valkey"] in ([old], []):
        return False
    with (
        contextlib.suppress(redis.exceptions.ConnectionError),
        redis.Redis.from_url(system.stack.facts["redis_url"]) as client,
    ):
        return bool(client.flushall())
    return False


def test_the_state_of_a_call_is_told_while_it_runs(two_webs: System) -> None:
    gateway = two_webs
    customer, canary = gateway.tenant(), a_canary()
    gateway.far_end.script(match=canary, pace_ms=100, output_tokens=15)
    with begun(gateway, customer, canary) as (reply, chunks):
        next(chunks)
        call = reply.headers["x-call-id"]
        with gateway.http(customer.key) as http:
            state = http.get(f"/v1/calls/{call}")
            assert (state.status_code, state.json()["status"], state.headers["retry-after"]) == (202, "inflight", "1")
            assert state.json()["urls"] == {"get": f"/v1/calls/{call}", "stream": f"/v1/calls/{call}/stream"}
            answer = http.get(f"/v1/calls/{call}", headers={"prefer": "wait=20"})
            assert (answer.status_code, b"[DONE]" in answer.content) == (200, True)
        for _ in chunks:
            pass
    assert the_call(gateway, call)["state"] == "settled"
