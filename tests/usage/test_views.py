"""The console's pages: whose they are, that their figures are the ledger's, and that they hold still whatever they show."""

import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from html import unescape

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from aiplatform.lib import money
from aiplatform.lib.ids import call_name
from aiplatform.providers.base import Usage
from tenants.models import Member
from tests.usage import sample
from tests.usage.sample import Company, Plan
from usage import caps, credit, reports
from usage.models import Call, CallPayload, CapBucket
from usage.templatetags import money as written

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:No directory at")]


@pytest.fixture
def acme() -> Company:
    return sample.company("Acme")


def _client(company: Company, role: str = "owner") -> Client:
    client = Client()
    client.force_login(company.people[role])
    return client


def _text(content: bytes) -> str:
    """A page's words, as one reads them."""
    return " ".join(unescape(re.sub(r"<[^>]+>", "", content.decode())).split())


def _calls(client: Client, query: str = "") -> list[Call]:
    return list(client.get(f"/calls?{query}").context["calls"])


def _pages(call: Call) -> Iterator[str]:
    yield from ("/", "/calls", "/calls?when=hour&state=failed", f"/calls/{call}")


def test_a_rival_tenant_gets_a_404_for_a_call_and_an_empty_list(acme: Company) -> None:
    rival = sample.company("Rival")
    (call,) = sample.make(Plan(acme.key("prod")))
    assert _client(acme).get(f"/calls/{call}").status_code == 200
    for role in Member.Role:
        stranger = _client(rival, role)
        answer = stranger.get(f"/calls/{call}")
        assert answer.status_code == 404
        assert sample.QUESTION not in answer.content.decode()
        assert _calls(stranger) == []


@pytest.mark.parametrize("query", ["environment=prod", "key={key}", "model=gpt-5-mini", "when=hour", "before={call}"])
def test_no_filter_leads_into_another_tenant(acme: Company, query: str) -> None:
    rival = sample.company("Rival")
    (call,) = sample.make(Plan(acme.key("prod")))
    asked = query.format(key=acme.key("prod").public_id, call=call_name(uuid.UUID(int=call.pk.int + 1)))
    assert _calls(_client(acme), asked) == [call]
    assert _calls(_client(rival), asked) == []


@pytest.mark.parametrize(
    "name", ["call_00000000-0000-0000-0000-00000000000g", "call_" + "-" * 36, str(uuid.uuid4()), "x"]
)
def test_a_name_that_is_no_call_is_not_found(acme: Company, name: str) -> None:
    answer = _client(acme).get(f"/calls/{name}")
    assert answer.status_code == 404
    assert "Not found" in answer.content.decode()


def test_the_overview_shows_the_ledgers_sum_and_the_caps_own_figures(acme: Company) -> None:
    sample.month_of_calls(acme, a_day=3)
    page = _client(acme).get("/")
    month = reports.month(tenant_id=acme.tenant.pk, now=timezone.now())
    text = _text(page.content)
    assert written._signed(1, *written._parts(month.spent_nano)).rstrip("0") in text
    cap = reports.tenant_cap(tenant_id=acme.tenant.pk, now=timezone.now())
    assert cap is not None
    assert money.usd(cap.left_nano).rstrip("0") in text
    assert f'aria-label="{written.usd_text(cap.spent_nano)} spent and {written.usd_text(cap.held_nano)} held' in (
        page.content.decode()
    )
    assert "Europe/Berlin" in text


def test_every_cap_leads_to_calls_that_sum_to_what_it_shows(acme: Company) -> None:
    sample.month_of_calls(acme, a_day=3)
    client = _client(acme)
    page = client.get("/")
    links = re.findall(
        r'<a href="(/calls\?[^"#]*)">(?:[^<]|<code>)*?(?:</code>)?, (?:daily|weekly|monthly)', page.content.decode()
    )
    spent = {cap.spent_nano for cap in page.context["caps"].tightest if cap.period != "lifetime"}
    assert len(links) == 4
    assert {client.get(unescape(link)).context["sums"]["charged_nano"] for link in links} == spent


