"""OpenAI's Responses through the whole system, with its official SDK."""

import json
import re
import uuid
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.fakes import sse
from tests.gateway.pictures import encoded, picture, wav
from tests.system import Customer, System
from tests.waiting import wait_for

NANO_IN, NANO_OUT = 150, 600
PATH = "/v1/responses"
FUNCTIONS: list[Any] = [
    {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}, "strict": False}
    for name in ("weather", "clock")
]


def client_of(system: System, key: str) -> Any:
    """The official SDK's client, whose unions of types say less than the tests know."""
    return system.openai(key)


def the_call(system: System, name: str) -> dict[str, Any]:
    (row,) = system.rows("SELECT * FROM usage_call WHERE id = %s", uuid.UUID(name.removeprefix("call_")))
    return row


def calls_of(system: System, customer: Customer) -> list[dict[str, Any]]:
    return system.rows("SELECT * FROM usage_call WHERE api_key_id = %s ORDER BY id", uuid.UUID(customer.key_id))


def cost(call: dict[str, Any]) -> int:
    fresh = call["input_tokens"] * NANO_IN + call["cache_read_tokens"] * NANO_IN // 2
    return int(fresh + call["output_tokens"] * NANO_OUT)


def numberless(raw: bytes) -> bytes:
    """Without the numbers that the far end gives each response."""
    return re.sub(rb"(resp|msg|fc|rs|call)_\d+", rb"\1", raw)


def events(raw: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: ")]


# --- plain and streamed ---------------------------------------------------------------------------------------------


def test_a_plain_response_is_answered_and_charged_to_the_nano_dollar(system: System, customer: Customer) -> None:
    raw = client_of(system, customer.key).responses.with_raw_response.create(model="fake-1", input="hello there")
    response = raw.parse()
    call = the_call(system, raw.headers["x-call-id"])
    assert response.usage
    charge = response.usage.input_tokens * NANO_IN + response.usage.output_tokens * NANO_OUT
    assert (call["state"], call["charged_nano"], call["evidence"]) == ("settled", charge, "provider")
    assert call["held_nano"] >= charge > 0
    assert response.output_text == "tok " * 8
    assert (call["endpoint"], call["served_model"]) == ("responses", "fake-1")


def test_a_streamed_response_is_charged_by_the_usage_of_its_last_event(system: System, customer: Customer) -> None:
    with client_of(system, customer.key).responses.stream(model="fake-1", input="hello") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    (call,) = calls_of(system, customer)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "tok " * 8
    assert (call["state"], call["evidence"], call["charged_nano"]) == ("settled", "provider", cost(call))
    assert call["output_tokens"] == 8


def test_body_and_reply_pass_byte_for_byte(system: System, customer: Customer) -> None:
    body = b'{"model" : "fake-1",\n "x_unknown": {"b":1.50,"a":[1e2]}, "max_output_tokens": 19, "input":"\\u00e9", "metadata":{"a":"b"}}'
    system.far_end.script(match="x_unknown", extra={"tomorrow": {"deep": [1]}})
    before = len(system.far_end.calls())
    reply = system.http(customer.key).post(PATH, content=body)
    direct = httpx2.post(f"{system.far_end.base_url}{PATH}", content=body, trust_env=False)
    ours, theirs = system.far_end.calls()[before:]
    assert ours["sha256"] == theirs["sha256"]
    assert numberless(reply.content) == numberless(direct.content)
    assert b'"tomorrow":{"deep":[1]}' in reply.content


def test_the_events_of_a_stream_are_the_providers_own(system: System, customer: Customer) -> None:
    body = json.dumps({"model": "fake-1", "input": "as it is", "stream": True, "max_output_tokens": 30}).encode()
    system.far_end.script(match="as it is", extra={"tomorrow": 1}, split_bytes=7)
    with system.http(customer.key).stream("POST", PATH, content=body) as reply:
        ours = b"".join(reply.iter_raw())
    direct = httpx2.post(f"{system.far_end.base_url}{PATH}", content=body, trust_env=False)
    told, _, comment = ours.rpartition(b": cost_usd=")
    assert sse.events(numberless(told)) == sse.events(numberless(direct.content))
    assert comment.startswith(b"0.0000")


def test_an_absent_output_limit_is_injected_and_a_dear_one_clamped(system: System, customer: Customer) -> None:
    http = system.http(customer.key)
    plain = http.post(PATH, json={"model": "fake-1", "input": "x"})
    assert the_call(system, plain.headers["x-call-id"])["max_output_tokens"] == 1024
    assert plain.json()["max_output_tokens"] == 1024
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "0.0004")
    reply = http.post(PATH, json={"model": "fake-1", "input": "x", "max_output_tokens": 100_000})
    assert 16 <= int(reply.headers["x-budget-clamped"]) == reply.json()["max_output_tokens"] < 700


