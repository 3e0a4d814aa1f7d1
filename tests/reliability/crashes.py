"""A system whose processes die at named points, one after the other, each in the middle of a call of its own."""

import contextlib
import http.client
import json
import os
import signal
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.fakes.provider import FakeProvider
from tests.processes import Processes
from tests.system import Customer, System, set_up_provider, start_system
from tests.waiting import wait_for

MODES = ("plain", "stream", "hung up")
NANO_IN, NANO_OUT = 150, 600  # what tests.system sets as the price of fake-1
NOT_HELD, VOID, SETTLED, EITHER = "not held", {"void"}, {"settled"}, {"void", "settled"}
# A process renews and sweeps every second: so many it lives, which is longer than a busy machine needs to start it and to send
# it a call, and shorter than the call takes.
SOME_SECONDS, SLOW_MS = 8, 15_000
SWEEPING = {"orphan", "unrung", "too late"}
GOES_ON = {"rung again", "background"}
TOGETHER = {"slow call", "told to stop", "orphan"}


@dataclass(frozen=True)
class Point:
    """A failpoint in one process of the system, and how calls end that die there.

    `scene` says what must be going on for the point to be reached; `nth` which time it is.
    """

    name: str
    part: str
    ends: Any
    scene: str = "call"
    nth: int = 1
    modes: tuple[str, ...] = MODES

    @property
    def deaths(self) -> list[tuple[str, ...]]:
        """The modes of the calls of each death: a point on a call's way kills one, a point of the process all in flight."""
        return [self.modes] if self.scene in TOGETHER else [(mode,) for mode in self.modes]

    @property
    def plan(self) -> str:
        return f"{self.name}:{self.nth}:kill"

    def __str__(self) -> str:
        return f"{self.part} {self.name}:{self.nth}"


POINTS = (
    *(
        Point(name, "web", NOT_HELD)
        for name in ("door.body_read", "admission.before_limits", "admission.after_limits", "admission.before_hold")
    ),
    # Rung again by the sweeper and carried out, or void because its web process is known to be dead by then.
    *(Point(name, "web", EITHER) for name in ("admission.after_hold", "admission.before_doorbell")),
    Point("admission.after_doorbell", "web", SETTLED),
    Point("door.before_reply", "web", SETTLED),
    Point("door.mid_stream", "web", SETTLED, modes=("stream",)),
    Point("lease.before_renewal", "web", SETTLED, "slow call", SOME_SECONDS),
    Point("lease.after_renewal", "web", SETTLED, "slow call", SOME_SECONDS),
    Point("claim.before", "worker", SETTLED, "rung again"),
    *(Point(name, "worker", VOID) for name in ("claim.after", "send.before", "send.after")),
    *(Point(name, "worker", VOID, modes=("stream",)) for name in ("stream.head_told", "stream.mid")),
    *(Point(name, "worker", VOID) for name in ("answer.read", "settle.before")),
    *(Point(name, "worker", VOID, "refused once") for name in ("retry.before", "retry.after")),
    *(Point(name, "worker", SETTLED) for name in ("settle.after", "deliver.before", "deliver.after", "places.freed")),
    Point("lease.before_renewal", "worker", VOID, "slow call", SOME_SECONDS),
    Point("lease.after_renewal", "worker", VOID, "slow call", SOME_SECONDS),
    # The provider has the work and its id is on record: another worker asks how it ended.
    *(
        Point(name, "worker", SETTLED, "background", modes=("background",))
        for name in ("background.begun", "background.looked", "background.before_settle", "background.settled")
    ),
    Point("drain.begun", "worker", VOID, "told to stop"),
    Point("sweep.begun", "worker", VOID, "slow call", SOME_SECONDS),
    Point("sweep.done", "worker", VOID, "slow call", SOME_SECONDS),
    Point("sweep.fenced", "worker", VOID, "orphan"),
    # The first ending of a round makes the orphan `unknown`, the second makes it void.
    *(Point(name, "worker", VOID, "orphan", nth) for name in ("sweep.before_end", "sweep.after_end") for nth in (1, 2)),
    *(Point(name, "worker", EITHER, "unrung") for name in ("sweep.before_bells", "sweep.after_bells")),
    *(Point(name, "worker", VOID, "too late") for name in ("sweep.before_end", "sweep.after_end")),
)


