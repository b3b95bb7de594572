"""Two processes share the tests: a file's stay together, and so do all that start engines, or servers."""

import importlib.util
import os
from pathlib import Path
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

MODELS = ("llama", "qwen", "gemma", "deepseek", "falcon", "transformers")
"""How the names of SGLang's modules of models begin that tests use. Each engine imports all that are left,
and a second of its start goes to the others; a test of another model adds its name here."""


def other_models() -> list[str]:
    """Names of the modules of models that no test uses."""
    spec = importlib.util.find_spec("sglang")
    places = spec.submodule_search_locations if spec else None
    names = {file.stem for place in places or () for file in Path(place, "srt", "models").glob("*.py")}
    return sorted(name for name in names if not name.startswith(MODELS))


if "SGLANG_DISABLED_MODEL_ARCHS" not in os.environ:  # as it is in the processes that tests start
    os.environ["SGLANG_DISABLED_MODEL_ARCHS"] = ",".join(other_models())


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
