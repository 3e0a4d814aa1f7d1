"""A lived-in tenant whose calls went through the real money functions, so that ledger and caps agree.

Calls of earlier days are backdated between hold and settle; caps are set after them and count them from the ledger.
"""

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.auth.hashers import make_password
from django.db import connection
from django.utils import timezone

from aiplatform.lib import money
from aiplatform.lib.ids import uuid7
from aiplatform.providers.base import Usage
from tenants.models import ApiKey, Environment, Member, Tenant, User
from usage import ledger
from usage.ledger import Ending, Hold
from usage.models import Attempt, Call, Catalogue, Price, ProcessLease
from usage.pricing import Bound, Rates, rates

PASSWORD = "correct horse battery"
BOOK = {
    ("openai", "gpt-5-mini"): {"input": "0.25", "cache_read": "0.025", "output": "2.00"},
    ("anthropic", "claude-sonnet-5-5"): {
        "input": "2.00", "cache_read": "0.20", "cache_write_5m": "2.50", "cache_write_1h": "4.00", "output": "10.00",
    },
    ("openai", "gpt-5"): {"input": "1.25", "cache_read": "0.125", "output": "10.00"},
    ("openai", "text-small"): {"input": "0.0375", "output": "0.15"},
    ("anthropic", "claude-haiku-5"): {"input": "0.80", "output": "4.00"},
}  # fmt: skip
QUESTION = "How many days do I have to hand in a receipt?"
ANSWER = "Receipts are handed in within 30 days of the purchase (section 4.2)."


@dataclass
class Company:
    """A tenant with what hangs on it."""

    tenant: Tenant
    environments: dict[str, Environment]
    keys: dict[str, ApiKey]
    people: dict[str, User] = field(default_factory=dict)

    def key(self, environment: str) -> ApiKey:
        return self.keys[environment]


def company(name: str, *, zone: str = "Europe/Berlin", people: bool = True) -> Company:
    """A tenant with four environments, a key for each and, where wanted, a person for each role."""
    tenant = Tenant.objects.create(name=name, time_zone=zone)
    environments, keys = {}, {}
    names = {"prod": "web", "staging": "eval", "dev": "laptop", "sandbox": "ci"}
    for kind, key_name in names.items():
        environments[kind] = Environment.objects.create(tenant=tenant, name=kind, kind=kind)
        public_id = uuid.uuid4().hex[:12]
        keys[kind] = ApiKey.objects.create(
            tenant=tenant, environment=environments[kind], name=key_name, public_id=public_id,
            prefix=f"aip_{kind}_{public_id}", digest=b"", scopes=["calls"],
        )  # fmt: skip
    made = Company(tenant, environments, keys)
    for role in Member.Role if people else ():
        made.people[role] = person(f"{role}@{name.lower().replace(' ', '-')}.example", made.tenant, role=role)
    return made


def person(email: str, *tenants: Tenant, role: str = Member.Role.OWNER) -> User:
    user = User.objects.create(email=email, password=_hashed())
    for tenant in tenants:
        Member.objects.create(tenant=tenant, user=user, role=role)
    return user


def price_book() -> dict[str, Rates]:
    """The rates by model; safe to repeat."""
    for (provider, model), components in BOOK.items():
        price, is_new = Price.objects.get_or_create(
            provider=provider,
            model=model,
            defaults={"valid_from": datetime(2026, 1, 1, tzinfo=UTC), "source": "sample"},
        )
        if is_new:
            for meter, usd in components.items():
                price.components.create(meter=meter, usd=Decimal(usd), per=1_000_000)
    rows = Price.objects.filter(source="sample").values_list(
        "id",
        "provider",
        "model",
        "valid_from",
        "valid_to",
        "components__variant",
        "components__meter",
        "components__tier_from",
        "components__usd",
        "components__per",
    )
    return {one.model: one for one in rates(rows)}


@cache
def _hashed() -> str:
    """One slow hash for everybody."""
    return make_password(PASSWORD)


@dataclass
class Plan:
    """A call to be made. `until` is how far it gets: held, inflight, unknown, settled or void."""

    key: ApiKey
    model: str = "gpt-5-mini"
    usage: Usage = field(default_factory=lambda: Usage(input=1204, output=318))
    at: datetime | None = None
    until: str = "settled"
    status: int = 200
    error_code: str = ""
    end_user: str = ""
    evidence: str = "provider"
    tries: Sequence[tuple[int, str]] = ()  # earlier tries: status and error
    prompt: str = QUESTION
    answer: str = ANSWER
    streamed: bool = False
    first_byte: timedelta = timedelta(milliseconds=412)
    took: timedelta = timedelta(seconds=2)
    max_tokens: int = 4096
    call_id: uuid.UUID = field(default_factory=uuid7)


