"""Every fault of a provider, played through the real system: a well-formed end for the caller, an exact ledger, an honest record.

All are played at once, each by a call that its text tells apart, and then looked at one by one.
"""

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest

from tests.fakes import scripted, sse
from tests.system import Customer, System
from tests.waiting import wait_for

PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
BOTH = ("openai", "anthropic")
HTML = "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"
LATER = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
ERROR_MIDWAY = {"openai": "server_error", "anthropic": "overloaded_error"}
HALF_A_CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Bl'
CHUNK_AND_ERROR = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Blue"},"finish_reason":null}]}\n\n'
    b'data: {"error":"out of memory"}\n\ndata: [DONE]\n\n'
)
USAGE_WITH_EVERY_CHUNK = b"".join(
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"four byte tokens"},"finish_reason":null}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":9}}\n\n' % (at + 1)
    for at in range(3)
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault and what must come of it."""

    name: str
    fault: dict[str, Any]
    ends: str = "whole"
    """What the caller gets: whole, broken (our error ends the stream), failed (the provider's does), or a status with its code."""
    state: str = "settled"
    evidence: str = "provider"
    attempts: tuple[str, ...] = ("answered",)
    wires: tuple[str, ...] = BOTH
    streams: tuple[bool, ...] = (False, True)
    times: int | None = None


def broken(name: str, fault: dict[str, Any], **more: Any) -> Case:
    given: dict[str, Any] = {"ends": "broken", "evidence": "counted", "attempts": ("broken",), "streams": (True,)}
    return Case(name=name, fault=fault, **given | more)


def unknown(name: str, fault: dict[str, Any], **more: Any) -> Case:
    given: dict[str, Any] = {"ends": "502 outcome_unknown", "state": "void", "evidence": "", "attempts": ("unknown",)}
    return Case(name=name, fault=fault, **given | more)


def refused(name: str, fault: dict[str, Any], status: int, *, tries: int = 1, **more: Any) -> Case:
    given: dict[str, Any] = {
        "ends": f"{status} passed on",
        "state": "void",
        "evidence": "",
        "attempts": ("refused",) * tries,
    }
    return Case(name=name, fault=fault, **given | more)


def fine(name: str, fault: dict[str, Any], **more: Any) -> Case:
    return Case(name=name, fault=fault, **more)


CASES = [
    # another way of sending
    fine("bytes one by one", {"split_bytes": 1, "text": "é€😀 \u0000 \u2028"}),
    fine("a byte every 20 ms", {"split_bytes": 25, "pace_ms": 20, "output_tokens": 3}),
    fine("CRLF", {"newline": "\r\n"}, streams=(True,)),
    fine("CRLF in single bytes", {"newline": "\r\n", "split_bytes": 1}, streams=(True,)),
    fine("bare CR", {"newline": "\r"}, streams=(True,)),
    fine("bare CR in single bytes", {"newline": "\r", "split_bytes": 1}, streams=(True,)),
    fine("comments, ids and retries", {"before_each": ": ping\n\nretry: 3000\nid: 7\n"}, streams=(True,)),
    fine("a byte order mark", {"bom": True}, streams=(True,)),
    fine("trailers", {"trailers": {"x-checksum": "1", "server-timing": "x"}}),
    fine("length of a stream", {"framing": "length"}),
    fine("an end by closing", {"framing": "close"}),
    fine("doubled headers", {"headers": {"x-request-id": ["a", "b"], "retry-after": ["1", "2"], "set-cookie": ["a=b", "c=d"]}}),
    fine("rate limit headers", {"headers": {"x-ratelimit-remaining-requests": "0", "anthropic-ratelimit-tokens-reset": "soon"}}),
    fine("a very long line", {"text": "x" * 300_000, "output_tokens": 40, "chunks": 1}),
    fine("a very long line in pieces", {"text": "é" * 50_000, "output_tokens": 40, "chunks": 1, "split_bytes": 1001}),
    fine("events as plain text", {"content_type": "text/plain"}, streams=(True,)),
    fine("a pause before the headers", {"hang": "before_headers", "hang_seconds": 2}),
    fine("a pause after the headers", {"hang": "after_headers", "hang_seconds": 2}),
    fine("a pause in the middle", {"hang": "mid_stream", "hang_seconds": 2}),
    fine("two last events", {"done": 2}, streams=(True,)),
    fine("no last event", {"done": 0}, streams=(True,)),
    fine("unknown fields", {"extra": {"usage_of_tomorrow": {"a": [1, None]}, "choices_of_tomorrow": []}}),
    fine("NUL and lone surrogates", {"text": "a\x00b\ud800c", "output_tokens": 3}),
    # usage
    fine("usage missing", {"usage": "missing"}, evidence="counted"),
    fine("usage null", {"usage": "null"}, evidence="counted"),
    fine("usage zero", {"usage": "zero"}),
    fine("usage negative", {"usage": "negative"}, evidence="counted"),
    fine("usage huge", {"usage": "huge"}, evidence="counted"),
    fine("usage above the hold", {"usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9, "input_tokens": 10**9, "output_tokens": 10**9}}),
    fine("usage in words", {"usage": "string"}, evidence="counted"),
    fine("usage in fractions", {"usage": {"prompt_tokens": 1.5, "completion_tokens": 2.5}}, evidence="counted", wires=("openai",)),
    fine("usage without output", {"usage": {"prompt_tokens": 7, "input_tokens": 7}}, evidence="counted", streams=(False,)),
    fine("usage twice", {"usage": "twice"}, streams=(True,)),
    fine("usage first", {"usage": "first"}, streams=(True,)),
    fine("usage at the beginning only", {"usage": "start_only"}, streams=(True,), wires=("openai",)),
    fine("a last word without usage", {"usage": "start_only"}, streams=(True,), wires=("anthropic",), evidence="counted"),
    fine("more cached than given", {"usage": "cached_above_input"}),
    # refusals
    *(refused(f"status {status}", {"status": status}, status) for status in (400, 401, 403, 404, 409, 422, 500, 502, 504)),
    refused("429 without Retry-After", {"status": 429}, 429, tries=3),
    refused("529", {"status": 529}, 529, tries=3, wires=("anthropic",)),
    refused("503 in milliseconds", {"status": 503, "headers": {"retry-after-ms": "50"}}, 503, tries=3, streams=(True,)),
    refused("429 for a minute", {"status": 429, "retry_after": "60"}, 429),
    refused("429 until a date", {"status": 429, "retry_after": LATER}, 429),
    refused("429 for a minute in milliseconds", {"status": 429, "headers": {"retry-after-ms": "60000"}}, 429),
    refused("429 for ever", {"status": 429, "retry_after": "999999999"}, 429),
    refused("429 with nonsense", {"status": 429, "retry_after": "soon"}, 429, tries=3, streams=(False,)),
    refused("429 with less than nothing", {"status": 429, "retry_after": "-5"}, 429, tries=3, streams=(False,)),
    fine("429 once", {"status": 429, "retry_after": "1"}, times=1, attempts=("refused", "answered")),
    fine("529 once", {"status": 529}, times=1, attempts=("refused", "answered")),
    refused("an error page", {"status": 502, "body": HTML, "content_type": "text/html"}, 502),
    refused("an empty error", {"status": 500, "body": ""}, 500),
    refused("an error that breaks off", {"status": 500, "cut_after_bytes": 9}, 502, ends="502 outcome_unknown", attempts=("unknown",)),
    # answers that are none
    fine("a page instead of an answer", {"body": HTML, "content_type": "text/html"}, evidence="counted", streams=(False,)),
    broken("a page instead of a stream", {"body": HTML, "content_type": "text/html"}),
    fine("an answer cut short within its length", {"cut_after_bytes": 60, "cut": "end"}, evidence="counted", streams=(False,)),
    fine("an answer that is no JSON", {"body": "null null"}, evidence="counted", streams=(False,)),
    broken("an empty stream", {"body": ""}),
    broken("a stream of noise", {"body": "\u0000\u0001: not: an: event\n\ndata: {not JSON}\n\n"}),
    broken("half an event at a well-formed end", scripted.exactly(HALF_A_CHUNK, stream=True), wires=("openai",)),
    # breaks
    *(broken(f"a cut after {events} events", {"cut_after_chunks": events}) for events in (0, 1, 2, 4)),
    broken("a cut in the middle of an event", {"cut_after_bytes": 333}),
    broken("a reset", {"cut_after_chunks": 3, "cut": "reset"}),
    broken("an early end", {"cut_after_chunks": 3, "cut": "end"}),
    broken("silence", {"hang": "mid_stream", "after": 3}),
    broken("silence after the headers", {"hang": "after_headers"}),
    broken("usage with every chunk, then a cut", scripted.exactly(USAGE_WITH_EVERY_CHUNK, stream=True), wires=("openai",)),
    fine("an error midway", {"error_after": 3}, ends="failed", evidence="counted", attempts=("broken",), streams=(True,)),
    fine("an error without an object", scripted.exactly(CHUNK_AND_ERROR, stream=True), ends="failed", evidence="counted", streams=(True,), wires=("openai",)),
    unknown("a plain answer that breaks off", {"cut_after_bytes": 40}, streams=(False,)),
    unknown("a plain answer that is reset", {"cut_after_bytes": 40, "cut": "reset"}, streams=(False,)),
    unknown("read and closed", {"drop": "close"}),
    unknown("read and reset", {"drop": "reset"}),
    unknown("gzip that is none", scripted.exactly(b"not compressed", stream=False) | {"headers": {"content-encoding": "gzip"}}, streams=(False,)),
]  # fmt: skip
PLAYED = [(case, wire, stream) for case in CASES for wire in case.wires for stream in case.streams]
NAMES = [f"{case.name}-{wire}-{'stream' if stream else 'plain'}" for case, wire, stream in PLAYED]


@dataclass
class Record:
    """What came of one case."""

    case: Case
    wire: str
    stream: bool
    reply: httpx2.Response
    call: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def played(running: System) -> Iterator[list[Record]]:
    running.far_end.clear()
    customer = running.tenant()
    for at, (case, _, _) in enumerate(PLAYED):
        running.far_end.script(match=f"fault number {at}.", times=case.times, **case.fault)
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(lambda at: play(running, customer, at), range(len(PLAYED))))
    running.far_end.clear()
    look(running, records)
    yield records
    running.close_clients()


@pytest.fixture
def record(played: list[Record], request: pytest.FixtureRequest) -> Record:
    at: int = request.param
    return played[at]


def play(system: System, customer: Customer, at: int) -> Record:
    case, wire, stream = PLAYED[at]
    body = {"model": "fake-1", "max_tokens": 64, "messages": [{"role": "user", "content": f"fault number {at}."}]}
    more = {"stream": True, "stream_options": {"include_usage": True}} if wire == "openai" else {"stream": True}
    headers = {"authorization": f"Bearer {customer.key}"}
    reply = httpx2.post(
        f"{system.base_url}{PATHS[wire]}",
        json=body | (more if stream else {}),
        headers=headers,
        timeout=60,
        trust_env=False,
    )
    return Record(case, wire, stream, reply)


def look(system: System, records: list[Record]) -> None:
    """Adds what the database and the far end know, once no call holds anything any more."""
    ids = {uuid.UUID(one.reply.headers["x-call-id"][5:]): one for one in records}
    wait_for(lambda: not system.rows("SELECT 1 FROM usage_call WHERE id = ANY (%s) AND is_live", list(ids)), 30)
    for row in system.rows("SELECT * FROM usage_call WHERE id = ANY (%s)", list(ids)):
        ids[row["id"]].call = row
    for row in system.rows(
        "SELECT call_id, n, outcome, status FROM usage_attempt WHERE call_id = ANY (%s) ORDER BY n", list(ids)
    ):
        ids[row["call_id"]].attempts.append(row)
    for row in system.rows("SELECT ref, kind, amount_nano FROM usage_ledgerentry WHERE ref = ANY (%s)", list(ids)):
        ids[row["ref"]].entries.append(row)
    by_name = {one.reply.headers["x-call-id"]: one for one in records}
    for call in system.far_end.calls():
        found = by_name.get(re.sub(r"-\d+$", "", call["request_id"] or ""))
        if found is not None:
            found.journal.append(call)


each = pytest.mark.parametrize("record", range(len(PLAYED)), ids=NAMES, indirect=True)


@each
def test_the_caller_gets_a_well_formed_end(record: Record) -> None:
    ends, reply = record.case.ends, record.reply
    if ends[0].isdigit():
        status, _, code = ends.partition(" ")
        assert reply.status_code == int(status)
        if code != "passed on":
            assert reply.json()["error"]["code"] == code
    else:
        assert reply.status_code == 200
        assert how_it_ended(record) == ends
    assert "set-cookie" not in reply.headers
    assert "content-encoding" not in reply.headers


def how_it_ended(record: Record) -> str:
    """As a client that knows the standard and the wire sees it."""
    if not record.stream:
        return "whole"
    events = sse.events(record.reply.content)
    last = [event for event in events if event.data != "[DONE]"][-1]
    told = json.loads(last.data)
    if "error" not in told:
        return "whole"
    error = told["error"]
    assert last.name == ("error" if record.wire == "anthropic" else "")
    return "broken" if isinstance(error, dict) and error.get("code") == "stream_broken" else "failed"


@each
def test_the_ledger_says_what_happened(record: Record) -> None:
    call = record.call
    assert (call["state"], call["evidence"]) == (record.case.state, record.case.evidence)
    assert 0 <= call["charged_nano"] <= call["held_nano"]
    charged = sum(entry["amount_nano"] for entry in record.entries if entry["kind"] == "charge")
    assert charged == call["charged_nano"]
    if call["evidence"] == "provider":
        assert call["charged_nano"] == min(by_the_journal(record), call["held_nano"])
        assert call["charged_nano"] + call["platform_loss_nano"] == by_the_journal(record)
    elif call["evidence"] == "counted":
        assert call["input_tokens"] > 0
        assert (
            call["charged_nano"]
            == call["input_tokens"] * 150 + call["cache_read_tokens"] * 75 + call["output_tokens"] * 600
        )
    else:
        assert call["charged_nano"] == 0
        exposed = [entry for entry in record.entries if entry["kind"] == "exposure"]
        assert bool(exposed) == ("unknown" in record.case.attempts)


def by_the_journal(record: Record) -> int:
    """The charge by the usage that left the far end: cached tokens are a part of OpenAI's input and none of Anthropic's."""
    told = record.journal[-1]["usage"]
    if record.wire == "openai":
        cached = min((told.get("prompt_tokens_details") or {}).get("cached_tokens", 0), told["prompt_tokens"])
        return int((told["prompt_tokens"] - cached) * 150 + cached * 75 + told["completion_tokens"] * 600)
    return int(told["input_tokens"] * 150 + told.get("cache_read_input_tokens", 0) * 75 + told["output_tokens"] * 600)


@each
def test_every_request_at_the_provider_has_its_attempt_and_no_other(record: Record) -> None:
    assert tuple(one["outcome"] for one in record.attempts) == record.case.attempts
    name = record.reply.headers["x-call-id"]
    assert [one["request_id"] for one in record.journal] == [f"{name}-{attempt['n']}" for attempt in record.attempts]
    for theirs, ours in zip(record.journal, record.attempts, strict=True):
        assert (
            ours["outcome"] == "unknown" or ours["status"] == theirs["status"]
        )  # of an unknown one it is our answer's


def test_a_counted_stream_is_charged_for_every_byte_of_text_that_was_relayed(played: list[Record]) -> None:
    cuts = [one for one in played if one.case.name.startswith("a cut after") and one.wire == "openai"]
    assert len(cuts) == 4
    for one in cuts:
        chunks = [json.loads(event.data) for event in sse.events(one.reply.content)]
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk.get("choices", ()))
        assert one.call["output_tokens"] == -(-len(text) // 4)
    (partial,) = [one for one in played if one.case.name.startswith("usage with every chunk")]
    assert partial.call["output_tokens"] == 3 * len("four byte tokens") // 4


def test_an_unknown_outcome_tells_sdks_not_to_buy_it_again(played: list[Record]) -> None:
    lost = [one for one in played if "outcome_unknown" in one.case.ends]
    assert lost
    assert {one.reply.headers["x-should-retry"] for one in lost} == {"false"}


def test_a_refusal_is_passed_on_with_what_it_says_of_retries(played: list[Record]) -> None:
    by_name = {one.case.name: one.reply for one in played}
    assert by_name["429 for a minute"].headers["retry-after"] == "60"
    assert by_name["429 until a date"].headers["retry-after"] == LATER
    assert by_name["429 for a minute in milliseconds"].headers["retry-after-ms"] == "60000"
    assert by_name["an error page"].text == HTML
    assert by_name["an error page"].headers["content-type"] == "text/html"


def test_nothing_is_held_and_every_figure_agrees_after_all_that(system: System, played: list[Record]) -> None:
    tenant = played[0].call["tenant_id"]
    assert system.rows("SELECT 1 FROM usage_call WHERE tenant_id = %s AND is_live", tenant) == []
    (name,) = system.rows("SELECT name FROM tenants_tenant WHERE id = %s", tenant)
    system.manage("ledger_verify", "--tenant", name["name"])


def test_a_connection_that_is_reset_before_it_is_read_is_tried_again_only_if_surely_nothing_was_sent(
    system: System, customer: Customer
) -> None:
    """The reset may come before our side has begun to write, or after: then nobody can tell from here what was read."""
    before = system.far_end.count()["arrived"]
    system.far_end.slam(1)
    try:
        reply = system.http(customer.key).post(
            PATHS["openai"], json={"model": "fake-1", "messages": [{"role": "user", "content": "slam"}]}
        )
    finally:
        system.far_end.slam(0)
    arrived, outcomes = system.far_end.count()["arrived"] - before, outcomes_of(system, reply)
    if outcomes[0] == "unsent":
        assert (reply.status_code, arrived, outcomes) == (200, 1, ["unsent", "answered"])
    else:
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "outcome_unknown")
        assert (arrived, outcomes) == (0, ["unknown"])


def outcomes_of(system: System, reply: httpx2.Response) -> list[str]:
    call = uuid.UUID(reply.headers["x-call-id"][5:])
    return [
        one["outcome"] for one in system.rows("SELECT outcome FROM usage_attempt WHERE call_id = %s ORDER BY n", call)
    ]


def test_refused_connections_are_tried_again_and_the_answer_comes(system: System, customer: Customer) -> None:
    with ThreadPoolExecutor(1) as pool:
        with system.far_end.refusing():
            asked = pool.submit(
                system.http(customer.key).post,
                PATHS["anthropic"],
                json={"model": "fake-1", "max_tokens": 9, "messages": [{"role": "user", "content": "door"}]},
            )
            call = "SELECT tries FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s AND tries > 1"
            wait_for(lambda: system.rows(call, customer.name), 10)
        reply = asked.result()
    outcomes = outcomes_of(system, reply)
    assert set(outcomes[:-1]) == {"unsent"}
    # All tries may be over before the door opens.
    assert (reply.status_code, outcomes[-1]) in {(200, "answered"), (502, "unsent")}
