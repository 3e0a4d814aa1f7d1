"""Real clients against the whole system, `bin/test --campaign clients`; what they are measured to do stands in docs/clients.md."""

import json
import secrets
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiplatform.lib import local_model
from aiplatform.lib.supervisor import free_port
from aiplatform.stack import Stack
from tests.clients import matrix, places
from tests.clients.catalogue import CLIENTS, Client
from tests.clients.matrix import CITIES, FAKE, FOUND, LOCAL, SAID, WEATHER, Matrix, Run
from tests.clients.wiretap import Exchange, tapped
from tests.fakes.provider import FakeProvider
from tests.system import System, set_up_provider, start_system

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
campaign = pytest.mark.campaign("clients")
CASES = [(client, case) for client in CLIENTS for case in matrix.cases_of(client, FAKE)]
LOCAL_CASES = [(client, case) for client in CLIENTS for case in matrix.cases_of(client, LOCAL)]
RESULTS: dict[str, Any] = {}


def names(cases: list[tuple[Client, str]]) -> list[str]:
    return [f"{matrix.slug(client)}-{case}" for client, case in cases]


@pytest.fixture(scope="module")
def played() -> Iterator[Matrix]:
    key = secrets.token_hex(12)
    with FakeProvider() as far_end:
        stack = start_system(far_end, LOCAL_MODEL_KEY=key)
        with stack, tapped(str(stack.facts["base_url"])) as tap:
            system = System(stack, far_end)
            set_up_provider(system)
            set_up_local_model(system, stack, key)
            for wire, model in (("anthropic", "only-anthropic"), ("openai", "only-openai")):
                url = far_end.anthropic_url if wire == "anthropic" else far_end.openai_url
                named = ("--wire", wire, "--base-url", url, "--key-env", "FAKE_KEY", "--models", model)
                system.manage("provider_set", model, *named)
                system.manage("price_set", model, model, "--input", "0.15", "--output", "0.60", "--cache-read", "0.075")
            capped = system.tenant()
            system.manage("cap_set", "--tenant", capped.name, "--period", "month", "--usd", "0.000001")
            yield Matrix(system, tap, system.tenant(), capped)
            system.close_clients()


def set_up_local_model(system: System, stack: Stack, key: str) -> None:
    """As the demo does; where the model is not here, its cases say so."""
    if local_model.missing():
        return
    port = free_port()
    stack.add(local_model.program(port, key, stack.env))
    root = f"http://127.0.0.1:{port}"
    for name, wire, url in (("local", "openai", f"{root}/v1"), ("local-anthropic", "anthropic", root)):
        system.manage(
            "provider_set", name, "--wire", wire, "--base-url", url, "--key-env", "LOCAL_MODEL_KEY", "--models", LOCAL,
            "--no-responses",
        )  # fmt: skip
        system.manage("price_set", name, LOCAL, "--input", "0.05", "--output", "0.20", "--cache-read", "0.01")


def run_of(played: Matrix, client: Client, model: str) -> Run:
    """Skips loudly what this machine or this version lacks."""
    if not matrix.has_endpoint(played.system, played.customer, client.endpoint):
        pytest.skip(f"{client.name}: the gateway has no {client.endpoint}")
    try:
        return played.run(client, model)
    except places.CannotInstall as error:
        pytest.skip(f"{client.name} is NOT TESTED: {error}")


@campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "case"), CASES, ids=names(CASES))
def test_a_client_sees_what_it_should(played: Matrix, client: Client, case: str) -> None:
    run = run_of(played, client, FAKE)
    if case == "translated" and not matrix.has_translation(played.system, played.customer, client.wire):
        pytest.skip(f"{client.name}: the gateway does not translate between the wires")
    row = RESULTS.setdefault(client.name, {"version": run.version, "cases": {}})
    row["cases"][case] = "no"
    CHECKS[case](played, client, run, case)
    row["cases"][case] = "yes"


@campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "case"), LOCAL_CASES, ids=names(LOCAL_CASES))
def test_a_client_talks_with_a_real_model(played: Matrix, client: Client, case: str) -> None:
    if problem := local_model.missing():
        pytest.skip(f"the local model is NOT TESTED: {problem}")
    run = run_of(played, client, LOCAL)
    row = RESULTS.setdefault(client.name, {"version": run.version, "cases": {}})
    before = row["cases"].get("local", "yes")
    row["cases"]["local"] = "no"
    told = run.told[case]
    assert "error" not in told, told
    if case == "structured":
        assert told["object"].keys() == WEATHER.keys()
    else:
        assert told["text"].strip()
    # llama.cpp tells the input of a streamed message at its end, where not every client looks for it.
    charged_as_told(played, run, case, outputs_only=case == "streamed" and client.wire == "anthropic")
    row["cases"]["local"] = before


# --- what each case must show -----------------------------------------------------------------------------------------


def plain(played: Matrix, client: Client, run: Run, case: str) -> None:
    told = run.told[case]
    assert told.get("text") == SAID, told
    charged_as_told(played, run, case)


def streamed(played: Matrix, client: Client, run: Run, case: str) -> None:
    plain(played, client, run, case)
    assert run.told[case].get("pieces", 2) > 1  # the pieces come as they are sent, not at the end in one
    assert '"stream":true' in run.exchanges(case)[-1].asked_for.replace(" ", "")


def tools(played: Matrix, client: Client, run: Run, case: str) -> None:
    told = run.told[case]
    assert told.get("text") == FOUND, told
    assert told["tools"] in (CITIES, None)
    asked = run.exchanges(case)
    assert len(asked) == 2
    results = [f"{matrix.text_of(client, case)}: 21 degrees in {city}" for city in CITIES]
    assert all(result in asked[1].asked_for for result in results)
    charged_as_told(played, run, case)


def streamed_tools(played: Matrix, client: Client, run: Run, case: str) -> None:
    assert run.told[case].get("tools") == CITIES, run.told[case]
    assert len(run.exchanges(case)) == 1


def structured(played: Matrix, client: Client, run: Run, case: str) -> None:
    assert run.told[case].get("object") == WEATHER, run.told[case]
    charged_as_told(played, run, case)


def models(played: Matrix, client: Client, run: Run, case: str) -> None:
    assert FAKE in run.told[case].get("models", ()), run.told[case]


def fails_with(status: int, code: str) -> Callable[[Matrix, Client, Run, str], None]:
    def check(played: Matrix, client: Client, run: Run, case: str) -> None:
        error = raised(client, run, case)
        assert error["status"] in (status, None), error
        (exchange,) = run.exchanges(case)  # the client was told, or knows by itself, that asking again is no use
        assert exchange.status == status
        assert json.loads(exchange.reply)["error"]["code"] == code
        if status in {401, 402, 404}:
            assert rows(played, [exchange]) == []
        if status == 402:
            assert exchange.reply_headers["x-should-retry"] == "false"
        if status == 429:
            assert 1 <= int(exchange.reply_headers["retry-after"]) <= 60
            assert error["retry_after"] in (exchange.reply_headers["retry-after"], None)

    return check


def failed(played: Matrix, client: Client, run: Run, case: str) -> None:
    """The provider's own 500, passed on and free."""
    error = raised(client, run, case)
    assert error["status"] in (500, None), error
    asked = run.exchanges(case)
    assert {one.status for one in asked} == {500}
    assert len(asked) == 1 or client.repeats
    assert b"The far end was told to answer 500." in asked[0].reply
    assert {row["state"] for row in rows(played, asked)} == {"void"}


def broken(played: Matrix, client: Client, run: Run, case: str) -> None:
    raised(client, run, case)
    asked = run.exchanges(case)
    assert asked[0].status == 200
    assert b"stream_broken" in asked[0].reply
    assert {row["evidence"] for row in rows(played, asked)} == {"counted"}


