"""Rate limits as people set them: by command, over REST and on the console; whose they are and what makes no sense."""

import json
import uuid
from typing import Any

import pytest
from django.core import checks
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from aiplatform.lib import redis
from tenants import keys, onboarding, rate_limits
from tenants.models import ApiKey, Environment, Member, RateLimit, Tenant, User
from tests.tenants.test_commands import manage, refusal

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]

FIGURES = rate_limits.FIGURES


class Side:
    """A tenant with one environment, a key for it, and a way to ask `/api/` with a key of any scopes."""

    def __init__(self, name: str) -> None:
        self.tenant = Tenant.objects.create(name=name)
        self.environment = Environment.objects.create(tenant=self.tenant, name="prod", kind="prod")
        self.key, _ = keys.issue(environment=self.environment, name="web")

    def api(self, *scopes: str) -> "Api":
        _, text = keys.issue(environment=self.environment, name="api", scopes=scopes or ("read", "admin"))
        return Api(text)

    def person(self, role: str) -> Client:
        user = User.objects.create_user(f"{uuid.uuid4().hex}@example.com", "correct horse battery")
        Member.objects.create(tenant=self.tenant, user=user, role=role)
        client = Client()
        client.force_login(user)
        return client

    def limits(self) -> list[tuple[Any, ...]]:
        return list(
            RateLimit.objects.filter(tenant=self.tenant).order_by("pk").values_list("end_user", "mode", *FIGURES)
        )


