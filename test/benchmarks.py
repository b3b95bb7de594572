"""Benchmarks as people run them, for tests that keep small runs of them alive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_benchmark(
    name: str, *arguments: str, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmark.NAME` from the checkout to its end, whatever its exit code.

    Args:
        timeout: seconds, for a hang.
        environment: further variables of its process.

    Raises:
        subprocess.TimeoutExpired: it took longer; it is killed.
    """
    return subprocess.run(
        [sys.executable, "-m", f"benchmark.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
