"""What the proofs share."""

from collections.abc import Iterator

import pytest
from pytest_django import DjangoDbBlocker

pytest.register_assert_rewrite("tests.reliability.crashes")


@pytest.fixture(scope="module")
def committed_module_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """As `committed_db`, for a database that a whole module works on."""
    with django_db_blocker.unblock():
        yield
