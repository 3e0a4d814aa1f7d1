"""Caps, credit, notices and switches over REST: what each key sees, and what only admins change."""

import json
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from tenants import keys, suspension
from tenants.models import Environment, Suspendable
from tests.usage.book import Book
from usage import caps, credit
from usage.models import SpendingCap

pytestmark = pytest.mark.filterwarnings("ignore:No directory at")


class Api:
    """What one key's holder gets."""

    def __init__(self, book: Book, *scopes: str, environment: Environment | None = None) -> None:
        self.key, text = keys.issue(environment=environment or book.environment, name="api", scopes=list(scopes))
        self.client = Client(headers={"authorization": f"Bearer {text}"})

    def __call__(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.client.generic(method, path, json.dumps(body) if body else "", "application/json")
        assert answer.status_code == status, answer.content
        return json.loads(answer.content) if answer.content else None


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


@pytest.fixture
def admin(book: Book) -> Api:
    return Api(book, "read", "admin")


@pytest.fixture
def reader(book: Book) -> Api:
    return Api(book, "read")


def test_an_admin_sets_edits_raises_and_removes_a_cap_of_his_tenant(book: Book, admin: Api) -> None:
    scope: dict[str, Any] = {"environment": "prod", "end_user": "*", "period": "day"}
    made = admin("PUT", "/api/caps", limit_usd="5.00", thresholds_percent=[25, 75], **scope)
    assert (made["scope"], made["mode"], made["limit_usd"], made["thresholds_percent"], made["end_users"]) == (
        "end_user", "enforce", "5.000000000", [25, 75], 0,
    )  # fmt: skip
    edited = admin("PUT", "/api/caps", limit_usd="6", **scope)
    assert (edited["cap"], edited["thresholds_percent"]) == (made["cap"], [25, 75])
    raised = admin("POST", f"/api/caps/{made['cap']}/raise", usd="1.5", until="+4h")
    assert (raised["limit_usd"], raised["base_limit_usd"], raised["raise_usd"]) == (
        "7.500000000", "6.000000000", "1.500000000",
    )  # fmt: skip
    assert raised["raise_until"]
    assert [it["cap"] for it in admin("GET", "/api/caps")["results"]] == [made["cap"]]
    admin("DELETE", f"/api/caps/{made['cap']}", 204)
    admin("DELETE", f"/api/caps/{made['cap']}", 404)
    assert admin("GET", "/api/caps")["results"] == []


def test_a_reader_changes_nothing(book: Book, reader: Api) -> None:
    cap = book.cap(1000)
    for method, path, body in (
        ("PUT", "/api/caps", {"period": "day", "limit_usd": "1"}),
        ("POST", f"/api/caps/{cap}/raise", {"usd": "1", "until": "+1h"}),
        ("DELETE", f"/api/caps/{cap}", {}),
        ("PUT", "/api/environments/prod/suspension", {"reason": "x"}),
        ("DELETE", "/api/environments/prod/suspension", {}),
    ):
        assert reader(method, path, 403, **body)["detail"] == "This key has no scope `admin`; issue one that has."
    assert SpendingCap.objects.get(tenant=book.tenant).limit_nano == 1000


def test_an_admin_of_one_tenant_reaches_nothing_of_another_or_of_the_platform(book: Book, admin: Api) -> None:
    rival = Book()
    theirs = rival.cap(1000)
    platform = SpendingCap.objects.get(pk=caps.set_cap(tenant=None, period="lifetime", limit_nano=10**17))
    granted = credit.grant(tenant=rival.tenant, amount_nano=1000, category="paid")
    try:
        for cap in (theirs, platform.pk):
            admin("DELETE", f"/api/caps/{cap}", 404)
            admin("POST", f"/api/caps/{cap}/raise", 404, usd="1", until="+1h")
        for environment in (str(rival.environment.pk), str(uuid.uuid4())):
            admin("PUT", "/api/caps", 404, environment=environment, period="day", limit_usd="1")
        admin("PUT", "/api/caps", 404, key=str(rival.key.pk), period="day", limit_usd="1")
        admin("PUT", f"/api/keys/{rival.key.pk}/suspension", 404, reason="x")
        admin("GET", f"/api/keys/{rival.key.public_id}/suspension", 404)
        admin("GET", f"/api/credit/{granted.pk}", 404)
        assert admin("GET", "/api/caps")["results"] == []
        assert admin("GET", "/api/credit") == {"balance": None, "grants": []}
    finally:
        caps.remove_cap(platform)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"period": "day"}, {"period": "day", "limit_usd": 5}, {"period": "day", "limit_usd": "1e3"},
        {"period": "year", "limit_usd": "1"}, {"period": "day", "limit_usd": "1", "mode": "credit"},
        {"period": "day", "limit_usd": "1", "thresholds_percent": "50"}, {"period": "day", "limit_usd": "1", "tenant": "x"},
        {"period": "day", "limit_usd": "1", "thresholds_percent": [True]}, {"period": "day", "limit_usd": "1", "environment": 7},
        {"period": "day", "limit_usd": "1", "thresholds_percent": [80, 50]}, {"period": ["day"], "limit_usd": "1"},
    ],
)  # fmt: skip
def test_a_cap_that_makes_no_sense_is_a_400(book: Book, admin: Api, body: dict[str, Any]) -> None:
    assert admin("PUT", "/api/caps", 400, **(body or {"": ""}))["detail"]
    assert not SpendingCap.objects.filter(tenant=book.tenant).exists()


@pytest.mark.parametrize("body", [{"usd": "1"}, {"usd": "-1", "until": "+1h"}, {"usd": "1", "until": "2020-01-01"}])
def test_a_raise_that_makes_no_sense_is_a_400(book: Book, admin: Api, body: dict[str, str]) -> None:
    admin("POST", f"/api/caps/{book.cap(1000)}/raise", 400, **body)


