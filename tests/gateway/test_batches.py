"""Batches on both wires: the worst case of all lines is held, what the results say is charged, and nobody else sees them."""

import json
import time
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.records import settled
from tests.system import Customer, System
from tests.waiting import wait_for

NANO_IN, NANO_OUT = 150, 600  # standard; the batch price is the half
HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def _batch_prices(running: System) -> None:
    for name in ("fake", "fake-anthropic"):
        running.manage(
            "price_set", name, "fake-1", "--input", "0.15", "--output", "0.60", "--cache-read", "0.075",
            "--component", "input/batch=0.075", "--component", "output/batch=0.30",
        )  # fmt: skip


@pytest.fixture
def batching(_batch_prices: None, system: System) -> System:
    return system


def lines(count: int = 3, **more: Any) -> bytes:
    """The lines of a file."""
    body = {"model": "fake-1", "messages": HELLO, "max_completion_tokens": 100, **more}
    return b"".join(
        json.dumps({"custom_id": f"n{at}", "method": "POST", "url": "/v1/chat/completions", "body": body}).encode()
        + b"\n"
        for at in range(count)
    )


def created(system: System, customer: Customer, data: bytes) -> Any:
    """A batch of these lines."""
    client = system.openai(customer.key)
    name = client.files.create(file=("in.jsonl", data), purpose="batch").id
    return client.batches.with_raw_response.create(
        input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"
    )


def money(system: System, batch: str) -> dict[str, Any]:
    """The call that holds and pays what a batch costs."""
    (row,) = system.rows(
        "SELECT c.* FROM usage_call c JOIN usage_providerobject o ON o.money_call_id = c.id AND o.kind <> 'file' "
        "WHERE o.provider_id = %s",
        batch,
    )
    return row


def ended(system: System, batch: str) -> dict[str, Any]:
    """The same once the beat has seen the results."""
    wait_for(lambda: money(system, batch)["state"] != "inflight", seconds=30)
    return money(system, batch)


def test_a_batch_is_held_at_its_worst_and_charged_by_its_results_though_nobody_asks(
    batching: System, customer: Customer
) -> None:
    batching.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "1")
    raw = created(batching, customer, lines())
    batch = raw.parse().id
    assert settled(batching, raw.headers)["held_nano"] == 0
    held = money(batching, batch)
    assert (held["state"], held["endpoint"], held["worker_process"]) == ("inflight", "batch", None)
    assert held["held_nano"] > 3 * 100 * NANO_OUT // 2
    batching.far_end.finish(batch)
    call = ended(batching, batch)
    assert (call["state"], call["evidence"], call["variant"]) == ("settled", "provider", "batch")
    assert (call["input_tokens"], call["output_tokens"]) == (3 * 3, 3 * 8)
    assert call["charged_nano"] == (9 * NANO_IN + 24 * NANO_OUT) // 2
    (cap,) = batching.rows(
        "SELECT b.held_nano, b.spent_nano FROM usage_capbucket b WHERE b.id = ANY (%s)", call["bucket_ids"]
    )
    assert cap == {"held_nano": 0, "spent_nano": call["charged_nano"]}
    assert batching.manage("ledger_verify", "--tenant", customer.name)["drift"] == []