@dataclass
class Run:
    """One call and the death in the middle of it."""

    point: Point
    mode: str
    customer: Customer
    canary: str = field(default_factory=lambda: f"crash-{uuid.uuid4().hex[:12]}")
    answer: str = ""  # "200", "502 outcome_unknown", "broken stream", "connection lost", "hung up"
    thread: threading.Thread | None = None

    def __str__(self) -> str:
        return f"{self.point} {self.mode}"

    @property
    def path(self) -> str:
        return "/v1/responses" if self.mode == "background" else "/v1/chat/completions"

    @property
    def body(self) -> bytes:
        if self.mode == "background":
            return json.dumps({"model": "fake-1", "background": True, "input": self.canary}).encode()
        body = {"model": "fake-1", "max_tokens": 50, "stream": self.mode == "stream"}
        return json.dumps({**body, "messages": [{"role": "user", "content": self.canary}]}).encode()

    @property
    def headers(self) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self.customer.key}",
            "content-type": "application/json",
            "idempotency-key": self.canary,
        }


class Crashes:
    """Plays runs on one system; each death is also the start of the process that is armed for the next run."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.processes = Processes(system)
        self.runs: list[Run] = []
        self.undead: list[str] = []

    def play(self, deaths: list[tuple[Point, tuple[str, ...]]]) -> None:
        for part in ("web", "worker"):
            mine = [death for death in deaths if death[0].part == part]
            on_the_way = [death for death in mine if death[0].scene not in SWEEPING]
            self.quiet()  # what was sent before is not this part's to lose
            self.processes.arm(part, on_the_way[0][0].plan if on_the_way else "")
            self.processes.restart(part)
            for at, (point, modes) in enumerate(on_the_way):
                following = on_the_way[at + 1][0].plan if at + 1 < len(on_the_way) else ""
                with self._noting():
                    self._die_in_a_call(point, modes, "" if point.scene in GOES_ON else following)
                    if point.scene in GOES_ON:  # by the next worker, which must not die of it
                        self.quiet()
                        self.processes.arm(part, following)
                        self.processes.restart(part)
            for point, modes in mine:
                if point.scene in SWEEPING:
                    with self._noting():
                        self._die_sweeping(point, modes)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """A death that did not happen is no reason to leave out the others."""
        try:
            yield
        except AssertionError as error:
            self.undead.append(str(error))
            for part in ("web", "worker"):
                self.processes.restart(part)

    def finish(self) -> None:
        """Every call has ended and every caller knows."""
        for run in self.runs:
            assert run.thread is not None
            run.thread.join(60)
            assert not run.thread.is_alive(), f"{run}: the caller still waits"
        self.quiet()
        self.system.far_end.clear()

    def quiet(self) -> None:
        live = "SELECT count(*) AS n FROM usage_call WHERE state NOT IN ('settled', 'void')"
        wait_for(lambda: self.system.rows(live)[0]["n"] == 0, seconds=60)

    def _die_in_a_call(self, point: Point, modes: tuple[str, ...], following: str) -> None:
        runs = [self._run(point, mode) for mode in modes]
        scripts: dict[str, dict[str, Any]] = {
            "refused once": {"times": 1, "status": 429, "retry_after": "0"},
            "slow call": {"latency_ms": SLOW_MS},
            "told to stop": {"latency_ms": 9000},
        }
        script = scripts.get(point.scene, {"pace_ms": 20})
        pid = self.processes.pid(point.part)
        self.processes.arm(point.part, following)
        self._send(runs, **script)
        if point.scene == "told to stop":
            wait_for(lambda: all(self._state(run) == "inflight" for run in runs))
            os.kill(pid, signal.SIGTERM)
        self.processes.started_again(point.part, pid, str(runs[0]))

    def _die_sweeping(self, point: Point, modes: tuple[str, ...]) -> None:
        """The worker dies in the sweep that has calls to end or to ring for."""
        runs = [self._run(point, mode) for mode in modes]
        self.quiet()
        # A web process that is known to be dead has its held calls void, not rung for.
        self.processes.arm("worker", point.plan, LEASE_LOST_SECONDS="60" if point.scene == "unrung" else "4")
        if point.scene == "orphan":
            self._send(runs, latency_ms=9000)
            wait_for(lambda: all(self._state(run) == "inflight" for run in runs))
        self.processes.restart("worker")
        pid = self.processes.pid("worker")
        self.processes.arm("worker", "")
        if point.scene != "orphan":
            start_within = "1" if point.scene == "too late" else "60"
            self.processes.arm("web", "admission.before_doorbell:1:kill", START_WITHIN_SECONDS=start_within)
            self.processes.restart("web")
            web = self.processes.pid("web")
            self.processes.arm("web", "")
            self._send(runs)
            self.processes.started_again("web", web, f"{point} (web)")
        self.processes.started_again("worker", pid, str(point))

    # --- the caller ---------------------------------------------------------------------------------------------------
    def _run(self, point: Point, mode: str) -> Run:
        run = Run(point, mode, self.system.tenant())
        self.system.rows(
            """SELECT usage_set_cap(t.id, NULL, NULL, '', 'month', 'enforce', 1000000000, NULL) FROM tenants_tenant t
               WHERE t.name = %s""",
            run.customer.name,
        )
        self.runs.append(run)
        return run

    def _send(self, runs: list[Run], **script: Any) -> None:
        for run in runs:
            if script:
                self.system.far_end.script(match=run.canary, **script)
            run.thread = threading.Thread(target=self._call, args=(run,), daemon=True)
            run.thread.start()

    def _call(self, run: Run) -> None:
        address = urllib.parse.urlsplit(self.system.base_url)
        connection = http.client.HTTPConnection(address.netloc, timeout=60)
        try:
            connection.request("POST", run.path, run.body, run.headers)
            if run.mode == "hung up":
                with contextlib.suppress(AssertionError):
                    wait_for(lambda: self._state(run), seconds=1)
                run.answer = "hung up"
                return
            reply = connection.getresponse()
            text = reply.read().decode()
        except (OSError, http.client.HTTPException):
            run.answer = "connection lost"
            return
        finally:
            connection.close()
        if reply.status != http.HTTPStatus.OK:
            run.answer = f"{reply.status} {json.loads(text)['error']['code']}"
        else:
            run.answer = "200" if run.mode in {"plain", "background"} or "data: [DONE]" in text else "broken stream"

    def _state(self, run: Run) -> str:
        rows = self.system.rows("SELECT state FROM usage_call WHERE api_key_id = %s", run.customer.key_id)
        return str(rows[0]["state"]) if rows else ""


def check(system: System, run: Run) -> None:
    """The call has one end, the ledger, the caps, the attempts and the provider's journal agree on it, and its caller knows."""
    calls = system.rows("SELECT * FROM usage_call WHERE api_key_id = %s", run.customer.key_id)
    seen = [entry for entry in system.far_end.calls() if entry.get("canary") == run.canary or run.canary in str(entry)]
    (cap,) = system.rows(
        """SELECT b.held_nano, b.spent_nano FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id
           JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s""",
        run.customer.name,
    )
    if run.point.ends == NOT_HELD:
        assert (calls, cap["held_nano"], cap["spent_nano"]) == ([], 0, 0)
        assert run.answer in {"connection lost", "hung up"}
        check_second_ask(system, run, stands=False, answered=True)
        return
    (call,) = calls
    assert call["state"] in run.point.ends
    assert (cap["held_nano"], cap["spent_nano"]) == (0, call["charged_nano"])
    attempts = system.rows("SELECT * FROM usage_attempt WHERE call_id = %s ORDER BY n", call["id"])
    names = {f"call_{call['id']}-{attempt['n']}": attempt["outcome"] for attempt in attempts}
    seen = [entry for entry in system.far_end.calls() if entry.get("request_id") in names]
    assert len(seen) == len({entry["request_id"] for entry in seen})
    assert {names[name] for name in names.keys() - {entry["request_id"] for entry in seen}} <= {"unknown"}
    entries = {
        row["kind"]: row["amount_nano"]
        for row in system.rows("SELECT * FROM usage_ledgerentry WHERE ref = %s", call["id"])
    }
    if call["state"] == "settled":
        usage = seen[-1]["usage"] or told_later(system, call)
        due = (usage.get("prompt_tokens") or usage["input_tokens"]) * NANO_IN
        due += (usage.get("completion_tokens") or usage["output_tokens"]) * NANO_OUT
        assert entries == {"charge": due, "provider_cost": due}
    else:
        assert entries == ({"exposure": call["held_nano"]} if attempts else {})
    check_answer(system, run, call)
    if run.mode == "hung up":
        check_second_ask(
            system, run, stands=call["state"] == "settled" or bool(attempts), answered=call["state"] == "settled"
        )