class Api:
    def __init__(self, text: str) -> None:
        self.client = Client(headers={"authorization": f"Bearer {text}"})

    def __call__(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.client.generic(method, path, json.dumps(body) if body else "", "application/json")
        assert answer.status_code == status, answer.content
        return json.loads(answer.content) if answer.content else None


@pytest.fixture
def acme() -> Side:
    return Side("Acme")


@pytest.fixture
def rival() -> Side:
    return Side("Rival")


def limit_of(side: Side, **more: Any) -> RateLimit:
    return rate_limits.add(tenant=side.tenant, **{"figures": {"rpm": 7}, **more})


# --- The operator's commands ------------------------------------------------------------------------------------------


def test_one_limit_for_each_scope_end_user_and_mode(acme: Side) -> None:
    everybody = manage("limit_set", "--tenant", "Acme", "--rpm", "10")
    each = manage("limit_set", "--tenant", "Acme", "--end-user", "*", "--rpm", "5", "--rpm-burst", "2")
    ada = manage("limit_set", "--tenant", "Acme", "--end-user", "ada", "--tpm", "500", "--tpm-burst", "900")
    shadow = manage("limit_set", "--tenant", "Acme", "--rpm", "3", "--shadow")
    again = manage("limit_set", "--tenant", "Acme", "--end-user", "*", "--concurrency", "1")
    assert len({it["limit"] for it in (everybody, each, ada, shadow)}) == 4
    assert again == each | {"created": False, "concurrency": 1}
    assert acme.limits() == [
        ("", "enforce", 10, None, None, None, None), ("*", "enforce", 5, None, 1, 2, None),
        ("ada", "enforce", None, 500, None, None, 900), ("", "shadow", 3, None, None, None, None),
    ]  # fmt: skip


def test_a_burst_goes_with_its_rate_and_comes_with_none(acme: Side) -> None:
    manage("limit_set", "--tenant", "Acme", "--rpm", "5", "--rpm-burst", "2", "--tpm", "9")
    lifted = manage("limit_set", "--tenant", "Acme", "--rpm", "none")
    assert (lifted["rpm"], lifted["rpm_burst"], lifted["tpm"]) == (None, None, 9)
    assert "set rpm as well" in refusal("limit_set", "--tenant", "Acme", "--rpm-burst", "2")
    assert acme.limits() == [("", "enforce", None, 9, None, None, None)]


def test_a_limit_that_has_no_figure_left_is_gone(acme: Side) -> None:
    manage("limit_set", "--tenant", "Acme", "--rpm", "5")
    for _ in range(2):
        assert manage("limit_set", "--tenant", "Acme", "--rpm", "none")["limit"] is None
    assert acme.limits() == []


@pytest.mark.parametrize("end_user", ["a" * 257, "a\nb", "\0"])
def test_an_end_user_is_a_printable_name(acme: Side, end_user: str) -> None:
    assert "end user" in refusal("limit_set", "--tenant", "Acme", "--rpm", "1", "--end-user", end_user)
    assert manage("limit_set", "--tenant", "Acme", "--rpm", "1", "--end-user", "a" * 256)["end_user"] == "a" * 256


def test_limits_are_listed_with_what_is_left_and_removed_by_their_number(acme: Side, rival: Side) -> None:
    theirs = limit_of(rival)
    redis.client().flushdb()
    redis.client().set("limit:born", 0)
    made = manage("limit_set", "--tenant", "Acme", "--environment", "prod", "--rpm", "60", "--concurrency", "4")
    each = manage("limit_set", "--tenant", "Acme", "--end-user", "*", "--rpm", "5")
    first, second = manage("limit_list", "--tenant", "Acme")["limits"]
    assert (first["limit"], first["scope"], first["left"]) == (each["limit"], "tenant", None)
    assert (second["limit"], second["environment"]) == (made["limit"], "prod")
    assert second["left"] == {"rpm": 60, "concurrency": 4}
    assert manage("limit_remove", str(made["limit"])) == {"limit": made["limit"], "removed": True}
    assert "no rate limit" in refusal("limit_remove", str(made["limit"]))
    assert [it["limit"] for it in manage("limit_list", "--tenant", "Acme")["limits"]] == [each["limit"]]
    assert RateLimit.objects.filter(pk=theirs.pk).exists()


def test_what_is_left_is_not_told_while_redis_is_lost(acme: Side, settings: Settings) -> None:
    limit_of(acme)
    settings.REDIS_URL = settings.LIMITS_REDIS_URL = "redis://127.0.0.1:9/0"
    redis.forget_client()
    (shown,) = manage("limit_list", "--tenant", "Acme")["limits"]
    assert (shown["rpm"], shown["left"]) == (7, None)
    redis.forget_client()


# --- New environments -------------------------------------------------------------------------------------------------


def test_a_new_environment_starts_with_the_limit_of_its_kind_and_an_old_one_keeps_its_own(settings: Settings) -> None:
    settings.RATE_LIMITS = {"dev": "1/none/2", "staging": "none/none/none", "prod": "none", "sandbox": " 5 / 6 / 7 "}
    tenant, _, _ = onboarding.create_tenant(name="New")

    def figures(kind: str) -> list[tuple[Any, ...]]:
        found = RateLimit.objects.filter(environment__tenant=tenant, environment__name=kind)
        return list(found.values_list("rpm", "tpm", "concurrency"))

    assert [figures(kind) for kind in ("dev", "staging", "prod", "sandbox")] == [[(1, None, 2)], [], [], [(5, 6, 7)]]
    settings.RATE_LIMITS = dict.fromkeys(settings.RATE_LIMITS, "9/9/9")
    onboarding.create_tenant(name="New")
    assert figures("dev") == [(1, None, 2)]
    assert figures("prod") == []


@pytest.mark.parametrize(
    "text", ["", "60", "60/60000", "60/60000/8/1", "0/1/1", "-1/1/1", "a/b/c", "1/1/1e3", "1//1", "None"]
)
def test_a_default_that_makes_no_sense_is_told_by_the_check_and_refused(settings: Settings, text: str) -> None:
    assert not [found for found in checks.run_checks() if found.id == "tenants.E001"]
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"staging": text}
    (found,) = [found for found in checks.run_checks() if found.id == "tenants.E001"]
    assert "RATE_LIMIT_STAGING" in found.msg
    assert found.is_serious()
    assert "RATE_LIMIT_STAGING" in refusal("tenant_create", "Nobody")
    assert not Tenant.objects.filter(name="Nobody").exists()


# --- REST -------------------------------------------------------------------------------------------------------------


def test_an_admin_adds_changes_reads_and_removes_a_limit(acme: Side) -> None:
    admin = acme.api()
    made = admin("POST", "/api/limits", 201, environment="prod", rpm=10, rpm_burst=3, end_user="*")
    assert made | {"scope": "environment", "environment": "prod", "key": None, "end_user": "*", "mode": "enforce", "rpm": 10,
                   "rpm_burst": 3, "tpm": None, "shadow_refused_calls": 0} == made  # fmt: skip
    path = f"/api/limits/{made['limit']}"
    changed = admin("PATCH", path, tpm=500, rpm_burst=None)
    assert (changed["rpm"], changed["rpm_burst"], changed["tpm"]) == (10, None, 500)
    assert admin("GET", path) == changed
    assert admin("GET", "/api/limits")["results"] == [changed]
    admin("DELETE", path, 204)
    admin("DELETE", path, 404)
    assert acme.limits() == []


def test_a_second_limit_of_the_same_scope_is_refused_and_so_is_a_mode_that_is_taken(acme: Side) -> None:
    admin = acme.api()
    admin("POST", "/api/limits", 201, rpm=1)
    assert admin("POST", "/api/limits", 409, rpm=2)["code"] == "limit_exists"
    shadow = admin("POST", "/api/limits", 201, rpm=2, mode="shadow")
    assert admin("PATCH", f"/api/limits/{shadow['limit']}", 409, mode="enforce")["code"] == "limit_exists"
    assert [row[1:3] for row in acme.limits()] == [("enforce", 1), ("shadow", 2)]