def test_the_overview_shows_raise_shadow_thresholds_notices_and_credit(acme: Company) -> None:
    call = sample.make(Plan(acme.key("prod"), end_user="ada"))[0]
    shadow = caps.set_cap(tenant=acme.tenant, end_user="*", period="day", mode="shadow", limit_nano=1, thresholds=[60])
    raised = caps.find(caps.set_cap(tenant=acme.tenant, period="month", limit_nano=10**9, thresholds=[]))
    caps.raise_cap(raised, by_nano=5 * 10**8, until=timezone.now() + timedelta(hours=4))
    sample.make(Plan(acme.key("prod"), end_user="ada", until="inflight"))
    credit.grant(tenant=acme.tenant, amount_nano=7 * 10**9, category="paid")
    page = _client(acme).get("/")
    text = _text(page.content)
    assert "each end user, daily, shadow" in text
    assert "most by ada of 1" in text
    assert "only counts: would have refused 1 call" in text
    assert "raised by $0.50 until" in text
    assert "tells at 60 %" in text
    assert f"60 % of the cap on end user ada, daily, shadow is reached, ${money.usd(call.charged_nano)[:8]}" in text
    assert "prepaid credit: $7 of $7 left" in text
    assert "prepaid credit of Acme" in text
    assert shadow in {cap.cap_id for cap in page.context["caps"].tightest}


def test_the_month_leads_to_calls_that_sum_to_it(acme: Company) -> None:
    sample.month_of_calls(acme, a_day=3)
    client = _client(acme)
    page = client.get("/")
    sums = client.get(f"/calls?when={page.context['this_month']}").context["sums"]
    assert (sums["charged_nano"], sums["held_nano"]) == (
        page.context["month"].spent_nano,
        page.context["month"].held_nano,
    )


def test_drift_is_said_on_the_overview(acme: Company) -> None:
    cap = sample.set_cap(acme.tenant, "5")
    sample.make(Plan(acme.key("prod")))
    assert "must never be" not in _text(_client(acme).get("/").content)
    CapBucket.objects.filter(cap=cap).update(spent_nano=1)
    assert "must never be" in _text(_client(acme).get("/").content)


def test_a_receipt_has_every_line_with_all_its_decimals(acme: Company) -> None:
    sample.set_cap(acme.tenant, "5")
    usage = Usage(input=1216, cache_read=17224, output=1022, reasoning=210)
    (call,) = sample.make(Plan(acme.key("prod"), model="claude-sonnet-5-5", usage=usage, tries=[(529, "overloaded")]))
    text = _text(_client(acme).get(f"/calls/{call}").content)
    assert "Input 1,216 2.00 0.002432000" in text
    assert "Cache read 17,224 0.20 0.003444800" in text
    assert "Output (of it reasoning 210) 1,022 10.00 0.010220000" in text
    assert "Charged 0.016096800" in text
    assert f"Released of a hold of ${money.usd(call.held_nano)} {money.usd(call.held_nano - call.charged_nano)}" in text
    assert "Attempt 1, anthropic: refused 529" in text
    assert "Acme, monthly" in text
    assert "must never be" not in text


def test_what_is_finer_than_a_nano_dollar_is_shown_and_rounded_once(acme: Company) -> None:
    (call,) = sample.make(Plan(acme.key("prod"), model="text-small", usage=Usage(input=3, output=1)))
    text = _text(_client(acme).get(f"/calls/{call}").content)
    assert "Input 3 0.0375 0.0000001125" in text
    assert "half to even −0.0000000005" in text
    assert "Charged 0.000000262" in text