def make(*plans: Plan) -> list[Call]:
    """Makes the calls, in order; each plan's `at` must not lie before the current month where caps exist already."""
    book = price_book()
    for plan in plans:
        if plan.at:
            plan.call_id = _uuid_at(plan.at)
    web, worker = _process("web"), _process("worker")
    revision = Catalogue.objects.get().revision
    for batch in _batches(plans):
        holds = [_hold(plan, book[plan.model]) for plan in batch]
        rows = _run(ledger._HOLD, ledger._hold_arguments(web, revision, holds))
        assert all(row["verdict"] == "held" for row in rows), rows
        _backdate(batch)
        started = [plan for plan in batch if plan.until != "held"]
        _run("SELECT * FROM usage_claim(%s::uuid, %s::uuid[])", [worker, sorted(plan.call_id for plan in started)])
        _tell_times(started)
        ended = [plan for plan in started if plan.until != "inflight"]
        if ended:
            endings = [_ending(plan, book[plan.model]) for plan in ended]
            _run(ledger._SETTLE, ledger._settle_arguments(worker, endings, ["inflight"]))
        _tell_ends(ended)
    found = Call.objects.in_bulk([plan.call_id for plan in plans])
    return [found[plan.call_id] for plan in plans]


def set_cap(tenant: Tenant, usd: str, period: str = "month", *, environment: Environment | None = None,
            key: ApiKey | None = None, end_user: str = "") -> int:  # fmt: skip
    rows = _run(
        "SELECT usage_set_cap(%s::uuid, %s::uuid, %s::uuid, %s, %s, 'enforce', %s, NULL) AS id",
        [tenant.pk, environment and environment.pk, key and key.pk, end_user, period, money.from_usd(usd)],
    )
    return int(rows[0]["id"])


def month_of_calls(acme: Company, *, a_day: int = 12, seed: int = 4) -> None:
    """Traffic from the first of the month to now, caps at every scope, and a last hour with one call of every kind."""
    draw = random.Random(seed)
    zone = ZoneInfo(acme.tenant.time_zone)
    now = timezone.now()
    day = now.astimezone(zone).replace(day=1, hour=9, minute=0, second=0, microsecond=0)
    past = []
    while day < now - timedelta(hours=2):
        pace = 0.45 if day.weekday() >= 5 else draw.uniform(0.7, 1.15)
        moments = sorted(draw.uniform(0, 12 * 3600) for _ in range(int(a_day * pace)))
        past += [
            _drawn(acme, draw, at)
            for second in moments
            if (at := day + timedelta(seconds=second)) < now - timedelta(hours=1)
        ]
        day = (day + timedelta(days=1)).replace(hour=9)
    make(*past)
    set_cap(acme.tenant, "40")
    set_cap(acme.tenant, "4", "day", environment=acme.environments["prod"])
    set_cap(acme.tenant, "3.30", environment=acme.environments["staging"])
    set_cap(acme.tenant, "5", "week", end_user="u_4821")
    set_cap(acme.tenant, "25", "lifetime", key=acme.key("dev"))
    start = max(now - timedelta(minutes=52), now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0))
    recent = sorted(draw.uniform(0, (now - start).total_seconds()) for _ in range(24))
    make(*(_drawn(acme, draw, start + timedelta(seconds=second)) for second in recent))
    make(*every_kind(acme))


def end_all(acme: Company) -> None:
    """Voids what is live, so that committed samples leave nothing to whoever sweeps the same database."""
    live = Call.objects.live().filter(tenant=acme.tenant)
    endings = [Ending(call.pk, "void", 503, "sample_is_over") for call in live]
    if endings:
        _run(ledger._SETTLE, ledger._settle_arguments(None, endings, list(Call.LIVE)))
    ProcessLease.objects.filter(host="sample").update(state="stopped")


def every_kind(acme: Company) -> list[Plan]:
    """One call of each way to go and to end, newest last."""
    prod, staging = acme.key("prod"), acme.key("staging")
    plans = [
        Plan(prod, until="unknown", status=502, error_code="outcome_unknown", usage=Usage(), evidence="", end_user="u_0093"),
        Plan(prod, until="void", status=503, error_code="not_started_in_time", usage=Usage(), evidence=""),
        Plan(staging, model="gpt-5", status=400, error_code="invalid_request", usage=Usage(), evidence="", until="void"),
        Plan(prod, model="text-small", usage=Usage(input=3, output=1), end_user="u_1170"),
        Plan(prod, streamed=True, evidence="counted", usage=Usage(input=511, output=97), end_user="u_1170"),
        Plan(
            prod, model="claude-sonnet-5-5", streamed=True, end_user="u_0093", tries=[(529, "overloaded")],
            usage=Usage(input=1216, cache_read=17224, output=1022, reasoning=210), max_tokens=6000,
            first_byte=timedelta(seconds=3.42), took=timedelta(seconds=6.84),
        ),
        Plan(prod, until="inflight", model="claude-sonnet-5-5", end_user="u_0093"),
        Plan(prod, until="inflight", model="gpt-5", end_user="u_4821"),
        Plan(prod, until="held", end_user="u_4821"),
    ]  # fmt: skip
    now = timezone.now()
    for n, plan in enumerate(reversed(plans)):
        plan.at = now - timedelta(seconds=1 + 4 * n)
    return plans


