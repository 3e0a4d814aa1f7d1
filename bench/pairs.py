"""Pairs of a hold and its settlement, made and counted; for `bench.money`, with Django set up."""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import uvloop

from aiplatform.lib import postgres
from aiplatform.lib.batching import Batcher
from aiplatform.lib.ids import uuid7
from aiplatform.providers.base import Usage
from bench import cpu
from usage import audit, ledger, pricebook
from usage.ledger import Ending, Hold

REPOSITORY = Path(__file__).resolve().parent.parent
CAP_NANO = 10**15
HELD_NANO, CHARGED_NANO = 70_000, 9_800


@dataclass
class Ground:
    """What the calls are made on."""

    keys: list[uuid.UUID]
    price_id: int
    revision: int
    body: bytes
    web: uuid.UUID
    worker: uuid.UUID
    first_own: uuid.UUID = field(default_factory=uuid7)
    next_key: int = 0
    settled: int = 0
    handled: dict[str, list[int]] = field(default_factory=dict)

    def key(self) -> uuid.UUID:
        self.next_key = (self.next_key + 7919) % len(self.keys)
        return self.keys[self.next_key]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Set up, warm up, measure, verify; returns all figures."""
    subprocess.run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], cwd=REPOSITORY, check=True)
    ground = set_up(options)
    run(ground, clients=options.clients, seconds=2.0)
    pairs = run(ground, clients=options.clients, seconds=options.seconds)
    profile = profiled() if options.profile else None
    claimed = run(ground, clients=options.clients, seconds=options.seconds, claim=True)
    alone = run(ground, clients=1, pairs=options.alone)
    counted = postgres.run(
        """SELECT count(*) AS n, coalesce(sum(amount_nano), 0)::bigint AS nano FROM usage_ledgerentry
           WHERE kind = 'charge' AND ref > %s""",
        [ground.first_own],
    )[0]
    # Past calls are put into the tables without their caps; then only the sums are compared.
    clean = None if options.past else audit.verify().ok
    return {
        "pairs_per_s": pairs["pairs_per_s"],
        "p50_ms": alone["p50_ms"],
        "p50_ms_busy": pairs["p50_ms"],
        "p99_ms_busy": pairs["p99_ms"],
        "with_claim_per_s": claimed["pairs_per_s"],
        "batch": pairs["batch"],
        "postgres_ms_per_pair": pairs["postgres_ms_per_pair"],
        "client_ms_per_pair": pairs["client_ms_per_pair"],
        "clients": options.clients,
        "tenants": options.tenants,
        "past_calls": options.past,
        "ledger": {
            "agrees": counted.n == ground.settled
            and counted.nano == ground.settled * CHARGED_NANO
            and clean is not False,
            "settled": ground.settled,
            "booked": counted.n,
            "clean": clean,
        },
        **({"profile": profile} if profile else {}),
        **({"plans": plans(ground)} if options.plans else {}),
    }


def set_up(options: argparse.Namespace) -> Ground:
    """Tenants with a key and four caps each, by rows: a hundred thousand are not made one by one."""
    postgres.run("INSERT INTO usage_processlease (id, kind, host, pid, state, started_at, seen_at) "
                 "SELECT u, 'bench', 'bench', 1, 'alive', now(), now() FROM unnest(%s::uuid[]) u",
                 [processes := [uuid.uuid4(), uuid.uuid4()]])  # fmt: skip
    postgres.run("SET statement_timeout = 0")
    postgres.run(TENANTS, [options.tenants])
    postgres.run(
        """INSERT INTO usage_spendingcap (tenant_id, environment_id, api_key_id, end_user, period, mode, limit_nano, thresholds,
               created_at)
           SELECT k.tenant_id, CASE WHEN n > 2 THEN k.environment_id END, CASE WHEN n > 3 THEN k.id END, '',
               (ARRAY['month', 'lifetime', 'month', 'month'])[n], 'enforce', %s, '{50,80,100}', now()
           FROM tenants_apikey k, generate_series(1, 4) n WHERE k.name = 'bench'""",
        [CAP_NANO],
    )
    # Each cap's running period, as it is after its first call of a month: what is measured is a call, not a new period.
    postgres.run(
        """INSERT INTO usage_capbucket (cap_id, starts_at, ends_at, held_nano, spent_nano)
           SELECT c.id, p.starts_at, p.ends_at, 0, 0 FROM usage_spendingcap c, usage_period(c.period, 'UTC', now()) p
           WHERE c.tenant_id IN (SELECT tenant_id FROM tenants_apikey WHERE name = 'bench')"""
    )
    parts = pricebook.per_million({"input": Decimal("0.1"), "output": Decimal("0.4")})
    price, _ = pricebook.set_price(provider="bench", model="bench", parts=parts)
    if options.past:
        past_calls(options.past, price.pk, options.tenants)
    keys = [row.id for row in postgres.run("SELECT id FROM tenants_apikey WHERE name = 'bench' ORDER BY id")]
    revision = postgres.run("SELECT revision FROM usage_catalogue")[0].revision
    body = b'{"model":"bench","messages":[{"role":"user","content":"' + b"x" * max(options.payload - 59, 0) + b'"}]}'
    postgres.run("ANALYZE")
    postgres.run("SET statement_timeout = 15000")
    return Ground(keys, price.pk, revision, body, *processes)


TENANTS = """
WITH made AS (
    INSERT INTO tenants_tenant (id, name, time_zone, created_at)
    SELECT gen_random_uuid(), 'bench-' || n, 'UTC', now() FROM generate_series(1, %s) n
    RETURNING id
), environment AS (
    INSERT INTO tenants_environment (id, tenant_id, name, kind, default_max_tokens, floor_max_tokens, created_at)
    SELECT gen_random_uuid(), id, 'prod', 'prod', 1024, 16, now() FROM made RETURNING id, tenant_id
)
INSERT INTO tenants_apikey (id, tenant_id, environment_id, name, public_id, prefix, digest, pepper_version, scopes, created_at)
SELECT gen_random_uuid(), tenant_id, id, 'bench', substr(md5(id::text), 1, 12), 'bench', '', 1, '{calls}', now()
FROM environment
"""


def past_calls(count: int, price: int, tenants: int) -> None:
    """Settled calls with their ledger rows, spread over the tenants and over the minutes before now."""
    step = 500_000
    for first in range(0, count, step):
        postgres.run("SET enable_nestloop = off")
        postgres.run(PAST, [first, min(first + step, count) - 1, price, tenants], patience=600)
    postgres.run("RESET enable_nestloop")


PAST = """
WITH k AS (SELECT row_number() OVER () - 1 AS at, id, tenant_id, environment_id FROM tenants_apikey WHERE name = 'bench'),
moment AS (
    SELECT n, date_trunc('month', now()) + (now() - date_trunc('month', now())) * random() * 0.999 AS at
    FROM generate_series(%s::bigint, %s::bigint) n
), call AS (
    INSERT INTO usage_call (id, tenant_id, environment_id, api_key_id, price_id, end_user, request_id, wire, endpoint, model,
        provider, streamed, state, is_live, held_nano, bucket_ids, max_output_tokens, clamped, admitted_at, start_by,
        deadline_at, next_ring_at, web_process, settled_at, status, input_tokens, output_tokens, charged_nano, list_nano,
        provider_cost_nano)
    SELECT (lpad(to_hex((extract(epoch FROM m.at) * 1000)::bigint), 12, '0') || '7' || substr(md5(m.n::text), 1, 19))::uuid,
        k.tenant_id, k.environment_id, k.id, %s, '', 'r', 'openai', 'chat', 'bench', 'sandbox', false, 'settled', false,
        70000, '{}', 100, false, m.at, m.at, m.at, m.at, k.id, m.at, 200, 18, 20, 9800, 9800, 9800
    FROM moment m JOIN k ON k.at = m.n %% %s
    RETURNING id, tenant_id, environment_id, api_key_id, admitted_at
)
INSERT INTO usage_ledgerentry (ref, kind, tenant_id, environment_id, api_key_id, debit, credit, amount_nano, belongs_at)
SELECT c.id, b.kind, c.tenant_id, c.environment_id, c.api_key_id, b.debit, b.credit, 9800, c.admitted_at
FROM call c,
    (VALUES ('charge', 'receivable', 'revenue'), ('provider_cost', 'cost_of_sales', 'payable:sandbox')) b(kind, debit, credit)
