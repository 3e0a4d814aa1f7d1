"""A name leads along a chain of models at providers; what fails surely unprocessed goes on to the next, at that one's price."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest

from aiplatform.gateway.catalogue import Place
from tests.fakes.provider import FakeProvider
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for

QUESTION: Any = [{"role": "user", "content": "Which way?"}]
# What `second` charges, in nano-USD a token; `fake-1` costs 150 and 600.
SECOND_IN, SECOND_OUT = 1000, 4000


@pytest.fixture(scope="module")
def other_end(running: System) -> Iterator[FakeProvider]:
    """A second far end, whose models are dearer, one on each wire."""
    with FakeProvider() as fake:
        places = (
            ("other", "openai", f"{fake.base_url}/v1", "second"),
            ("other-anthropic", "anthropic", fake.base_url, "claude-second"),
        )
        for name, wire, url, model in places:
            running.manage(
                "provider_set", name, "--wire", wire, "--base-url", url, "--key-env", "FAKE_KEY", "--models", model
            )
            running.manage("price_set", name, model, "--input", "1", "--output", "4")
        yield fake


@pytest.fixture(autouse=True)
def without_faults(other_end: FakeProvider) -> None:
    other_end.clear()


def route(system: System, customer: Customer, *steps: str) -> str:
    name = f"smart-{uuid.uuid4().hex[:8]}"
    system.manage("route_set", name, "--tenant", customer.name, *(word for step in steps for word in ("--step", step)))
    return name


def receipt(system: System, customer: Customer, call: str) -> dict[str, Any]:
    with system.http(customer.key) as http:
        found = http.get(f"/api/calls/{call}").json()
    assert isinstance(found, dict)
    return found


def agrees(system: System, customer: Customer) -> bool:
    return bool(system.manage("ledger_verify", "--tenant", customer.name)["ok"])


def test_a_name_is_listed_and_leads_to_its_model(system: System, customer: Customer) -> None:
    name = route(system, customer, "fake-1@fake")
    client = system.openai(customer.key)
    assert name in {model.id for model in client.models.list()}
    reply = client.chat.completions.with_raw_response.create(model=name, max_tokens=20, messages=QUESTION)
    assert reply.parse().model == "fake-1"
    found = receipt(system, customer, reply.headers["x-call-id"])
    assert (found["model"], found["provider"], found["attempts"][0]["model"]) == (name, "fake", "fake-1")
    other = system.tenant()
    with pytest.raises(openai.NotFoundError):
        system.openai(other.key).chat.completions.create(model=name, messages=QUESTION)


def test_what_the_first_provider_did_not_process_the_second_does_at_its_own_price(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    name, canary = route(system, customer, "fake-1@fake", "second"), f"canary {uuid.uuid4()}"
    system.far_end.script(match=canary, status=503, retry_after="60")
    reply = system.openai(customer.key).chat.completions.with_raw_response.create(
        model=name, max_tokens=20, messages=[{"role": "user", "content": canary}]
    )
    usage = reply.parse().usage
    assert usage is not None
    found = receipt(system, customer, reply.headers["x-call-id"])
    assert [(one["provider"], one["model"], one["outcome"], one["status"]) for one in found["attempts"]] == [
        ("fake", "fake-1", "refused", 503), ("other", "second", "answered", 200),
    ]  # fmt: skip
    due = usage.prompt_tokens * SECOND_IN + usage.completion_tokens * SECOND_OUT
    assert int(found["charged_usd"].replace(".", "")) == due
    assert float(found["held_usd"]) >= float(found["charged_usd"])
    assert agrees(system, customer)


def test_the_hold_covers_the_dearest_step_though_the_first_one_serves(system: System, customer: Customer) -> None:
    alone, chain = route(system, customer, "fake-1@fake"), route(system, customer, "fake-1@fake", "second")
    client = system.openai(customer.key)
    held = [
        float(
            client.chat.completions.with_raw_response.create(
                model=f"{name}", max_tokens=100, messages=QUESTION
            ).headers["x-held-usd"]
        )
        for name in (alone, chain)
    ]
    assert held[1] > 5 * held[0]


def test_an_answer_that_may_have_been_made_is_never_bought_again(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    name, canary = route(system, customer, "fake-1@fake", "second"), f"canary {uuid.uuid4()}"
    system.far_end.script(match=canary, status=500)
    with pytest.raises(openai.InternalServerError):
        system.openai(customer.key).chat.completions.create(
            model=name, max_tokens=20, messages=[{"role": "user", "content": canary}]
        )
    assert other_end.calls() == [] or canary not in str(other_end.calls()[-1])
    assert agrees(system, customer)


def test_when_everything_fails_the_last_answer_is_the_callers_and_costs_nothing(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    name, canary = route(system, customer, "fake-1@fake", "second"), f"canary {uuid.uuid4()}"
    for far_end in (system.far_end, other_end):
        far_end.script(match=canary, status=529, retry_after="100")
    with pytest.raises(openai.APIStatusError) as raised:
        system.openai(customer.key).chat.completions.create(
            model=name, max_tokens=20, messages=[{"role": "user", "content": canary}]
        )
    assert raised.value.status_code == 529
    found = receipt(system, customer, raised.value.response.headers["x-call-id"])
    assert (found["state"], found["charged_usd"], len(found["attempts"])) == ("void", "0.000000000", 2)
    assert agrees(system, customer)


def test_a_credential_without_its_secret_is_passed_over(system: System, customer: Customer) -> None:
    name = f"two-keys-{uuid.uuid4().hex[:6]}"
    url = f"{system.far_end.base_url}/v1"
    system.manage(
        "provider_set", name, "--wire", "openai", "--base-url", url, "--key-env", "FAKE_KEY", "--models", name
    )
    system.manage("price_set", name, name, "--input", "1", "--output", "4")
    system.manage("credential_set", name, "broken", "--key-env", "NO_SUCH_KEY_IS_SET", "--weight", "1000")
    replies = [
        system.openai(customer.key).chat.completions.with_raw_response.create(
            model=name, max_tokens=10, messages=QUESTION
        )
        for _ in range(4)
    ]
    names = {receipt(system, customer, one.headers["x-call-id"])["attempts"][-1]["credential"] for one in replies}
    assert names == {"default"}


def test_a_stored_response_belongs_to_who_made_it_though_another_was_asked_first(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    name, canary = route(system, customer, "fake-1@fake", "second"), f"canary {uuid.uuid4()}"
    system.far_end.script(match=canary, status=503, retry_after="60")
    client: Any = system.openai(customer.key)
    made = client.responses.create(model=name, input=canary, max_output_tokens=20)
    (row,) = system.rows("SELECT provider, model FROM usage_providerobject WHERE provider_id = %s", made.id)
    assert row == {"provider": "other", "model": "second"}
    asked = len(other_end.looks())
    assert client.responses.retrieve(made.id).output_text == made.output_text
    assert len(other_end.looks()) == asked + 1


def test_a_response_in_the_background_is_polled_where_it_was_begun(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    name, canary = route(system, customer, "fake-1@fake", "second"), f"canary {uuid.uuid4()}"
    system.far_end.script(match=canary, status=503, retry_after="60")
    client: Any = system.openai(customer.key)
    made = client.responses.create(model=name, input=canary, max_output_tokens=20, background=True)
    wait_for(lambda: client.responses.retrieve(made.id).status == "completed", 30)
    wait_for(lambda: _states(system, customer) == {"settled"}, 30)
    (row,) = system.rows("SELECT provider, charged_nano FROM usage_call WHERE charged_nano > 0 AND api_key_id = %s", customer.key_id)  # fmt: skip
    usage = client.responses.retrieve(made.id).usage
    assert row["provider"] == "other"
    assert row["charged_nano"] == usage.input_tokens * SECOND_IN + usage.output_tokens * SECOND_OUT
    assert agrees(system, customer)


def _states(system: System, customer: Customer) -> set[str]:
    return {row["state"] for row in system.rows("SELECT state FROM usage_call WHERE api_key_id = %s", customer.key_id)}


def test_a_batch_names_its_providers_own_model_and_no_route(system: System, customer: Customer) -> None:
    name, before = route(system, customer, "fake-1@fake-anthropic"), system.far_end.count()
    line: Any = {"custom_id": "n1", "params": {"model": name, "max_tokens": 9, "messages": QUESTION}}
    with pytest.raises(anthropic.NotFoundError, match=name):
        system.anthropic(customer.key).messages.batches.create(requests=[line])
    assert system.far_end.count() == before


def test_what_is_free_goes_by_a_tenants_own_credential_too(system: System, customer: Customer) -> None:
    system.manage("credential_set", "fake-anthropic", "mine", "--tenant", customer.name, "--key-env", "FAKE_KEY")

    def credential() -> str:
        raw = system.anthropic(customer.key).messages.with_raw_response.count_tokens(model="fake-1", messages=QUESTION)
        assert raw.parse().input_tokens > 0
        return str(receipt(system, customer, raw.headers["x-call-id"])["attempts"][0]["credential"])

    wait_for(lambda: credential() == "mine")  # a worker's copy of the catalogue is at most two seconds old


def test_what_is_kept_in_our_account_is_paid_for_though_the_tenant_has_brought_a_credential_since(
    system: System, customer: Customer
) -> None:
    name = f"keeper-{uuid.uuid4().hex[:6]}"
    system.manage(
        "provider_set", name, "--wire", "openai", "--base-url", system.far_end.openai_url, "--key-env", "FAKE_KEY",
        "--models", name,
    )  # fmt: skip
    batch_prices = ("--component", "input/batch=0.5", "--component", "output/batch=2")
    system.manage("price_set", name, name, "--input", "1", "--output", "4", *batch_prices)
    client: Any = system.openai(customer.key)
    first = client.responses.create(model=name, input="Remember me", max_output_tokens=20)
    line = {"model": name, "max_tokens": 9, "messages": QUESTION}
    data = json.dumps({"custom_id": "n", "method": "POST", "url": "/v1/chat/completions", "body": line}).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch", extra_headers={"x-provider": name}).id
    system.manage("credential_set", name, "mine", "--tenant", customer.name, "--key-env", "NO_SUCH_KEY_IS_SET")
    client.responses.create(model=name, input="And?", previous_response_id=first.id, max_output_tokens=20)
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h").id
    system.far_end.finish(batch)
    unpaid = """SELECT 1 FROM usage_call WHERE api_key_id = %s AND (state = 'inflight'
                OR (endpoint IN ('responses', 'batch') AND (charged_nano = 0 OR provider_cost_nano = 0)))"""
    wait_for(lambda: not system.rows(unpaid, customer.key_id), 30)
    made = "SELECT endpoint FROM usage_call WHERE api_key_id = %s AND endpoint IN ('responses', 'batch') ORDER BY 1"
    assert [row["endpoint"] for row in system.rows(made, customer.key_id)] == ["batch", "responses", "responses"]
    assert agrees(system, customer)


@pytest.mark.parametrize("asked", [{}, {"max_completion_tokens": 20}])
def test_a_server_that_knows_the_older_limit_alone_stays_within_the_hold(
    system: System, customer: Customer, asked: Any
) -> None:
    canary = f"canary {uuid.uuid4()}"
    system.far_end.script(match=canary, knows_newer_limit=False, output_tokens=5000)
    reply = system.openai(customer.key).chat.completions.with_raw_response.create(
        model="fake-1", messages=[{"role": "user", "content": canary}], **asked
    )
    call = uuid.UUID(reply.headers["x-call-id"].removeprefix("call_"))
    (row,) = system.rows(
        "SELECT max_output_tokens, output_tokens, platform_loss_nano FROM usage_call WHERE id = %s", call
    )
    assert row["output_tokens"] == row["max_output_tokens"] == asked.get("max_completion_tokens", 1024)
    assert row["platform_loss_nano"] == 0


@pytest.mark.parametrize(
    ("url", "named", "field"),
    [
        ("https://api.openai.com/v1", "", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "", "max_completion_tokens"),
        ("https://acme.openai.azure.com/openai/v1", "", "max_completion_tokens"),
        ("https://openai.com.example/v1", "", "max_tokens"),
        ("http://127.0.0.1:11434/v1", "", "max_tokens"),
        ("http://127.0.0.1:11434/v1", "max_completion_tokens", "max_completion_tokens"),
    ],
)
def test_the_limits_field_is_the_one_that_the_server_knows(url: str, named: str, field: str) -> None:
    assert Place("p", "openai", url, frozenset(), named_limit_field=named).limit_field == field


# --- the other wire -------------------------------------------------------------------------------------------------------


def test_openais_sdk_reaches_a_model_of_anthropics_wire_plain_and_streamed(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    client = system.openai(customer.key)
    reply = client.chat.completions.with_raw_response.create(
        model="claude-second", max_tokens=30, messages=[{"role": "system", "content": "Be short."}, *QUESTION]
    )
    plain = reply.parse()
    assert plain.choices[0].message.content
    assert plain.usage is not None
    found = receipt(system, customer, reply.headers["x-call-id"])
    assert found["provider"] == "other-anthropic"
    assert int(found["charged_usd"].replace(".", "")) == (
        plain.usage.prompt_tokens * SECOND_IN + plain.usage.completion_tokens * SECOND_OUT
    )
    with client.chat.completions.stream(
        model="claude-second", max_tokens=30, messages=QUESTION, stream_options={"include_usage": True}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason in {"stop", "length"}
    assert final.usage is not None
    assert final.usage.completion_tokens > 0
    assert agrees(system, customer)


def test_anthropics_sdk_reaches_a_model_of_openais_wire_plain_and_streamed(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    client = system.anthropic(customer.key)
    reply = client.messages.create(model="second", max_tokens=30, system="Be short.", messages=QUESTION)
    assert reply.content[0].type == "text"
    assert reply.usage.output_tokens > 0
    with client.messages.stream(model="second", max_tokens=30, messages=QUESTION) as stream:
        final = stream.get_final_message()
    assert final.content[0].type == "text"
    assert final.usage.output_tokens > 0
    rows = system.rows(
        "SELECT state, provider, charged_nano FROM usage_call WHERE api_key_id = %s ORDER BY id", customer.key_id
    )
    assert [(row["state"], row["provider"]) for row in rows] == [("settled", "other")] * 2
    assert rows[0]["charged_nano"] == reply.usage.input_tokens * SECOND_IN + reply.usage.output_tokens * SECOND_OUT
    assert agrees(system, customer)


def test_openais_responses_reach_a_model_of_anthropics_wire(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    reply = system.openai(customer.key).responses.create(
        model="claude-second", max_output_tokens=30, input="Which way?", store=False
    )
    assert reply.output_text
    assert agrees(system, customer)


def test_a_server_without_responses_is_asked_for_chat_completions(system: System, customer: Customer) -> None:
    name = f"chat-only-{uuid.uuid4().hex[:6]}"
    system.manage(
        "provider_set", name, "--wire", "openai", "--base-url", system.far_end.openai_url, "--key-env", "FAKE_KEY",
        "--models", name, "--no-responses",
    )  # fmt: skip
    system.manage("price_set", name, name, "--input", "1", "--output", "4")
    client: Any = system.openai(customer.key)
    reply = client.responses.create(model=name, max_output_tokens=30, input="Which way?")
    assert reply.output_text
    with client.responses.stream(model=name, max_output_tokens=30, input="Which way?") as stream:
        assert [event.type for event in stream][-1] == "response.completed"
        assert stream.get_final_response().output_text == reply.output_text
    assert [call["path"] for call in system.far_end.calls() if call["model"] == name] == ["/v1/chat/completions"] * 2
    rows = system.rows("SELECT state, charged_nano FROM usage_call WHERE api_key_id = %s", customer.key_id)
    due = reply.usage.input_tokens * SECOND_IN + reply.usage.output_tokens * SECOND_OUT
    assert [(row["state"], row["charged_nano"]) for row in rows] == [("settled", due)] * 2
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model=name, input="Which way?", background=True)
    assert agrees(system, customer)


def test_what_cannot_be_carried_over_is_named_and_nothing_is_held(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        system.openai(customer.key).chat.completions.create(model="claude-second", n=2, messages=QUESTION)
    assert raised.value.param == "n"
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        system.anthropic(customer.key).messages.create(
            model="second", max_tokens=10, messages=QUESTION, extra_body={"top_k": 5}
        )
    assert system.rows("SELECT 1 FROM usage_call WHERE api_key_id = %s", customer.key_id) == []


def test_a_providers_error_comes_in_the_callers_wire(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    canary = f"canary {uuid.uuid4()}"
    other_end.script(match=canary, status=400)
    with pytest.raises(openai.BadRequestError) as raised:
        system.openai(customer.key).chat.completions.create(
            model="claude-second", max_tokens=10, messages=[{"role": "user", "content": canary}]
        )
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["message"]


def test_a_cut_stream_of_the_other_wire_ends_in_an_error_and_is_counted(
    system: System, customer: Customer, other_end: FakeProvider
) -> None:
    canary = f"canary {uuid.uuid4()}"
    other_end.script(match=canary, cut_after_chunks=4, output_tokens=30)
    stream = system.openai(customer.key).chat.completions.create(
        model="claude-second", max_tokens=50, stream=True, messages=[{"role": "user", "content": canary}]
    )
    with pytest.raises(openai.APIError):
        list(stream)
    (row,) = system.rows("SELECT state, evidence FROM usage_call WHERE api_key_id = %s", customer.key_id)
    assert (row["state"], row["evidence"]) == ("settled", "counted")
    assert agrees(system, customer)


# --- a provider that is not well -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def usual() -> Iterator[System]:
    """A system with breakers, retry budget and pacing as in production, and a far end of its own."""
    with (
        FakeProvider() as far_end,
        start_system(
            far_end, BREAKER_FAILURES="5", RETRY_RESERVE="10", PACE_PROVIDERS="true", PROVIDER_WAIT_SECONDS="5"
        ) as stack,
    ):
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()


@pytest.mark.timeout(240)
def test_a_storm_of_429s_is_not_amplified(usual: System) -> None:
    customer, canary = usual.tenant(), f"storm {uuid.uuid4()}"
    usual.far_end.script(match=canary, status=429, retry_after="1")

    def ask(_: int) -> int:
        reply = usual.http(customer.key).post(
            "/v1/chat/completions",
            json={"model": "fake-1", "max_tokens": 10, "messages": [{"role": "user", "content": canary}]},
        )
        return reply.status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(ask, range(60)))
    assert set(statuses) == {429}
    sent = sum(canary in str(one) or one.get("status") == 429 for one in usual.far_end.calls())
    assert sent <= 60 * 1.1 + 10 + 12  # the reserve, and what of it has refilled within a minute
    assert usual.rows("SELECT count(*) AS n FROM usage_call WHERE is_live") == [{"n": 0}]
    usual.far_end.clear()


@pytest.mark.timeout(240)
def test_a_provider_that_is_down_is_left_alone_and_asked_again_later(usual: System) -> None:
    customer = usual.tenant()
    name = f"down-{uuid.uuid4().hex[:6]}"
    with FakeProvider() as far_end:
        usual.manage(
            "provider_set", name, "--wire", "openai", "--base-url", far_end.openai_url, "--key-env", "FAKE_KEY", "--models", name
        )  # fmt: skip
        usual.manage("price_set", name, name, "--input", "1", "--output", "4")
        far_end.script(match="Which way?", status=500)
        body = {"model": name, "max_tokens": 10, "messages": QUESTION}
        http = usual.http(customer.key)
        answers = [http.post("/v1/chat/completions", json=body) for _ in range(8)]
        assert [one.status_code for one in answers[:5]] == [500] * 5
        refused = answers[-1]
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "provider_unavailable")
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert len(far_end.calls()) == 5
        (status,) = usual.manage("provider_status", "--provider", name)["providers"]
        assert "open" in str(status["credentials"])
        far_end.clear()
        wait_for(lambda: http.post("/v1/chat/completions", json=body).status_code == 200, seconds=30)
    verified = usual.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])
