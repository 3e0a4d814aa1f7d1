"""Blocked terms: found in any form of the input, and only as whole words."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moderation.rules import Terms, texts
from tests.system import System


@pytest.mark.parametrize(
    "text", ["the Project  Falcon plan", "PROJECT\nFALCON", "ｐｒｏｊｅｃｔ falcon!", "(project falcon)"]
)
def test_a_term_is_found_whatever_its_case_spacing_or_width(text: str) -> None:
    assert Terms(["Project Falcon"]).first_in(text) == "Project Falcon"


@pytest.mark.parametrize("text", ["projects falcons", "project falconry", "a project, a falcon", ""])
def test_a_part_of_a_word_is_not_the_word(text: str) -> None:
    assert Terms(["project falcon"]).first_in(text) is None


@given(st.lists(st.text(max_size=20), max_size=5), st.text(max_size=50))
def test_no_term_is_taken_for_a_pattern(terms: list[str], text: str) -> None:
    found = Terms(terms).first_in(text)
    assert found is None or found in terms


def test_matching_takes_linear_time() -> None:
    terms = Terms(["(a+)+$", "a" * 200])
    began = time.perf_counter()
    assert terms.first_in("a" * 1_000_000) is None
    assert time.perf_counter() - began < 20


def test_strings_are_found_at_any_depth_and_keys_are_not() -> None:
    assert sorted(texts({"messages": [{"content": [{"text": "a"}]}, "b"], "n": 1, "c": None})) == ["a", "b"]


def test_a_blocked_call_reaches_no_provider_costs_nothing_and_is_on_record(system: System) -> None:
    customer = system.tenant()
    system.manage("policy_set", "--tenant", customer.name, "--environment", "prod", "--block", "project falcon")
    time.sleep(1.1)  # a worker's copy of the policies is at most a second old
    before = system.far_end.count()["arrived"]
    body = {"model": "fake-1", "max_tokens": 5, "messages": [{"role": "user", "content": "what is Project Falcon?"}]}
    with system.http(customer.key) as http:
        for path in ("chat/completions", "messages"):
            reply = http.post(f"/v1/{path}", json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_blocked")
    assert system.far_end.count()["arrived"] == before
    rows = system.rows(
        "SELECT c.state, c.charged_nano, f.term FROM usage_call c JOIN moderation_finding f ON f.call_id = c.id WHERE c.api_key_id = %s",
        customer.key_id,
    )
    assert rows == [{"state": "void", "charged_nano": 0, "term": "project falcon"}] * 2
