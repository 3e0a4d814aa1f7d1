"""Webhook endpoints over REST, by command and on the console: who may, what is shown once, and what strangers see."""

import base64
import json
import uuid
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from django.utils.html import escape

from tenants import keys
from tenants.models import Environment, Member, Tenant, User, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from tenants.webhooks import endpoints, outbox, signing

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]

URL = "http://127.0.0.1:9/hook"


@pytest.fixture(autouse=True)
def _admitted(settings: Any) -> None:
    settings.WEBHOOK_ALLOWED_NETWORKS, settings.WEBHOOK_PORTS = ["127.0.0.0/8"], ["1-65535"]
    settings.WEBHOOK_PLAIN_HTTP = True


class Side:
    """A tenant with a key of any scopes."""

    def __init__(self, *scopes: str) -> None:
        self.tenant = Tenant.objects.create(name=f"side-{uuid.uuid4().hex[:8]}")
        self.environment = Environment.objects.create(tenant=self.tenant, name="prod", kind="prod")
        _, text = keys.issue(environment=self.environment, name="api", scopes=list(scopes) or ["read"])
        self.client = Client(headers={"authorization": f"Bearer {text}"})

    def __call__(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.client.generic(method, path, json.dumps(body) if body else "", "application/json")
        assert answer.status_code == status, answer.content
        return json.loads(answer.content) if answer.content else None

    def person(self, role: str) -> Client:
        user = User.objects.create(email=f"{role}-{uuid.uuid4().hex[:8]}@example.com")
        Member.objects.create(tenant=self.tenant, user=user, role=role)
        client = Client()
        client.force_login(user)
        return client


@pytest.fixture
def admin() -> Side:
    return Side("read", "admin")


def manage(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command(arguments[0], *arguments[1:], "--json", stdout=out)
    answer: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return answer


def test_an_endpoint_is_registered_changed_and_removed_and_its_secret_is_shown_once(admin: Side) -> None:
    made = admin(
        "POST", "/api/webhooks", 201, url=URL, event_types=["call.failed"], environment="prod", description="d"
    )
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    assert (made["environment"], made["event_types"], made["enabled"]) == ("prod", ["call.failed"], True)
    path = f"/api/webhooks/{made['id']}"
    assert admin("GET", "/api/webhooks")["results"] == [made] == [admin("GET", path)]
    changed = admin("PATCH", path, event_types=[], enabled=False, url=f"{URL}/2")
    assert (changed["event_types"], changed["enabled"], changed["disabled_why"], changed["url"]) == (
        [], False, "by_hand", f"{URL}/2",
    )  # fmt: skip
    assert admin("PATCH", path, enabled=True)["disabled_why"] is None
    rotated = admin("POST", f"{path}/rotate", overlap_hours=2)
    assert rotated["secret"] != secret
    assert rotated["old_secret_until"]
    assert secret not in str(admin("GET", path))
    admin("DELETE", path, 204)
    admin("GET", path, 404)


def test_a_ping_is_listed_and_can_be_sent_again(admin: Side) -> None:
    path = f"/api/webhooks/{admin('POST', '/api/webhooks', 201, url=URL, event_types=['call.failed'])['id']}"
    pings = [admin("POST", f"{path}/ping", 202) for _ in range(3)]
    assert {it["state"] for it in pings} == {"pending"}
    first = admin("GET", f"{path}/deliveries?limit=2")
    rest = admin("GET", first["next"])
    assert [it["id"] for it in first["results"] + rest["results"]] == [it["id"] for it in reversed(pings)]
    assert rest["next"] is None
    one = f"{path}/deliveries/{pings[0]['id']}"
    WebhookDelivery.objects.update(state="failed", ended_at=timezone.now())
    assert admin("GET", f"{path}/deliveries?state=pending")["results"] == []
    again = admin("POST", f"{one}/resend", 202)
    assert (again["state"], again["webhook_id"], again["ended_at"]) == ("pending", pings[0]["webhook_id"], None)
    assert admin("GET", one)["attempts"] == []
    admin("PATCH", path, enabled=False)
    for refused in (f"{one}/resend", f"{path}/ping"):
        assert admin("POST", refused, 400)["code"] == "bad_endpoint"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "http://10.0.0.1/"}, "bad_address"), ({"url": "http://user@127.0.0.1/"}, "bad_address"),
        ({"url": ""}, "bad_address"), ({"url": "http://no-such-host.invalid/"}, "bad_address"), ({}, "bad_parameter"),
        ({"url": 7}, "bad_parameter"), ({"url": URL, "event_types": ["call.*"]}, "bad_endpoint"),
        ({"url": URL, "event_types": "ping"}, "bad_parameter"), ({"url": URL, "event_types": [7]}, "bad_parameter"),
        ({"url": URL, "enabled": "yes"}, "bad_parameter"), ({"url": URL, "description": "a\nb"}, "bad_endpoint"),
        ({"url": URL, "description": "x" * 201}, "bad_endpoint"), ({"url": URL, "environment": "moon"}, "not_found"),
        ({"url": URL, "secret": "mine"}, "bad_parameter"), ({"url": f"{URL}\0"}, "bad_address"),
    ],
)  # fmt: skip
def test_an_endpoint_that_makes_no_sense_is_refused(admin: Side, body: dict[str, Any], code: str) -> None:
    answer = admin("POST", "/api/webhooks", 404 if code == "not_found" else 400, **(body or {"": ""}))
    assert answer["code"] == code
    assert not WebhookEndpoint.objects.exists()


