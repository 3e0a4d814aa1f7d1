"""Near matches as people set them and as their scores move them; whose they are, and who may read the questions."""

import json
import uuid
from collections.abc import Iterator

import pytest
from django.utils import timezone

from aiplatform.lib import postgres
from aiplatform.lib.ids import uuid7
from tenants import auth, near_matching
from tenants.models import EmbeddingUse, NearMatching, NearScore
from tests.tenants.test_commands import manage, refusal
from tests.tenants.test_rate_limits import Side
from usage.models import Call, CallPayload

pytestmark = [pytest.mark.usefixtures("committed_db"), pytest.mark.filterwarnings("ignore:No directory at")]


@pytest.fixture
def acme() -> Iterator[Side]:
    yield Side(f"Acme {uuid.uuid4().hex[:10]}")
    postgres.close()


def a_matching(side: Side, **fields: object) -> NearMatching:
    return NearMatching.objects.create(environment=side.environment, **{"model": "m", **fields})


def add_scores(matching: NearMatching, *agreements: float) -> list[str | None]:
    return [
        near_matching.score(matching.pk, likeness=0.97, agreement=one, call_id=uuid7(), source_call_id=uuid7())
        for one in agreements
    ]


def set_near(side: Side, *more: str) -> dict[str, object]:
    return manage("near_set", "--tenant", str(side.tenant.pk), "--environment", "prod", "--model", "m", *more)


def refused(side: Side, *more: str) -> str:
    return refusal("near_set", "--tenant", str(side.tenant.pk), "--environment", "prod", "--model", "m", *more)


def test_what_is_new_begins_in_shadow_and_keeps_what_is_not_given(acme: Side) -> None:
    first = set_near(acme)
    assert (first["created"], first["mode"], first["threshold"], first["agreement"]) == (True, "shadow", 0.92, 0.9)
    second = set_near(acme, "--agreement", "0.8")
    assert (second["created"], second["mode"], second["threshold"], second["agreement"]) == (False, "shadow", 0.92, 0.8)


def test_on_is_refused_until_twenty_scores_have_a_mean_that_is_good_enough(acme: Side) -> None:
    assert "needs 20 scores" in refused(acme, "--mode", "on")
    assert not NearMatching.objects.filter(environment=acme.environment).exists()
    set_near(acme)
    matching = NearMatching.objects.get(environment=acme.environment)
    add_scores(matching, *[1.0] * 17, 0.2, 0.9)
    assert "19 so far, whose mean is 0.953" in refused(acme, "--mode", "on")
    add_scores(matching, 1.0)
    assert set_near(acme, "--mode", "on")["mode"] == "on"


def test_on_can_be_forced_and_stays_on_when_its_agreement_is_set(acme: Side) -> None:
    assert set_near(acme, "--mode", "on", "--force")["mode"] == "on"
    assert set_near(acme, "--agreement", "0.7")["mode"] == "on"


def test_another_threshold_begins_the_scores_anew_and_goes_back_to_shadow(acme: Side) -> None:
    matching = a_matching(acme)
    add_scores(matching, *[1.0] * 20)
    set_near(acme, "--mode", "on")
    same = set_near(acme, "--threshold", "0.92")
    assert (same["mode"], same["scored"]) == ("on", 20)
    other = set_near(acme, "--threshold", "0.95")
    assert (other["mode"], other["scored"], other["mean"]) == ("shadow", 0, None)
    assert not NearScore.objects.filter(near=matching).exists()
    assert str(other["since"]) > str(same["since"])


def test_it_switches_itself_off_at_the_twentieth_score_below_its_agreement(acme: Side) -> None:
    matching = a_matching(acme)
    assert add_scores(matching, *[0.8] * 19) == ["shadow"] * 19
    assert add_scores(matching, 0.8) == ["off"]
    matching.refresh_from_db()
    assert (matching.mode, matching.scored) == ("off", 20)
    assert matching.switched_off_at is not None
    assert "The latest 20 answers agreed with the real ones to 0.800" in matching.switched_off_why
    assert add_scores(matching, 1.0) == [None]  # what is off is not scored


