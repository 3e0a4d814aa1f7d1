"""Plays the matrix: each client's script against a running system, with what its far end must say."""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients import places
from tests.clients.catalogue import CHAT, CLIENTS, MESSAGES, RESPONSES, Client
from tests.clients.wiretap import Exchange, Wiretap
from tests.fakes import scripted
from tests.system import Customer, System

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "measured.json"
FAKE, LOCAL = "fake-1", "smollm2-135m-instruct"
OF_THE_OTHER_WIRE = {"openai": "only-anthropic", "anthropic": "only-openai"}
GOOD = ("plain", "streamed", "tools", "streamed_tools", "structured", "models", "translated")
ERRORS = ("wrong_key", "unknown_model", "capped", "limited", "failed", "broken")
# What a model of 135 million parameters does reliably.
OF_THE_LOCAL_MODEL = ("plain", "streamed", "structured")
# llama.cpp's server knows no schema there; and so small a model seldom ends by itself, where a stream of responses is
# `incomplete`, which OpenAI's SDK for Python takes for an error.
_BEYOND_THE_LOCAL_SERVER = {MESSAGES: ("structured",), RESPONSES: ("streamed",)}
SAID = "Blue, mostly."
CITIES = ["Paris", "Oslo"]
WEATHER = {"city": "Paris", "degrees": 21}
FOUND = "It is 21 degrees in both."


@dataclass
class Run:
    """What one client told, and what passed the wire meanwhile."""

    told: dict[str, Any]
    passed: list[Exchange]
    version: str

    def exchanges(self, case: str) -> list[Exchange]:
        return [one for one in self.passed if f" asks {case}. " in one.asked_for]


