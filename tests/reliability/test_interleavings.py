"""Every order in which the steps of two actors can follow each other ends as one of the two orders without interleaving."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
import pytest

from aiplatform.lib import postgres
from tests.reliability import scratch
from tests.reliability.interleaving import MOST_STEPS, Script, Stage, same_thread_ids, schedules, teach_to_yield
from usage import ledger
from usage.ledger import Ending, Hold

BEGIN = datetime(2100, 3, 30, 12, tzinfo=UTC)
NEXT_MONTH = datetime(2100, 4, 1, 0, 0, 1, tzinfo=UTC)


@dataclass
class Scene:
    """One tenant with three caps, a call held, one in flight and one settled; 100 nano-USD are left."""

    stage: Stage
    ids: dict[str, Any] = field(default_factory=dict)
    caps: dict[str, int] = field(default_factory=dict)

    def set(self) -> None:
        scratch.empty()
        scratch.set_clock(BEGIN)
        names = ("tenant", "prod", "dev", "key", "web", "worker", "done", "flying", "held", "grant")
        self.ids = dict(zip([*names, "new 1", "new 2"], same_thread_ids(12), strict=True))
        ids = self.ids
        scratch.rows(
            "INSERT INTO tenants_tenant (id, name, time_zone, created_at) VALUES (%s, 't', 'UTC', now())",
            [ids["tenant"]],
        )
        for name in ("prod", "dev"):
            scratch.rows(
                """INSERT INTO tenants_environment (id, tenant_id, name, kind, default_max_tokens, floor_max_tokens,
                   created_at) VALUES (%s, %s, %s, %s, 1024, 16, now())""",
                [ids[name], ids["tenant"], name, name],
            )
        scratch.rows(
            """INSERT INTO tenants_apikey (id, tenant_id, environment_id, name, public_id, prefix, digest, pepper_version,
               scopes, created_at) VALUES (%s, %s, %s, '', 'public', 'x', '', 1, '{calls}', now())""",
            [ids["key"], ids["tenant"], ids["prod"]],
        )
        for kind in ("web", "worker"):
            scratch.rows(
                """INSERT INTO usage_processlease (id, kind, host, pid, state, started_at, seen_at)
                   VALUES (%s, %s, 'h', 1, 'alive', now(), now())""",
                [ids[kind], kind],
            )
        self.price = scratch.rows("SELECT id FROM usage_price WHERE provider = 'sandbox'")[0].id
        self.revision = scratch.rows("SELECT revision FROM usage_catalogue")[0].revision
        self.caps = {
            "month": self.cap("month", 360),
            "each": self.cap("day", 5000, end_user="*"),
            "platform": self.cap("week", 9000, tenant=None),
        }
        ledger.hold(ids["web"], self.revision, [self.ask("done"), self.ask("flying"), self.ask("held")])
        ledger.claim(ids["worker"], [ids["done"], ids["flying"]])
        ledger.settle(ids["worker"], [Ending(ids["done"], "settled", 200, cost_nano=60, attempt_outcome="answered")])

    def cap(self, period: str, limit: int, *, tenant: Any = "", end_user: str = "") -> int:
        tenant = self.ids["tenant"] if tenant == "" else tenant
        return int(scratch.rows(SET_CAP, [tenant, None, end_user, period, limit])[0].cap)

    def ask(self, name: str, **changes: Any) -> Hold:
        fields = {
            "call_id": self.ids[name], "key_id": self.ids["key"], "end_user": "ann", "request_id": "", "wire": "openai",
            "endpoint": "chat", "model": "m", "provider": "p", "streamed": False, "price_id": self.price, "base_nano": 100,
            "output_pico": 0, "wanted_tokens": 10, "floor_tokens": 1, "headers": {}, "body": b"{}",
        }  # fmt: skip
        return Hold(**{**fields, **changes})

    def outcome(self) -> Any:
        """All that matters of the database, the same whatever numbers rows have."""
        names = {number: name for name, number in self.ids.items()}
        caps = {
            row.id: (row.end_user, row.period, row.tenant_id is None)
            for row in scratch.rows("SELECT * FROM usage_spendingcap")
        }
        limits = {
            (caps[row.id], row.limit_nano, row.raise_nano) for row in scratch.rows("SELECT * FROM usage_spendingcap")
        }
        buckets = {
            (caps[row.cap_id], row.end_user, row.starts_at, row.held_nano, row.spent_nano)
            for row in scratch.rows("SELECT * FROM usage_capbucket")
            if row.held_nano or row.spent_nano
        }
        calls = {
            (
                names.get(row.id),
                row.state,
                row.held_nano,
                row.charged_nano,
                row.corrected_nano,
                len(row.bucket_ids) if row.is_live else 0,
            )
            for row in scratch.rows("SELECT * FROM usage_call")
        }
        return frozenset(limits), frozenset(buckets), frozenset(calls)

    def check(self, *, lowered: bool) -> None:
        """The figures of every cap are those of its calls and entries, and no limit is passed."""
        calls, entries = scratch.rows("SELECT * FROM usage_call"), scratch.rows("SELECT * FROM usage_ledgerentry")
        caps = {
            row.id: row
            for row in scratch.rows("SELECT c.*, usage_cap_limit(c, usage_now()) AS bound FROM usage_spendingcap c")
        }
        for bucket in scratch.rows("SELECT * FROM usage_capbucket"):
            cap = caps[bucket.cap_id]

            def counts(row: Any, moment: datetime, cap: Any = cap, bucket: Any = bucket) -> bool:
                return (
                    (cap.end_user == "" or row.end_user == bucket.end_user)
                    and bucket.starts_at <= moment
                    and (bucket.ends_at is None or moment < bucket.ends_at)
                    and (cap.mode != "credit" or "customer_credit" in {getattr(row, "debit", ""), getattr(row, "credit", "")} or getattr(row, "is_prepaid", False))
                )  # fmt: skip

            held = sum(call.held_nano for call in calls if call.is_live and counts(call, call.admitted_at))
            signed = [
                (e, e.amount_nano if e.credit == "revenue" else -e.amount_nano)
                for e in entries
                if "revenue" in {e.debit, e.credit}
            ]
            spent = sum(amount for entry, amount in signed if counts(entry, entry.belongs_at))
            assert (bucket.held_nano, bucket.spent_nano) == (held, spent), bucket
            assert lowered or bucket.held_nano + bucket.spent_nano <= cap.bound, bucket
        for call in calls:
            booked = sum(entry.amount_nano for entry in entries if entry.ref == call.id and entry.kind == "charge")
            assert booked == call.charged_nano
            assert len([e for e in entries if e.ref == call.id and e.kind == "charge"]) <= 1
            attempts = scratch.rows("SELECT count(*) AS n FROM usage_attempt WHERE call_id = %s", [call.id])[0].n
            assert attempts == (1 if call.worker_process else 0)


SET_CAP = "SELECT usage_set_cap(%s::uuid, %s::uuid, NULL, %s, %s, 'enforce', %s, NULL) AS cap"
Actor = Callable[[Scene, str], Script]


def running(call: Callable[[], Any]) -> Script:
    """The ledger's own functions, on the actor's connection."""

    def script(connection: psycopg.Connection[Any]) -> Any:
        postgres._mine.connection, postgres._mine.database = connection, connection.info.dbname
        return call()

    return script


def admit(scene: Scene, new: str, **changes: Any) -> Script:
    def call() -> Any:
        (row,) = ledger.hold(scene.ids["web"], scene.revision, [scene.ask(new, **changes)])
        assert row.verdict != "stale", "the catalogue has changed: this would prove nothing"
        return row.verdict, row.held_nano

    return running(call)


def admit_with_a_key(scene: Scene, new: str) -> Script:
    return admit(scene, new, idempotency_hash=b"key", body_hash=b"body")


def admit_free_of_charge(scene: Scene, new: str) -> Script:
    return admit(scene, new, base_nano=0)


def claim(scene: Scene, _: str) -> Script:
    return running(lambda: [row.held_nano for row in ledger.claim(scene.ids["worker"], [scene.ids["held"]])])


def end(scene: Scene, call: str, state: str, from_state: str, *, worker: bool, **figures: Any) -> Script:
    ending = Ending(scene.ids[call], state, 200, attempt_outcome="answered" if worker else "unknown", **figures)

    def settle() -> Any:
        ended = ledger.settle(scene.ids["worker"] if worker else None, [ending], from_states=[from_state])
        return [(row.charged_nano, row.platform_loss_nano) for row in ended.values()]

    return running(settle)


def settle(scene: Scene, _: str) -> Script:
    return end(scene, "flying", "settled", "inflight", worker=True, cost_nano=70, provider_cost_nano=50)


def settle_above_the_hold(scene: Scene, _: str) -> Script:
    return end(scene, "flying", "settled", "inflight", worker=True, cost_nano=170, provider_cost_nano=150)


def sweep_what_is_held(scene: Scene, _: str) -> Script:
    return end(scene, "held", "void", "held", worker=False)


def sweep_what_is_in_flight(scene: Scene, _: str) -> Script:
    return end(scene, "flying", "void", "inflight", worker=False, exposure_nano=100)


def sql(statement: str, *parameters: Any) -> Script:
    def script(connection: psycopg.Connection[Any]) -> Any:
        connection.execute(statement, parameters)

    return script


def lower(scene: Scene, _: str) -> Script:
    return sql(SET_CAP, scene.ids["tenant"], None, "", "month", 200)


def new_cap(scene: Scene, _: str) -> Script:
    return sql(SET_CAP, scene.ids["tenant"], scene.ids["prod"], "", "day", 5000)


def new_cap_of_each(scene: Scene, _: str) -> Script:
    return sql(SET_CAP, scene.ids["tenant"], None, "*", "lifetime", 5000)


def new_platform_cap(_: Scene, __: str) -> Script:
    return sql(SET_CAP, None, None, "", "lifetime", 5000)


def lift(scene: Scene, _: str) -> Script:
    return sql("SELECT usage_raise_cap(%s, 100, '2100-05-01Z')", scene.caps["month"])


def remove(scene: Scene, _: str) -> Script:
    return sql("SELECT usage_remove_cap(%s)", scene.caps["month"])


def move(scene: Scene, _: str) -> Script:
    return sql("SELECT usage_set_time_zone(%s, 'Asia/Tokyo')", scene.ids["tenant"])


def correct_down(scene: Scene, _: str) -> Script:
    return sql(CORRECT, [scene.ids["done"]], [10], [20], False)


def correct_up(scene: Scene, _: str) -> Script:
    return sql(CORRECT, [scene.ids["done"]], [130], [120], True)


CORRECT = "SELECT usage_correct(%s::uuid[], %s::bigint[], %s::bigint[], 'bill', %s)"


def grant(scene: Scene, _: str) -> Script:
    return sql(
        "SELECT usage_grant_credit(%s, %s, 150, 'paid', 1::smallint, NULL, '')", scene.ids["tenant"], scene.ids["grant"]
    )


def roll_over_and_admit(scene: Scene, new: str) -> Script:
    """The first call of a new day, week and month."""
    admitting = admit(scene, new)

    def script(connection: psycopg.Connection[Any]) -> Any:
        scene.stage.director.execute("UPDATE scratch_clock SET moment = %s", [NEXT_MONTH])
        connection.execute("SELECT scratch_yield()")
        return admitting(connection)

    return script


ACTORS: tuple[Actor, ...] = (
    admit, admit_with_a_key, admit_free_of_charge, claim, settle, settle_above_the_hold, sweep_what_is_held,
    sweep_what_is_in_flight, lower, new_cap, new_cap_of_each, new_platform_cap, lift, remove, move, correct_down, correct_up,
    grant, roll_over_and_admit,
)  # fmt: skip
PAIRS = list(itertools.combinations_with_replacement(ACTORS, 2))
SHORT = (
    (admit, admit), (admit, settle), (admit, new_cap), (admit_with_a_key, admit_with_a_key), (settle, sweep_what_is_in_flight),
    (claim, sweep_what_is_held), (settle, new_cap), (admit, roll_over_and_admit), (correct_up, admit),
)  # fmt: skip


class Theatre(Stage):
    """A stage and what stands on it when each play begins."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(self)
        self.scene.set()
        scratch.remember()


