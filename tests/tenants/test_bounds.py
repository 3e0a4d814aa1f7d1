"""What keys are bound to: what can be written, what then passes, and that `/api/` respects it."""

from typing import Any

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from tenants import bounds, keys, onboarding
from tenants.bounds import Bounds, KeyNotAllowed
from tenants.models import ApiKey, Environment
from tests.tenants.test_commands import manage, refusal

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]

PAGE = "https://app.example.com"


@pytest.fixture
def environment() -> Environment:
    tenant, _, _ = onboarding.create_tenant(name="Acme")
    return tenant.environments.get(name="prod")


def issue(*more: str) -> dict[str, Any]:
    return manage("key_issue", "--tenant", "Acme", "--environment", "prod", *more)


def bound(**wanted: list[str]) -> Bounds | None:
    lists = {name: wanted.get(name, []) for name in ("models", "endpoints", "origins", "networks")}
    return bounds.of(**lists)


def is_refused(check: Any, *arguments: Any, **named: Any) -> bool:
    try:
        check(*arguments, **named)
    except KeyNotAllowed as error:
        assert (error.status, error.code, error.headers["x-should-retry"]) == (403, "key_not_allowed", "false")
        return True
    return False


def test_a_key_is_issued_bound_and_then_bound_otherwise(environment: Environment) -> None:
    issued = issue("--model", "gpt-5*", "--model", "o3", "--endpoint", "chat", "--origin", "HTTPS://App.Example.com:443",
                   "--network", "192.0.2.7", "--network", "10.1.0.0/16")  # fmt: skip
    assert {name: issued[name] for name in ("models", "endpoints", "origins", "networks", "scopes")} == {
        "models": ["gpt-5*", "o3"], "endpoints": ["chat"], "origins": [PAGE],
        "networks": ["10.1.0.0/16", "192.0.2.7/32"], "scopes": ["calls"],
    }  # fmt: skip
    changed = manage("key_set", issued["id"], "--model", "none", "--network", "2001:db8::/32")
    assert (changed["models"], changed["networks"], changed["origins"]) == ([], ["2001:db8::/32"], [PAGE])
    assert manage("key_set", issued["prefix"], "--network", "2001:db8::/32") == changed
    key = ApiKey.objects.get(pk=issued["id"])
    assert (key.allowed_models, key.allowed_networks, key.allowed_endpoints) == ([], ["2001:db8::/32"], ["chat"])


def test_a_key_that_is_bound_to_nothing_has_no_bounds_and_both_usual_scopes(environment: Environment) -> None:
    issued = issue()
    assert (issued["models"], issued["origins"], issued["scopes"]) == ([], [], ["calls", "read"])
    assert issue("--origin", PAGE, "--scope", "read")["scopes"] == ["read"]
    assert bound() is None


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("--model", text) for text in ("*", "", "a*b", "**", "a\nb", "m" * 201)),
        *(("--endpoint", text) for text in ("chat.completions", "", "/v1/chat/completions", "Chat")),
        *(("--origin", text) for text in (
            "app.example.com", "https://app.example.com/", "https://app.example.com/x", "https://a@b", "null", "*", "https://",
            "https://*.example.com", "https://a:0", "https://a:99999", "https://a?b", "https://ä.example", "https://a b", "",
            "https://" + "a" * 300)),
        *(("--network", text) for text in ("10.0.0.1/8", "10.0.0", "example.com", "", "::/129", "1.2.3.4/33", "any")),
    ],
)  # fmt: skip
def test_a_binding_that_makes_no_sense_is_refused(environment: Environment, option: str, text: str) -> None:
    key = issue()["id"]
    assert refusal("key_issue", "--tenant", "Acme", "--environment", "prod", f"{option}={text}")
    assert refusal("key_set", key, f"{option}={text}")
    assert ApiKey.objects.count() == 1
    assert not any(keys.bindings_json(ApiKey.objects.get()).values())


def test_a_key_is_bound_to_something_at_least_and_to_a_hundred_at_most(environment: Environment) -> None:
    key = issue()["id"]
    assert "at least one of" in refusal("key_set", key)
    many = [f"--model=m{at}" for at in range(101)]
    assert "at most 100 models" in refusal("key_set", key, *many)
    assert len(manage("key_set", key, *many[:100])["models"]) == 100


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        ("gpt-5", True),
        ("gpt-5-mini", True),
        ("o3", True),
        ("o3-mini", False),
        ("gpt-4", False),
        ("GPT-5", False),
        ("", True),
    ],
)
def test_models_are_exact_names_or_the_beginning_of_several(asked: str, passes: bool) -> None:
    its = bound(models=["gpt-5*", "o3"])
    assert is_refused(bounds.refuse_call, its, model=asked, endpoint="chat") is not passes