def told_later(system: System, call: dict[str, Any]) -> dict[str, Any]:
    """The usage of a response in the background, which the far end tells who asks."""
    (row,) = system.rows(
        "SELECT provider_id FROM usage_providerobject WHERE call_id = %s AND kind = 'response'", call["id"]
    )
    told = httpx2.get(f"{system.far_end.openai_url}/responses/{row['provider_id']}", trust_env=False).json()
    usage: dict[str, Any] = told["usage"]
    return usage


def check_answer(system: System, run: Run, call: dict[str, Any]) -> None:
    """An answer, a clear error, or a call that is on record for whoever asks later."""
    if run.mode == "hung up":
        assert run.answer == "hung up"
        assert_record_is_there(system, run, call)
    elif run.point.part == "web" or run.point.scene in {"unrung", "too late"}:
        assert run.answer == "connection lost"  # its own web process died
    elif call["state"] == "settled":
        # An open stream whose last event was lost is told so; a plain answer comes from where it is stored.
        assert run.answer == "200" or (run.mode == "stream" and run.answer in {"broken stream", "502 answer_lost"})
    else:
        assert run.answer in {"502 outcome_unknown", "502 answer_lost", "broken stream"}


def assert_record_is_there(system: System, run: Run, call: dict[str, Any]) -> None:
    with system.http(run.customer.key) as http_client:
        receipt = http_client.get(f"/api/calls/call_{call['id']}")
    assert receipt.status_code == http.HTTPStatus.OK
    assert receipt.json()["state"] == call["state"]


def check_second_ask(system: System, run: Run, *, stands: bool, answered: bool) -> None:
    """The client comes back with its Idempotency-Key: to the call that stands, or to a new one where nothing was sent."""
    counting = "SELECT count(*) AS n FROM usage_call WHERE api_key_id = %s"
    before = system.rows(counting, run.customer.key_id)[0]["n"]
    with system.http("") as http_client:
        reply = http_client.post("/v1/chat/completions", content=run.body, headers=run.headers)
    assert reply.status_code == (http.HTTPStatus.OK if answered or not stands else http.HTTPStatus.BAD_GATEWAY), (
        reply.text
    )
    assert system.rows(counting, run.customer.key_id)[0]["n"] == before + (0 if stands else 1)


@contextlib.contextmanager
def mortal_system(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own, whose processes may be killed."""
    with start_system(far_end, PROVIDER_SILENCE_SECONDS="30") as stack:  # a slow call is no silent one
        system = System(stack, far_end)
        set_up_provider(system)
        yield system
        system.close_clients()
