"""The operator's commands on caps, credit, switches and new tenants, as scripts use them."""

from typing import Any

import pytest
from django.test.utils import override_settings

from aiplatform.lib import money
from tenants.models import ApiKey, Environment, Tenant
from tests.tenants.test_commands import manage, refusal
from usage import onboarding, seeds
from usage.models import CreditGrant, SpendingCap

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def acme() -> Tenant:
    return onboarding.open_tenant(name="Acme", capped=False)[0]


def test_a_cap_is_set_listed_raised_and_removed() -> None:
    scope = ("cap_set", "--tenant", "Acme", "--environment", "prod", "--each-end-user", "--period", "week")
    made = manage(*scope, "--usd", "10", "--mode", "shadow", "--thresholds", "10,90")
    assert (made["scope"], made["mode"], made["end_user"], made["thresholds_percent"]) == (
        "end_user", "shadow", "*", [10, 90],
    )  # fmt: skip
    assert manage(*scope, "--usd", "20", "--mode", "shadow")["cap"] == made["cap"]
    other = manage(*scope, "--usd", "30")
    assert other["cap"] != made["cap"]
    raised = manage("cap_raise", str(other["cap"]), "--usd", "5", "--until", "+2d")
    assert (raised["limit_usd"], raised["raise_usd"]) == ("35.000000000", "5.000000000")
    assert {it["cap"] for it in manage("cap_list", "--tenant", "Acme")["caps"]} == {made["cap"], other["cap"]}
    assert manage("cap_remove", str(made["cap"])) == {"cap": made["cap"], "removed": True}
    assert "no cap" in refusal("cap_remove", str(made["cap"]))


def test_a_platform_cap_needs_no_tenant_and_has_no_parts() -> None:
    made = manage("cap_set", "--platform", "--period", "month", "--usd", "1000")
    assert (made["scope"], made["tenant"]) == ("platform", None)
    assert [it["cap"] for it in manage("cap_list")["caps"]] == [made["cap"]]
    assert manage("cap_list", "--tenant", "Acme")["caps"] == []
    assert "no environment" in refusal("cap_set", "--platform", "--end-user", "u", "--period", "day", "--usd", "1")
    for wrong in (("--platform", "--tenant", "Acme"), ()):
        refusal("cap_set", *wrong, "--period", "day", "--usd", "1")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--thresholds", "80,50"), ("--thresholds", "0"), ("--thresholds", "101"), ("--thresholds", "half"),
        ("--mode", "credit"), ("--end-user", "u", "--each-end-user"), ("--environment", "live"),
    ],
)  # fmt: skip
def test_a_cap_that_makes_no_sense_is_refused(wrong: tuple[str, ...]) -> None:
    assert refusal("cap_set", "--tenant", "Acme", "--period", "day", "--usd", "1", *wrong)
    assert not SpendingCap.objects.exists()


def test_a_raise_that_makes_no_sense_is_refused() -> None:
    cap = str(manage("cap_set", "--tenant", "Acme", "--period", "day", "--usd", "1")["cap"])
    assert "future" in refusal("cap_raise", cap, "--usd", "1", "--until", "2020-01-01")
    assert "no moment" in refusal("cap_raise", cap, "--usd", "1", "--until", "soon")
    assert "no cap" in refusal("cap_raise", "x", "--usd", "1", "--until", "+1h")


def test_credit_is_granted_and_listed() -> None:
    assert manage("credit_list", "--tenant", "Acme") == {"balance": None, "grants": []}
    first = manage("credit_grant", "--tenant", "Acme", "--usd", "100", "--category", "paid", "--note", "order 7")
    promo = ("credit_grant", "--tenant", "Acme", "--usd", "5", "--category", "promotional", "--expires", "+30d")
    second = manage(*promo, "--priority", "10")
    assert second["balance"]["available_usd"] == "105.000000000"
    assert [it["grant"] for it in second["grants"]] == [second["grant"], first["grant"]]
    (it,) = manage("credit_list")["tenants"]
    assert (it["name"], it["left_usd"]) == ("Acme", "105.000000000")
    assert "future" in refusal(*promo[:-1], "2020-01-01")
    assert CreditGrant.objects.count() == 2


