"""Responses in the background: answered at once, held until the provider says how they ended, whoever dies meanwhile."""

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.fakes.provider import FakeProvider
from tests.gateway.test_responses import NANO_IN, PATH, calls_of, client_of, cost, events
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def fragile(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own, whose worker may be killed, and whose calls in the background have little time."""
    far_end.clear()
    with start_system(far_end, CALL_DEADLINE_SECONDS="60", BACKGROUND_DEADLINE_SECONDS="60") as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()
        far_end.clear()


def created(system: System, customer: Customer, text: str, **more: Any) -> Any:
    return client_of(system, customer.key).responses.create(model="fake-1", input=text, background=True, **more)


def the_call(system: System, customer: Customer) -> dict[str, Any]:
    return calls_of(system, customer)[0]


def ended(system: System, customer: Customer, state: str = "settled") -> dict[str, Any]:
    wait_for(lambda: the_call(system, customer)["state"] == state, seconds=40)
    return the_call(system, customer)


def kill_worker(system: System) -> None:
    (pid,) = system.stack.facts["pids"]["worker"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: system.stack.facts["pids"]["worker"] not in ([pid], []), seconds=20)


# --- polled ---------------------------------------------------------------------------------------------------------


def test_the_first_word_comes_at_once_and_the_money_is_held_until_the_end(system: System, customer: Customer) -> None:
    system.far_end.script(match="slowly", polls=2)
    raw = client_of(system, customer.key).responses.with_raw_response.create(
        model="fake-1", input="slowly", background=True
    )
    response = raw.parse()
    assert (response.status, response.usage, raw.headers["x-cost-pending"]) == ("queued", None, "true")
    assert "x-cost-usd" not in raw.headers
    call = the_call(system, customer)
    assert (call["state"], call["charged_nano"]) == ("inflight", 0)
    assert call["held_nano"] > 0
    call = ended(system, customer)
    assert (call["evidence"], call["charged_nano"]) == ("provider", cost(call))
    assert call["output_tokens"] == 8
    assert calls_of(system, customer) == [call]  # its looks are no calls
    wait_for(lambda: stored(system, call) == {"response": "queued", "result": "completed"})


def stored(system: System, call: dict[str, Any]) -> dict[str, str]:
    """The status in each answer that is kept of a call."""
    kept = "SELECT kind, body FROM usage_callpayload WHERE call_id = %s AND kind <> 'request'"
    return {row["kind"]: json.loads(bytes(row["body"]))["status"] for row in system.rows(kept, call["id"])}


def test_its_own_callers_look_shows_how_it_stands_and_settles_it_before_he_sees_its_end(
    system: System, customer: Customer
) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="look at me", polls=1_000)
    made = created(system, customer, "look at me")
    assert client.responses.retrieve(made.id).status in {"queued", "in_progress"}
    assert the_call(system, customer)["state"] == "inflight"
    cancelled = client.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    call = the_call(system, customer)  # at once: no wait
    assert (call["state"], call["evidence"], call["error_code"]) == ("settled", "counted", "cancelled")
    assert 0 < call["charged_nano"] == call["input_tokens"] * NANO_IN
    assert client.responses.cancel(made.id).status == "cancelled"


def test_a_response_that_ended_before_the_cancel_is_charged_for_its_usage(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="too late", polls=0)
    made = created(system, customer, "too late")
    assert client.responses.cancel(made.id).status == "completed"
    call = the_call(system, customer)
    assert (call["state"], call["evidence"], call["charged_nano"]) == ("settled", "provider", cost(call))


@pytest.mark.parametrize(
    ("ends", "state", "code"),
    [("failed", "void", "provider_error"), ("incomplete", "settled", ""), ("cancelled", "settled", "cancelled")],
)
def test_every_other_end_is_settled_too(system: System, customer: Customer, ends: str, state: str, code: str) -> None:
    system.far_end.script(match=f"end {ends}", ends=ends)
    created(system, customer, f"end {ends}")
    call = ended(system, customer, state)
    assert call["error_code"] == code
    assert call["charged_nano"] == (0 if state == "void" else cost(call))


def test_an_end_without_a_usage_is_counted(system: System, customer: Customer) -> None:
    system.far_end.script(match="count it", usage="missing")
    created(system, customer, "count it")
    call = ended(system, customer)
    assert (call["evidence"], call["output_tokens"]) == ("counted", 8)


def test_it_cannot_be_continued_or_deleted_before_its_end_and_can_afterwards(
    system: System, customer: Customer
) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="not yet", polls=2)
    made = created(system, customer, "not yet")
    with pytest.raises(openai.APIStatusError, match="has not ended yet") as refusal:
        client.responses.create(model="fake-1", input="more", previous_response_id=made.id)
    assert refusal.value.status_code == 402
    with pytest.raises(openai.ConflictError, match="still being worked on"):
        client.responses.delete(made.id)
    ended(system, customer)
    assert client.responses.create(model="fake-1", input="more", previous_response_id=made.id).status == "completed"
    client.responses.delete(made.id)


def test_an_idempotency_key_gives_the_first_word_again_and_makes_nothing_new(
    system: System, customer: Customer
) -> None:
    http = system.http(customer.key, **{"idempotency-key": uuid.uuid4().hex})
    body = {"model": "fake-1", "input": "just one", "background": True}
    system.far_end.script(match="just one", polls=2)
    first, second = http.post(PATH, json=body), http.post(PATH, json=body)
    ended(system, customer)
    third = http.post(PATH, json=body)
    assert first.content == second.content == third.content
    assert len(calls_of(system, customer)) == 1


def test_a_look_that_fails_is_repeated(system: System, customer: Customer) -> None:
    made = created(system, customer, "stubborn")
    system.far_end.script(match=f"{PATH}/{made.id}", status=500, times=2)
    assert ended(system, customer)["evidence"] == "provider"


def test_a_response_that_the_provider_forgot_is_unknown_and_then_the_houses_exposure(
    system: System, customer: Customer
) -> None:
    system.far_end.script(match="forgotten", polls=1_000)
    made = created(system, customer, "forgotten")
    system.far_end.script(match=f"{PATH}/{made.id}", status=404)
    call = ended(system, customer, "void")
    (entry,) = system.rows("SELECT kind, amount_nano FROM usage_ledgerentry WHERE ref = %s", call["id"])
    assert (entry["kind"], entry["amount_nano"], call["charged_nano"]) == ("exposure", call["held_nano"], 0)


def test_a_place_among_concurrent_calls_is_given_back_with_the_first_word(system: System, customer: Customer) -> None:
    system.manage("limit_set", "--tenant", customer.name, "--rpm", "none", "--tpm", "none", "--concurrency", "1")
    time.sleep(1.5)  # until the web process has heard of the limit
    http = system.http(customer.key)
    system.far_end.script(match="alone", polls=4)
    assert http.post(PATH, json={"model": "fake-1", "input": "alone", "background": True}).status_code == 200
    wait_for(lambda: http.post(PATH, json={"model": "fake-1", "input": "second"}).status_code == 200, seconds=3)
    assert the_call(system, customer)["state"] == "inflight"
    ended(system, customer)


# --- streamed -------------------------------------------------------------------------------------------------------


def test_a_stream_in_the_background_is_relayed_and_settled_like_any_other(system: System, customer: Customer) -> None:
    told = [event.type for event in created(system, customer, "as it comes", stream=True)]
    assert told[:2] == ["response.created", "response.queued"]
    assert told[-1] == "response.completed"
    call = the_call(system, customer)
    assert (call["state"], call["evidence"], call["charged_nano"]) == ("settled", "provider", cost(call))
    wait_for(lambda: not system.rows("SELECT 1 FROM usage_backgroundcall WHERE call_id = %s", call["id"]))


def test_a_stream_that_breaks_off_at_the_provider_goes_on_where_it_was(system: System, customer: Customer) -> None:
    system.far_end.script(match="hiccup", cut_after_bytes=3000, cut="reset")
    body = {"model": "fake-1", "input": "hiccup", "background": True, "stream": True}
    with system.http(customer.key).stream("POST", PATH, json=body) as reply:
        told = events(b"".join(reply.iter_raw()))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert told[-1]["type"] == "response.completed"
    call = the_call(system, customer)
    assert (call["state"], call["evidence"], call["tries"]) == ("settled", "provider", 1)


@pytest.mark.parametrize("after", [0, 5, 12])
def test_a_stream_is_told_again_from_any_event_on(system: System, customer: Customer, after: int) -> None:
    client = client_of(system, customer.key)
    told = list(created(system, customer, "again", stream=True))
    looks = len(system.far_end.looks())
    again = list(client.responses.retrieve(told[0].response.id, stream=True, starting_after=after))
    assert again == told[after + 1 :]
    assert len(system.far_end.looks()) == looks  # from what is on record


def test_a_caller_who_comes_back_while_it_is_written_gets_the_exact_rest(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="drop me", pace_ms=60)
    first = []
    for event in created(system, customer, "drop me", stream=True):
        first.append(event)
        if event.sequence_number == 4:
            break
    rest = list(client.responses.retrieve(first[0].response.id, stream=True, starting_after=4))
    numbers = [event.sequence_number for event in first + rest]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    assert ended(system, customer)["evidence"] == "provider"


def test_a_stream_that_was_not_in_the_background_is_not_told_again(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    (first, *_) = list(client.responses.create(model="fake-1", input="in front", stream=True))
    with pytest.raises(openai.BadRequestError, match="streamed again"):
        list(client.responses.retrieve(first.response.id, stream=True))


def test_a_rival_cannot_hear_a_stream_again(system: System, customer: Customer) -> None:
    told = list(created(system, customer, "mine", stream=True))
    stranger = client_of(system, system.tenant().key)
    with pytest.raises(openai.NotFoundError):
        stranger.responses.retrieve(told[0].response.id, stream=True, starting_after=2)


# --- what dies ------------------------------------------------------------------------------------------------------


def test_a_killed_worker_leaves_nothing_unknown_another_looks_on(fragile: System) -> None:
    customer = fragile.tenant()
    fragile.far_end.script(match="survive", polls=4)
    made = created(fragile, customer, "survive")
    kill_worker(fragile)
    call = ended(fragile, customer)
    assert (call["evidence"], call["charged_nano"], call["tries"]) == ("provider", cost(call), 1)
    assert client_of(fragile, customer.key).responses.retrieve(made.id).status == "completed"


def test_a_worker_that_is_killed_in_mid_stream_leaves_the_rest_to_be_heard_and_settled(fragile: System) -> None:
    customer = fragile.tenant()
    fragile.far_end.script(match="mid kill", pace_ms=150, polls=3)
    told: list[Any] = []
    stream = created(fragile, customer, "mid kill", stream=True)
    while not told or told[-1].sequence_number < 4:
        told.append(next(stream))
    kill_worker(fragile)
    with pytest.raises(openai.APIError, match="relay broke off"):
        told.extend(stream)
    client = client_of(fragile, customer.key)
    last = told[-1].sequence_number
    rest = list(client.responses.retrieve(told[0].response.id, stream=True, starting_after=last))
    assert [event.sequence_number for event in rest] == list(range(last + 1, last + 1 + len(rest)))
    assert rest[-1].type == "response.completed"
    call = the_call(fragile, customer)  # settled by that look, before its last event came
    assert (call["state"], call["evidence"], call["charged_nano"]) == ("settled", "provider", cost(call))


def test_one_that_takes_too_long_is_cancelled_before_its_deadline(fragile: System) -> None:
    customer = fragile.tenant()
    fragile.far_end.script(match="for ever", polls=1_000_000)
    made = created(fragile, customer, "for ever")
    wait_for(lambda: the_call(fragile, customer)["state"] == "settled", seconds=75)
    assert the_call(fragile, customer)["error_code"] == "cancelled"
    assert f"POST {PATH}/{made.id}/cancel" in fragile.far_end.looks()


def test_many_in_the_background_while_workers_are_killed_all_end_once(fragile: System) -> None:
    customer = fragile.tenant()
    fragile.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "10")
    fragile.far_end.script(match="crowd", polls=3)
    http = fragile.http(customer.key)
    for number in range(12):
        http.post(PATH, json={"model": "fake-1", "input": f"crowd {number}", "background": True})
        if number in {4, 8}:
            kill_worker(fragile)
    wait_for(lambda: all(call["state"] in {"settled", "void"} for call in calls_of(fragile, customer)), seconds=60)
    states = [call["state"] for call in calls_of(fragile, customer)]
    assert states.count("settled") >= 10
    for call in calls_of(fragile, customer):
        assert call["charged_nano"] == (cost(call) if call["state"] == "settled" else 0)
    verified = fragile.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])


def test_a_sandbox_works_in_the_background_too(system: System) -> None:
    customer = system.tenant(environment="sandbox")
    client = client_of(system, customer.key)
    slow = client.responses.create(model="any", input="sandbox:slow:60000ms", background=True)
    assert (slow.status, client.responses.retrieve(slow.id).status) == ("queued", "in_progress")
    assert client.responses.cancel(slow.id).status == "cancelled"
    made = client.responses.create(model="any", input="hello", background=True)
    assert client.responses.retrieve(made.id).output_text == "sandbox: hello"
    told = list(client.responses.create(model="any", input="hello", background=True, stream=True))
    again = list(client.responses.retrieve(told[0].response.id, stream=True, starting_after=3))
    assert again == told[4:]
    wait_for(lambda: not [call for call in calls_of(system, customer) if call["is_live"]])
