"""OpenAI's Responses through the whole system, with its official SDK."""

import uuid
from typing import Any

from tests.system import Customer, System

NANO_IN, NANO_OUT = 150, 600


def the_call(system: System, name: str) -> dict[str, Any]:
    (row,) = system.rows("SELECT * FROM usage_call WHERE id = %s", uuid.UUID(name.removeprefix("call_")))
    return row


def test_a_plain_response_is_answered_and_charged_to_the_nano_dollar(system: System, customer: Customer) -> None:
    raw = system.openai(customer.key).responses.with_raw_response.create(model="fake-1", input="hello there")
    response = raw.parse()
    call = the_call(system, raw.headers["x-call-id"])
    assert response.usage
    charge = response.usage.input_tokens * NANO_IN + response.usage.output_tokens * NANO_OUT
    assert (call["state"], call["charged_nano"], call["evidence"]) == ("settled", charge, "provider")
    assert call["held_nano"] >= charge > 0
    assert response.output_text == "tok " * 8
