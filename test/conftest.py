"""Two processes share the tests: a file's stay together, and so do all that start engines, or servers."""

from typing import Any

import pytest

ENGINES = (
    "test/batch/run/test_end_to_end.py",
    "test/batch/run/test_endpoints.py",
    "test/batch/run/test_replicas.py",
)
"""Files whose tests start real engines, which choose their own ports: one process has them all."""

SERVERS = "test/e2e/"
"""Tests that start real servers, some for a whole session: one process has them, too."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make what gives tests to the processes: pytest-xdist's own for files, and a group is like a file."""
    from xdist.scheduler import LoadFileScheduling

    class GroupsTogether(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            if file.startswith(SERVERS):
                return "servers"
            return "engines" if file in ENGINES else file

    return GroupsTogether(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the groups begin first, since they take longest; one process keeps the command line's order."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith((SERVERS, *ENGINES)))