def test_the_narrowest_of_what_is_named_is_suspended_and_resumed(acme: Tenant) -> None:
    key = manage("key_issue", "--tenant", "Acme", "--environment", "prod")
    wide = ("--tenant", "Acme")
    for scope, named in (
        ("key", (*wide, "--key", key["id"])), ("environment", (*wide, "--environment", "prod")), ("tenant", wide),
    ):  # fmt: skip
        stopped = manage("suspend", *named, "--reason", "abuse")
        assert (stopped["scope"], stopped["suspended_by"], stopped["reason"]) == (scope, "operator", "abuse")
        assert manage("suspend", *named, "--reason", "again")["suspended_at"] == stopped["suspended_at"]
    assert Environment.objects.filter(suspended_at=None, tenant=acme).count() == 3
    for named in ((*wide, "--key", key["id"]), (*wide, "--environment", "prod"), wide):
        assert manage("resume", *named)["suspended"] is False
        assert manage("resume", *named)["suspended"] is False
    assert not ApiKey.objects.exclude(suspended_at=None).exists()
    assert "printable" in refusal("suspend", *wide, "--reason", " ")
    assert "required" in refusal("suspend", *wide)


def test_a_zone_is_set_by_name() -> None:
    assert manage("tenant_set", "Acme", "--time-zone", "Asia/Kathmandu")["time_zone"] == "Asia/Kathmandu"
    assert "is unknown" in refusal("tenant_set", "Acme", "--time-zone", "Mars/Olympus")


def test_a_new_tenant_and_its_dev_environment_start_low() -> None:
    made = manage("tenant_create", "New")
    assert [(it["scope"], it["environment"], it["period"], it["limit_usd"]) for it in made["caps"]] == [
        ("tenant", None, "month", "50.000000000"), ("environment", "dev", "day", "5.000000000"),
    ]  # fmt: skip
    for cap in made["caps"]:
        manage("cap_remove", str(cap["cap"]))
    assert manage("tenant_create", "New")["caps"] == []  # what somebody removed stays removed


def test_a_new_dev_environment_starts_low_and_another_kind_does_not(acme: Tenant) -> None:
    for kind, count in (("dev", 1), ("staging", 1)):
        assert onboarding.open_environment(tenant=acme, name=f"second-{kind}", kind=kind)[1] is True
        assert SpendingCap.objects.filter(tenant=acme).count() == count
    assert onboarding.open_environment(tenant=acme, name="second-dev", kind="dev")[1] is False
    assert SpendingCap.objects.filter(tenant=acme).count() == 1


@override_settings(NEW_TENANT_CAP_USD="0", DEVELOPMENT_CAP_USD="0.50")
def test_zero_is_no_cap() -> None:
    (cap,) = manage("tenant_create", "New")["caps"]
    assert (cap["environment"], cap["limit_usd"]) == ("dev", "0.500000000")


def test_the_seeds_tenants_start_as_they_should(tmp_path: Any, settings: Any) -> None:
    settings.DATA_DIR = str(tmp_path)
    default = seeds.seed_stack()
    assert not SpendingCap.objects.filter(tenant_id=default["tenant"]).exists()
    SpendingCap.objects.all().delete()
    Tenant.objects.filter(name="Acme").update(name="Other")
    for _ in range(2):
        demo = seeds.seed_demo()
        limits = SpendingCap.objects.filter(tenant_id=demo["tenant"]).values_list("period", "limit_nano")
        assert sorted(limits) == sorted(
            [("month", 50 * money.NANO), ("day", 5 * money.NANO), ("day", 5 * money.NANO), ("week", 10 * money.NANO),
             ("day", money.NANO)]
        )  # fmt: skip