def test_what_was_good_for_long_is_judged_by_its_latest_hundred(acme: Side) -> None:
    matching = a_matching(acme, mode="on")
    assert set(add_scores(matching, *[1.0] * 250)) == {"on"}
    told = add_scores(matching, *[0.0] * 12)
    assert told == ["on"] * 10 + ["off", None]
    matching.refresh_from_db()
    assert matching.scored == 261


def test_a_call_is_scored_once_and_only_by_the_likeness_that_is_asked_for(acme: Side) -> None:
    matching, call = a_matching(acme), uuid7()
    same = {"likeness": 0.97, "agreement": 0.5, "call_id": call, "source_call_id": uuid7()}
    assert near_matching.score(matching.pk, **same) == "shadow"  # type: ignore[arg-type]
    assert near_matching.score(matching.pk, **same) is None  # type: ignore[arg-type]
    assert near_matching.score(matching.pk, **{**same, "call_id": uuid7(), "likeness": 0.91}) is None  # type: ignore[arg-type]
    matching.refresh_from_db()
    assert (matching.scored, matching.agreed) == (1, 0.5)


def test_the_latest_scores_are_kept_and_older_ones_dropped(acme: Side) -> None:
    matching = a_matching(acme)
    add_scores(matching, *[1.0] * (near_matching.KEPT_SCORES + 5))
    assert NearScore.objects.filter(near=matching).count() == near_matching.KEPT_SCORES
    matching.refresh_from_db()
    assert matching.scored == near_matching.KEPT_SCORES + 5


