"""What all tests share: the campaigns, which run only when they are asked for."""

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test.utils import setup_databases, teardown_databases
from pytest_django import DjangoDbBlocker

from aiplatform.lib import postgres
from tests.fakes.provider import FakeProvider
from tests.system import Customer, System, set_up_provider, start_system
from usage import grants


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign", action="append", default=[], metavar="NAME", help="run only the tests marked campaign(NAME)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --campaign the campaigns are left out; with it everything else is. An unknown name is an error."""
    wanted = set(config.getoption("--campaign"))
    unknown = wanted - {name for item in items for name in _campaigns(item)}
    if unknown:
        raise pytest.UsageError(f"no test is marked campaign({', '.join(sorted(unknown))})")
    chosen = [item for item in items if (_campaigns(item) & wanted if wanted else not _campaigns(item))]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _campaigns(item: pytest.Item) -> set[str]:
    return {name for marker in item.iter_markers("campaign") for name in marker.args}


@pytest.fixture(scope="session")
def django_db_setup(django_test_environment: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """The test database, also for tests that commit and so carry no django_db mark.

    Its owner makes it; the tests run as the application, which may only add to the ledger.
    """
    with django_db_blocker.unblock(), grants.as_owner():
        made = setup_databases(verbosity=0, interactive=False)
    yield
    with django_db_blocker.unblock(), grants.as_owner():
        postgres.close()
        connection.close_pool()  # type: ignore[attr-defined]  # Postgres has it
        teardown_databases(made, verbosity=0)


@pytest.fixture
def committed_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Rows that stay: the ledger refuses to be rolled back or flushed, so each test brings a tenant of its own."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="session")
def far_end() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture(scope="session")
def running(far_end: FakeProvider) -> Iterator[System]:
    with start_system(far_end) as stack:
        system = System(stack, far_end)
        set_up_provider(system)
        yield system


@pytest.fixture
def system(running: System) -> Iterator[System]:
    """The shared system; its far end has no faults when a test begins."""
    running.far_end.clear()
    yield running
    running.close_clients()
    running.far_end.clear()


@pytest.fixture
def customer(system: System) -> Customer:
    return system.tenant()
