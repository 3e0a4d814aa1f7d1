"""An answer above the bound is charged and told of, and never held in memory whole."""

from collections.abc import Iterator

import pytest

from tests.fakes.provider import FakeProvider
from tests.gateway.records import settled
from tests.system import System, set_up_provider, start_system


@pytest.fixture
def narrow(far_end: FakeProvider) -> Iterator[System]:
    """A system that passes on answers of at most 1,000 bytes."""
    with start_system(far_end, MAX_REPLY_BYTES="1000") as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        system.manage("provider_set", "media", "--wire", "openai", "--base-url", f"{far_end.base_url}/v1",
                      "--key-env", "FAKE_KEY", "--models", "tts-1")  # fmt: skip
        system.manage("price_set", "media", "tts-1", "--component", "input_characters=15")
        yield system
        system.close_clients()


def test_an_answer_that_is_too_large_is_charged_as_the_request_shows(narrow: System) -> None:
    customer = narrow.tenant()
    body = {"model": "tts-1", "voice": "alloy", "input": "hello"}
    reply = narrow.http(customer.key).post("/v1/audio/speech", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "answer_too_large")
    call = settled(narrow, reply.headers)
    assert (call["evidence"], call["charged_nano"], call["error_code"]) == ("counted", 5 * 15_000, "answer_too_large")
    assert narrow.manage("ledger_verify", "--tenant", customer.name)["drift"] == []
