"""Shared by the tests that run SGLang's scheduler in their own process."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # checkpoints, helpers

from checkpoints import make_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama checkpoint, written once per test session."""
    return make_llama(tmp_path_factory.mktemp("tiny-llama"))
