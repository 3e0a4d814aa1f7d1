"""Two actors on two connections, and every order in which their steps can follow each other.

A step ends where a function of the scratch database yields (`scratch_yield`, written into the money functions at their
sensitive places), and before COMMIT. An actor that waits for a lock of the other's stays where it is until it gets it.
"""

import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.reliability import scratch

Script = Callable[[psycopg.Connection[Any]], Any]
MOST_STEPS = 12
PATIENCE_SECONDS = 20

# Where the money functions yield: before these lines of theirs.
YIELDS = (
    ("usage_hold", "    SELECT array_agg(x.key), array_agg(x.end_user)"),
    ("usage_hold", "    FOR one IN\n        WITH place AS ("),
    ("usage_settle", "    WITH done AS ("),
    ("usage_settle", "    PERFORM 1 FROM usage_capbucket b\n"),
    ("usage_set_cap", "    UPDATE usage_spendingcap c SET limit_nano = limit_"),
    ("usage_count_cap", "    INSERT INTO usage_capbucket (cap_id, end_user, starts_at"),
    ("usage_raise_cap", "    UPDATE usage_spendingcap c SET raise_nano"),
    ("usage_remove_cap", "    SELECT array_agg(b.id) INTO gone"),
    ("usage_remove_cap", "    DELETE FROM usage_capnotice n"),
    ("usage_set_time_zone", "    moment := usage_now();"),
    ("usage_correct", "    PERFORM 1 FROM usage_capbucket b WHERE b.id = ANY (ARRAY("),
    ("usage_correct", "    FOR one IN SELECT u.* FROM unnest(ids, new_charges_nano"),
    ("usage_grant_credit", "    UPDATE usage_spendingcap c SET limit_nano = c.limit_nano + amount"),
)


def teach_to_yield(functions: Sequence[tuple[str, str]] = YIELDS) -> None:
    """Makes the money functions of the scratch database stop where they may be interrupted."""
    scratch.rows("""
        CREATE FUNCTION scratch_yield() RETURNS void LANGUAGE plpgsql AS $$
        DECLARE actor integer := nullif(current_setting('scratch.actor', true), ''); place integer;
        BEGIN
            IF actor IS NULL THEN RETURN; END IF;
            place := current_setting('scratch.place')::integer + 1;
            PERFORM set_config('scratch.place', place::text, false);
            PERFORM pg_advisory_xact_lock_shared(actor, place);
        END $$""")
    scratch.let_the_clock_tick()
    for function, line in functions:
        scratch.change_function(function, line, f"    PERFORM scratch_yield();\n{line}")


@dataclass
class Actor:
    """One connection, its thread, and what it is doing."""

    number: int
    connection: psycopg.Connection[Any] = field(default_factory=scratch.connect)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    future: Future[Any] | None = None

    def begin(self, script: Script) -> None:
        def run() -> Any:
            with self.connection.transaction():
                outcome = script(self.connection)
                self.connection.execute("SELECT scratch_yield()")
            return outcome

        self.connection.execute(
            "SELECT set_config('scratch.actor', %s, false) AS actor, set_config('scratch.place', '0', false) AS place",
            [str(self.number)],
        )
        self.future = self.thread.submit(run)

    @property
    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    def close(self) -> None:
        self.thread.shutdown()
        self.connection.close()


class Stage:
    """Runs two scripts in a given order of steps."""

    def __init__(self) -> None:
        self.actors = [Actor(1), Actor(2)]
        self.director = scratch.connect()
        self.lock_waits = 0
        self.taken = [0, 0]

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
        self.director.close()

    def play(self, scripts: tuple[Script, Script], schedule: str) -> tuple[Any, Any]:
        """Outcomes of both; raises what they raised. `schedule` is like "ABBA"; what is left over runs at the end."""
        self.director.execute(
            "SELECT pg_advisory_lock(a, p) FROM generate_series(1, 2) a, generate_series(1, %s) p", [MOST_STEPS]
        )
        for actor in self.actors:
            actor.future = None
        self.taken = [0, 0]
        try:
            for letter in schedule:
                at = "AB".index(letter)
                self._step(self.actors[at], scripts[at])
            for at in (0, 1, 0, 1):
                while not self.actors[at].is_done and self._step(self.actors[at], scripts[at]):
                    pass
        finally:
            self.director.execute("SELECT pg_advisory_unlock_all()")
        first, second = (actor.future.result(PATIENCE_SECONDS) for actor in self.actors if actor.future)
        return first, second

    def _step(self, actor: Actor, script: Script) -> bool:
        """Lets one actor go on to its next place; False where it waits for the other."""
        if actor.future is None:
            actor.begin(script)
        elif actor.is_done:
            return False
        else:
            place = self._waits().get(actor.connection.info.backend_pid)
            if place is None:
                self.lock_waits += 1
                return False
            self.director.execute("SELECT pg_advisory_unlock(%s, %s)", [actor.number, place])
        self.taken[actor.number - 1] += 1
        self._settle_down()
        return True

    def _settle_down(self) -> None:
        """Returns when nobody moves: each has ended, or is at a place of its own, or waits for the other's lock."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            begun = [actor for actor in self.actors if actor.future is not None]
            running = [actor for actor in begun if not actor.is_done]
            waits = self._waits()
            if all(actor.connection.info.backend_pid in waits or actor.is_done for actor in running):
                return
            assert time.monotonic() < give_up_at, "an actor neither moves nor waits"
            time.sleep(0.0004)

    def _waits(self) -> dict[int, int | None]:
        """By backend: the place at which it waits for us, or None where it waits for the other."""
        return {
            row.pid: row.place
            for row in self.director.execute(
                """SELECT l.pid, CASE WHEN l.locktype = 'advisory' AND l.objsubid = 2 THEN l.objid::bigint END AS place
                   FROM pg_locks l WHERE NOT l.granted AND l.pid = ANY (%s)""",
                [[actor.connection.info.backend_pid for actor in self.actors]],
            )
        }


def schedules(first: int, second: int) -> Iterator[str]:
    """Every order of so many steps of A and so many of B."""
    for places in itertools.combinations(range(first + second), first):
        yield "".join("A" if at in places else "B" for at in range(first + second))


def same_thread_ids(count: int) -> list[uuid.UUID]:
    """Ids in order, the same in every run."""
    return [uuid.UUID(int=(0x019B << 112) | (7 << 76) | (2 << 62) | number) for number in range(1, count + 1)]
