"""The money functions beside their model, for many histories of holds, settlements, deaths, caps, credit and time."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.reliability.machine import MoneyMachine
from tests.reliability.scratch import scratch_database

USUAL = settings(
    deadline=None, database=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck), print_blob=False
)

SHORT_FORM = settings(USUAL, max_examples=60, stateful_step_count=25, derandomize=True, phases=[Phase.generate])


@pytest.fixture
def scratch(committed_db: None) -> Iterator[None]:
    MoneyMachine.steps.clear()
    MoneyMachine.verdicts.clear()
    with scratch_database():
        yield


def test_the_database_does_what_the_model_does(scratch: None) -> None:
    run_state_machine_as_test(MoneyMachine, settings=SHORT_FORM)


@pytest.mark.campaign("money")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(4))
def test_the_database_does_what_the_model_does_for_thousands_of_steps(scratch: None, number: int) -> None:
    long = settings(USUAL, max_examples=150, stateful_step_count=50, phases=[Phase.generate, Phase.shrink])
    run_state_machine_as_test(MoneyMachine, settings=long)
    print(f"model: {MoneyMachine.steps.total()} steps, {dict(MoneyMachine.verdicts.most_common())}")
