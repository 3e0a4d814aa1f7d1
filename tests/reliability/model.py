"""What the money functions must do, in plain Python with whole numbers: the model against which the database is held.

It knows no lock, no SQL and no other implementation; it is written from docs/money.md.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LIVE = ("held", "inflight", "unknown")
REPLAY_FOR = timedelta(hours=24)


@dataclass
class Tenant:
    id: uuid.UUID
    zone: str
    suspended: bool = False


@dataclass
class Key:
    id: uuid.UUID
    environment: uuid.UUID
    tenant: Tenant
    suspended: bool = False


@dataclass(eq=False)
class Cap:
    tenant: Tenant | None
    environment: uuid.UUID | None
    key: uuid.UUID | None
    end_user: str
    period: str
    mode: str
    limit: int
    raised: int = 0
    raised_until: datetime | None = None
    buckets: dict[tuple[str, datetime], "Bucket"] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[object, ...]:
        return self.tenant and self.tenant.id, self.environment, self.key, self.end_user, self.period, self.mode

    def matches(self, call: "Call") -> bool:
        return (
            (self.tenant is None or self.tenant is call.key.tenant)
            and self.environment in {None, call.key.environment}
            and self.key in {None, call.key.id}
            and (self.end_user in {"", call.end_user} or (self.end_user == "*" and call.end_user != ""))
            and (self.mode != "credit" or call.prepaid)
        )

    def bucket_user(self, call: "Call") -> str:
        return call.end_user if self.end_user == "*" else ""


@dataclass(eq=False)
class Bucket:
    cap: Cap
    end_user: str
    starts_at: datetime
    ends_at: datetime | None
    held: int = 0
    spent: int = 0
    missed: int = 0
    missed_nano: int = 0


@dataclass(eq=False)
class Call:
    id: uuid.UUID
    key: Key
    end_user: str
    base: int = 0
    pico: int = 0
    wanted: int = 0
    floor: int = 0
    idempotency: bytes | None = None
    body: bytes | None = None
    state: str = ""
    admitted_at: datetime = EPOCH
    held: int = 0
    tokens: int = 0
    prepaid: bool = False
    buckets: list[Bucket] = field(default_factory=list)
    worker: uuid.UUID | None = None
    web: uuid.UUID | None = None
    maybe_sent: bool = False
    retried_cost: int = 0
    retried_charge: int = 0
    charged: int = 0
    corrected: int = 0
    cost: int = 0
    loss: int = 0
    booked: Counter[str] = field(default_factory=Counter)

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def worst(self, tokens: int) -> int:
        return self.base - (-self.pico * tokens // 1000)


@dataclass(eq=False)
class Grant:
    id: uuid.UUID
    tenant: Tenant
    amount: int
    priority: int
    expires_at: datetime | None
    burnt: int = 0
    expired: int = 0

    @property
    def rest(self) -> int:
        return self.amount - self.burnt - self.expired

    def is_over(self, moment: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= moment


@dataclass
class Answer:
    verdict: str
    held: int = 0
    tokens: int = 0
    remaining: int | None = None


class Model:
    def __init__(self, moment: datetime) -> None:
        self.now = moment
        self.caps: list[Cap] = []
        self.calls: dict[uuid.UUID, Call] = {}
        self.grants: list[Grant] = []
        self.burns: list[tuple[Call, Grant, int]] = []
        self.idempotency: dict[tuple[uuid.UUID, bytes], tuple[uuid.UUID, bytes | None, datetime]] = {}
        self.suspended_environments: set[uuid.UUID] = set()

    # --- admission ----------------------------------------------------------------------------------------------------
    def hold(self, web: uuid.UUID, asks: list[Call]) -> list[Answer]:
        known = self._known(asks)
        rooms = [[self._bucket(cap, ask) for cap in self._caps_of(ask)] for ask in asks]
        return [self._admit(web, ask, known.get(ask.id), buckets) for ask, buckets in zip(asks, rooms, strict=True)]

    def _admit(self, web: uuid.UUID, ask: Call, known: str | None, buckets: list[Bucket]) -> Answer:
        if ask.key.suspended or ask.key.tenant.suspended or ask.key.environment in self.suspended_environments:
            return Answer("suspended")
        if known:
            return Answer(known)
        binding = [bucket for bucket in buckets if bucket.cap.mode != "shadow"]
        need, free = ask.worst(min(ask.floor, ask.wanted)), ask.base == 0 and ask.pico == 0
        tokens = ask.wanted
        for bucket in binding if not free else []:
            room = self.limit(bucket.cap) - bucket.spent - bucket.held - ask.base
            fits = -1 if room < 0 else ask.wanted if ask.pico == 0 else room * 1000 // ask.pico
            tokens = min(tokens, fits)
        if tokens < ask.wanted and tokens < ask.floor:
            spent_out = any(need > self.limit(bucket.cap) - bucket.spent for bucket in binding)
            return Answer("cap_exceeded" if spent_out else "cap_contended")
        return self._held(web, ask, tokens, need, buckets)

    def _held(self, web: uuid.UUID, ask: Call, tokens: int, need: int, buckets: list[Bucket]) -> Answer:
        ask.held, ask.tokens, ask.state, ask.admitted_at = ask.worst(tokens), tokens, "held", self.now
        ask.buckets, ask.web = buckets, web
        ask.prepaid = any(bucket.cap.mode == "credit" for bucket in buckets)
        spare: int | None = None
        for bucket in buckets:
            room = self.limit(bucket.cap) - bucket.spent - bucket.held
            if bucket.cap.mode == "shadow" and ask.held > 0 and need > room:
                bucket.missed, bucket.missed_nano = bucket.missed + 1, bucket.missed_nano + ask.held
            bucket.held += ask.held
            if bucket.cap.mode != "shadow" and bucket.cap.tenant is not None:
                spare = room - ask.held if spare is None else min(spare, room - ask.held)
        self.calls[ask.id] = ask
        return Answer("held", ask.held, tokens, spare)

    def _known(self, asks: list[Call]) -> dict[uuid.UUID, str]:
        known: dict[uuid.UUID, str] = {}
        batch = {ask.id for ask in asks}
        for ask in asks:
            if ask.idempotency is None:
                continue
            place = ask.key.environment, ask.idempotency
            stood = self.idempotency.get(place)
            if stood is not None and stood[0] == ask.id:
                continue  # this very batch, once more
            if stood is None or self._is_free(stood, batch):
                self.idempotency[place] = ask.id, ask.body, self.now
            elif stood[1] != ask.body:
                known[ask.id] = "key_reused"
            else:
                known[ask.id] = "replay" if stood[0] in self.calls else "again"
        return known

    def _is_free(self, stood: tuple[uuid.UUID, bytes | None, datetime], batch: set[uuid.UUID]) -> bool:
        call = self.calls.get(stood[0])
        if stood[2] < self.now - REPLAY_FOR:
            return True
        return stood[0] not in batch if call is None else call.state == "void" and not call.maybe_sent

    # --- caps ---------------------------------------------------------------------------------------------------------
    def limit(self, cap: Cap) -> int:
        if cap.mode == "credit":
            mine = [grant for grant in self.grants if grant.tenant is cap.tenant]
            return sum(g.amount - g.expired - (g.rest if g.is_over(self.now) else 0) for g in mine)
        return cap.limit + (cap.raised if cap.raised_until and cap.raised_until > self.now else 0)

    def set_cap(self, cap: Cap) -> Cap:
        for old in self.caps:
            if old.identity == cap.identity:
                old.limit = cap.limit
                return old
        self.caps.append(cap)
        self.count(cap)
        return cap

    def remove_cap(self, cap: Cap) -> None:
        self.caps.remove(cap)
        for call in self.calls.values():
            if call.live:
                call.buckets = [bucket for bucket in call.buckets if bucket.cap is not cap]

    def end_raises(self) -> int:
        over = [cap for cap in self.caps if cap.raised_until and cap.raised_until <= self.now]
        for cap in over:
            cap.raised, cap.raised_until = 0, None
        return len(over)

    def count(self, cap: Cap) -> None:
        """A cap's running period counts all that it has seen, from its beginning on."""
        starts_at, ends_at = self._period(cap)
        for bucket in cap.buckets.values():
            if bucket.starts_at == starts_at:
                bucket.held, bucket.spent, bucket.ends_at = 0, 0, ends_at
        if cap.end_user != "*":
            self._open(cap, "")
        for call in self.calls.values():
            if not cap.matches(call) or call.admitted_at < starts_at:
                continue
            if not call.live and not call.booked["charge"] and not call.booked["correction"]:
                continue
            bucket = self._open(cap, cap.bucket_user(call))
            if not call.live:
                bucket.spent += call.charged + call.corrected
                continue
            bucket.held += call.held
            if bucket not in call.buckets:
                call.buckets.append(bucket)

    def set_zone(self, tenant: Tenant, zone: str) -> None:
        if zone == tenant.zone:
            return
        tenant.zone = zone
        for cap in self.caps:
            if cap.tenant is tenant and cap.period != "lifetime":
                for bucket in cap.buckets.values():
                    if bucket.ends_at and bucket.starts_at < self.now < bucket.ends_at:
                        bucket.ends_at = self.now
                self.count(cap)

    def _caps_of(self, call: Call) -> Iterator[Cap]:
        for cap in self.caps:
            if cap.mode == "credit":
                if cap.tenant is call.key.tenant:
                    yield cap
            elif cap.matches(call):
                yield cap

    def _bucket(self, cap: Cap, call: Call) -> Bucket:
        return self._open(cap, cap.bucket_user(call))

    def _open(self, cap: Cap, end_user: str) -> Bucket:
        starts_at, ends_at = self._period(cap)
        if (end_user, starts_at) not in cap.buckets:
            cap.buckets[end_user, starts_at] = Bucket(cap, end_user, starts_at, ends_at)
        return cap.buckets[end_user, starts_at]

    def _period(self, cap: Cap) -> tuple[datetime, datetime | None]:
        if cap.period == "lifetime":
            return EPOCH, None
        zone = ZoneInfo(cap.tenant.zone if cap.tenant else "UTC")
        day = self.now.astimezone(zone).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        if cap.period == "week":
            day -= timedelta(days=day.weekday())
        elif cap.period == "month":
            day = day.replace(day=1)
        after = (
            (day + timedelta(days=32)).replace(day=1)
            if cap.period == "month"
            else day + timedelta(days=7 if cap.period == "week" else 1)
        )
        return day.replace(tzinfo=zone).astimezone(UTC), after.replace(tzinfo=zone).astimezone(UTC)

    # --- what becomes of a call ---------------------------------------------------------------------------------------
    def claim(self, worker: uuid.UUID, calls: list[Call]) -> set[uuid.UUID]:
        claimed = set()
        for call in calls:
            if call.state == "held" and not self._is_suspended(call):
                call.state, call.worker, call.maybe_sent = "inflight", worker, True
                claimed.add(call.id)
        return claimed

    def _is_suspended(self, call: Call) -> bool:
        key = call.key
        return key.suspended or key.tenant.suspended or key.environment in self.suspended_environments

    def void_unstarted(self, dead: set[uuid.UUID]) -> None:
        for call in [call for call in self.calls.values() if call.state == "held"]:
            if call.web in dead or self._is_suspended(call):
                self.settle(None, call, "held", "void")

    def settle(
        self, worker: uuid.UUID | None, call: Call, from_state: str, to_state: str, *, cost: int = 0, ours: int = 0,
        exposure: int = 0, sent: bool = True,
    ) -> bool:  # fmt: skip
        """Whether this ended the call. `cost` is what it costs by contract, `ours` what it costs the house."""
        if call.state != from_state or (worker is not None and call.worker != worker):
            return False
        call.state = to_state
        call.maybe_sent = call.maybe_sent and sent
        if to_state == "unknown":
            return True
        call.cost = ours + call.retried_cost
        due = cost + call.retried_charge if to_state == "settled" else 0  # nobody pays for what came to nothing
        call.charged, call.loss = min(due, call.held), max(due - call.held, 0)
        call.booked += Counter(
            charge=call.charged, provider_cost=call.cost, platform_loss=call.loss, exposure=exposure
        )  # fmt: skip
        for bucket in call.buckets:
            bucket.held -= call.held
            bucket.spent += call.charged
        if call.prepaid:
            self._burn(call, call.charged)
        return True

    def correct(self, call: Call, charge: int, ours: int, *, charge_tenant: bool) -> bool:
        if call.live:
            return False
        buckets = [b for cap in self.caps for b in cap.buckets.values() if self._counts_in(call, cap, b)]
        wanted = delta = charge - call.charged - call.corrected
        if delta > 0:
            rooms = [self.limit(b.cap) - b.spent - b.held for b in buckets if b.cap.mode != "shadow"]
            delta = max(min([delta, *rooms]), 0) if charge_tenant else 0
        loss = max(wanted - delta, 0)
        call.booked["correction"] += delta
        call.booked["platform_loss"] += loss - call.loss
        call.booked["cost_correction"] += ours - call.cost
        call.booked["exposure"] = 0
        call.corrected, call.loss, call.cost = call.corrected + delta, loss, ours
        for bucket in buckets:
            bucket.spent += delta
        if call.prepaid:
            self._burn(call, delta) if delta > 0 else self._give_back(call, -delta)
        return True

    def _counts_in(self, call: Call, cap: Cap, bucket: Bucket) -> bool:
        return (
            cap.matches(call)
            and bucket.end_user == cap.bucket_user(call)
            and bucket.starts_at <= call.admitted_at
            and (bucket.ends_at is None or call.admitted_at < bucket.ends_at)
        )

    # --- credit -------------------------------------------------------------------------------------------------------
    def grant(self, grant: Grant) -> None:
        self.grants.append(grant)
        if not any(cap.mode == "credit" and cap.tenant is grant.tenant for cap in self.caps):
            cap = Cap(grant.tenant, None, None, "", "lifetime", "credit", 0)
            self.caps.append(cap)
            self._open(cap, "")

    def expire(self) -> None:
        for cap in [cap for cap in self.caps if cap.mode == "credit"]:
            (bucket,) = cap.buckets.values()
            mine = [grant for grant in self.grants if grant.tenant is cap.tenant]
            spare = sum(grant.amount - grant.expired for grant in mine) - bucket.spent - bucket.held
            for grant in sorted((g for g in mine if g.is_over(self.now)), key=lambda g: (g.expires_at, g.id)):
                part = max(min(grant.rest, spare), 0)
                grant.expired += part
                spare -= part

    def _burn(self, call: Call, amount: int) -> None:
        far = datetime.max.replace(tzinfo=UTC)
        for grant in sorted(
            (g for g in self.grants if g.tenant is call.key.tenant and g.rest),
            key=lambda g: (g.is_over(call.admitted_at), g.priority, g.expires_at or far, g.id),
        ):
            part = min(amount, grant.rest)
            if part:
                grant.burnt += part
                amount -= part
                self.burns.append((call, grant, part))
        assert amount == 0, "more credit burnt than there is"

    def _give_back(self, call: Call, amount: int) -> None:
        paid: dict[Grant, int] = {}
        for payer, grant, part in self.burns:
            if payer is call:
                paid[grant] = paid.pop(grant, 0) + part  # the last to pay stands last
        for grant, most in reversed(paid.items()):
            part = min(amount, most)
            if part:
                grant.burnt -= part
                amount -= part
                self.burns.append((call, grant, -part))
        assert amount == 0, "more given back than was burnt"