def test_what_shadow_counted_is_shown_survives_a_change_and_begins_anew_with_the_mode(acme: Side) -> None:
    admin, limit = acme.api(), limit_of(acme, mode="shadow")
    stale = rate_limits.find(limit.pk)
    RateLimit.objects.filter(pk=limit.pk).update(shadow_refused_calls=12, shadow_refused_at=timezone.now())
    rate_limits.change(stale, figures={"rpm": 8})  # read before shadow had counted
    shown = admin("PATCH", f"/api/limits/{limit.pk}", tpm=9)
    assert (shown["shadow_refused_calls"], shown["rpm"], shown["tpm"]) == (12, 8, 9)
    assert shown["shadow_refused_at"]
    assert admin("PATCH", f"/api/limits/{limit.pk}", mode="enforce")["shadow_refused_calls"] == 0


def test_no_limit_of_a_rival_is_reached_by_any_method_and_ones_own_are(acme: Side, rival: Side) -> None:
    theirs, mine = limit_of(rival), limit_of(acme)
    admin = acme.api()
    for limit, status in ((theirs, 404), (mine, 200)):
        admin("GET", f"/api/limits/{limit.pk}", status)
        admin("PATCH", f"/api/limits/{limit.pk}", status, rpm=8)
    for scope in ({"environment": str(rival.environment.pk)}, {"key": str(rival.key.pk)}, {"key": rival.key.public_id}, {"key": ""},
                  {"environment": ""}):  # fmt: skip
        admin("POST", "/api/limits", 404, rpm=1, **scope)
    for key, status in ((rival.key, 404), (acme.key, 201)):
        admin("POST", "/api/limits", status, rpm=1, key=key.public_id)
    on_my_key = RateLimit.objects.get(api_key=acme.key)
    assert [it["limit"] for it in admin("GET", "/api/limits")["results"]] == [mine.pk, on_my_key.pk]
    for limit, status in ((theirs, 404), (mine, 204)):
        admin("DELETE", f"/api/limits/{limit.pk}", status)
    assert rival.limits() == [("", "enforce", 7, None, None, None, None)]


def test_a_reader_sees_what_binds_him_and_changes_nothing(acme: Side) -> None:
    dev = Environment.objects.create(tenant=acme.tenant, name="dev", kind="dev")
    elsewhere, of_another = limit_of(acme, environment=dev), limit_of(acme, api_key=acme.key)
    here, whole = limit_of(acme, environment=acme.environment), limit_of(acme)
    reader = acme.api("read")
    assert [it["limit"] for it in reader("GET", "/api/limits")["results"]] == [whole.pk, here.pk]
    for limit, status in ((elsewhere, 404), (of_another, 404), (here, 200)):
        reader("GET", f"/api/limits/{limit.pk}", status)
        for method in ("PATCH", "DELETE"):
            reader(method, f"/api/limits/{limit.pk}", 403, rpm=1)
    reader("POST", "/api/limits", 403, rpm=1, end_user="x")
    acme.api("calls")("GET", "/api/limits", 403)
    assert len(acme.limits()) == 4


@pytest.mark.parametrize(
    "body",
    [
        {}, {"rpm": 0}, {"rpm": -1}, {"rpm": 10**12 + 1}, {"rpm": 1.5}, {"rpm": "5"}, {"rpm": True}, {"rpm": None},
        {"rpm_burst": 3}, {"rpm": 1, "tpm_burst": 1}, {"rpm": 1, "mode": "off"}, {"rpm": 1, "end_user": "a\nb"},
        {"rpm": 1, "end_user": 7}, {"rpm": 1, "tenant": "x"}, {"rpm": 1, "environment": 7}, {"rpm": 1, "end_user": "a" * 257},
    ],
)  # fmt: skip
def test_a_limit_that_makes_no_sense_is_a_400(acme: Side, body: dict[str, Any]) -> None:
    assert acme.api()("POST", "/api/limits", 400, **(body or {"": ""}))["detail"]
    assert acme.limits() == []


def test_the_last_figure_is_not_lifted_by_a_change(acme: Side) -> None:
    limit = limit_of(acme)
    assert "remove it" in acme.api()("PATCH", f"/api/limits/{limit.pk}", 400, rpm=None)["detail"]
    for wrong in ("x", "9" * 30, "0"):
        acme.api()("GET", f"/api/limits/{wrong}", 404)


# --- The console ------------------------------------------------------------------------------------------------------


def form(**more: Any) -> dict[str, Any]:
    return {"scope": "tenant:", "end_user": "", "mode": "enforce", "rpm": "", "tpm": "", "concurrency": "", **more}


