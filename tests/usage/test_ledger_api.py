"""A tenant checks his chain over HTTP, by the very lines that docs/ledger.md shows him; and the running system's gauge reads 0."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.system import Customer, System
from tests.waiting import wait_for

DOCUMENT = Path(__file__).parents[2] / "docs/ledger.md"


@pytest.fixture
def auditor(system: System, customer: Customer) -> str:
    """A key that may read the whole tenant."""
    scopes = ["--scope", "read", "--scope", "admin"]
    issued = system.manage("key_issue", "--tenant", customer.name, "--environment", "prod", *scopes)
    return str(issued["key"])


def calls(system: System, customer: Customer, number: int) -> None:
    with system.http(customer.key) as http:
        for _ in range(number):
            body = {"model": "fake-1", "messages": [{"role": "user", "content": "x"}], "user": "ü"}
            assert http.post("/v1/chat/completions", json=body).status_code == 200


def sealed(system: System, key: str, blocks: int) -> list[dict[str, Any]]:
    """The beat seals; nobody else is asked to."""
    with system.http(key) as http:
        wait_for(lambda: len(http.get("/api/ledger/seals").json()["results"]) >= blocks)
        found: list[dict[str, Any]] = http.get("/api/ledger/seals").json()["results"]
    return found


def test_the_documents_own_lines_verify_the_chain_and_see_what_was_changed(
    system: System, customer: Customer, auditor: str
) -> None:
    calls(system, customer, 3)
    sealed(system, auditor, 1)
    calls(system, customer, 2)
    blocks = sealed(system, auditor, 2)
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)

    def verify() -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "URL": system.base_url, "KEY": auditor, "no_proxy": "*"}
        return subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)

    done = verify()
    assert done.returncode == 0, done.stderr
    (row,) = system.rows(
        "SELECT sum(charged_nano) AS spent FROM usage_call WHERE api_key_id = %s AND state = 'settled'", customer.key_id
    )
    assert done.stdout.split() == [str(blocks[0]["n"]), blocks[0]["sha256"], str(row["spent"])]

    change = "UPDATE usage_ledgerentry SET amount_nano = amount_nano + %s WHERE api_key_id = %s AND kind = 'charge'"
    with as_owner(system) as owner:
        owner.execute("ALTER TABLE usage_ledgerentry DISABLE TRIGGER append_only")
        try:
            owner.execute(change, [1, customer.key_id])
            assert verify().returncode == 1
            found = system.manage("ledger_verify", "--tenant", customer.name, code=1)
            assert {it["what"] for it in found["drift"]} >= {"call", "seal", "account"}
        finally:
            owner.execute(change, [-1, customer.key_id])
            owner.execute("ALTER TABLE usage_ledgerentry ENABLE TRIGGER append_only")
    assert verify().returncode == 0
    assert system.manage("ledger_verify", "--tenant", customer.name)["ok"]


def test_blocks_are_paged_newest_first_or_from_a_known_one(system: System, customer: Customer, auditor: str) -> None:
    for blocks in (1, 2, 3):
        calls(system, customer, 1)
        sealed(system, auditor, blocks)
    with system.http(auditor) as http:
        numbers, page = [], http.get("/api/ledger/seals", params={"limit": 2}).json()
        numbers += [block["n"] for block in page["results"]]
        page = http.get(page["next"]).json()
        numbers += [block["n"] for block in page["results"]]
        assert (numbers[-1], page["next"]) == (1, None)
        assert numbers == sorted(numbers, reverse=True)
        page = http.get("/api/ledger/seals", params={"after": 1, "limit": 1}).json()
        assert [block["n"] for block in page["results"]] == [2]
        assert [block["n"] for block in http.get(page["next"]).json()["results"]] == [3]
        for wrong in (
            {"after": "x"},
            {"after": "-1"},
            {"before": "9" * 30},
            {"after": 1, "before": 2},
            {"n": 1},
            {"limit": 0},
        ):
            reply = http.get("/api/ledger/seals", params=wrong)
            assert (reply.status_code, reply.json()["code"]) == (400, "bad_parameter"), wrong


def test_entries_are_the_tenants_own_bytes_and_nobody_elses(system: System, customer: Customer, auditor: str) -> None:
    calls(system, customer, 1)
    (block,) = sealed(system, auditor, 1)
    rival = system.tenant()
    issued = system.manage(
        "key_issue", "--tenant", rival.name, "--environment", "prod", "--scope", "read", "--scope", "admin"
    )
    with system.http(auditor, accept="application/x-ndjson") as http:
        reply = http.get("/api/ledger/seals/1/entries")
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert hashlib.sha256(f"{block['prev_sha256']}\n".encode() + reply.content).hexdigest() == block["sha256"]
        for nowhere in ("2", "0", "-1", "x", "9" * 40, "%D9%A1"):
            reply = http.get(f"/api/ledger/seals/{nowhere}/entries")
            assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), nowhere
    with system.http(issued["key"]) as http:
        assert http.get("/api/ledger/seals").json() == {"results": [], "next": None}
        assert http.get("/api/ledger/seals/1/entries").status_code == 404
    with system.http(customer.key) as http:  # of one environment only
        assert len(http.get("/api/ledger/seals").json()["results"]) == 1
        reply = http.get("/api/ledger/seals/1/entries")
        assert (reply.status_code, reply.json()["code"]) == (403, "permission_denied")
    with system.http("") as http:
        assert http.get("/api/ledger/seals").status_code == 401


def test_processes_of_the_running_system_may_only_add_to_the_ledger(system: System, customer: Customer) -> None:
    calls(system, customer, 1)
    users = {
        row["usename"]
        for row in system.rows(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'aiplatform%%'"
        )
    }
    assert users == {"aiplatform_gateway"}
    for statement in (
        "UPDATE usage_ledgerentry SET amount_nano = 1",
        "DELETE FROM usage_ledgerentry",
        "TRUNCATE usage_ledgerseal",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            system.rows(statement)
        with as_owner(system) as owner, pytest.raises(psycopg.errors.RestrictViolation):
            owner.execute(statement)


def test_the_gauge_of_the_running_system_reads_0(system: System, customer: Customer) -> None:
    calls(system, customer, 2)
    count = "SELECT count(*) AS n FROM usage_auditrun"
    before = system.rows(count)[0]["n"]
    wait_for(lambda: system.rows(count)[0]["n"] >= before + 2, seconds=30)
    told = system.manage("ledger_verify", "--last")
    assert (told["drift"], told["ok"], told["last_complete"]["drift"]) == (0, True, 0)


def as_owner(system: System) -> psycopg.Connection[Any]:
    return psycopg.connect(system.stack.facts["database_owner_url"], autocommit=True)
