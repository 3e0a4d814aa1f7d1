"""kill -9 at every named point, in a plain call, a stream, and a call whose client has hung up: one end, one charge or none."""

from collections import Counter
from collections.abc import Iterator

import pytest

from aiplatform.lib import failpoints
from tests.fakes.provider import FakeProvider
from tests.reliability.crashes import POINTS, Crashes, Point, check, mortal_system
from tests.system import System

SHORT = (
    ("admission.after_hold", "plain"), ("claim.after", "hung up"), ("stream.mid", "stream"), ("settle.before", "plain"),
    ("settle.after", "plain"), ("deliver.before", "stream"), ("background.looked", "background"),
)  # fmt: skip


@pytest.fixture
def mortal(far_end: FakeProvider) -> Iterator[System]:
    with mortal_system(far_end) as system:
        yield system


def test_every_registered_point_has_a_death() -> None:
    assert {point.name for point in POINTS} == set(failpoints.NAMES)


@pytest.mark.timeout(600)
def test_a_process_that_dies_at_a_point_of_its_way_leaves_every_call_with_one_end(mortal: System) -> None:
    by_name = {point.name: point for point in POINTS}
    play(mortal, [(by_name[name], (mode,)) for name, mode in SHORT])


@pytest.mark.campaign("money")
@pytest.mark.timeout(1800)
def test_a_process_that_dies_at_any_point_leaves_every_call_with_one_end(mortal: System) -> None:
    play(mortal, [(point, modes) for point in POINTS for modes in point.deaths])


def play(system: System, planned: list[tuple[Point, tuple[str, ...]]]) -> None:
    deaths = Crashes(system)
    deaths.play(planned)
    deaths.finish()
    failures = deaths.undead
    for run in deaths.runs:
        try:
            check(system, run)
        except Exception as error:  # noqa: BLE001 - all deaths are to be seen
            failures.append(f"{run}: {type(error).__name__}: {error}"[:1500])
    ends = Counter(f"{run.mode}: {run.answer}" for run in deaths.runs)
    print(
        f"crash points: {len({run.point.name for run in deaths.runs})}, deaths: {len(planned)}, calls: {len(deaths.runs)}, {dict(ends)}"
    )
    assert not failures, "\n\n".join(failures)
    verified = system.manage("ledger_verify")
    assert (verified["ok"], verified["drift"]) == (True, [])