def test_a_refused_model_is_told_what_is_allowed_and_an_unnamed_one_passes() -> None:
    with pytest.raises(KeyNotAllowed) as refused:
        bounds.refuse_call(bound(models=["o3", "gpt-5*"]), model="gpt-4", endpoint="chat")
    assert "'gpt-4'" in refused.value.message
    assert "o3, gpt-5*" in refused.value.message
    assert refused.value.details == {"binding": "models", "allowed": ["o3", "gpt-5*"]}


def test_endpoints_are_those_named() -> None:
    its = bound(endpoints=["chat", "embeddings"])
    assert not is_refused(bounds.refuse_call, its, model="any", endpoint="chat")
    assert is_refused(bounds.refuse_call, its, model="", endpoint="files.list")
    assert not is_refused(bounds.refuse_call, None, model="any", endpoint="files.list")


@pytest.mark.parametrize(
    ("origins", "origin", "passes"),
    [
        ([], None, True), ([], PAGE, False), ([], "null", False), ([], "", False),
        ([PAGE], PAGE, True), ([PAGE], "HTTPS://APP.example.com", True), ([PAGE], None, False), ([PAGE], "null", False),
        ([PAGE], "http://app.example.com", False), ([PAGE], PAGE + ":8443", False), ([PAGE], PAGE + ".evil.example", False),
        ([PAGE], "https://evil.example", False), ([PAGE], "", False),
    ],
)  # fmt: skip
def test_a_page_is_let_in_by_its_own_origin_alone(origins: list[str], origin: str | None, passes: bool) -> None:
    for its in (bound(origins=origins), bound(origins=origins, models=["o3"])):
        assert is_refused(bounds.refuse_caller, its, origin=origin, address="192.0.2.7") is not passes


def test_a_key_for_servers_in_a_page_is_told_to_leave_it() -> None:
    with pytest.raises(KeyNotAllowed) as refused:
        bounds.refuse_caller(None, origin=PAGE, address="192.0.2.7")
    for word in (PAGE, "can read the key", "revoke it"):
        assert word in refused.value.message


@pytest.mark.parametrize(
    ("address", "passes"),
    [
        ("10.1.2.3", True), ("10.2.0.1", False), ("192.0.2.7", True), ("192.0.2.8", False), ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.0.1", False), ("2001:db8::5", True), ("2001:db9::5", False), ("fe80::1%eth0", False), ("", False),
        ("testclient", False), ("10.1.2.3, 9.9.9.9", False),
    ],
)  # fmt: skip
def test_an_address_is_within_one_of_the_networks_in_either_form(address: str, passes: bool) -> None:
    its = bound(networks=["10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32"])
    assert is_refused(bounds.refuse_caller, its, origin=None, address=address) is not passes
    assert not is_refused(bounds.refuse_caller, bound(models=["o3"]), origin=None, address=address)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_network_that_is_written_as_such_holds_its_own_addresses(address: Any, length: int) -> None:
    text = keys._network(f"{address}/{length}" if length == 32 else f"{address}")
    assert not is_refused(bounds.refuse_caller, bound(networks=[text]), origin=None, address=str(address))


def test_the_rest_api_respects_origins_and_addresses(environment: Environment) -> None:
    def status(text: str, **more: str) -> int:
        headers = {"authorization": f"Bearer {text}"} | ({"origin": more["origin"]} if "origin" in more else {})
        answer = Client(headers=headers, REMOTE_ADDR=more.get("address", "192.0.2.7")).get("/api/caps")
        if answer.status_code != 200:
            assert answer.json()["code"] == "key_not_allowed"
        assert "access-control-allow-origin" not in answer.headers
        return int(answer.status_code)

    key, text = keys.issue(environment=environment, scopes=["read"])
    assert (status(text), status(text, origin=PAGE)) == (200, 403)
    keys.bind(key, networks=["10.1.0.0/16"])
    assert (status(text), status(text, address="10.1.0.1")) == (403, 200)
    keys.bind(key, networks=[], origins=[PAGE])
    assert (status(text), status(text, origin=PAGE), status(text, origin="https://evil.example")) == (403, 200, 403)
