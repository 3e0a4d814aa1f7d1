"""What all tests share: the campaigns, which run only when they are asked for."""

import pytest


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