@pytest.mark.parametrize("role", ["owner", "admin"])
def test_owners_and_admins_add_change_and_remove_limits(acme: Side, role: str) -> None:
    client = acme.person(role)
    wanted = form(scope=f"key:{acme.key.public_id}", end_user="*", rpm="5", rpm_burst="2", mode="shadow")
    assert client.post("/limits", wanted)["Location"] == "/limits"
    limit = RateLimit.objects.get(tenant=acme.tenant)
    assert (limit.api_key, limit.environment, limit.end_user, limit.mode, limit.rpm, limit.rpm_burst) == (
        acme.key, None, "*", "shadow", 5, 2,
    )  # fmt: skip
    page = client.get("/limits").content.decode()
    assert "would have refused 0 calls" in page
    assert f'href="/limits/{limit.pk}"' in page
    assert client.post(f"/limits/{limit.pk}", form(tpm="900", mode="enforce"))["Location"] == "/limits"
    assert acme.limits() == [("*", "enforce", None, 900, None, None, None)]
    assert client.post(f"/limits/{limit.pk}/remove")["Location"] == "/limits"
    assert acme.limits() == []


@pytest.mark.parametrize("role", ["developer", "finance", "viewer"])
def test_other_roles_look_and_change_nothing(acme: Side, role: str) -> None:
    limit, client = limit_of(acme, figures={"rpm": 1234}), acme.person(role)
    page = client.get("/limits")
    assert page.status_code == 200
    assert "1,234" in page.content.decode()
    assert "Add limit" not in page.content.decode()
    assert f"/limits/{limit.pk}" not in page.content.decode()
    assert client.post("/limits", form(rpm="1", end_user="x")).status_code == 404
    for path in (f"/limits/{limit.pk}", f"/limits/{limit.pk}/remove"):
        assert client.post(path, form(rpm="1")).status_code == 404
    assert client.get(f"/limits/{limit.pk}").status_code == 404
    assert acme.limits() == [("", "enforce", 1234, None, None, None, None)]


def test_a_stranger_gets_a_404_for_a_limit_and_cannot_limit_a_rivals_key(acme: Side, rival: Side) -> None:
    limit, stranger = limit_of(acme), rival.person("owner")
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/remove")):
        assert stranger.generic(method, f"/limits/{limit.pk}{path}").status_code == 404
    assert acme.person("owner").get(f"/limits/{limit.pk}").status_code == 200
    for scope in (f"key:{acme.key.public_id}", f"environment:{acme.environment.pk}", "key:", "nonsense"):
        assert "Select a valid choice" in stranger.post("/limits", form(scope=scope, rpm="1")).content.decode()
    assert acme.key.public_id not in stranger.get(f"/limits?key={acme.key.public_id}").content.decode()
    assert rival.limits() == []
    assert len(acme.limits()) == 1


def test_a_form_that_makes_no_sense_says_why_and_keeps_what_was_typed(acme: Side) -> None:
    client = acme.person("owner")
    for wanted, words in (
        (form(), "at least one of"), (form(rpm="0"), "greater than or equal to 1"), (form(rpm_burst="5"), "set rpm as well"),
        (form(rpm="77", mode="x"), "Select a valid choice"),
    ):  # fmt: skip
        assert words in client.post("/limits", wanted).content.decode()
    limit = limit_of(acme)
    assert "already" in (page := client.post("/limits", form(rpm="4321")).content.decode())
    assert 'value="4321"' in page
    assert "at least one of" in client.post(f"/limits/{limit.pk}", form()).content.decode()
    assert acme.limits() == [("", "enforce", 7, None, None, None, None)]


def test_a_link_to_a_keys_limit_has_the_key_chosen(acme: Side) -> None:
    client = acme.person("owner")
    assert f'/limits?key={acme.key.public_id}#new"' in client.get("/limits").content.decode()
    page = client.get(f"/limits?key={acme.key.public_id}").content.decode()
    assert f'<option value="key:{acme.key.public_id}" selected>' in page
    ApiKey.objects.update(revoked_at=timezone.now())
    assert acme.key.public_id not in client.get("/limits").content.decode()


def test_a_change_takes_its_token_and_a_visitor_is_sent_to_log_in(acme: Side) -> None:
    limit = limit_of(acme)
    client = acme.person("owner")
    client.handler.enforce_csrf_checks = True
    for path in ("/limits", f"/limits/{limit.pk}", f"/limits/{limit.pk}/remove"):
        assert client.post(path, form(rpm="1")).status_code == 403
    assert Client().get("/limits")["Location"] == "/login?next=/limits"
    assert len(acme.limits()) == 1
