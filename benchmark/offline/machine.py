"""The machine that is measured: what to note about it, and what it runs best with."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from typing import Any

import psutil
import torch
from benchmark.provenance import commit


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-path", default="smollm2", help="default: smollm2, embedded")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of all engines. auto: bfloat16 on CPUs that multiply it (AMX, AVX512-BF16), float32 otherwise",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one per core"
    )


def exit_on_sigterm() -> None:
    """Leave by SystemExit, so that workers are stopped; they have sessions of their own."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def wait_until_idle(*, seconds: float = 30.0, busy_percent: float = 5.0) -> float:
    """Wait until the cores are idle, at most `seconds`; how busy they were in the end, percent of all.

    Engines that have just started, and vLLM's threads for a while after an answer, compute on and would be
    measured with whoever comes next.
    """
    deadline = time.monotonic() + seconds
    while (busy := psutil.cpu_percent(interval=1.0)) > busy_percent and time.monotonic() < deadline:
        pass
    return busy


def best_dtype() -> str:
    """What products of matrices are fastest in."""
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("amx_bf16") or has.get("avx512_bf16") else "float32"


def describe_machine() -> dict[str, Any]:
    """CPU, load, versions and the commit that is measured."""
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "sglang": version("sglang"),
        "commit": commit(),
    }
