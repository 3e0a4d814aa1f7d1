"""A person's way through the console in a real browser, on the real server: with scripts, without, wide and narrow."""

import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from django.db import connection

from aiplatform.gateway import webhooks
from aiplatform.lib import outgoing
from tenants import near_matching
from tenants.models import RateLimit
from tests.fakes.receiver import Receiver
from tests.usage import sample
from tests.waiting import wait_for
from usage.models import Call

ROOT = Path(__file__).resolve().parents[2]

# Contrast of every visible text with what lies behind it, by the formula of WCAG 2.2; returns what falls below 4.5:1.
TOO_FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const color = rgba(getComputedStyle(node).backgroundColor); if (color[3] === 255) return color; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest('option, datalist, title')) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(rgba(node.closest('svg') ? style.fill : style.color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(walker.currentNode.data.trim() + ' ' + ratio.toFixed(2));
  }
  return faint;
}"""

# What a screen reader needs: a name for each control and link, one h1, no level skipped, no id twice, headers that say a scope.
BLEMISHES = """() => {
  const found = [], all = query => [...document.querySelectorAll(query)];
  for (const field of all('input:not([type=hidden]), select')) if (!field.labels.length && !field.ariaLabel) found.push('no label: ' + field.name);
  for (const link of all('a[href], button')) if (!link.closest('[aria-hidden=true]') && !(link.textContent.trim() || link.ariaLabel)) found.push('no name: ' + link.outerHTML);
  if (all('h1').length !== 1 || all('main').length !== 1) found.push('not one h1 and one main');
  let level = 0;
  for (const heading of all('h1, h2, h3, h4')) { const is = +heading.tagName[1]; if (is > level + 1) found.push('skips to ' + heading.textContent); level = is; }
  const ids = all('[id]').map(node => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push('twice: ' + id);
  for (const attribute of ['aria-labelledby', 'for']) for (const node of all(`[${attribute}]`)) if (!document.getElementById(node.getAttribute(attribute))) found.push('points nowhere: ' + node.outerHTML.slice(0, 80));
  for (const header of all('th')) if (!header.scope) found.push('no scope: ' + header.textContent);
  for (const image of all('img')) if (!image.hasAttribute('alt')) found.push('no alt');
  for (const node of all('[aria-hidden=true] a')) if (node.tabIndex >= 0) found.push('hidden but in the tab order');
  if (!document.documentElement.lang || !document.title) found.push('no language or title');
  return found;
}"""


@pytest.fixture(scope="module")
def acme(django_db_setup: None, django_db_blocker: Any) -> Iterator[sample.Company]:
    """Committed, since the server is another process; under a name of its own, since the ledger keeps it for good."""
    with pytest.MonkeyPatch.context() as patch, django_db_blocker.unblock():
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright's loop runs in this thread
        company = sample.company(f"Acme {uuid.uuid4().hex[:8]}")
        sample.month_of_calls(company, a_day=3)
        yield company
        sample.end_all(company)
        connection.close()


@pytest.fixture(scope="module")
def base_url(acme: sample.Company) -> Iterator[str]:
    """The web process itself, on the tests' database."""
    where = connection.settings_dict
    login = f"{quote(where['USER'], safe='')}:{quote(where['PASSWORD'], safe='')}"
    database = f"postgresql://{login}@{where['HOST']}:{where['PORT']}/{where['NAME']}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DATABASE_URL": database, "PORT": str(port), "PYTHONPATH": str(ROOT), "INSTANCE": "97",
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "WEBHOOK_PORTS": "1-65535", "WEBHOOK_PLAIN_HTTP": "true",
    }  # fmt: skip
    server = subprocess.Popen([sys.executable, "-m", "aiplatform.serve"], cwd=ROOT, env=environment)
    try:
        yield _ready(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait(timeout=40)


def _ready(url: str, server: subprocess.Popen[bytes]) -> str:
    give_up_at = time.monotonic() + 40
    while time.monotonic() < give_up_at and server.poll() is None:
        try:
            with urlopen(f"{url}/login", timeout=5):  # noqa: S310 - our own server
                return url
        except OSError:
            time.sleep(0.2)
    pytest.fail("the web process did not come up")


class Visit:
    """A page in a context of its own that notes everything that went wrong on it."""

    def __init__(self, browser: Any, base_url: str, **options: Any) -> None:
        self.base_url = base_url
        self.faults: list[str] = []
        self.context = browser.new_context(base_url=base_url, **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", self._note_failure)
        self.page.on("request", self._note_stranger)
        self.page.on("response", self._note_status)

    def log_in(self, company: sample.Company, role: str = "owner") -> None:
        self.page.goto("/")
        self.page.get_by_label("E-mail").fill(company.people[role].email)
        self.page.get_by_label("Password").fill(sample.PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        self.page.get_by_role("heading", name="Overview").wait_for()

    def to_receipt(self) -> None:
        """By links alone: overview, list, receipt."""
        self.page.get_by_role("link", name="All calls").click()
        self.page.get_by_role("heading", name="Calls", exact=True).wait_for()
        self.page.locator("tr", has_text="2 tries").get_by_role("link").first.click()
        self.page.get_by_role("heading", name="Receipt").wait_for()

    def _note_failure(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # its page was left before it had come
            self.faults.append(f"failed: {request.url} {request.failure}")

    def _note_stranger(self, request: Any) -> None:
        if not request.url.startswith(f"{self.base_url}/"):
            self.faults.append(f"third party: {request.url}")

    def _note_status(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")


@pytest.fixture
def visit(browser: Any, base_url: str) -> Iterator[Any]:
    open_visits: list[Visit] = []

    def start(**options: Any) -> Visit:
        open_visits.append(Visit(browser, base_url, **options))
        return open_visits[-1]

    yield start
    for one in open_visits:
        one.context.close()


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
def test_from_the_login_to_a_receipt_without_a_fault(visit: Any, acme: sample.Company, scripts: bool) -> None:
    one = visit(java_script_enabled=scripts)
    one.log_in(acme)
    one.to_receipt()
    assert "0.016096800" in one.page.get_by_role("row", name=re.compile("^Charged")).inner_text()
    assert sample.QUESTION in one.page.inner_text("main")
    assert one.faults == []


def test_filters_and_the_table_of_the_chart_work_without_scripts(visit: Any, acme: sample.Company) -> None:
    one = visit(java_script_enabled=False)
    one.log_in(acme)
    one.page.get_by_text("Cost by day as a table").click()
    assert one.page.get_by_role("row", name=re.compile("^Month")).is_visible()
    one.page.get_by_role("link", name="Calls", exact=True).click()
    one.page.get_by_label("State").select_option("unknown")
    one.page.get_by_role("button", name="Filter").click()
    assert "state=unknown" in one.page.url
    assert one.page.locator("tbody tr").count() == 1
    assert one.faults == []


def test_the_keyboard_alone_reaches_the_content(visit: Any, acme: sample.Company) -> None:
    one = visit()
    one.log_in(acme)
    one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.textContent") == "Skip to content"
    one.page.keyboard.press("Enter")
    assert one.page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("width", [1360, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_legible_named_and_fits_the_screen(
    visit: Any, acme: sample.Company, scheme: str, width: int
) -> None:
    one = visit(color_scheme=scheme, viewport={"width": width, "height": 900})
    one.page.goto("/login")
    _looks_right(one, width)
    one.log_in(acme)
    one.page.get_by_text("Cost by day as a table").click()
    _looks_right(one, width)
    one.page.goto("/calls?when=hour")
    _looks_right(one, width)
    one.page.goto("/near")
    _looks_right(one, width)
    _near_matches(acme)
    one.page.goto("/near")
    assert one.page.get_by_role("table").count() == 2
    _looks_right(one, width)
    one.page.goto("/")
    one.to_receipt()
    _looks_right(one, width)
    assert one.faults == []


def _near_matches(acme: sample.Company) -> None:
    """A name that has switched itself off, with its scores and what was embedded."""
    environment = acme.tenant.environments.get(name="prod")
    matching, _ = near_matching.set_matching(environment=environment, model="support-with-a-long-name-of-a-route")
    calls = list(Call.objects.filter(tenant=acme.tenant).values_list("pk", flat=True)[:20])
    for call_id in calls:
        near_matching.score(matching.pk, likeness=0.97, agreement=0.5, call_id=call_id, source_call_id=calls[0])
    near_matching.add_use([(environment.pk, 20, 400, 100.0)])


def _looks_right(one: Visit, width: int) -> None:
    assert one.page.evaluate(TOO_FAINT) == []
    assert one.page.evaluate(BLEMISHES) == []
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width


def test_money_is_never_cut_off_on_a_phone(visit: Any, acme: sample.Company) -> None:
    one = visit(viewport={"width": 390, "height": 900})
    one.log_in(acme)
    one.to_receipt()
    for path in ("/", "/calls", one.page.url):
        one.page.goto(path)
        cut = one.page.evaluate(
            "[...document.querySelectorAll('.usd, tfoot td')].filter(n => n.checkVisibility() && !n.closest('details'))"
            ".filter(n => n.getBoundingClientRect().right > innerWidth).map(n => n.textContent)"
        )
        assert cut == []


def test_logging_out_leaves_nothing_behind_the_back_button(visit: Any, acme: sample.Company) -> None:
    one = visit()
    one.log_in(acme)
    one.page.get_by_role("button", name="Log out").click()
    one.page.get_by_role("heading", name="Log in").wait_for()
    one.page.go_back()
    one.page.get_by_role("heading", name="Log in").wait_for()
    assert "Spent this month" not in one.page.inner_text("body")


def test_finance_reads_no_prompt(visit: Any, acme: sample.Company) -> None:
    one = visit()
    one.log_in(acme, "finance")
    one.to_receipt()
    assert sample.QUESTION not in one.page.content()
    assert "not what was said in it" in one.page.inner_text("main")


@pytest.fixture
def receiver(django_db_blocker: Any) -> Iterator[Receiver]:
    """A receiver of webhooks, and a postman of this process who posts to it."""
    allowed = outgoing.rules(networks=["127.0.0.0/8"], ports=["1-65535"], plain_http=True)
    with Receiver() as made, django_db_blocker.unblock():
        postman = webhooks.Postman(outgoing.Client(allowed))
        postman.start()
        made.ring = postman.ring  # type: ignore[attr-defined]
        yield made
        postman.stop(5)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 390)])
def test_a_webhook_from_its_first_secret_to_a_message_sent_again(
    visit: Any, acme: sample.Company, receiver: Any, scheme: str, width: int
) -> None:
    one = visit(color_scheme=scheme, viewport={"width": width, "height": 900})
    one.log_in(acme)
    one.page.get_by_role("link", name="Webhooks").click()
    _looks_right(one, width)
    one.page.get_by_label("URL").fill("http://10.0.0.1/")
    one.page.get_by_role("button", name="Add endpoint").click()
    assert "no public address" in one.page.inner_text("main")
    _looks_right(one, width)
    one.page.get_by_label("URL").fill(receiver.url(f"/{scheme}"))
    one.page.get_by_label("Description").fill("orders")
    one.page.get_by_label("call.failed").check()
    one.page.get_by_role("button", name="Add endpoint").click()
    secret = one.page.locator("#secret").inner_text()
    assert secret.startswith("whsec_")
    _looks_right(one, width)
    receiver.statuses[f"/{scheme}"] = [500]
    receiver.answer = b"<b>out of order</b>"
    with one.page.expect_navigation():  # a page that is being left cannot be loaded again
        one.page.get_by_role("button", name="Send a ping").click()
    assert secret not in one.page.content()
    receiver.ring()
    wait_for(lambda: receiver.at(f"/{scheme}"))
    wait_for(lambda: one.page.reload() and "again" in one.page.locator("tbody").inner_text())
    with one.page.expect_navigation():
        one.page.get_by_role("button", name=re.compile("^Send ping of")).click()
    receiver.ring()
    wait_for(lambda: one.page.reload() and "delivered" in one.page.locator("tbody").inner_text())
    if width > 560:  # a phone shows no attempts
        one.page.get_by_text("2 attempts, last 200").click()
        assert "<b>out of order</b>" in one.page.inner_text("tbody")
    _looks_right(one, width)
    if shots := os.environ.get("SHOTS"):
        one.page.screenshot(path=f"{shots}/webhook-{scheme}.png", full_page=True)
    first, second = receiver.at(f"/{scheme}")
    assert first.id == second.id
    assert first.verified(secret) == second.verified(secret)
    one.page.get_by_role("link", name="Webhooks").last.click()
    _looks_right(one, width)
    if shots:
        one.page.screenshot(path=f"{shots}/webhooks-{scheme}.png", full_page=True)
    assert one.faults == []


@pytest.mark.parametrize(
    ("scheme", "width", "scripts"),
    [("light", 1360, True), ("dark", 1360, True), ("light", 390, True), ("dark", 390, True), ("light", 390, False)],
)
def test_limits_are_added_changed_and_removed_by_forms_alone(
    visit: Any, acme: sample.Company, scheme: str, width: int, scripts: bool
) -> None:
    RateLimit.objects.filter(tenant=acme.tenant).delete()
    one = visit(color_scheme=scheme, viewport={"width": width, "height": 900}, java_script_enabled=scripts)

    def look() -> None:
        if scripts:
            _looks_right(one, width)

    one.log_in(acme)
    one.page.get_by_role("link", name="Limits", exact=True).click()
    assert "Nothing limits how often" in one.page.inner_text("main")
    look()
    one.page.get_by_role("button", name="Add limit").click()
    assert "at least one of" in one.page.inner_text("main")
    look()
    for end_user, mode, figures in (
        ("", "enforce", {"Requests a minute": "600", "Tokens a minute": "1000000", "Calls at once": "64"}),
        ("*", "enforce", {"Requests a minute": "60"}),
        ("ada@a-rather-long-name.example.com", "shadow", {"Tokens a minute": "50000"}),
    ):
        one.page.get_by_role("textbox", name=re.compile("^End user")).fill(end_user)
        one.page.get_by_label("Mode").select_option(mode)
        for label, figure in figures.items():
            one.page.get_by_label(label, exact=True).fill(figure)
        one.page.get_by_role("button", name="Add limit").click()
    one.page.get_by_role("link", name=re.compile("^Limit the key web")).click()
    chosen = "scope => scope.options[scope.selectedIndex].label"
    if scripts:
        assert one.page.locator("#id_scope").evaluate(chosen) == "prod, web"
    one.page.get_by_label("Calls at once").fill("7")
    one.page.get_by_label("Requests a minute", exact=True).fill("90")
    one.page.get_by_label("Burst of requests").fill("12")
    one.page.get_by_role("button", name="Add limit").click()
    rows = one.page.get_by_role("table", name="Rate limits by scope").locator("tbody tr")
    assert [row.split()[0] for row in rows.all_inner_texts()] == ["all", "all", "all", "web"]
    look()
    _shoot(one, f"limits-{scheme}-{width}", wanted=scripts)
    rows.get_by_role("link", name=re.compile("ada@")).click()
    look()
    _shoot(one, f"limit-{scheme}-{width}", wanted=scripts)
    one.page.get_by_label("Tokens a minute").fill("40000")
    one.page.get_by_role("button", name="Save").click()
    assert "40,000" in rows.nth(2).inner_text()
    while rows.count():
        rows.get_by_role("link").first.click()
        one.page.get_by_text("Remove…").click()
        one.page.get_by_role("button", name="Remove this limit").click()
    assert "Nothing limits how often" in one.page.inner_text("main")
    assert one.faults == []


def test_a_receipt_leads_to_a_limit_on_its_key_for_those_who_may(visit: Any, acme: sample.Company) -> None:
    one = visit()
    one.log_in(acme)
    one.to_receipt()
    one.page.get_by_role("link", name="limit this key").click()
    one.page.get_by_role("heading", name="New limit").wait_for()
    assert "key=" in one.page.url
    other = visit()
    other.log_in(acme, "finance")
    other.to_receipt()
    assert other.page.get_by_role("link", name="limit this key").count() == 0
    other.page.get_by_role("link", name="Limits", exact=True).click()
    assert other.page.get_by_role("button").all_inner_texts() == ["Log out"]
    assert other.faults == []


def _shoot(one: Visit, name: str, *, wanted: bool) -> None:
    if wanted and (shots := os.environ.get("SHOTS")):
        one.page.screenshot(path=f"{shots}/{name}.png", full_page=True)