"""


def run(
    ground: Ground, *, clients: int, seconds: float = 600.0, pairs: int = 10**9, claim: bool = False
) -> dict[str, Any]:
    """Pairs by so many clients until time or number is up."""
    return uvloop.run(_run(ground, clients, seconds, pairs, claim=claim))


async def _run(ground: Ground, clients: int, seconds: float, pairs: int, *, claim: bool) -> dict[str, Any]:
    sizes: list[int] = []
    used = Usage(input=18, output=20)  # 9,800 nano-USD at the bench's price

    def counted(handle: Callable[[Any], Sequence[Any]]) -> Callable[[Any], Sequence[Any]]:
        def handled(items: list[Any]) -> Sequence[Any]:
            sizes.append(len(items))
            return handle(items)

        return handled

    def settled(endings: list[Ending]) -> list[Any]:
        owner = ground.worker if claim else None
        rows = ledger.settle(owner, endings, from_states=["inflight" if claim else "held"])
        return [rows[ending.call_id] for ending in endings]

    def claimed(calls: list[uuid.UUID]) -> list[Any]:
        rows = {row.id: row for row in ledger.claim(ground.worker, calls)}
        return [rows[call] for call in calls]

    holds: Batcher[Hold, Any] = Batcher("hold", counted(lambda asks: ledger.hold(ground.web, ground.revision, asks)))
    claims: Batcher[uuid.UUID, Any] = Batcher("claim", claimed)
    settlements: Batcher[Ending, Any] = Batcher("settle", counted(settled))
    latencies: list[float] = []
    ends_at = time.monotonic() + seconds
    left = pairs

    async def client() -> None:
        nonlocal left
        while left > 0 and time.monotonic() < ends_at:
            left -= 1
            began = time.perf_counter()
            call = uuid7()
            row = await holds.submit(
                Hold(call, ground.key(), "", "r", "openai", "chat", "bench", "sandbox", False, ground.price_id,
                     HELD_NANO, 0, 100, 16, {}, ground.body)
            )  # fmt: skip
            expect(row.verdict, "held")
            if claim:
                await claims.submit(call)
            ending = Ending(call, "settled", 200, "", "provider", CHARGED_NANO, CHARGED_NANO, CHARGED_NANO, usage=used)
            ending.attempt_outcome = "answered" if claim else None
            charged = await settlements.submit(ending)
            expect(charged.charged_nano, CHARGED_NANO)
            ground.settled += 1
            latencies.append(time.perf_counter() - began)

    before, cpu_before, began = postgres_cpu(), time.process_time(), time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.monotonic() - began
    spent, own = postgres_cpu() - before, time.process_time() - cpu_before
    for batcher in (holds, claims, settlements):
        await asyncio.to_thread(batcher.close)
    ranked = sorted(latencies)
    done = len(ranked)
    return {
        "pairs_per_s": round(done / took),
        "p50_ms": round(ranked[done // 2] * 1000, 3),
        "p99_ms": round(ranked[int(done * 0.99)] * 1000, 3),
        "batch": round(statistics.mean(sizes), 1),
        "postgres_ms_per_pair": round(spent * 1000 / done, 4),
        "client_ms_per_pair": round(own * 1000 / done, 4),
    }


def expect(found: object, wanted: object) -> None:
    """Stop a benchmark whose calls do not go as they must."""
    if found != wanted:
        raise SystemExit(f"{found!r} where {wanted!r} was expected")


def postgres_cpu() -> float:
    """CPU seconds of all server processes so far."""
    backend = postgres.run("SELECT pg_backend_pid() AS pid")[0].pid
    postmaster = psutil.Process(backend).parent()
    if postmaster is None:
        raise SystemExit("the benchmark needs a server on this machine")
    return sum(cpu.seconds(process) for process in cpu.family([postmaster.pid]))


def profiled() -> list[str]:
    """Where the time inside Postgres went, statements within functions included."""
    return [
        f"{row.total:9.1f} ms {row.calls:7} x {row.each:8.4f} ms  {row.query}"
        for row in postgres.run(
            """SELECT round(total_exec_time::numeric, 1) AS total, calls, round((total_exec_time / calls)::numeric, 4) AS each,
                   left(regexp_replace(query, '\\s+', ' ', 'g'), 110) AS query
               FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 22"""
        )
    ]


def plans(ground: Ground) -> list[str]:
    """The plans by which the hot statements find their rows."""
    key = ground.keys[0]
    statements = {
        "caps of a key": "SELECT c.id FROM tenants_apikey k JOIN usage_spendingcap c USING (tenant_id) WHERE k.id = %s",
        "bucket of a cap": "SELECT b.id FROM usage_capbucket b WHERE b.cap_id = %s AND b.end_user = '' AND b.starts_at = now()",
        "call by id": "SELECT state FROM usage_call WHERE id = %s",
        "live calls": "SELECT id FROM usage_call WHERE is_live AND state = 'held' AND next_ring_at < now() LIMIT 500",
    }
    shown = []
    for name, statement in statements.items():
        parameters = [] if "%s" not in statement else [1] if "cap_id" in statement else [key]
        rows = postgres.run(f"EXPLAIN {statement}", parameters)
        shown += [name, *(f"  {row[0]}" for row in rows)]
    return shown