def test_a_url_is_registered_once_an_environment_and_a_tenant_has_so_many_at_most(
    admin: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin("POST", "/api/webhooks", 201, url=URL)
    admin("POST", "/api/webhooks", 400, url=URL)
    admin("POST", "/api/webhooks", 201, url=URL, environment="prod")
    monkeypatch.setattr(endpoints, "MOST_ENDPOINTS", 2)
    assert "at most 2" in admin("POST", "/api/webhooks", 400, url=f"{URL}/3")["detail"]


@pytest.mark.parametrize("hours", [-1, 1000, "1", True, None, 1e400])
def test_an_overlap_that_makes_no_sense_is_refused(admin: Side, hours: Any) -> None:
    path = f"/api/webhooks/{admin('POST', '/api/webhooks', 201, url=URL)['id']}/rotate"
    assert admin("POST", path, 400, overlap_hours=hours)["detail"]


def test_a_key_without_the_scope_admin_sees_and_does_nothing() -> None:
    reader = Side("read", "calls")
    endpoint, _ = endpoints.register(tenant=reader.tenant, environment=None, url=URL)
    path = f"/api/webhooks/{endpoint.pk}"
    for method, where in (("GET", "/api/webhooks"), ("POST", "/api/webhooks"), ("GET", path), ("PATCH", path), ("DELETE", path),
                          ("POST", f"{path}/rotate"), ("POST", f"{path}/ping"), ("GET", f"{path}/deliveries")):  # fmt: skip
        assert reader(method, where, 403)["detail"] == "This key has no scope `admin`; issue one that has."


def test_a_rival_tenant_finds_none_of_it_whatever_he_tries(admin: Side) -> None:
    rival = Side("read", "admin")
    rivals_person = rival.person("owner")
    path = f"/api/webhooks/{admin('POST', '/api/webhooks', 201, url=URL)['id']}"
    delivery = admin("POST", f"{path}/ping", 202)["id"]
    own = f"/api/webhooks/{rival('POST', '/api/webhooks', 201, url=URL)['id']}"
    before = WebhookEndpoint.objects.filter(tenant=admin.tenant).values().get()
    for method, where in (
        ("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/rotate"), ("POST", f"{path}/ping"),
        ("GET", f"{path}/deliveries"), ("GET", f"{path}/deliveries/{delivery}"), ("POST", f"{path}/deliveries/{delivery}/resend"),
        ("GET", f"{own}/deliveries/{delivery}"), ("POST", f"{own}/deliveries/{delivery}/resend"),
        ("GET", "/api/webhooks/none"), ("GET", f"/api/webhooks/{uuid.uuid4()}"),
    ):  # fmt: skip
        rival(method, where, 404)
    admin("GET", f"{path}/deliveries/{delivery}")  # the same request is right for its owner
    page = f"/webhooks/{before['id']}"
    assert rivals_person.get(page).status_code == 404
    for action in ("ping", "rotate", "enable", "disable", "remove", f"deliveries/{delivery}/resend"):
        assert rivals_person.post(f"{page}/{action}").status_code == 404
    rivals_own = f"/webhooks/{own.rpartition('/')[2]}"
    assert rivals_person.post(f"{rivals_own}/deliveries/{delivery}/resend").status_code == 404
    assert str(before["id"]) not in str(rival("GET", "/api/webhooks"))
    assert str(before["id"]) not in rivals_person.get("/webhooks").content.decode()
    assert WebhookEndpoint.objects.filter(tenant=admin.tenant).values().get() == before
    environment = str(admin.environment.pk)
    rival("POST", "/api/webhooks", 404, url=f"{URL}/2", environment=environment)


def test_commands_set_list_rotate_resend_and_remove() -> None:
    side = Side()
    arguments = ("webhook_set", "--tenant", side.tenant.name, "--url", URL)
    made = manage(*arguments, "--type", "ping", "--type", "call.settled")
    assert made["secret"].startswith("whsec_")
    again = manage(*arguments, "--description", "again", "--disable")
    assert "secret" not in again
    assert (again["id"], again["event_types"], again["description"], again["enabled"]) == (
        made["id"], ["call.settled", "ping"], "again", False,
    )  # fmt: skip
    manage(*arguments, "--enable")
    assert [it["id"] for it in manage("webhook_list", "--tenant", side.tenant.name)["endpoints"]] == [made["id"]]
    delivery = outbox.ping(endpoints.find(made["id"]))
    WebhookDelivery.objects.update(state="failed")
    assert manage("webhook_resend", str(delivery.pk))["state"] == "pending"
    assert [it["id"] for it in manage("webhook_list", "--endpoint", made["id"])["deliveries"]] == [str(delivery.pk)]
    rotated = manage("webhook_rotate", made["id"], "--overlap-hours", "0")
    assert (rotated["secret"] == made["secret"], rotated["old_secret_until"]) == (False, None)
    stored = WebhookEndpoint.objects.get(pk=made["id"])
    assert signing.decrypted(bytes(stored.secret), stored.pk) == rotated["secret"]
    assert manage("webhook_remove", made["id"])["removed"]["url"] == URL
    assert manage("webhook_list", "--tenant", side.tenant.name) == {"endpoints": []}


@pytest.mark.parametrize(("role", "status"), [
    ("owner", 200), ("admin", 200), ("developer", 200), ("finance", 404), ("viewer", 404), ("ghost", 404),
])  # fmt: skip
def test_owner_admin_and_developer_have_the_page_and_nobody_else(role: str, status: int) -> None:
    side = Side()
    endpoint, _ = endpoints.register(tenant=side.tenant, environment=None, url=URL)
    person = side.person(role)
    for path in ("/webhooks", f"/webhooks/{endpoint.pk}"):
        assert person.get(path).status_code == status
    assert person.post(f"/webhooks/{endpoint.pk}/disable").status_code == (302 if status == 200 else status)
    assert WebhookEndpoint.objects.get(pk=endpoint.pk).is_enabled is (status != 200)
    if role in Member.Role.values:
        assert ('href="/webhooks"' in person.get("/").content.decode()) is (status == 200)


def test_the_page_shows_a_secret_once_and_what_endpoints_say_as_text() -> None:
    side = Side()
    person = side.person("owner")
    made = person.post("/webhooks", {"url": URL, "environment": str(side.environment.pk), "event_types": ["ping"]})
    endpoint = WebhookEndpoint.objects.get(tenant=side.tenant)
    assert (endpoint.environment, endpoint.event_types) == (side.environment, ["ping"])
    secret = signing.decrypted(bytes(endpoint.secret), endpoint.pk)
    assert escape(secret) in made.content.decode()
    assert "no-store" in made["cache-control"]
    page = f"/webhooks/{endpoint.pk}"
    assert escape(secret) not in person.get(page).content.decode()
    person.post(f"{page}/ping")
    delivery = WebhookDelivery.objects.get(endpoint=endpoint)
    said = "<img src=x onerror=alert(1)>"
    WebhookAttempt.objects.create(delivery=delivery, n=1, started_at=timezone.now(), status=500, answer=said)
    shown = person.get(page).content.decode()
    assert escape(said) in shown
    assert said not in shown
    refused = person.post("/webhooks", {"url": "http://10.0.0.1/"})
    assert "The host of the URL has no public address" in refused.content.decode()
    assert person.post(f"{page}/explode").status_code == 404
    person.post(f"{page}/remove")
    assert not WebhookEndpoint.objects.exists()
