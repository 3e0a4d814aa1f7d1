"""The operator's correction of one call: new entries with their reason, nothing edited."""

import json

import pytest
from django.core.management import CommandError, call_command

from aiplatform.lib.ids import call_name
from tests.usage.book import Book
from usage import audit, ledger
from usage.ledger import Ending


@pytest.fixture
def book(committed_db: None) -> Book:
    return Book()


def correct(capsys: pytest.CaptureFixture[str], call: object, *options: str) -> dict[str, str]:
    call_command("call_correct", call_name(call), *options, "--json")  # type: ignore[arg-type]
    found: dict[str, str] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def cap_drift(book: Book) -> list[object]:
    return [one for one in audit.verify(tenant_id=book.tenant.pk).drift if one["what"] in {"cap", "account", "ledger"}]


def test_an_unknown_outcome_that_became_known_is_booked_and_its_exposure_released(
    book: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    cap = book.cap(1000)
    call = book.held(100)
    book.claim(call)
    book.settle(Ending(call, "unknown", 502))
    with pytest.raises(CommandError, match="has not ended"):
        correct(capsys, call, "--charge-usd", "0", "--reason", "early")
    ledger.settle(None, [Ending(call, "void", 502, exposure_nano=100)], from_states=["unknown"])
    options = (
        "--charge-usd",
        "0.00000006",
        "--cost-usd",
        "0.00000005",
        "--reason",
        "the provider's bill",
        "--charge-tenant",
    )
    receipt = correct(capsys, call, *options)
    assert (receipt["to_pay_usd"], receipt["provider_cost_usd"]) == ("0.000000060", "0.000000050")
    assert book.entries(call) == {"exposure": 100, "correction": 60, "cost_correction": 50, "exposure_release": 100}
    assert book.bucket(cap) == (0, 60)
    correct(capsys, call, *options)
    assert book.bucket(cap) == (0, 60)
    assert not cap_drift(book)


def test_a_credit_gives_the_tenant_his_money_back_and_his_cap_its_room(
    book: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    cap = book.cap(1000)
    call = book.spend(100)
    assert correct(capsys, call, "--charge-usd", "0.00000004", "--reason", "goodwill")["to_pay_usd"] == "0.000000040"
    assert book.bucket(cap) == (0, 40)
    assert not cap_drift(book)
