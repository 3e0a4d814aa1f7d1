"""How an environment keeps answers, and taking them back, over REST: by admins of the tenant and nobody else."""

import pytest

from tenants.models import CachePurge, Environment
from tests.tenants.test_rate_limits import Side

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]


@pytest.fixture
def acme() -> Side:
    return Side("Acme")


@pytest.fixture
def rival() -> Side:
    return Side("Rival")


def test_an_admin_sets_how_answers_are_kept_and_a_reader_sees_it(acme: Side) -> None:
    path = "/api/environments/prod/cache"
    assert acme.api("read")("GET", path)["cache"] == "on_request"
    changed = acme.api()("PATCH", path, cache="on", cache_ttl_seconds=60, cache_normalises=True)
    assert (changed["cache"], changed["cache_ttl_seconds"], changed["cache_normalises"]) == ("on", 60, True)
    row = Environment.objects.get(pk=acme.environment.pk)
    assert (row.cache, row.cache_ttl_seconds, row.cache_normalises) == ("on", 60, True)
    acme.api("read")("PATCH", path, 403, cache="off")
    assert Environment.objects.get(pk=acme.environment.pk).cache == "on"


@pytest.mark.parametrize(
    "body",
    [
        {"cache": "always"}, {"cache": None}, {"cache_ttl_seconds": 0}, {"cache_ttl_seconds": True},
        {"cache_ttl_seconds": 3_000_000}, {"cache_ttl_seconds": "60"}, {"cache_normalises": "yes"}, {"ttl": 5},
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_refused_and_changes_nothing(acme: Side, body: dict[str, object]) -> None:
    acme.api()("PATCH", "/api/environments/prod/cache", 400, **body)
    row = Environment.objects.get(pk=acme.environment.pk)
    assert (row.cache, row.cache_ttl_seconds, row.cache_normalises) == ("on_request", 300, False)


def test_answers_are_taken_back_by_environment_model_or_key(acme: Side) -> None:
    path = f"/api/environments/{acme.environment.pk}/cache/purge"
    admin = acme.api()
    admin("POST", path, model="gpt-5")
    admin("POST", path, key=acme.key.public_id)
    told = admin("POST", path)
    assert (told["model"], told["key"]) == (None, None)
    rows = CachePurge.objects.filter(environment=acme.environment).order_by("pk").values_list("model", "api_key")
    assert list(rows) == [("gpt-5", None), ("", acme.key.pk), ("", None)]
    acme.api("read")("POST", path, 403)


def test_nothing_of_a_rivals_is_seen_changed_or_taken_back(acme: Side, rival: Side) -> None:
    admin = acme.api()
    for whose, status in ((rival, 404), (acme, 200)):
        path = f"/api/environments/{whose.environment.pk}/cache"
        admin("GET", path, status)
        admin("PATCH", path, status, cache="off")
        admin("POST", f"{path}/purge", status)
    admin("POST", f"/api/environments/{acme.environment.pk}/cache/purge", 404, key=rival.key.public_id)
    assert Environment.objects.get(pk=rival.environment.pk).cache == "on_request"
    assert not CachePurge.objects.filter(environment=rival.environment).exists()