def test_its_results_are_its_tenants_alone(batching: System, customer: Customer) -> None:
    batch = created(batching, customer, lines()).parse().id
    batching.far_end.finish(batch)
    ended(batching, batch)
    client = batching.openai(customer.key)
    output = client.batches.retrieve(batch).output_file_id
    assert output
    assert len(client.files.content(output).read().splitlines()) == 3
    assert output in [one.id for one in client.files.list()]
    assert [one.status for one in client.batches.list()] == ["completed"]
    rival = batching.openai(batching.tenant().key)
    for ask in (
        lambda: rival.batches.retrieve(batch),
        lambda: rival.batches.cancel(batch),
        lambda: rival.files.content(output),
        lambda: rival.files.delete(output),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert list(rival.batches.list()) == []
    assert list(rival.files.list()) == []


def test_a_rivals_file_makes_no_batch(batching: System, customer: Customer) -> None:
    name = batching.openai(customer.key).files.create(file=("in.jsonl", lines()), purpose="batch").id
    with pytest.raises(openai.NotFoundError):
        batching.openai(batching.tenant().key).batches.create(
            input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"
        )


@pytest.mark.parametrize(("status", "done"), [("expired", 1), ("cancelled", 0), ("failed", 0)])
def test_a_batch_that_ends_early_is_charged_for_what_was_done(
    batching: System, customer: Customer, status: str, done: int
) -> None:
    batch = created(batching, customer, lines()).parse().id
    assert batching.openai(customer.key).batches.cancel(batch).status == "cancelling"
    batching.far_end.finish(batch, status, done)
    call = ended(batching, batch)
    assert (call["state"], call["output_tokens"]) == ("settled", 8 * done)
    assert call["charged_nano"] == done * (3 * NANO_IN + 8 * NANO_OUT) // 2


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (lines(max_completion_tokens=None), 402, "Line 1 has no output limit"),
        (lines(1) + lines(1, model="gpt-image-1"), 402, "Line 2 names"),
        (lines(1, model="nobody-1"), 404, "nobody-1"),
        (lines(1, stream=True), 400, "Line 1 asks for a stream"),
        (lines(1, tools=[{"type": "web_search"}]), 402, "Line 1: tools[0]"),
        (b"not json\n", 400, "JSON"),
        (b"\n\n", 400, "no lines"),
    ],
)
def test_lines_that_cannot_be_bounded_are_refused_with_the_reason_and_nothing_is_created(
    batching: System, customer: Customer, data: bytes, status: int, says: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        created(batching, customer, data)
    assert refused.value.status_code == status
    assert says in str(refused.value)
    assert [call["path"] for call in batching.far_end.calls()[-1:]] == ["/v1/files"]
    assert batching.rows("SELECT c.id FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s AND c.endpoint = 'batch'", customer.name) == []  # fmt: skip


def test_a_cap_that_does_not_afford_the_worst_case_refuses_the_batch(batching: System, customer: Customer) -> None:
    batching.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "0.00001")
    with pytest.raises(openai.APIStatusError) as refused:
        created(batching, customer, lines())
    assert (refused.value.status_code, refused.value.code) == (402, "cap_exceeded")


def test_a_creation_that_the_provider_refuses_gives_the_money_back(batching: System, customer: Customer) -> None:
    batching.far_end.script(match="completion_window", status=400)
    with pytest.raises(openai.BadRequestError):
        created(batching, customer, lines())
    (call,) = batching.rows("SELECT c.state, c.charged_nano FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s AND c.endpoint = 'batch'", customer.name)  # fmt: skip
    assert call == {"state": "void", "charged_nano": 0}


def test_nothing_that_a_batch_is_settled_by_can_be_deleted_before(batching: System, customer: Customer) -> None:
    client = batching.anthropic(customer.key)
    batch = client.messages.batches.create(requests=[_request(0)]).id
    with pytest.raises(anthropic.ConflictError):
        client.messages.batches.delete(batch)
    batching.far_end.finish(batch)
    ended(batching, batch)
    wait_for(lambda: batching.rows("SELECT 1 FROM usage_providerobject WHERE provider_id = %s AND ended_at IS NOT NULL", batch))  # fmt: skip
    client.messages.batches.delete(batch)
    assert list(client.messages.batches.list()) == []


def test_a_message_batch_is_charged_by_what_succeeded(batching: System, customer: Customer) -> None:
    client = batching.anthropic(customer.key)
    raw = client.messages.batches.with_raw_response.create(requests=[_request(at) for at in range(3)])
    batch = raw.parse().id
    assert money(batching, batch)["held_nano"] > 3 * 50 * NANO_OUT // 2
    batching.far_end.finish(batch, "expired", 2)
    call = ended(batching, batch)
    assert (call["state"], call["evidence"]) == ("settled", "provider")
    assert call["charged_nano"] == 2 * (3 * NANO_IN + 8 * NANO_OUT) // 2
    assert [one.result.type for one in client.messages.batches.results(batch)] == ["succeeded", "succeeded", "expired"]
    rival = batching.anthropic(batching.tenant().key)
    with pytest.raises(anthropic.NotFoundError):
        rival.messages.batches.retrieve(batch)
    assert list(rival.messages.batches.list()) == []


def test_a_blocked_term_in_a_line_keeps_the_batch_from_being_created(batching: System) -> None:
    customer = batching.tenant()
    batching.manage("policy_set", "--tenant", customer.name, "--environment", "prod", "--block", "there")
    time.sleep(1.1)  # a worker's copy of the policies is at most a second old
    with pytest.raises(openai.BadRequestError) as refused:
        created(batching, customer, lines())
    assert refused.value.code == "content_blocked"


def _request(at: int) -> Any:
    return {"custom_id": f"n{at}", "params": {"model": "fake-1", "max_tokens": 50, "messages": HELLO}}