def _drawn(acme: Company, draw: random.Random, at: datetime) -> Plan:
    environment = draw.choices(["prod", "staging", "dev"], [70, 20, 10])[0]
    model = draw.choices([model for _, model in BOOK], [46, 30, 14, 4, 6])[0]
    usage = Usage(input=draw.randint(400, 24_000), output=draw.randint(40, 3_900))
    if model == "claude-sonnet-5-5":
        usage.cache_read = draw.choice([0, 17_224])
    return Plan(
        acme.key(environment), model, usage, at, end_user=f"u_{draw.choice([4821, 1170, 93, 2207]):04d}",
        streamed=draw.random() < 0.5, first_byte=timedelta(seconds=draw.uniform(0.2, 1.6)),
        took=timedelta(seconds=draw.uniform(1.8, 9)),
    )  # fmt: skip


def _hold(plan: Plan, rate: Rates) -> Hold:
    body = json.dumps(
        {
            "model": plan.model, "stream": plan.streamed,
            "messages": [
                {"role": "system", "content": "You answer questions about the policy handbook."},
                {"role": "user", "content": plan.prompt},
            ],
        }
    ).encode()  # fmt: skip
    wire, endpoint = (
        ("anthropic", "/v1/messages") if rate.provider == "anthropic" else ("openai", "/v1/chat/completions")
    )
    bound = max(40_000, plan.usage.input + plan.usage.cache_read)
    return Hold(
        plan.call_id, plan.key.pk, plan.end_user, f"req-{plan.call_id.hex[-8:]}", wire, endpoint, plan.model, rate.provider,
        plan.streamed, rate.price_id, *rate.bound(Bound(bound)), plan.max_tokens, 16, {}, body,
    )  # fmt: skip


def _ending(plan: Plan, rate: Rates) -> Ending:
    if plan.status >= 400:
        reply: dict[str, Any] = {"error": {"message": plan.error_code, "code": plan.error_code}}
    else:
        reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": plan.answer}}]}
    cost = rate.cost(plan.usage).charge_nano
    began = Call.objects.values_list("claimed_at", flat=True).get(pk=plan.call_id)
    assert began
    return Ending(
        plan.call_id, plan.until, plan.status, plan.error_code, plan.evidence, cost, cost, cost, 0, plan.usage,
        plan.model if plan.status < 400 else "", f"req_{plan.call_id.hex[:12]}", began + plan.first_byte if cost else None,
        {"settled": "answered", "unknown": "unknown"}.get(plan.until, "refused"), plan.error_code, {}, json.dumps(reply).encode(),
    )  # fmt: skip


def _process(kind: str) -> uuid.UUID:
    return ProcessLease.objects.create(kind=kind, host="sample", pid=1).pk


def _backdate(batch: Sequence[Plan]) -> None:
    for plan in batch:
        if plan.at:
            Call.objects.filter(pk=plan.call_id).update(admitted_at=plan.at)


def _tell_times(started: Sequence[Plan]) -> None:
    """A worker that took 2 ms to claim, and the tries before the last one."""
    for plan in started:
        admitted = Call.objects.values_list("admitted_at", flat=True).get(pk=plan.call_id)
        at = admitted + timedelta(milliseconds=2)
        Call.objects.filter(pk=plan.call_id).update(claimed_at=at, tries=len(plan.tries) + 1)
        Attempt.objects.filter(call_id=plan.call_id).update(started_at=at, n=len(plan.tries) + 1)
        for n, (status, error) in enumerate(plan.tries, 1):
            Attempt.objects.create(
                call_id=plan.call_id, n=n, provider="anthropic", outcome="refused", status=status, error=error,
                started_at=at, ended_at=at + timedelta(milliseconds=212),
            )  # fmt: skip
            at += timedelta(milliseconds=2112)
            Attempt.objects.filter(call_id=plan.call_id, n=n + 1).update(started_at=at, backoff_ms=1900)


def _tell_ends(ended: Sequence[Plan]) -> None:
    for plan in ended:
        claimed = Call.objects.values_list("claimed_at", flat=True).get(pk=plan.call_id)
        assert claimed
        Call.objects.filter(pk=plan.call_id).update(settled_at=claimed + plan.took)
        Attempt.objects.filter(call_id=plan.call_id, ended_at__isnull=False, n=len(plan.tries) + 1).update(
            ended_at=claimed + plan.took
        )


def _uuid_at(moment: datetime) -> uuid.UUID:
    fresh = uuid7().int & (1 << 80) - 1
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80 | fresh)


def _batches(plans: Sequence[Plan]) -> Iterator[Sequence[Plan]]:
    for start in range(0, len(plans), 100):
        yield plans[start : start + 100]


def _run(statement: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
