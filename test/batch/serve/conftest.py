"""Makes what tests share importable, and starts services that end with their test."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "faults")]

if client := os.environ.get("SGLANG_BATCH_OPENAI"):
    sys.path.insert(0, client)  # of this process only: the service keeps its own

from services import EchoService  # noqa: E402


@pytest.fixture
def service(tmp_path: Path) -> Iterator[EchoService]:
    service = EchoService(tmp_path)
    yield service
    service.kill()
