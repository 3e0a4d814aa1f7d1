"""The money functions on real Postgres, step for step beside the model; after each step every figure of both is compared."""

import itertools
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from aiplatform.gateway import recovery
from tests.reliability import scratch
from tests.reliability.model import LIVE, Answer, Call, Cap, Grant, Key, Model, Tenant
from usage import ledger
from usage.ledger import Correction, Ending, Hold, Retry

BEGIN = datetime(2100, 3, 27, 21, 30, tzinfo=UTC)  # the clocks of Berlin change on the next day
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata", "Pacific/Auckland", "Africa/Abidjan")
END_USERS = ("", "ann", "bob")
some = st.integers(0, 11)  # which one: taken modulo how many there are
amounts = st.one_of(st.integers(0, 60), st.integers(0, 900))
caps = st.sampled_from((0, 1, 50, 100, 250, 400, 777, 1500, 6000))
steps_of_time = st.sampled_from((1, 5, 26, 24 * 8, 24 * 33))
asks = st.fixed_dictionaries(
    {
        "key": st.sampled_from((0, 0, 0, 1, 2, 3)),
        "end_user": st.sampled_from(END_USERS),
        "base": amounts,
        "pico": st.sampled_from((0, 1, 333, 1000, 2500, 10_000)),
        "wanted": st.integers(0, 100),
        "floor": st.integers(0, 20),
        "idempotency": st.sampled_from((None, None, None, b"one", b"two")),
        "body": st.sampled_from((b"this", b"this", b"that")),
    }
)

new_caps = st.fixed_dictionaries(
    {
        "scope": st.sampled_from(("tenant", "tenant", "environment", "key", "platform", "other")),
        "end_user": st.sampled_from(("", "", "*", "ann")),
        "period": st.sampled_from(("day", "week", "month", "lifetime")),
        "mode": st.sampled_from(("enforce", "enforce", "enforce", "shadow")),
        "limit": st.sampled_from((0, 1, 50, 100, 250, 400, 777, 1500, 6000)),
    }
)


