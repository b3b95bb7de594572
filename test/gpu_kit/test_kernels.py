"""The kit's kernels compute attention: the Triton kernel in Triton's interpreter, the others on a CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.gpu import decode, prefill
from benchmark.gpu.decode import WrongKernel, paged_inputs
from benchmark.gpu.layer import TINY, Layer
from benchmark.gpu.machine import find_machine
from benchmark.gpu.paged_decode import plain_decode

from sglang.batch.usage import BadUsage

ROOT = Path(__file__).resolve().parents[2]
CPU, LAYER = find_machine("cpu"), Layer.of(TINY, 4)


def test_the_triton_kernel_computes_paged_decode_attention() -> None:
    script = Path(__file__).with_name("interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert len(differences) == 4
    assert max(differences) < 1e-5


def test_plain_decode_attends_to_the_pages_of_each_request_in_their_order() -> None:
    inputs = paged_inputs(CPU, LAYER, [20, 3])
    computed = plain_decode(**inputs)
    for request, length in enumerate((20, 3)):
        pages = inputs["table"][request].long()
        key, value = (inputs[name][pages].flatten(0, 1)[:length] for name in ("keys", "values"))
        for head in range(LAYER.heads):
            kv_head = head // (LAYER.heads // LAYER.kv_heads)
            query = inputs["queries"][request, head]
            weights = torch.softmax(key[:, kv_head] @ query / LAYER.head_dim**0.5, 0)
            torch.testing.assert_close(computed[request, head], weights @ value[:, kv_head])


def test_prefill_attention_is_causal_behind_cached_tokens() -> None:
    assert prefill.check(CPU, LAYER) < 1e-5


def test_heads_that_the_decode_kernel_does_not_know_are_refused() -> None:
    with pytest.raises(BadUsage, match="heads of 80 features"):
        decode.check(CPU, replace(LAYER, head_dim=80))


def test_a_kernel_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "paged_decode", lambda *, parts, **inputs: plain_decode(**inputs) + 0.1)
    with pytest.raises(WrongKernel, match=r"differs from plain PyTorch by 0\.1"):
        decode.check(CPU, LAYER)
    monkeypatch.setattr(
        prefill, "scaled_dot_product_attention", lambda query, *_, **__: torch.zeros_like(query)
    )
    with pytest.raises(WrongKernel, match="prefill attention differs"):
        prefill.check(CPU, LAYER)
