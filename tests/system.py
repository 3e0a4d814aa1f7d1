"""A whole system of real processes, a fake far end, and the operator's commands to set both up."""

import atexit
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx2
import openai
import psycopg
from psycopg.rows import dict_row

from aiplatform import stack
from aiplatform.lib.ids import uuid7
from aiplatform.stack import SERVERS, Stack
from tenants import keys
from tests.commands import Commands
from tests.fakes.provider import FakeProvider
from tests.memcached import Memcached

# What ends a call that lost its worker, shortened; and what one test's faults do to a provider's standing is no other test's
# business. Everything else is as in production.
QUICK = {"LEASE_RENEW_SECONDS": "1", "LEASE_LOST_SECONDS": "4", "UNKNOWN_GRACE_SECONDS": "2", "SWEEP_SECONDS": "1",
         "SEAL_SECONDS": "2", "BACKGROUND_POLL_SECONDS": "0.5", "BATCH_POLL_SECONDS": "1", "AUDIT_SECONDS": "3",
         "RELAY_SILENCE_SECONDS": "2", "BREAKER_FAILURES": "1000000", "RETRY_RESERVE": "1000000", "PACE_PROVIDERS": "false", "PROVIDER_SILENCE_SECONDS": "10", "FAKE_KEY": "far-end", "LOG_LEVEL": "INFO"}  # fmt: skip


_Client = TypeVar("_Client", httpx2.Client, openai.OpenAI, anthropic.Anthropic)


class CommandedStack(Stack):
    """A stack that begins with a migrated and seeded database, and has a process at hand that runs the operator's commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = Commands()

    def _start(self, closing: ExitStack) -> None:
        self.data = closing.enter_context(stack._folder(None))
        subprocess.run(["cp", "-a", f"{_seeded()}/.", self.data], check=True)
        super()._start(closing)

    def __exit__(self, *exc: object) -> None:
        self.commands.close()
        super().__exit__(*exc)


@dataclass
class System:
    """The running system and its far end, with what tests ask of them."""

    stack: CommandedStack
    far_end: FakeProvider
    clients: list[Any] = field(default_factory=list)
    memcached: Memcached | None = None
    """Where it keeps answers, if not in its Redis."""

    @property
    def base_url(self) -> str:
        return str(self.stack.facts["base_url"])

    def manage(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """What `manage.py … --json` prints on its last line."""
        done = self.stack.commands.run(self.stack.command_env, *arguments, "--json")
        assert done.code == code, done.stdout + done.stderr
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        return answer

    def rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.stack.facts["database_url"], row_factory=dict_row, autocommit=True) as connection:
            return connection.execute(statement, parameters).fetchall()

    def execute(self, statement: str, *parameters: Any) -> None:
        with psycopg.connect(self.stack.facts["database_url"]) as connection:
            connection.execute(statement, parameters)

    def http(self, key: str, **headers: str) -> httpx2.Client:
        return self._closing(
            httpx2.Client(
                base_url=self.base_url,
                headers={"authorization": f"Bearer {key}", **headers} if key else headers,
                timeout=60,
                trust_env=False,
            )
        )

    def openai(self, key: str) -> openai.OpenAI:
        return self._closing(openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=key, max_retries=0))

    def anthropic(self, key: str) -> anthropic.Anthropic:
        return self._closing(anthropic.Anthropic(base_url=self.base_url, api_key=key, max_retries=0))

    def close_clients(self) -> None:
        while self.clients:
            self.clients.pop().close()

    def tenant(self, *, environment: str = "prod") -> "Customer":
        """A new tenant with one key; by rows, since a process for each command would cost every test seconds."""
        name, kinds = f"tenant-{uuid.uuid4().hex[:12]}", ("dev", "staging", "prod", "sandbox")
        tenant, environments, key = uuid7(), {kind: uuid7() for kind in kinds}, uuid7()
        public, body = keys._new_body(environment)
        text = body + keys._checksum(body)
        with psycopg.connect(self.stack.facts["database_url"]) as connection:
            connection.execute(
                "INSERT INTO tenants_tenant (id, name, time_zone, created_at) VALUES (%s, %s, 'UTC', now())",
                [tenant, name],
            )
            for kind, row in environments.items():
                connection.execute(
                    """INSERT INTO tenants_environment (id, tenant_id, name, kind, default_max_tokens, floor_max_tokens,
                       created_at) VALUES (%s, %s, %s, %s, 1024, 16, now())""",
                    [row, tenant, kind, kind],
                )
            connection.execute(
                """INSERT INTO tenants_apikey (id, tenant_id, environment_id, name, public_id, prefix, digest,
                   pepper_version, scopes, created_at) VALUES (%s, %s, %s, '', %s, %s, %s, 1, '{calls,read}', now())""",
                [key, tenant, environments[environment], public, body[:-33], keys.digest(text)],
            )
        return Customer(name, {kind: str(row) for kind, row in environments.items()}, text, str(key))

    def _closing(self, client: _Client) -> _Client:
        self.clients.append(client)
        return client


@dataclass
class Customer:
    """A tenant of one test's own."""

    name: str
    environments: dict[str, str]
    key: str
    key_id: str


@cache
def _seeded() -> Path:
    """The data of a system that was migrated, seeded and stopped; made once, and removed when the tests end."""
    kept = ExitStack()
    atexit.register(kept.close)
    folder = kept.enter_context(stack._folder(None))
    with Stack(data=folder, parts=SERVERS, environ=_environ({})) as servers:
        servers.start_app()
    shutil.rmtree(folder / "run")
    return folder


def _environ(more: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    return {**inherited, **QUICK, **more}


def start_system(far_end: FakeProvider, **environ: str) -> CommandedStack:
    """A stack on servers of its own, with the far end as the provider of `fake-1` on both wires."""
    return CommandedStack(environ=_environ(environ))


def set_up_provider(system: System) -> None:
    root = system.far_end.base_url
    for name, wire, url in (("fake", "openai", f"{root}/v1"), ("fake-anthropic", "anthropic", root)):
        system.manage(
            "provider_set", name, "--wire", wire, "--base-url", url, "--key-env", "FAKE_KEY", "--models", "fake-1"
        )
        system.manage("price_set", name, "fake-1", "--input", "0.15", "--output", "0.60", "--cache-read", "0.075")
