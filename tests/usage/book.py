"""A tenant's book for tests of the money functions, on committed rows: the ledger cannot be rolled back or flushed."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from aiplatform.lib import postgres
from aiplatform.lib.ids import uuid7
from tenants.models import ApiKey, Environment, Tenant
from usage import ledger
from usage.ledger import Ending, Hold


@dataclass
class Book:
    """One tenant with one key, and the processes that work for it."""

    time_zone: str = "UTC"
    web: uuid.UUID = field(default_factory=uuid7)
    worker: uuid.UUID = field(default_factory=uuid7)

    def __post_init__(self) -> None:
        self.tenant = Tenant.objects.create(name=f"book-{uuid.uuid4().hex}", time_zone=self.time_zone)
        self.environment = Environment.objects.create(tenant=self.tenant, name="prod", kind="prod")
        self.key = self.another_key()
        for process, kind in ((self.web, "web"), (self.worker, "worker")):
            postgres.run(
                "INSERT INTO usage_processlease (id, kind, host, pid, state, started_at, seen_at) VALUES (%s, %s, 'h', 1, 'alive', now(), now())",
                [process, kind],
            )
        self.price = postgres.run("SELECT id FROM usage_price WHERE provider = 'sandbox'")[0].id

    def another_key(self) -> ApiKey:
        return ApiKey.objects.create(
            tenant=self.tenant,
            environment=self.environment,
            public_id=uuid.uuid4().hex[:12],
            prefix="x",
            digest=b"",
            scopes=["calls"],
        )

    def cap(
        self,
        nano: int,
        *,
        period: str = "month",
        environment: Any = None,
        key: Any = None,
        end_user: str = "",
        mode: str = "enforce",
        thresholds: list[int] | None = None,
    ) -> int:
        (row,) = postgres.run(
            "SELECT usage_set_cap(%s::uuid, %s::uuid, %s::uuid, %s, %s, %s, %s, %s::smallint[]) AS cap",
            [
                self.tenant.id,
                environment and environment.id,
                key and key.id,
                end_user,
                period,
                mode,
                nano,
                thresholds,
            ],
        )
        return int(row.cap)

    def grant(self, nano: int, *, expires: Any = None) -> uuid.UUID:
        grant = uuid7()
        postgres.run(
            "SELECT usage_grant_credit(%s::uuid, %s::uuid, %s::bigint, 'paid', 100::smallint, %s::timestamptz, '')",
            [self.tenant.id, grant, nano, expires],
        )
        return grant

    def ask(self, base: int = 100, *, pico: int = 0, tokens: int = 100, floor: int = 16, **changes: Any) -> Hold:
        fields = {
            "call_id": uuid7(), "key_id": self.key.id, "end_user": "", "request_id": "", "wire": "openai", "endpoint": "chat",
            "model": "m", "provider": "p", "streamed": False, "price_id": self.price, "base_nano": base, "output_pico": pico,
            "wanted_tokens": tokens, "floor_tokens": floor, "headers": {}, "body": b"{}",
        }  # fmt: skip
        return Hold(**{**fields, **changes})

    def hold(self, *asks: Hold) -> list[Any]:
        while True:  # another test may have changed the catalogue
            revision = postgres.run("SELECT revision FROM usage_catalogue")[0].revision
            rows = ledger.hold(self.web, revision, asks)
            if rows[0].verdict != "stale":
                return rows

    def held(self, base: int = 100, **changes: Any) -> uuid.UUID:
        ask = self.ask(base, **changes)
        (row,) = self.hold(ask)
        assert row.verdict == "held"
        return ask.call_id

    def claim(self, *calls: uuid.UUID) -> list[uuid.UUID]:
        return [row.id for row in ledger.claim(self.worker, calls)]

    def settle(self, *endings: Ending, worker: uuid.UUID | None = None) -> dict[uuid.UUID, Any]:
        return ledger.settle(worker or self.worker, endings)

    def spend(self, nano: int, *, hold: int | None = None, **changes: Any) -> uuid.UUID:
        call = self.held(hold or nano, **changes)
        self.claim(call)
        self.settle(
            Ending(call, "settled", 200, evidence="provider", cost_nano=nano, list_nano=nano, provider_cost_nano=nano)
        )
        return call

    def bucket(self, cap: int) -> tuple[int, int]:
        (row,) = postgres.run(
            "SELECT held_nano, spent_nano FROM usage_capbucket WHERE cap_id = %s ORDER BY starts_at DESC LIMIT 1", [cap]
        )
        return int(row.held_nano), int(row.spent_nano)

    def call(self, call: uuid.UUID) -> Any:
        return postgres.run("SELECT * FROM usage_call WHERE id = %s", [call])[0]

    def entries(self, call: uuid.UUID) -> dict[str, int]:
        return {
            row.kind: row.amount_nano
            for row in postgres.run("SELECT kind, amount_nano FROM usage_ledgerentry WHERE ref = %s", [call])
        }
