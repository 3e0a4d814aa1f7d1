"""Who gets in, whose figures he sees, and what his role keeps from him."""

import uuid

import pytest
from django.http import Http404, HttpRequest
from django.test import Client

from tenants import access
from tenants.access import Right
from tenants.models import Member, Tenant, User

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]


def _tenant(name: str) -> Tenant:
    return Tenant.objects.create(name=name)


def _person(*memberships: tuple[Tenant, str]) -> User:
    user = User.objects.create_user(f"{uuid.uuid4().hex}@example.com", "correct horse battery")
    for tenant, role in memberships:
        Member.objects.create(tenant=tenant, user=user, role=role)
    return user


def _client(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize(
    ("role", "may_read"),
    [("owner", True), ("admin", True), ("developer", True), ("finance", False), ("viewer", False), ("ghost", False)],
)
def test_only_owner_admin_and_developer_may_read_what_was_said(role: str, may_read: bool) -> None:
    assert access.may(Member(role=role), Right.CONTENT) is may_read


def test_the_table_speaks_of_every_role_and_each_sees_the_spend() -> None:
    assert set(access.RIGHTS) == set(Member.Role)
    assert all(access.may(Member(role=role), Right.SPEND) for role in Member.Role)


def test_a_role_that_nobody_knows_sees_nothing() -> None:
    user = _person((_tenant("Acme"), "ghost"))
    assert _client(user).get("/").status_code == 404


@pytest.mark.parametrize("path", ["/", "/calls", f"/calls/call_{uuid.uuid4()}"])
def test_a_visitor_is_sent_to_log_in_and_back(path: str) -> None:
    response = Client().get(path)
    assert response.status_code == 302
    assert response["Location"] == f"/login?next={path}"


def test_a_person_without_a_tenant_is_told_so() -> None:
    response = _client(_person()).get("/")
    assert "You are no member of a tenant" in response.content.decode()


def test_a_person_in_two_tenants_starts_with_the_first_by_name_and_can_switch() -> None:
    acme, globex = _tenant("Acme"), _tenant("Globex")
    client = _client(_person((globex, "viewer"), (acme, "owner")))
    assert client.get("/").context["tenant"] == acme

    assert client.post("/tenant", {"tenant": str(globex.pk)}).status_code == 302
    response = client.get("/")
    assert response.context["tenant"] == globex
    assert response.context["member"].role == "viewer"


@pytest.mark.parametrize("wanted", ["stranger", "", "nonsense"])
def test_nobody_can_switch_to_a_tenant_that_he_is_no_member_of(wanted: str) -> None:
    acme, rival = _tenant("Acme"), _tenant("Rival")
    client = _client(_person((acme, "owner")))
    assert client.post("/tenant", {"tenant": str(rival.pk) if wanted == "stranger" else wanted}).status_code == 404
    assert client.get("/").context["tenant"] == acme


def test_a_tenant_that_one_was_removed_from_is_no_longer_shown() -> None:
    acme, globex = _tenant("Acme"), _tenant("Globex")
    user = _person((acme, "owner"), (globex, "owner"))
    client = _client(user)
    client.post("/tenant", {"tenant": str(globex.pk)})
    user.memberships.get(tenant=globex).delete()
    assert client.get("/").context["tenant"] == acme


def test_switching_and_logging_out_take_a_post() -> None:
    client = _client(_person((_tenant("Acme"), "owner")))
    assert client.get("/tenant").status_code == 405
    assert client.get("/logout").status_code == 405


def test_a_post_without_its_token_is_refused_in_our_own_words() -> None:
    client = Client(enforce_csrf_checks=True)
    response = client.post("/login", {"username": "a@example.com", "password": "x"})
    assert response.status_code == 403
    assert "That form has expired" in response.content.decode()


def test_choosing_raises_for_a_stranger_before_anything_is_kept() -> None:
    request = HttpRequest()
    request.user = _person((_tenant("Acme"), "owner"))
    request.session = Client().session
    with pytest.raises(Http404):
        access.choose(request, str(uuid.uuid4()))
    assert not request.session.keys()


def test_logging_in_takes_the_address_in_any_case_and_refuses_a_wrong_password() -> None:
    user = _person((_tenant("Acme"), "owner"))
    client = Client()
    wrong = client.post("/login", {"username": user.email, "password": "wrong"})
    assert "E-mail and password do not match" in wrong.content.decode()
    right = client.post("/login", {"username": user.email.upper(), "password": "correct horse battery"})
    assert (right.status_code, right["Location"]) == (302, "/")


def test_a_login_never_leads_to_another_site() -> None:
    user = _person((_tenant("Acme"), "owner"))
    credentials = {"username": user.email, "password": "correct horse battery", "next": "https://evil.example/"}
    assert Client().post("/login", credentials)["Location"] == "/"


def test_logging_out_ends_the_session() -> None:
    client = _client(_person((_tenant("Acme"), "owner")))
    client.post("/logout")
    assert client.get("/").status_code == 302
