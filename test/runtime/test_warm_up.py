"""A server compiles its kernels while it starts: no request waits for that."""

import json
from pathlib import Path

import pytest

from programs import last_line

PROGRAM = Path(__file__).parent / "warm_up_program.py"


@pytest.mark.parametrize("engine", ["alternating", "mixed"])
def test_requests_find_every_kernel_compiled(tiny_llama, engine):
    mixed = {"enable_mixed_chunk": True, "disable_overlap_schedule": False}
    arguments = {"blend_engine": engine, **(mixed if engine == "mixed" else {})}
    helpers = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    kernels = last_line(PROGRAM, str(tiny_llama), json.dumps(arguments), platform="simulated_gpu", **helpers)
    assert kernels["before"] > 20
    assert kernels["under requests"] == []
