"""Embeddings and moderations by the official SDK: input alone is paid for, and bytes pass as they are."""

import json
import time
from typing import Any

import openai
import pytest

from tests.gateway.records import direct, same_request, settled
from tests.system import Customer, System


@pytest.mark.parametrize("given", ["hello there", ["hello", "there again"], [1, 2, 3], [[1, 2], [3]]])
def test_every_kind_of_input_is_embedded_and_charged_by_its_tokens(
    media: System, customer: Customer, given: Any
) -> None:
    raw = media.openai(customer.key).embeddings.with_raw_response.create(model="embed-1", input=given)
    reply = raw.parse()
    assert reply.data[0].embedding == [0.25, -0.5, 0.125]
    call = settled(media, raw.headers)
    assert (call["evidence"], call["input_tokens"], call["output_tokens"]) == ("provider", reply.usage.prompt_tokens, 0)
    assert call["charged_nano"] == reply.usage.prompt_tokens * 20


def test_body_and_reply_pass_byte_for_byte(media: System, customer: Customer) -> None:
    body = b'{"model" : "embed-1", "input":"caf\\u00e9",  "encoding_format":"float", "x_new": {"a":[1e2]}}'
    before = len(media.far_end.calls())
    ours = media.http(customer.key).post("/v1/embeddings", content=body)
    theirs = direct(media, "POST", "/v1/embeddings", content=body)
    assert same_request(media, before)
    assert ours.content == theirs.content
    assert ours.headers["content-type"] == theirs.headers["content-type"]


def test_a_reply_without_usage_is_charged_by_its_bytes_and_says_so(media: System, customer: Customer) -> None:
    media.far_end.script(match="embed-1", usage="missing")
    body = json.dumps({"model": "embed-1", "input": "x" * 400}).encode()
    reply = media.http(customer.key).post("/v1/embeddings", content=body)
    call = settled(media, reply.headers)
    assert (call["evidence"], call["input_tokens"]) == ("counted", -(-len(body) // 4))


def test_a_model_that_has_only_an_input_price_serves_no_chat(media: System, customer: Customer) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        media.openai(customer.key).chat.completions.create(model="embed-1", messages=[{"role": "user", "content": "x"}])
    assert (refused.value.status_code, refused.value.code) == (402, "model_not_priced")
    assert "output" in str(refused.value)


def test_a_model_without_a_price_is_refused_before_anything_is_sent(media: System, customer: Customer) -> None:
    before = media.far_end.count()
    with pytest.raises(openai.APIStatusError) as refused:
        media.openai(customer.key).embeddings.create(model="no-price", input="x")
    assert (refused.value.status_code, refused.value.code) == (402, "model_not_priced")
    assert media.far_end.count() == before


def test_a_moderation_is_free_by_a_price_of_nothing(media: System, customer: Customer) -> None:
    picture: Any = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]
    raw = media.openai(customer.key).moderations.with_raw_response.create(model="moderate-1", input=picture)
    assert raw.parse().results[0].flagged is False
    call = settled(media, raw.headers)
    assert (call["held_nano"], call["charged_nano"]) == (0, 0)


def test_a_blocked_term_in_an_input_is_never_sent(media: System) -> None:
    customer = media.tenant()
    media.manage("policy_set", "--tenant", customer.name, "--environment", "prod", "--block", "unspeakable")
    time.sleep(1.1)  # a worker's copy of the policies is at most a second old
    before = media.far_end.count()
    with pytest.raises(openai.BadRequestError) as refused:
        media.openai(customer.key).embeddings.create(model="embed-1", input=["fine", "an unspeakable thing"])
    assert refused.value.code == "content_blocked"
    assert media.far_end.count() == before


@pytest.mark.parametrize("body", [{"model": "embed-1"}, {"model": "embed-1", "input": []}, {"input": "x"}])
def test_what_cannot_be_an_input_is_a_400(media: System, customer: Customer, body: Any) -> None:
    assert media.http(customer.key).post("/v1/embeddings", json=body).status_code == 400