class MoneyMachine(RuleBasedStateMachine):
    """One example: two tenants, four keys, and whatever happens to them."""

    steps: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()

    def __init__(self) -> None:
        super().__init__()
        scratch.empty()
        self.numbers = itertools.count(1)
        self.model = Model(BEGIN)
        scratch.set_clock(BEGIN)
        self.ids: dict[Cap, int] = {}
        self.batch: tuple[uuid.UUID, list[Hold], list[Call]] | None = None

    @initialize(zone=st.sampled_from(ZONES), first=st.lists(new_caps, min_size=1, max_size=4))
    def set_up(self, zone: str, first: list[dict[str, Any]]) -> None:
        one, other = (Tenant(self.new_id(), its) for its in (zone, "UTC"))
        places = [(one, self.new_id()), (one, self.new_id()), (other, self.new_id())]
        self.tenants = [one, other]
        self.environments = [environment for _, environment in places]
        self.keys = [Key(self.new_id(), environment, tenant) for tenant, environment in [*places, places[0]]]
        for tenant in self.tenants:
            scratch.rows(
                "INSERT INTO tenants_tenant (id, name, time_zone, created_at) VALUES (%s, %s, %s, now())",
                [tenant.id, str(tenant.id), tenant.zone],
            )
        for number, (tenant, environment) in enumerate(places):
            scratch.rows(
                """INSERT INTO tenants_environment (id, tenant_id, name, kind, default_max_tokens, floor_max_tokens,
                   created_at) VALUES (%s, %s, %s, 'prod', 1024, 16, now())""",
                [environment, tenant.id, str(number)],
            )
        for number, key in enumerate(self.keys):
            scratch.rows(
                """INSERT INTO tenants_apikey (id, tenant_id, environment_id, name, public_id, prefix, digest,
                   pepper_version, scopes, created_at) VALUES (%s, %s, %s, '', %s, 'x', '', 1, '{calls}', now())""",
                [key.id, key.tenant.id, key.environment, f"public{number}"],
            )
        self.webs = [self.process("web") for _ in range(2)]
        self.workers = [self.process("worker") for _ in range(2)]
        self.dead: set[uuid.UUID] = set()
        self.price = scratch.rows("SELECT id FROM usage_price WHERE provider = 'sandbox'")[0].id
        self.revision = scratch.rows("SELECT revision FROM usage_catalogue")[0].revision
        for cap in first:
            self.set_cap(cap)

    # --- caps ---------------------------------------------------------------------------------------------------------
    @rule(cap=new_caps)
    def set_cap(self, cap: dict[str, Any]) -> None:
        scope, end_user, period, mode, limit = (cap[it] for it in ("scope", "end_user", "period", "mode", "limit"))
        tenant = {"platform": None, "other": self.tenants[1]}.get(scope, self.tenants[0])
        environment = self.environments[0] if scope == "environment" else None
        key = self.keys[0].id if scope == "key" else None
        wanted = Cap(tenant, environment, key, "" if scope == "platform" else end_user, period, mode, limit)
        (row,) = scratch.rows(
            "SELECT usage_set_cap(%s::uuid, %s::uuid, %s::uuid, %s, %s, %s, %s, NULL) AS cap",
            [tenant and tenant.id, environment, key, wanted.end_user, period, mode, limit],
        )
        assert self.ids.setdefault(self.model.set_cap(wanted), row.cap) == row.cap
        self.same(f"set_cap {mode}")

    @precondition(lambda self: self.plain_caps())
    @rule(at=some, by=caps, hours=steps_of_time)
    def raise_cap(self, at: int, by: int, hours: int) -> None:
        cap = pick(self.plain_caps(), at)
        cap.raised, cap.raised_until = by, self.model.now + timedelta(hours=hours)
        self.done("usage_raise_cap(%s, %s, %s)", [self.ids[cap], by, cap.raised_until])
        self.same("raise_cap")

    @precondition(lambda self: self.plain_caps())
    @rule(at=some, by=caps, wanted=asks)
    def outlive_a_raise(self, at: int, by: int, wanted: dict[str, Any]) -> None:
        self.raise_cap(at, by, 1)
        self.time_passes(2)
        self.hold([wanted], 0)

    @precondition(lambda self: any(cap.raised_until for cap in self.model.caps))
    @rule()
    def end_raises(self) -> None:
        assert scratch.rows("SELECT usage_end_raises() AS n")[0].n == self.model.end_raises()
        self.same("end_raises")

    @precondition(lambda self: self.plain_caps())
    @rule(at=some)
    def remove_cap(self, at: int) -> None:
        cap = pick(self.plain_caps(), at)
        self.done("usage_remove_cap(%s)", [self.ids.pop(cap)])
        self.model.remove_cap(cap)
        self.same("remove_cap")

    @rule(zone=st.sampled_from(ZONES))
    def set_zone(self, zone: str) -> None:
        scratch.rows("SELECT usage_set_time_zone(%s::uuid, %s)", [self.tenants[0].id, zone])
        self.model.set_zone(self.tenants[0], zone)
        self.same("set_zone")

    # --- admission ----------------------------------------------------------------------------------------------------
    @rule(wanted=st.lists(asks, min_size=1, max_size=4), web=some)
    def hold(self, wanted: list[dict[str, Any]], web: int) -> None:
        calls = [self.call(**it) for it in wanted]
        holds = [self.as_hold(call) for call in calls]
        self.batch = pick(self.webs, web), holds, calls
        self.hold_batch()
        self.same("hold")

    @rule(wanted=st.lists(asks, min_size=1, max_size=4), web=some)
    def hold_more(self, wanted: list[dict[str, Any]], web: int) -> None:
        """Twice as often as anything else."""
        self.hold(wanted, web)

    @rule(wanted=asks, worker=some, percent=st.sampled_from((0, 1, 50, 100, 100, 101, 300)), ours=amounts)
    def carry_out(self, wanted: dict[str, Any], worker: int, percent: int, ours: int) -> None:
        """A call from its beginning to its end, as most are."""
        call, by = self.call(**wanted), pick([it for it in self.workers if it not in self.dead], worker)
        self.batch = self.webs[-1], [self.as_hold(call)], [call]
        self.hold_batch()
        if call.state != "held":
            return
        assert [row.id for row in ledger.claim(by, [call.id])] == list(self.model.claim(by, [call]))
        self.end(call, by, "settled", call.held * percent // 100, ours)
        self.same("carry out")

    @rule(wanted=asks, percent=st.sampled_from((50, 100)), ours=amounts, charge=amounts, charge_tenant=st.booleans())
    def carry_out_and_correct(
        self, wanted: dict[str, Any], percent: int, ours: int, charge: int, charge_tenant: bool
    ) -> None:
        before = len(self.model.calls)
        self.carry_out(wanted, 0, percent, ours)
        if len(self.model.calls) > before:
            self.correct([len(self.model.calls) - 1], charge, ours, charge_tenant)

    @precondition(lambda self: self.batch)
    @rule()
    def hold_again(self) -> None:
        """The answer was lost: the very same batch is asked for once more."""
        assert self.batch is not None
        self.hold_batch()
        self.same("hold_again")

    def hold_batch(self) -> None:
        assert self.batch is not None
        web, holds, calls = self.batch
        stood = {call.id: Answer("held", call.held, call.tokens) for call in calls if call.id in self.model.calls}
        rows = ledger.hold(web, self.revision, holds)
        fresh = [call for call in calls if call.id not in stood]
        answers = stood | dict(zip((c.id for c in fresh), self.model.hold(web, fresh), strict=True))
        for call, row in zip(calls, rows, strict=True):
            answer = answers[call.id]
            self.verdicts[row.verdict] += 1
            assert row.verdict == answer.verdict, (row, answer)
            assert (row.held_nano, row.max_tokens) == (answer.held, answer.tokens) or answer.verdict != "held"
            assert row.remaining_nano == answer.remaining
            if row.verdict.startswith("cap_"):
                self.refusal(call, row)
        self.within_limits(fresh)

    def refusal(self, call: Call, row: Any) -> None:
        """A refusal names a cap that really is in the way."""
        cap = next(cap for cap, number in self.ids.items() if number == row.cap_id)
        need = call.worst(min(call.floor, call.wanted))
        assert cap.mode != "shadow"
        assert row.limit_nano == self.model.limit(cap)
        standing = row.spent_nano + (row.cap_held_nano if row.verdict == "cap_contended" else 0)
        assert need > row.limit_nano - standing

    def within_limits(self, admitted: list[Call]) -> None:
        """No cap that binds is passed by what has just been admitted."""
        for bucket in (bucket for call in admitted for bucket in call.buckets if call.held):
            if bucket.cap.mode != "shadow":
                assert bucket.spent + bucket.held <= self.model.limit(bucket.cap)

    # --- what becomes of a call ---------------------------------------------------------------------------------------
    @precondition(lambda self: self.model.calls)
    @rule(ats=st.lists(some, min_size=1, max_size=3), worker=some, held=st.booleans())
    def claim(self, ats: list[int], worker: int, held: bool) -> None:
        """Mostly of what is held; a doorbell may also ring for what is not."""
        every = (held and self.in_state("held")) or list(self.model.calls.values())
        calls = list({call.id: call for call in (pick(every, at) for at in ats)}.values())
        by = pick(self.workers, worker)
        claimed = {row.id for row in ledger.claim(by, [call.id for call in calls])}
        assert claimed == (set() if by in self.dead else self.model.claim(by, calls))
        self.same("claim")

    @precondition(lambda self: self.in_state("inflight"))
    @rule(at=some, percent=st.sampled_from((0, 1, 50, 100, 100, 101, 300)), ours=amounts, twice=st.booleans())
    def settle(self, at: int, percent: int, ours: int, twice: bool) -> None:
        call = pick(self.in_state("inflight"), at)
        self.end(call, call.worker, "settled", call.held * percent // 100, ours)
        if twice:
            self.end(call, call.worker, "settled", call.held, ours)
        self.same(f"settle {'above' if percent > 100 else 'exact'}")

    @precondition(lambda self: self.model.calls)
    @rule(at=some, worker=some, cost=amounts)
    def settle_whatever_it_is(self, at: int, worker: int, cost: int) -> None:
        """By a worker that may be dead, or not its owner; of a call that may have ended."""
        self.end(pick(list(self.model.calls.values()), at), pick(self.workers, worker), "settled", cost, cost)
        self.same("settle whatever it is")

    @precondition(lambda self: self.in_state("inflight"))
    @rule(at=some, worker=some, cost=amounts)
    def settle_by_any_worker(self, at: int, worker: int, cost: int) -> None:
        self.end(pick(self.in_state("inflight"), at), pick(self.workers, worker), "settled", cost, cost)
        self.same("settle by any worker")

    @precondition(lambda self: self.in_state("inflight"))
    @rule(at=some, state=st.sampled_from(("void", "unknown")))
    def settle_badly(self, at: int, state: str) -> None:
        call = pick(self.in_state("inflight"), at)
        self.end(call, call.worker, state, 0, 0)
        self.same(f"settle {state}")

    @precondition(lambda self: self.in_state("inflight"))
    @rule(at=some, cost=amounts, charge=amounts)
    def retry(self, at: int, cost: int, charge: int) -> None:
        call = pick(self.in_state("inflight"), at)
        ledger.retry([Retry(call.id, 5, "refused", "", 529, "", cost, charge)])
        call.retried_cost, call.retried_charge = call.retried_cost + cost, call.retried_charge + charge
        self.same("retry")

    def end(self, call: Call, worker: uuid.UUID | None, state: str, cost: int, ours: int) -> None:
        outcome = {"settled": "answered", "void": "refused", "unknown": "unknown"}[state]
        ending = Ending(
            call.id, state, 200, cost_nano=cost, list_nano=cost, provider_cost_nano=ours, attempt_outcome=outcome
        )
        ended = ledger.settle(worker, [ending])
        expected = self.model.settle(worker, call, "inflight", state, cost=cost, ours=ours, sent=state != "void")
        assert set(ended) == ({call.id} if expected else set())
        if expected and state != "unknown":
            assert (ended[call.id].charged_nano, ended[call.id].platform_loss_nano) == (call.charged, call.loss)

    @rule(at=some, web=st.booleans())
    def process_dies(self, at: int, web: bool) -> None:
        processes = self.webs if web else self.workers
        victim = pick(processes, at)
        if victim in self.dead:
            return
        scratch.rows("UPDATE usage_processlease SET state = 'fenced' WHERE id = %s", [victim])
        self.dead.add(victim)
        processes.append(self.process("web" if web else "worker"))
        self.same("process dies")

    @rule(grace_is_over=st.booleans())
    def sweep(self, grace_is_over: bool) -> None:
        recovery.void_unstarted()
        self.model.void_unstarted(self.dead)
        recovery.mark_unknown()
        for call in self.in_state("inflight"):
            if call.worker in self.dead:
                self.model.settle(None, call, "inflight", "unknown")
        with override_settings(UNKNOWN_GRACE_SECONDS=0 if grace_is_over else 3600):
            recovery.finalise_unknown()
        for call in self.in_state("unknown") if grace_is_over else []:
            self.model.settle(None, call, "unknown", "void", exposure=call.held)
        self.same("sweep")

    @precondition(lambda self: self.model.calls)
    @rule(
        ats=st.lists(some, min_size=1, max_size=2, unique=True),
        charge=amounts,
        ours=amounts,
        charge_tenant=st.booleans(),
    )
    def correct(self, ats: list[int], charge: int, ours: int, charge_tenant: bool) -> None:
        every = list(self.model.calls.values())
        calls = {call.id: call for call in (pick(every, at) for at in ats)}
        rows = ledger.correct(
            [Correction(call, charge, ours) for call in calls],
            reason="the provider's bill",
            charge_tenant=charge_tenant,
        )
        corrected = [
            call for call in sorted(calls) if self.model.correct(calls[call], charge, ours, charge_tenant=charge_tenant)
        ]
        assert sorted(rows) == corrected
        self.same("correct")

    # --- credit -------------------------------------------------------------------------------------------------------
    @rule(
        tenant=st.sampled_from((0, 0, 1)),
        amount=st.sampled_from((1, 100, 500, 3000)),
        priority=st.sampled_from((1, 2)),
        hours=st.one_of(st.none(), steps_of_time),
    )
    def grant(self, tenant: int, amount: int, priority: int, hours: int | None) -> None:
        expires_at = self.model.now + timedelta(hours=hours) if hours else None
        grant = Grant(self.new_id(), self.tenants[tenant], amount, priority, expires_at)
        scratch.rows(
            "SELECT usage_grant_credit(%s::uuid, %s::uuid, %s, 'paid', %s::smallint, %s, '')",
            [grant.tenant.id, grant.id, amount, priority, expires_at],
        )
        self.model.grant(grant)
        for cap in self.model.caps:
            if cap.mode == "credit" and cap not in self.ids:
                (row,) = scratch.rows(
                    "SELECT id FROM usage_spendingcap WHERE mode = 'credit' AND tenant_id = %s", [grant.tenant.id]
                )
                self.ids[cap] = row.id
        self.same("grant")

    @precondition(lambda self: self.model.grants)
    @rule()
    def expire(self) -> None:
        scratch.rows("SELECT usage_expire_credit(100)")
        self.model.expire()
        self.same("expire")

    # --- and what else happens ----------------------------------------------------------------------------------------
    @rule(what=st.sampled_from(("apikey", "environment", "tenant")), at=some)
    def suspend(self, what: str, at: int) -> None:
        key = pick(self.keys, at)
        if what == "apikey":
            subject, key.suspended = key.id, True
        elif what == "tenant":
            subject, key.tenant.suspended = key.tenant.id, True
        else:
            subject = key.environment
            self.model.suspended_environments.add(subject)
        scratch.rows(f"UPDATE tenants_{what} SET suspended_at = now() WHERE id = %s", [subject])  # noqa: S608 - ours
        self.same("suspend")

    @precondition(lambda self: self.is_anything_suspended())
    @rule()
    def resume(self) -> None:
        self.model.suspended_environments.clear()
        for key in self.keys:
            key.suspended = key.tenant.suspended = False
        for what in ("apikey", "environment", "tenant"):
            scratch.rows(f"UPDATE tenants_{what} SET suspended_at = NULL")  # noqa: S608 - ours
        self.same("resume")

    @precondition(lambda self: self.is_anything_suspended())
    @rule()
    def resume_soon(self) -> None:
        """Twice, so that little time is spent with everything refused."""
        self.resume()

    @rule(hours=steps_of_time)
    def time_passes(self, hours: int) -> None:
        self.model.now += timedelta(hours=hours)
        scratch.set_clock(self.model.now)
        self.same("time passes")

    # --- comparison ---------------------------------------------------------------------------------------------------
    def same(self, step: str) -> None:
        self.steps[step] += 1
        assert self.buckets_found() == self.buckets_expected()
        assert self.calls_found() == self.calls_expected()
        assert self.entries_found() == self.entries_expected()
        found = {row.id: (row.burnt_nano, row.expired_nano) for row in scratch.rows("SELECT * FROM usage_creditgrant")}
        assert found == {grant.id: (grant.burnt, grant.expired) for grant in self.model.grants}

    def buckets_found(self) -> dict[Any, Any]:
        rows = scratch.rows("SELECT * FROM usage_capbucket")
        self.bucket_ids = {(row.cap_id, row.end_user, row.starts_at): row.id for row in rows}
        for cap, number in self.ids.items():
            for bucket in cap.buckets.values():
                bucket.id = self.bucket_ids.get((number, bucket.end_user, bucket.starts_at))  # type: ignore[attr-defined]
        return {
            (row.cap_id, row.end_user, row.starts_at): figures
            for row in rows
            if any(figures := (row.held_nano, row.spent_nano, row.shadow_refused_calls, row.shadow_refused_nano))
        }

    def buckets_expected(self) -> dict[Any, Any]:
        return {
            (self.ids[cap], bucket.end_user, bucket.starts_at): figures
            for cap in self.model.caps
            for bucket in cap.buckets.values()
            if any(figures := (bucket.held, bucket.spent, bucket.missed, bucket.missed_nano))
        }

    def calls_found(self) -> dict[Any, Any]:
        return {
            row.id: (row.state, row.held_nano, row.max_output_tokens, row.charged_nano, row.corrected_nano,
                     row.platform_loss_nano, row.is_prepaid, row.is_live, sorted(row.bucket_ids) if row.is_live else None)
            for row in scratch.rows("SELECT * FROM usage_call")
        }  # fmt: skip

    def calls_expected(self) -> dict[Any, Any]:
        return {
            call.id: (call.state, call.held, call.tokens, call.charged, call.corrected, call.loss, call.prepaid, call.live,
                      sorted(bucket.id for bucket in call.buckets) if call.live else None)  # type: ignore[attr-defined]
            for call in self.model.calls.values()
        }  # fmt: skip

    def entries_found(self) -> dict[Any, Any]:
        """What the ledger says of each call, by account: each entry stands on both of its sides."""
        found: dict[Any, Counter[str]] = {}
        for row in scratch.rows("SELECT * FROM usage_ledgerentry WHERE NOT starts_with(kind, 'credit_')"):
            accounts = found.setdefault(row.ref, Counter())
            accounts[row.debit] += row.amount_nano
            accounts[row.credit] -= row.amount_nano
        return {ref: clean for ref, accounts in found.items() if (clean := without_zeros(accounts))}

    def entries_expected(self) -> dict[Any, Any]:
        expected = {}
        for call in self.model.calls.values():
            booked = call.booked
            paid, cost = booked["charge"] + booked["correction"], booked["provider_cost"] + booked["cost_correction"]
            accounts = {
                "customer_credit" if call.prepaid else "receivable": paid, "revenue": -paid,
                "cost_of_sales": cost, "payable:p": -cost - booked["exposure"], "exposure": booked["exposure"],
                "platform_loss": booked["platform_loss"], "revenue_forgone": -booked["platform_loss"],
            }  # fmt: skip
            if clean := without_zeros(accounts):
                expected[call.id] = clean
        return expected

    # --- small things -------------------------------------------------------------------------------------------------
    def new_id(self) -> uuid.UUID:
        """Ids that grow, the same in every run."""
        return uuid.UUID(int=(int(BEGIN.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | next(self.numbers))

    def process(self, kind: str) -> uuid.UUID:
        process = self.new_id()
        scratch.rows(
            """INSERT INTO usage_processlease (id, kind, host, pid, state, started_at, seen_at)
               VALUES (%s, %s, 'h', 1, 'alive', now(), now())""",
            [process, kind],
        )
        return process

    def call(self, *, key: int, end_user: str, wanted: int, floor: int, body: bytes, **fields: Any) -> Call:
        call = Call(self.new_id(), pick(self.keys, key), end_user, wanted=wanted, floor=min(floor, wanted), **fields)
        call.body = body if call.idempotency else None
        return call

    def as_hold(self, call: Call) -> Hold:
        return Hold(
            call_id=call.id, key_id=call.key.id, end_user=call.end_user, request_id="", wire="openai", endpoint="chat",
            model="m", provider="p", streamed=False, price_id=self.price, base_nano=call.base, output_pico=call.pico,
            wanted_tokens=call.wanted, floor_tokens=call.floor, headers={}, body=b"{}",
            idempotency_hash=call.idempotency, body_hash=call.body,
        )  # fmt: skip

    def done(self, call: str, parameters: list[Any]) -> None:
        assert scratch.rows(f"SELECT {call} AS done", parameters)[0].done

    def in_state(self, state: str) -> list[Call]:
        assert state in LIVE
        return [call for call in self.model.calls.values() if call.state == state]

    def is_anything_suspended(self) -> bool:
        return bool(self.model.suspended_environments) or any(
            key.suspended or key.tenant.suspended for key in self.keys
        )

    def plain_caps(self) -> list[Cap]:
        return [cap for cap in self.model.caps if cap.mode != "credit"]


def pick(several: list[Any], at: int) -> Any:
    return several[at % len(several)]


def without_zeros(figures: Any) -> dict[str, int]:
    return {name: figure for name, figure in figures.items() if figure}