def test_parallel_calls_of_functions_come_plain_and_streamed(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="both", text='{"in":"Rome"}', output_tokens=6)
    asked: dict[str, Any] = {"model": "fake-1", "input": "both", "tools": FUNCTIONS, "tool_choice": "required"}
    plain = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    for response in (plain, streamed):
        made = [item for item in response.output if item.type == "function_call"]
        assert [(one.name, one.arguments) for one in made] == [("weather", '{"in":"Rome"}'), ("clock", '{"in":"Rome"}')]
    outputs: list[Any] = [{"type": "function_call_output", "call_id": one.call_id, "output": "mild"} for one in made]
    again = client.responses.create(model="fake-1", previous_response_id=streamed.id, input=outputs, tools=FUNCTIONS)
    assert again.previous_response_id == streamed.id


class Town(BaseModel):
    name: str
    people: int


def test_structured_output_is_parsed(system: System, customer: Customer) -> None:
    system.far_end.script(match="a town", text='{"name":"Rome","people":3}', output_tokens=9)
    parsed = client_of(system, customer.key).responses.parse(model="fake-1", input="a town", text_format=Town)
    assert parsed.output_parsed == Town(name="Rome", people=3)


def test_reasoning_service_tier_and_whatever_else_is_asked_reaches_the_provider(
    system: System, customer: Customer
) -> None:
    response = client_of(system, customer.key).responses.create(
        model="fake-1",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "think"}]}],
        reasoning={"effort": "high", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        service_tier="default",
        prompt_cache_key="a",
        truncation="auto",
        instructions="be brief",
        metadata={"k": "v"},
        store=False,
        safety_identifier="someone",
    )
    assert response.output[0].type == "reasoning"
    assert response.output[0].encrypted_content
    assert (response.truncation, response.metadata) == ("auto", {"k": "v"})
    (call,) = calls_of(system, customer)
    assert call["end_user"] == "someone"


