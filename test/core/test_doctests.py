"""The examples in core's docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

from sglang.srt.blend import core

MODULES = sorted(module.name for module in pkgutil.walk_packages(core.__path__, core.__name__ + "."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) > 0 for test in tests) >= 12
