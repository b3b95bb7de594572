"""Two processes share the tests: a file's tests stay together, and no engine starts beside another."""

from typing import Any

import pytest

ENGINES = (
    "test/batch/run/test_end_to_end.py",
    "test/batch/run/test_endpoints.py",
    "test/batch/run/test_replicas.py",
)
"""Files whose tests start real engines, which choose their own ports: one process has them all."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make what gives tests to the processes: pytest-xdist's own for files, and the engines like one file."""
    from xdist.scheduler import LoadFileScheduling

    class EnginesTogether(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "engines" if file in ENGINES else file

    return EnginesTogether(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the engines begin first, since they take longest; one process keeps the command line's order."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(ENGINES))