def test_images_and_audio_of_the_body_are_held_as_such(system: System, customer: Customer) -> None:
    url = f"data:image/png;base64,{encoded(picture('png', 64, 64))}"
    parts: list[Any] = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": url, "detail": "low"},
    ]
    response = client_of(system, customer.key).responses.create(
        model="fake-1", input=[{"role": "user", "content": parts}]
    )
    assert response.status == "completed"
    heard = {"type": "input_audio", "input_audio": {"data": encoded(wav(1)), "format": "wav"}}
    refused = system.http(customer.key).post(
        PATH, json={"model": "fake-1", "input": [{"role": "user", "content": [heard]}]}
    )
    assert refused.status_code == 402  # this model has no price for audio
    assert "input_audio" in refused.json()["error"]["message"]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_cut_stream_is_charged_by_count_and_ends_in_an_error_the_sdk_raises(
    system: System, customer: Customer
) -> None:
    system.far_end.script(match="cut me", cut_after_chunks=6)
    stream = client_of(system, customer.key).responses.create(model="fake-1", input="cut me", stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    (call,) = calls_of(system, customer)
    assert (call["state"], call["evidence"], call["error_code"]) == ("settled", "counted", "stream_broken")
    assert 0 < call["charged_nano"] == cost(call) <= call["held_nano"]


def test_a_stream_that_ends_well_formed_but_without_its_last_event_was_cut(system: System, customer: Customer) -> None:
    system.far_end.script(match="no end", done=False)
    with pytest.raises(openai.APIError, match="without its last event"):
        list(client_of(system, customer.key).responses.create(model="fake-1", input="no end", stream=True))
    (call,) = calls_of(system, customer)
    assert (call["evidence"], call["output_tokens"]) == ("counted", 8)


@pytest.mark.parametrize("usage", ["missing", "null", "negative", "string"])
def test_an_answer_without_a_usable_usage_is_counted(system: System, customer: Customer, usage: str) -> None:
    system.far_end.script(match="no usage", usage=usage)
    client_of(system, customer.key).responses.create(model="fake-1", input="no usage")
    list(client_of(system, customer.key).responses.create(model="fake-1", input="no usage", stream=True))
    for call in calls_of(system, customer):
        assert (call["state"], call["evidence"], call["output_tokens"]) == ("settled", "counted", 8)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_failed_without_a_usage_costs_nothing(system: System, customer: Customer, stream: bool) -> None:
    system.far_end.script(match="fail", ends="failed")
    answer = client_of(system, customer.key).responses.create(model="fake-1", input="fail", stream=stream)
    last: Any = list(answer)[-1].response if stream else answer
    assert (last.status, last.error.code) == ("failed", "server_error")
    (call,) = calls_of(system, customer)
    assert (call["state"], call["charged_nano"], call["error_code"]) == ("void", 0, "provider_error")


def test_a_response_that_failed_with_a_usage_costs_what_was_used(system: System, customer: Customer) -> None:
    system.far_end.script(match="fail late", ends="failed", usage={"input_tokens": 5, "output_tokens": 2})
    client_of(system, customer.key).responses.create(model="fake-1", input="fail late")
    (call,) = calls_of(system, customer)
    assert (call["state"], call["charged_nano"]) == ("settled", 5 * NANO_IN + 2 * NANO_OUT)


def test_an_incomplete_response_is_charged_like_any_other(system: System, customer: Customer) -> None:
    response = client_of(system, customer.key).responses.create(model="fake-1", input="much", max_output_tokens=4)
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    (call,) = calls_of(system, customer)
    assert (call["evidence"], call["output_tokens"]) == ("provider", 4)


def test_an_error_event_in_mid_stream_reaches_the_sdk_and_is_counted(system: System, customer: Customer) -> None:
    system.far_end.script(match="mid error", error_after=7)
    with pytest.raises(openai.APIError, match="told to answer 500"):
        list(client_of(system, customer.key).responses.create(model="fake-1", input="mid error", stream=True))
    (call,) = calls_of(system, customer)
    assert (call["state"], call["evidence"]) == ("settled", "counted")


def test_a_429_is_tried_again(system: System, customer: Customer) -> None:
    system.far_end.script(match="busy once", status=429, times=1)
    assert client_of(system, customer.key).responses.create(model="fake-1", input="busy once").status == "completed"
    (call,) = calls_of(system, customer)
    assert call["tries"] == 2


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_url": "https://x.test"}]}, "tools"),
        ({"tools": [{"type": "image_generation"}]}, "tools"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background_options": {"completion_window": "8h"}, "background": True}, "background_options"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"service_tier": "ultrafast"}, "service_tier"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
    ],
)
def test_what_nothing_bounds_is_refused_before_anything_is_sent(
    system: System, customer: Customer, more: dict[str, Any], param: str
) -> None:
    before = system.far_end.count()
    reply = system.http(customer.key).post(PATH, json={"model": "fake-1", "input": "x"} | more)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (402, "model_not_priced", param)
    assert system.far_end.count() == before


# --- what is stored -------------------------------------------------------------------------------------------------


def test_a_stored_response_is_retrieved_listed_and_deleted_for_nothing(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    made = client.responses.create(model="fake-1", input="keep me")
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id).data
    assert item.content[0].text == "keep me"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match=f"Response with id '{made.id}' not found"):
        client.responses.retrieve(made.id)
    first, *others = calls_of(system, customer)
    assert first["charged_nano"] > 0
    assert {call["charged_nano"] + call["held_nano"] + call["provider_cost_nano"] for call in others} == {0}