def test_what_lies_above_the_hold_is_borne_by_the_house_and_said(acme: Company) -> None:
    (call,) = sample.make(Plan(acme.key("prod"), max_tokens=10, usage=Usage(input=40_000, output=500)))
    assert call.platform_loss_nano > 0
    text = _text(_client(acme).get(f"/calls/{call}").content)
    assert f"borne by the house −{money.usd(call.platform_loss_nano)}" in text
    assert f"Charged {money.usd(call.charged_nano)}" in text
    assert "must never be" not in text


def test_a_receipt_that_does_not_add_up_says_so(acme: Company) -> None:
    (call,) = sample.make(Plan(acme.key("prod")))
    Call.objects.filter(pk=call.pk).update(charged_nano=1)
    assert "must never be" in _text(_client(acme).get(f"/calls/{call}").content)


def test_what_the_provider_costs_us_is_on_no_page(acme: Company) -> None:
    (call,) = sample.make(Plan(acme.key("prod")))
    Call.objects.filter(pk=call.pk).update(provider_cost_nano=123_456_789)
    assert all("123456789" not in _client(acme).get(page).content.decode() for page in _pages(call))


def test_every_way_to_end_has_a_page(acme: Company) -> None:
    client = _client(acme)
    for call in sample.make(*sample.every_kind(acme)):
        answer = client.get(f"/calls/{call}")
        assert answer.status_code == 200
        assert "must never be" not in _text(answer.content)


@pytest.mark.parametrize(
    ("role", "reads"), [("owner", True), ("admin", True), ("developer", True), ("finance", False), ("viewer", False)]
)
def test_finance_and_viewer_see_the_cost_of_a_call_and_not_its_words(acme: Company, role: str, reads: bool) -> None:
    (call,) = sample.make(Plan(acme.key("prod")))
    page = _client(acme, role).get(f"/calls/{call}").content.decode()
    assert (sample.QUESTION in page) is reads
    assert (sample.ANSWER in page) is reads
    assert ("not what was said in it" in page) is not reads
    assert money.usd(call.charged_nano) in page


def test_prompts_answers_and_names_are_inert(acme: Company) -> None:
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7|add:7 }}"
    (call,) = sample.make(Plan(acme.key("prod"), prompt=evil, answer=evil, end_user=evil, error_code=evil))
    Call.objects.filter(pk=call.pk).update(model=evil, provider=evil, served_model=evil, request_id=evil)
    sample.set_cap(acme.tenant, "1", end_user=evil)
    for path in _pages(call):
        page = _client(acme).get(path).content.decode()
        assert "<script" not in page
        assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7|add:7 }}" in unescape(page)


def test_a_body_that_is_no_text_or_too_long_is_shown_as_far_as_it_goes(acme: Company) -> None:
    (call,) = sample.make(Plan(acme.key("prod")))
    CallPayload.objects.filter(call_id=call.pk, kind="request").update(body=b"\xff\x00\xfe" + b"x" * 2_000_000)
    page = _client(acme).get(f"/calls/{call}")
    assert "2,000,003 bytes" in _text(page.content)
    assert "the first 65,536 characters" in _text(page.content)
    assert len(page.content) < 200_000


def test_pages_of_fifty_go_back_and_forth_without_a_gap(acme: Company) -> None:
    made = sample.make(*(Plan(acme.key("prod"), usage=Usage(input=1, output=1)) for _ in range(120)))
    newest_first = sorted((call.pk for call in made), reverse=True)
    client = _client(acme)
    first = client.get("/calls?environment=prod")
    second = client.get(f"/calls?{first.context['older']}")
    third = client.get(f"/calls?{second.context['older']}")
    seen = [call.pk for page in (first, second, third) for call in page.context["calls"]]
    assert seen == newest_first
    assert (first.context["newer"], third.context["older"]) == ("", "")
    back = client.get(f"/calls?{third.context['newer']}")
    assert [call.pk for call in back.context["calls"]] == newest_first[50:100]
    home = client.get(f"/calls?{back.context['newer']}")
    assert [call.pk for call in home.context["calls"]] == newest_first[:50]
    assert home.context["newer"] == ""
    assert "environment=prod" in third.context["newer"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("environment=staging", 1), ("state=live", 4), ("state=held", 1), ("state=inflight", 2), ("state=unknown", 1),
        ("state=void", 2), ("state=settled", 3), ("state=failed", 3), ("model=gpt-5", 2), ("end_user=u_1170", 2),
        ("when=hour", 9), ("when=2020-01", 0), ("model=gpt-5&environment=prod", 1),
    ],
)  # fmt: skip
def test_the_url_says_which_calls_are_shown(acme: Company, query: str, expected: int) -> None:
    sample.make(*sample.every_kind(acme))
    assert len(_calls(_client(acme), query)) == expected