def test_a_reader_sees_the_caps_that_bind_his_environment_and_one_end_users_own_figures(
    book: Book, reader: Api
) -> None:
    other = Environment.objects.create(tenant=book.tenant, name="dev", kind="dev")
    book.cap(10**9, end_user="*", mode="shadow")
    book.cap(2 * 10**9, environment=other)
    whole = book.cap(3 * 10**9)
    book.spend(2 * 10**9, end_user="ada")
    book.spend(10**8, end_user="bob")
    found = reader("GET", "/api/caps?end_user=bob")["results"]
    assert [(it["scope"], it["spent_usd"]) for it in found] == [
        ("tenant", "2.100000000"), ("end_user", "0.100000000"),
    ]  # fmt: skip
    (each,) = [it for it in reader("GET", "/api/caps")["results"] if it["end_user"]]
    assert (each["fullest_end_user"], each["end_users"], each["shadow_refused_calls"], each["shadow_refused_usd"]) == (
        "ada", 2, 1, "2.000000000",
    )  # fmt: skip
    notices = reader("GET", "/api/caps/notices?limit=1")
    assert (notices["results"][0]["percent"], notices["results"][0]["cap"]) in {(50, whole), (100, each["cap"])}
    seen, following = len(notices["results"]), notices["next"]
    while following:
        page = reader("GET", following)
        seen, following = seen + len(page["results"]), page["next"]
    assert seen == 4  # 50 of the tenant's, 50, 80 and 100 of Ada's


def test_credit_shows_the_balance_the_order_and_what_each_grant_paid(book: Book, reader: Api) -> None:
    last = credit.grant(tenant=book.tenant, amount_nano=10**9, category="paid")
    first = credit.grant(
        tenant=book.tenant, amount_nano=10**9, category="promotional", expires_at=timezone.now() + timedelta(days=1)
    )
    calls = [book.spend(4 * 10**8) for _ in range(3)]
    shown = reader("GET", "/api/credit")
    assert shown["balance"] == {
        "granted_usd": "2.000000000", "burnt_usd": "1.200000000", "left_usd": "0.800000000",
        "held_usd": "0.000000000", "available_usd": "0.800000000",
    }  # fmt: skip
    assert [(it["grant"], it["order"], it["left_usd"]) for it in shown["grants"]] == [
        (str(first.pk), 1, "0.000000000"), (str(last.pk), 2, "0.800000000"),
    ]  # fmt: skip
    page = reader("GET", f"/api/credit/{first.pk}?limit=2")
    rest = reader("GET", page["next"])
    assert [(it["call"], it["usd"]) for it in page["results"] + rest["results"]] == [
        (f"call_{calls[2]}", "0.200000000"), (f"call_{calls[1]}", "0.400000000"), (f"call_{calls[0]}", "0.400000000"),
    ]  # fmt: skip
    assert rest["next"] is None
    for cursor in ("x", "call_1.x", f"call_{calls[0]}", f"call_{calls[0]}.x"):
        reader("GET", f"/api/credit/{first.pk}?cursor={cursor}", 400)
    reader("GET", "/api/credit/none", 404)


def test_an_admin_stops_and_resumes_an_environment_and_a_key(book: Book, admin: Api) -> None:
    other = Environment.objects.create(tenant=book.tenant, name="dev", kind="dev")
    stopped = Api(book, "read", environment=other)
    path = "/api/environments/dev/suspension"
    assert admin("GET", path)["suspended"] is False
    answer = admin("PUT", path, reason="a loop")
    assert (answer["suspended"], answer["suspended_by"], answer["reason"]) == (True, "tenant", "a loop")
    problem = stopped("GET", "/api/caps", 403)
    assert (problem["code"], problem["scope"]) == ("suspended", "environment")
    assert admin("DELETE", path)["suspended"] is False
    stopped("GET", "/api/caps")
    admin("PUT", f"/api/keys/{stopped.key.public_id}/suspension", reason="leaked")
    assert stopped("GET", "/api/caps", 403)["scope"] == "key"
    assert book.hold(book.ask(1, key_id=stopped.key.pk))[0].verdict == "suspended"
    admin("DELETE", f"/api/keys/{stopped.key.pk}/suspension")
    assert book.hold(book.ask(1, key_id=stopped.key.pk))[0].verdict == "held"
    for reason in ("", " ", "x" * 201, "a\nb"):
        admin("PUT", path, 400, reason=reason)
    admin("PUT", path, 400)


def test_what_the_operator_stopped_only_he_resumes(book: Book, admin: Api) -> None:
    other = Environment.objects.create(tenant=book.tenant, name="dev", kind="dev")
    path = "/api/environments/dev/suspension"
    admin("PUT", path, reason="ours")
    suspension.suspend(other, by=Suspendable.Hand.OPERATOR, reason="abuse")
    assert admin("DELETE", path, 403)["code"] == "suspended_by_operator"
    assert (admin("PUT", path, reason="ours again")["suspended_by"], admin("GET", path)["reason"]) == (
        "operator",
        "abuse",
    )
    suspension.resume(other, by=Suspendable.Hand.OPERATOR)
    assert admin("GET", path)["suspended"] is False


def test_a_reader_sees_the_switch_of_his_own_environment_only(book: Book, reader: Api) -> None:
    Environment.objects.create(tenant=book.tenant, name="dev", kind="dev")
    assert reader("GET", "/api/environments/prod/suspension")["suspended"] is False
    assert reader("GET", f"/api/keys/{book.key.pk}/suspension")["scope"] == "key"
    reader("GET", "/api/environments/dev/suspension", 404)
