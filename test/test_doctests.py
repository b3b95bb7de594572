"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

from sglang import batch
from sglang.srt.blend import core

SILENT = "sglang.batch.plan.preload"
"""Switches the log of its whole process off, for those that simulate; other tests read the log."""


def modules(package: ModuleType) -> Iterator[str]:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name != SILENT:
            yield module.name


CORE, BATCH = sorted(modules(core)), sorted(modules(batch))


@pytest.mark.parametrize("name", [*CORE, *BATCH])
def test_examples_of(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("names", [CORE, BATCH])
def test_there_are_examples(names: list[str]) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for name in names for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) > 0 for test in tests) >= 12