CHECKS: dict[str, Callable[[Matrix, Client, Run, str], None]] = {
    "plain": plain,
    "translated": plain,
    "streamed": streamed,
    "tools": tools,
    "streamed_tools": streamed_tools,
    "structured": structured,
    "models": models,
    "wrong_key": fails_with(401, "invalid_api_key"),
    "unknown_model": fails_with(404, "model_not_found"),
    "capped": fails_with(402, "cap_exceeded"),
    "limited": fails_with(429, "rate_limit_exceeded"),
    "failed": failed,
    "broken": broken,
}


def raised(client: Client, run: Run, case: str) -> dict[str, Any]:
    """The client's own error, and of the class that it documents where we know it."""
    told = run.told[case]
    assert "error" in told, told
    error = dict(told["error"])
    RESULTS[client.name].setdefault("raises", {})[case] = error["class"]
    expected = client.raises.get(case)
    assert expected is None or error["class"] == expected, error
    said = error["message"].lower()
    assert any(words in said for words in SAID_OF[case]), error  # it comes from our answer, and from nothing else
    return error


SAID_OF = {
    "wrong_key": ("key",),
    "unknown_model": ("no-such-model",),
    "capped": ("leaves no room",),
    "limited": ("requests", "limit"),
    "failed": ("told to answer 500",),
    "broken": ("broke off",),
}


def rows(played: Matrix, exchanges: list[Exchange]) -> list[dict[str, Any]]:
    ids = [uuid.UUID(one.call_id.removeprefix("call_")) for one in exchanges if one.call_id]
    return played.system.rows(
        """SELECT state, evidence, charged_nano, input_tokens, cache_read_tokens, cache_write_5m_tokens, output_tokens
           FROM usage_call WHERE id = ANY (%s) ORDER BY id""",
        ids,
    )


def charged_as_told(played: Matrix, run: Run, case: str, *, outputs_only: bool = False) -> None:
    """What the client was told of usage is what the last call's receipt says."""
    found = rows(played, run.exchanges(case))
    assert found
    assert {row["state"] for row in found} == {"settled"}
    assert {row["evidence"] for row in found} == {"provider"}
    told, row = run.told[case]["usage"], found[-1]
    if told is not None:
        given = row["input_tokens"] + row["cache_read_tokens"] + row["cache_write_5m_tokens"]
        assert outputs_only or told["input"] in (given, row["input_tokens"])
        assert told["output"] == row["output_tokens"]


# --- the document -----------------------------------------------------------------------------------------------------


@campaign
def test_what_was_measured_is_written_down() -> None:
    """What could not be tested here stays as it was."""
    measured = json.loads(matrix.MEASURED.read_text())
    for name, row in RESULTS.items():
        before = measured.get(name, row)
        kept = before["cases"] if before["version"] == row["version"] else {}
        raises = before.get("raises", {}) | row.get("raises", {})
        measured[name] = row | {"cases": kept | row["cases"], "raises": raises}
    matrix.MEASURED.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    document = DOCUMENT.read_text()
    for mark, text in tables():
        head, _, rest = document.partition(f"<!-- {mark} -->\n")
        document = f"{head}<!-- {mark} -->\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    DOCUMENT.write_text(document)


def test_the_document_says_what_was_measured_last() -> None:
    document = DOCUMENT.read_text()
    for mark, text in tables():
        assert f"<!-- {mark} -->\n{text}\n<!-- end -->" in document


def test_nothing_that_was_measured_failed() -> None:
    measured = json.loads(matrix.MEASURED.read_text())
    assert {name: row for name, row in measured.items() if "no" in row["cases"].values()} == {}
    assert measured.keys() <= {client.name for client in CLIENTS}


def tables() -> list[tuple[str, str]]:
    return [("measured", matrix.table(json.loads(matrix.MEASURED.read_text()))), ("pointing", matrix.pointing())]
