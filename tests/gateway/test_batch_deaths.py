"""A worker that dies around a batch: its money is settled where the batch is on record, and an exposure where nobody knows."""

from collections.abc import Iterator

import openai
import pytest

from tests.fakes.provider import FakeProvider
from tests.gateway.test_batches import created, lines, money
from tests.processes import Processes
from tests.system import System, set_up_provider, start_system
from tests.waiting import wait_for

# The upload is the first request that is sent and settled, the creation the second.
POINTS = {"send.before:2:kill": "lost", "send.after:2:kill": "lost", "settle.before:2:kill": "kept"}


@pytest.fixture(scope="module")
def mortal(far_end: FakeProvider) -> Iterator[System]:
    """A system of its own, whose workers may die."""
    with start_system(far_end) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        system.manage(
            "price_set", "fake", "fake-1", "--input", "0.15", "--output", "0.60",
            "--component", "input/batch=0.075", "--component", "output/batch=0.30",
        )  # fmt: skip
        yield system
        system.close_clients()


@pytest.fixture(params=POINTS)
def deadly(request: pytest.FixtureRequest, mortal: System) -> tuple[System, str]:
    """The system with a worker that dies at one point, and what becomes of a batch there."""
    Processes(mortal).arm_now("worker", request.param)
    return mortal, POINTS[request.param]


def test_a_batch_whose_worker_died_has_one_end_and_a_cap_holds_nothing(deadly: tuple[System, str]) -> None:
    system, fate = deadly
    customer = system.tenant()
    system.manage("cap_set", "--tenant", customer.name, "--period", "month", "--usd", "1")
    with pytest.raises(openai.APIStatusError) as refused:
        created(system, customer, lines())
    assert refused.value.status_code == 502
    mine = "SELECT c.* FROM usage_call c JOIN tenants_tenant t ON t.id = c.tenant_id WHERE t.name = %s AND endpoint = 'batch'"
    (call,) = system.rows(mine, customer.name)
    if fate == "kept":
        (row,) = system.rows("SELECT provider_id FROM usage_providerobject WHERE money_call_id = %s", call["id"])
        system.far_end.finish(row["provider_id"])
        wait_for(lambda: money(system, row["provider_id"])["state"] == "settled", seconds=60)
        assert money(system, row["provider_id"])["charged_nano"] > 0
    else:
        wait_for(lambda: system.rows(mine, customer.name)[0]["state"] == "void", seconds=60)
        booked = system.rows("SELECT kind, amount_nano FROM usage_ledgerentry WHERE ref = %s", call["id"])
        assert booked == [{"kind": "exposure", "amount_nano": call["held_nano"]}]
    (cap,) = system.rows("SELECT held_nano FROM usage_capbucket WHERE id = ANY (%s)", call["bucket_ids"])
    assert cap == {"held_nano": 0}
    assert system.manage("ledger_verify", "--tenant", customer.name)["drift"] == []
