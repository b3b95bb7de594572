"""Two processes share the tests: a file's tests stay together, and no engine starts beside another."""

import pytest

ENGINES = "engines"
"""The group of tests that start real engines, which choose their own ports. Their files mark themselves."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for `--dist loadgroup`. The engines' group takes longest, so it begins first."""
    if not hasattr(config, "workerinput"):
        return  # one process: the order is that of the command line

    def group(item: pytest.Item) -> str:
        mark = item.get_closest_marker("xdist_group")
        return item.path.as_posix() if mark is None else str(mark.args[0])

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: group(item) != ENGINES)