def test_switched_on_again_after_it_was_off_it_begins_anew(acme: Side) -> None:
    matching = a_matching(acme)
    add_scores(matching, *[0.1] * 20)
    again = set_near(acme, "--mode", "shadow")
    assert (again["mode"], again["scored"], again["switched_off_at"], again["switched_off_why"]) == (
        "shadow",
        0,
        None,
        "",
    )


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--threshold", "0.79"), "from 0.8 to 1"), (("--threshold", "1.01"), "from 0.8 to 1"),
        (("--threshold", "nan"), "from 0.8 to 1"), (("--agreement", "0"), "more than 0"),
        (("--agreement", "1.1"), "at most 1"), (("--remove", "--mode", "off"), "goes with nothing else"),
        (("--remove",), "There are no near matches"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(acme: Side, more: tuple[str, ...], why: str) -> None:
    assert why in refused(acme, *more)


def test_it_is_removed_with_its_scores(acme: Side) -> None:
    matching = a_matching(acme)
    add_scores(matching, 1.0)
    assert set_near(acme, "--remove")["removed"] is True
    assert not NearScore.objects.filter(near_id=matching.pk).exists()


def test_a_key_knows_what_is_not_off_in_its_environment(acme: Side) -> None:
    rival = Side(f"Rival {uuid.uuid4().hex[:10]}")
    shadow, on = a_matching(acme), a_matching(acme, model="n", mode="on", threshold=0.95)
    a_matching(acme, model="o", mode="off")
    (mine, theirs) = auth.find([acme.key.public_id, rival.key.public_id])
    assert mine is not None
    assert theirs is not None
    assert set(mine.near) == {auth.Near(shadow.pk, "m", "shadow", 0.92), auth.Near(on.pk, "n", "on", 0.95)}
    assert theirs.near == ()


def test_what_is_embedded_adds_up_by_day_and_what_is_gone_is_left_out(acme: Side) -> None:
    near_matching.add_use([(acme.environment.pk, 2, 30, 10.5), (uuid7(), 1, 1, 1.0)])
    near_matching.add_use([(acme.environment.pk, 1, 5, 4.25)])
    row = EmbeddingUse.objects.get(environment=acme.environment)
    assert (row.texts, row.tokens, row.cpu_ms) == (3, 35, 14.75)
    listed = manage("near_list", "--tenant", str(acme.tenant.pk))
    assert listed["embedded"] == [
        {"environment": "prod", "day": timezone.now().date().isoformat(), "texts": 3, "tokens": 35, "cpu_ms": 14.8}
    ]


def test_the_list_tells_scores_in_words_and_in_json(acme: Side, capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import call_command  # noqa: PLC0415 - for this test's plain output alone

    add_scores(a_matching(acme), 1.0, 0.5)
    (row,) = manage("near_list", "--tenant", str(acme.tenant.pk), "--environment", "prod")["near"]
    assert (row["scored"], row["mean"], [one["agreement"] for one in row["latest"]]) == (2, 0.75, [0.5, 1.0])
    call_command("near_list", "--tenant", str(acme.tenant.pk))
    assert "prod m: shadow, likeness from 0.92, agreement from 0.9; scores 2, mean 0.750 (latest 0.50, 1.00)" in (
        capsys.readouterr().out
    )


def test_the_api_shows_a_tenants_own_and_a_rival_gets_404(acme: Side) -> None:
    rival = Side(f"Rival {uuid.uuid4().hex[:10]}")
    add_scores(a_matching(acme), 0.75)
    near_matching.add_use([(acme.environment.pk, 2, 30, 10.5)])
    path = f"/api/cache/near?environment={acme.environment.pk}"
    shown = acme.api("read")("GET", path)
    assert [(one["model"], one["scored"], one["latest"][0]["agreement"]) for one in shown["near"]] == [("m", 1, 0.75)]
    assert shown["embedded"][0]["texts"] == 2
    for scopes in (("read",), ("read", "admin")):
        assert rival.api(*scopes)("GET", path, status=404)["code"] == "not_found"
        assert rival.api(*scopes)("GET", "/api/cache/near") == {"near": [], "embedded": []}
    acme.api("calls")("GET", "/api/cache/near", status=403)


def test_a_key_of_one_environment_sees_no_other(acme: Side) -> None:
    from tenants.models import Environment  # noqa: PLC0415 - what only this test makes

    other = Environment.objects.create(tenant=acme.tenant, name="dev", kind="dev")
    NearMatching.objects.create(environment=other, model="hidden")
    a_matching(acme)
    assert [one["model"] for one in acme.api("read")("GET", "/api/cache/near")["near"]] == ["m"]
    acme.api("read")("GET", "/api/cache/near?environment=dev", status=404)
    assert [one["model"] for one in acme.api("read", "admin")("GET", "/api/cache/near?environment=dev")["near"]] == [
        "hidden"
    ]


def asked(side: Side, text: str) -> uuid.UUID:
    """A call on record that asked this."""
    call_id = uuid7()
    now = timezone.now()
    Call.objects.create(
        id=call_id, tenant=side.tenant, environment=side.environment, api_key=side.key, wire="openai", endpoint="chat",
        model="m", provider="p", streamed=False, state="settled", is_live=False, admitted_at=now, start_by=now, deadline_at=now,
        next_ring_at=now, settled_at=now, held_nano=0, max_output_tokens=1, price_id=0, web_process=uuid7(), bucket_ids=[],
    )  # fmt: skip
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    CallPayload.objects.create(call_id=call_id, kind="request", body=body)
    return call_id


@pytest.mark.parametrize(
    ("role", "may_read"), [("owner", True), ("admin", True), ("developer", True), ("finance", False), ("viewer", False)]
)
def test_the_page_shows_questions_only_to_whom_content_is_shown(acme: Side, role: str, may_read: bool) -> None:
    matching = a_matching(acme)
    near_matching.score(
        matching.pk, likeness=0.973, agreement=0.5, call_id=asked(acme, "Please tell me it"),
        source_call_id=asked(acme, "Tell me it"),
    )  # fmt: skip
    page = acme.person(role).get("/near").content.decode()
    assert "0.973" in page
    assert "0.500" in page
    assert ("Please tell me it" in page) == may_read


def test_the_page_of_a_rival_shows_nothing_of_it(acme: Side) -> None:
    rival = Side(f"Rival {uuid.uuid4().hex[:10]}")
    a_matching(acme, model="acme-only")
    assert "acme-only" in acme.person("owner").get("/near").content.decode()
    assert "acme-only" not in rival.person("owner").get("/near").content.decode()