@pytest.mark.parametrize(
    "query", ["environment=moon", "state=x", "when=never", "when=9999-12", "key=nope", "when=0001-01-01", "model=%00"]
)
def test_a_filter_that_makes_no_sense_shows_nothing_and_says_so(acme: Company, query: str) -> None:
    sample.make(Plan(acme.key("prod")))
    page = _client(acme).get(f"/calls?{query}")
    assert page.status_code == 200
    assert "No call matches" in page.content.decode()


@pytest.mark.parametrize("cursor", ["before=x", "after=call_x", "before=call_", "before=&after="])
def test_a_cursor_that_is_none_shows_the_beginning(acme: Company, cursor: str) -> None:
    (call,) = sample.make(Plan(acme.key("prod")))
    assert _calls(_client(acme), cursor) == [call]


def test_an_empty_tenant_is_told_how_to_make_its_first_call(acme: Company) -> None:
    for path in ("/", "/calls"):
        page = _client(acme).get(path).content.decode()
        assert "curl http://testserver/v1/chat/completions" in page
        assert acme.key("prod").prefix in page


@pytest.mark.parametrize("path", ["/", "/calls", "/login", "/nowhere"])
def test_no_page_allows_what_it_does_not_need(acme: Company, path: str) -> None:
    answer = _client(acme).get(path) if path != "/login" else Client().get(path)
    policy = answer["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer["X-Frame-Options"] == "DENY"


def test_no_page_needs_a_script_or_a_style_of_its_own(acme: Company) -> None:
    sample.month_of_calls(acme, a_day=2)
    call = Call.objects.filter(tenant=acme.tenant, state="settled").latest("id")
    for path in _pages(call):
        page = _client(acme).get(path).content.decode()
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:|https?://(?!testserver)", page), path


def test_no_page_of_a_tenant_is_kept_by_a_cache(acme: Company) -> None:
    assert "no-store" in _client(acme).get("/")["Cache-Control"]


def test_pages_take_a_fixed_number_of_queries(
    acme: Company, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    sample.month_of_calls(acme, a_day=3)
    call = Call.objects.filter(tenant=acme.tenant, state="settled").latest("id")
    client = _client(acme)
    for path, most in (("/", 16), ("/calls?when=hour", 10), (f"/calls/{call}", 20)):
        with django_assert_max_num_queries(most):
            client.get(path)


@pytest.mark.parametrize(
    ("nano", "brief"),
    [
        (0, "$0"), (1, "$0.000000001"), (937_500, "$0.000937"), (500_000_000, "$0.50"), (2_000 * 10**9, "$2,000"),
        (1_999_999_999_999, "$1,999.99"), (1_284_071_302_150, "$1,284.07"), (-1_500_000_000, "−$1.50"),
        (999_999_999, "$0.999"), (10**9 + 1, "$1.00"),
    ],
)  # fmt: skip
def test_a_short_amount_is_cut_and_never_rounded_up_or_to_nothing(nano: int, brief: str) -> None:
    assert written.usd_brief(nano) == brief
    assert money.usd(nano) in written.usd_short(nano)