@dataclass
class Matrix:
    """The running system with one customer for each thing that can stand in a call's way."""

    system: System
    tap: Wiretap
    customer: Customer
    capped: Customer
    runs: dict[tuple[str, str], Run] = field(default_factory=dict)

    def run(self, client: Client, model: str) -> Run:
        """The client's run against this model, made once; raises places.CannotInstall."""
        name = (client.name, model)
        if name not in self.runs:
            self.runs[name] = self._run(client, model)
        return self.runs[name]

    def _run(self, client: Client, model: str) -> Run:
        command, version = started(client)
        cases = {case: self._asked(client, case, model) for case in cases_of(client, model)}
        self.system.far_end.clear()
        for case in cases:
            for rule in rules(client, case):
                self.system.far_end.script(**rule)
        before = len(self.tap.log)
        given = {"root": self.tap.base_url, "wire": client.wire, "cases": cases}
        done = subprocess.run(
            command, input=json.dumps(given), env=clean_env(), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return Run(json.loads(done.stdout.strip().splitlines()[-1]), self.tap.log[before:], version)

    def _asked(self, client: Client, case: str, model: str) -> dict[str, Any]:
        others = {"unknown_model": "no-such-model", "translated": OF_THE_OTHER_WIRE[client.wire]}
        keys = {"wrong_key": wrong(self.customer.key), "capped": self.capped.key}
        return {
            "key": self._limited().key if case == "limited" else keys.get(case, self.customer.key),
            "model": others.get(case, model),
            "text": text_of(client, case),
            "retries": None if case == "capped" else 0,
            "limit": 400 if case == "structured" else 64 if model == FAKE else 16,
        }

    def _limited(self) -> Customer:
        """A customer who has had his one call of this minute."""
        customer = self.system.tenant()
        self.system.manage("limit_set", "--tenant", customer.name, "--rpm", "1")
        body = {"model": FAKE, "messages": [{"role": "user", "content": "the one call"}]}
        assert self.system.http(customer.key).post(CHAT, json=body).status_code == 200
        return customer


def has_endpoint(system: System, customer: Customer, endpoint: str) -> bool:
    """Whether the gateway has it: anything but our 404 of unknown paths."""
    reply = system.http(customer.key).post(endpoint, json={})
    return reply.status_code != 404


def has_translation(system: System, customer: Customer, wire: str) -> bool:
    """Whether a model of the other wire can be called on this one."""
    body = {"model": OF_THE_OTHER_WIRE[wire], "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    return system.http(customer.key).post(CHAT if wire == "openai" else MESSAGES, json=body).status_code == 200


def cases_of(client: Client, model: str) -> list[str]:
    wanted = (*GOOD, *ERRORS) if model == FAKE else OF_THE_LOCAL_MODEL
    impossible = _BEYOND_THE_LOCAL_SERVER.get(client.endpoint, ()) if model == LOCAL else ()
    return [case for case in wanted if case not in client.lacks and case not in impossible]


def started(client: Client) -> tuple[list[str], str]:
    """The command that runs the client's script, and the version of its package."""
    if client.runtime == "node":
        place = places.node()
        facts = json.loads((place / "node_modules" / client.package / "package.json").read_text())
        return ["node", str(place / client.script[0]), *client.script[1:]], facts["version"]
    interpreter = places.python(client.runtime)
    asked = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    version = subprocess.run([interpreter, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    return [str(interpreter), str(HERE / "python" / client.script[0]), *client.script[1:]], version


def clean_env() -> dict[str, str]:
    """No keys, addresses or proxies of this machine's: a client may read them behind our back."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "NO_PROXY": "127.0.0.1",
        "NODE_NO_WARNINGS": "1",
    }


def slug(client: Client) -> str:
    return re.sub(r"[^a-z0-9]+", "-", client.name.lower()).strip("-")


def text_of(client: Client, case: str) -> str:
    return f"{slug(client)} asks {case}. How is the weather in Paris and in Oslo"


def wrong(key: str) -> str:
    """A key of ours in every respect but that nobody issued it."""
    from tenants import keys  # noqa: PLC0415 - Django must be set up

    body = keys._new_body("prod")[1]
    return body + keys._checksum(body)


def rules(client: Client, case: str) -> list[dict[str, Any]]:
    """What the far end says to this client's case; the first rule that matches counts."""
    text, wire = text_of(client, case), "responses" if client.endpoint == RESPONSES else client.wire
    said: dict[str, dict[str, Any]] = {
        "plain": {"text": SAID},
        "translated": {"text": SAID},
        "streamed": {"text": SAID, "chunks": 3},
        "structured": {"text": json.dumps(WEATHER)},
        "failed": {"status": 500},
        "broken": {"cut_after_chunks": 4},
    }
    if case in {"tools", "streamed_tools"}:
        calls = [("weather", {"city": city}) for city in CITIES]
        found: dict[str, Any] = {"match": f"{text}: 21 degrees", "text": FOUND}
        return [found, {"match": text, **scripted.tool_calls(wire, calls, stream=case == "streamed_tools")}]
    if case == "structured" and client.object_tool:
        return [{"match": text, **scripted.tool_calls(wire, [(client.object_tool, WEATHER)], stream=False)}]
    return [{"match": text, **said[case]}] if case in said else []


# --- the table --------------------------------------------------------------------------------------------------------


COLUMNS = {
    "plain": "plain", "streamed": "stream", "tools": "tools", "streamed_tools": "tools, stream", "structured": "object",
    "models": "models", "translated": "other wire", "wrong_key": "401", "unknown_model": "404", "capped": "402", "limited": "429", "failed": "500",
    "broken": "broken stream", "local": "local model",
}  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """The measured matrix as Markdown."""
    head = f"| client | version | {' | '.join(COLUMNS.values())} |"
    lines = [head, f"|{'---|' * (len(COLUMNS) + 2)}"]
    for client in CLIENTS:
        found = measured.get(client.name)
        if found is not None:
            cells = [found["cases"].get(case, "-") for case in COLUMNS]
            lines.append(f"| {client.name} | {found['version']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pointing() -> str:
    """How each client is pointed at the gateway, as Markdown."""
    lines = ["| client | how | note |", "|---|---|---|"]
    for client in CLIENTS:
        how = client.how if "`" in client.how and "${" not in client.how else f"`` {client.how} ``"
        lines.append(f"| {client.name} | {how} | {client.quirks} |")
    return "\n".join(lines)