def test_a_retrieved_response_is_the_providers_byte_for_byte(system: System, customer: Customer) -> None:
    made = client_of(system, customer.key).responses.create(model="fake-1", input="bytes")
    ours = system.http(customer.key).get(f"{PATH}/{made.id}?include=message.output_text.logprobs")
    direct = httpx2.get(f"{system.far_end.base_url}{PATH}/{made.id}", trust_env=False)
    assert ours.content == direct.content
    assert f"GET {PATH}/{made.id}?include=message.output_text.logprobs" in system.far_end.looks()


def test_counting_input_tokens_is_free(system: System, customer: Customer) -> None:
    counted = client_of(system, customer.key).responses.input_tokens.count(model="fake-1", input="x" * 40)
    assert counted.input_tokens == 10
    (call,) = calls_of(system, customer)
    assert (call["charged_nano"], call["held_nano"], call["endpoint"]) == (0, 0, "responses.input_tokens")


def test_what_is_not_stored_has_no_owner_and_cannot_be_retrieved(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    made = client.responses.create(model="fake-1", input="forget me", store=False)
    looks = len(system.far_end.looks())
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    assert len(system.far_end.looks()) == looks


def test_a_rival_finds_nothing_under_any_id(system: System, customer: Customer) -> None:
    client, rival = client_of(system, customer.key), system.tenant()
    system.far_end.script(match="secret", output_tokens=8)
    made = client.responses.create(model="fake-1", input="secret", reasoning={"effort": "low"})
    looks, arrived = len(system.far_end.looks()), system.far_end.count()["arrived"]
    stranger = client_of(system, rival.key).responses
    for ask in (
        lambda: stranger.retrieve(made.id),
        lambda: stranger.retrieve(made.id, stream=True),
        lambda: stranger.cancel(made.id),
        lambda: stranger.delete(made.id),
        lambda: list(stranger.input_items.list(made.id)),
        lambda: stranger.create(model="fake-1", input=[{"type": "item_reference", "id": made.output[0].id}]),
        lambda: stranger.create(model="fake-1", input=[{"type": "reasoning", "id": made.output[0].id, "summary": []}]),
        lambda: stranger.input_tokens.count(
            model="fake-1", input=[{"type": "item_reference", "id": made.output[0].id}]
        ),
    ):
        with pytest.raises(openai.NotFoundError, match="not found"):
            ask()
    for ask in (
        lambda: stranger.create(model="fake-1", input="go on", previous_response_id=made.id),
        lambda: stranger.input_tokens.count(model="fake-1", input="go on", previous_response_id=made.id),
        lambda: client.responses.create(model="fake-1", input="go on", previous_response_id="resp_nobodys"),
    ):
        with pytest.raises(openai.BadRequestError, match="Previous response with id") as refusal:
            ask()
        assert (refusal.value.code, refusal.value.param) == ("previous_response_not_found", "previous_response_id")
    assert (len(system.far_end.looks()), system.far_end.count()["arrived"]) == (looks, arrived)
    assert client.responses.retrieve(made.id).id == made.id


def test_another_environment_of_the_same_tenant_is_a_stranger_too(system: System, customer: Customer) -> None:
    made = client_of(system, customer.key).responses.create(model="fake-1", input="prod only")
    key = system.manage("key_issue", "--tenant", customer.name, "--environment", "dev")["key"]
    with pytest.raises(openai.NotFoundError):
        client_of(system, key).responses.retrieve(made.id)


# --- what was said before -------------------------------------------------------------------------------------------


def test_a_continued_response_is_held_for_all_that_was_said_before(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="long story", input_tokens=50_000, output_tokens=8)
    first = client.responses.create(model="fake-1", input="long story")
    second = client.responses.create(model="fake-1", input="and then?", previous_response_id=first.id)
    third = client.responses.create(model="fake-1", input="and then?", previous_response_id=second.id)
    assert first.usage
    assert third.usage
    calls = calls_of(system, customer)
    assert third.usage.input_tokens > second.usage.input_tokens > 50_000
    for call, earlier in zip(calls[1:], calls, strict=False):
        said = earlier["input_tokens"] + earlier["output_tokens"]
        assert call["charged_nano"] <= call["held_nano"] < (said + 2000) * NANO_IN + 1024 * NANO_OUT
        assert call["platform_loss_nano"] == 0


def test_a_streamed_response_can_be_continued_as_soon_as_it_has_ended(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    with client.responses.stream(model="fake-1", input="once") as stream:
        first = stream.get_final_response()
    assert client.responses.create(model="fake-1", input="more", previous_response_id=first.id).status == "completed"


def test_what_ended_without_telling_its_tokens_cannot_be_continued(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="tell nothing", usage="missing")
    first = client.responses.create(model="fake-1", input="tell nothing")
    with pytest.raises(openai.APIStatusError, match="is not known") as refusal:
        client.responses.create(model="fake-1", input="more", previous_response_id=first.id)
    assert (refusal.value.status_code, refusal.value.code) == (402, "model_not_priced")


def test_a_response_counted_for_another_model_cannot_be_continued(system: System, customer: Customer) -> None:
    first = client_of(system, customer.key).responses.create(model="fake-1", input="once")
    reply = system.http(customer.key).post(
        PATH, json={"model": "fake-2", "input": "x", "previous_response_id": first.id}
    )
    assert (reply.status_code, reply.json()["error"]["param"]) == (402, "previous_response_id")


def test_items_that_are_only_named_are_held_for_what_they_stand_for(system: System, customer: Customer) -> None:
    client = client_of(system, customer.key)
    system.far_end.script(match="think hard", output_tokens=8, usage={
        "input_tokens": 5, "output_tokens": 5000, "output_tokens_details": {"reasoning_tokens": 4000}})  # fmt: skip
    first = client.responses.create(model="fake-1", input="think hard", reasoning={"effort": "high"})
    named: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
    client.responses.create(model="fake-1", input=[*named, {"role": "user", "content": "and?"}], max_output_tokens=16)
    call = calls_of(system, customer)[-1]
    assert 4000 * NANO_IN < call["held_nano"] < 5500 * NANO_IN


# --- as all calls ---------------------------------------------------------------------------------------------------


def test_a_sandbox_key_gets_responses_for_nothing(system: System) -> None:
    customer = system.tenant(environment="sandbox")
    client = client_of(system, customer.key)
    before = system.far_end.count()
    first = client.responses.create(model="gpt-anything", input="hello")
    with client.responses.stream(model="gpt-anything", input="again", previous_response_id=first.id) as stream:
        final = stream.get_final_response()
    assert (first.output_text, final.output_text) == ("sandbox: hello", "sandbox: again")
    assert client.responses.retrieve(first.id).output_text == "sandbox: hello"
    assert system.far_end.count() == before
    assert {call["charged_nano"] for call in calls_of(system, customer)} == {0}


def test_two_sandboxes_that_ask_the_same_get_responses_of_their_own(system: System) -> None:
    made = [
        client_of(system, system.tenant(environment="sandbox").key).responses.create(model="any", input="the same")
        for _ in range(2)
    ]
    assert made[0].output_text == made[1].output_text
    assert made[0].id != made[1].id


def test_an_idempotency_key_replays_a_response(system: System, customer: Customer) -> None:
    http = system.http(customer.key, **{"idempotency-key": uuid.uuid4().hex})
    body = {"model": "fake-1", "input": "once only"}
    first, second = http.post(PATH, json=body), http.post(PATH, json=body)
    assert first.content == second.content
    assert second.headers["idempotent-replayed"] == "true"


def test_an_estimate_of_a_response_is_what_it_holds(system: System, customer: Customer) -> None:
    http = system.http(customer.key)
    body = {"model": "fake-1", "input": "how much?", "max_output_tokens": 100}
    quoted = http.post(f"/v1/estimate?endpoint={PATH}", json=body).json()
    assert quoted["worst_case_usd"] == http.post(PATH, json=body).headers["x-held-usd"]


def test_the_ledger_is_clean_after_all_of_this(system: System) -> None:
    wait_for(lambda: not system.rows("SELECT 1 FROM usage_call WHERE is_live"), seconds=30)
    verified = system.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])