@pytest.fixture(scope="module")
def stage(committed_module_db: None) -> Iterator[Theatre]:
    with scratch.scratch_database():
        teach_to_yield()
        theatre = Theatre()
        yield theatre
        theatre.close()


@pytest.mark.parametrize("pair", SHORT, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_every_order_of_two_actors_ends_as_one_after_the_other_would(stage: Theatre, pair: tuple[Actor, Actor]) -> None:
    assert play_all(stage, pair)["schedules"] >= 6


@pytest.mark.campaign("money")
@pytest.mark.timeout(2400)
def test_every_order_of_every_two_actors_ends_as_one_after_the_other_would(stage: Theatre) -> None:
    counts: Counter[str] = Counter(pairs=0)
    failures = []
    for pair in PAIRS:
        try:
            counts += play_all(stage, pair) + Counter(pairs=1)
        except Exception as error:  # noqa: BLE001 - all pairs are to be seen
            failures.append(f"{pair[0].__name__} and {pair[1].__name__}: {type(error).__name__}: {str(error)[:600]}")
    print(f"interleavings: {orjson.dumps(counts).decode()}, failed pairs: {len(failures)}")
    assert not failures, "\n\n".join(failures)


def play_all(stage: Theatre, pair: tuple[Actor, Actor]) -> Counter[str]:
    waits_before = stage.lock_waits
    alone, steps = [], (0, 0)
    for order in ("A" * MOST_STEPS + "B" * MOST_STEPS, "B" * MOST_STEPS + "A" * MOST_STEPS):
        alone.append(play(stage, pair, order))
        steps = max(steps[0], stage.taken[0]), max(steps[1], stage.taken[1])
    skipped = claim in pair  # a claim leaves to the next doorbell what somebody has locked
    # A clock that jumps two days amid a move: each cap is moved at its own moment, and `check` says that each is right.
    jumped = set(pair) == {move, roll_over_and_admit}
    played = 0
    for schedule in schedules(*steps):
        outcome = play(stage, pair, schedule)
        played += 1
        assert outcome in alone or jumped or (skipped and [] in outcome[0]), (
            f"{schedule}: {outcome}, not one of {alone}"
        )
    return Counter(schedules=played, lock_waits=stage.lock_waits - waits_before)


def play(stage: Theatre, pair: tuple[Actor, Actor], schedule: str) -> Any:
    scene = stage.scene
    scratch.recall()
    scratch.set_clock(BEGIN)
    scripts = pair[0](scene, "new 1"), pair[1](scene, "new 2")
    try:
        answers = stage.play(scripts, schedule)
    except Exception as error:
        raise AssertionError(f"{schedule}: {type(error).__name__}: {error}") from error
    scene.check(lowered=bool({lower, grant} & set(pair)))
    return answers, scene.outcome()
