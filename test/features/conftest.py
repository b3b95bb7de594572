"""The tiny checkpoint that the features are tried with."""

from pathlib import Path

import pytest

from checkpoints import make_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny-llama"))
