"""Attention of one step on a CPU: our backend against upstream's torch_native, same pool, same layers.

    python benchmark/cpu/attention.py --out results.json

Both backends compute the same steps in alternation; reported are medians over the rounds, and the median of
the per-round ratios, which other load on the machine disturbs least. On a busy machine --one-thread counts
the CPU time of one thread instead of wall time. Defaults are SmolLM2-135M's shapes.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from sglang.srt.hardware_backend.portable_cpu import kernel_build
from sglang.srt.hardware_backend.portable_cpu.attention_backend import PortableCpuAttnBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode


@dataclass(frozen=True)
class Step:
    """Sequences of one step: (tokens already cached, new tokens)."""

    name: str
    sequences: list[tuple[int, int]]

    @property
    def mode(self) -> ForwardMode:
        return ForwardMode.DECODE if all(new == 1 for _, new in self.sequences) else ForwardMode.MIXED


DECODE = [(511, 1)] * 24
STEPS = [
    Step("decode 24 x 512", DECODE),
    Step("decode 1 x 4096", [(4095, 1)]),
    Step("decode 64 x 256", [(255, 1)] * 64),
    Step("prefill 512", [(0, 512)]),
    Step("prefill 256 after 1024", [(1024, 256)]),
    Step("mixed: decode 24 x 512 and prefill 256", [*DECODE, (0, 256)]),
    Step("mixed: decode 24 x 512 and prefill 256 after 1024", [*DECODE, (1024, 256)]),
]


def make_runner(arguments: argparse.Namespace) -> SimpleNamespace:
    """What an attention backend asks of the model runner: a KV pool with random content and a token table."""
    dtype = getattr(torch, arguments.kv_dtype)
    tokens = max(sum(cached + new for cached, new in step.sequences) for step in STEPS) + 64
    pool = MHATokenToKVPool(
        size=tokens,
        page_size=1,
        dtype=dtype,
        head_num=arguments.kv_heads,
        head_dim=arguments.head_dim,
        layer_num=arguments.layers,
        device="cpu",
        enable_memory_saver=False,
    )
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.normal_()
    return SimpleNamespace(
        device="cpu",
        kv_cache_dtype=dtype,
        token_to_kv_pool=pool,
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(128, 8192, dtype=torch.int32)),
    )


def make_batch(step: Step, runner: SimpleNamespace) -> SimpleNamespace:
    """A forward batch; a sequence's tokens lie scattered in the pool, as after some time of serving."""
    cached = torch.tensor([cached for cached, _ in step.sequences])
    new = torch.tensor([new for _, new in step.sequences])
    slots = torch.randperm(int((cached + new).sum())) + 1
    new_slots = []
    for row, own in enumerate(slots.split((cached + new).tolist())):
        runner.req_to_token_pool.req_to_token[row, : len(own)] = own.int()
        new_slots.append(own[cached[row] :])
    return SimpleNamespace(
        forward_mode=step.mode,
        req_pool_indices=torch.arange(len(cached)),
        seq_lens=cached + new,
        extend_seq_lens=new,
        extend_prefix_lens=cached,
        out_cache_loc=torch.cat(new_slots),
        encoder_lens=None,
    )


def step_function(
    backend: TorchNativeAttnBackend,
    layers: list[RadixAttention],
    batch: SimpleNamespace,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> Callable[[], torch.Tensor]:
    """One step: metadata, then every layer stores its keys and values and attends."""

    def run() -> torch.Tensor:
        backend.init_forward_metadata(batch)
        for layer in layers:
            out = backend.forward(*qkv, layer, batch)
        return out

    return run


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    torch.manual_seed(0)
    clock = time.thread_time if arguments.one_thread else time.perf_counter
    runner = make_runner(arguments)
    heads, kv_heads, dim = arguments.heads, arguments.kv_heads, arguments.head_dim
    layers = [
        RadixAttention(heads, dim, dim**-0.5, num_kv_heads=kv_heads, layer_id=index)
        for index in range(arguments.layers)
    ]
    native, ours = TorchNativeAttnBackend(runner), PortableCpuAttnBackend(runner)
    results: list[dict[str, object]] = []
    for step in STEPS:
        batch = make_batch(step, runner)
        tokens = int(batch.extend_seq_lens.sum())
        qkv = tuple(
            torch.randn(tokens, count * dim, dtype=getattr(torch, arguments.dtype))
            for count in (heads, kv_heads, kv_heads)
        )
        shaped = (qkv[0], qkv[1].view(-1, kv_heads, dim), qkv[2].view(-1, kv_heads, dim))
        functions = {
            "torch_native": step_function(native, layers, batch, shaped),
            "portable_cpu": step_function(ours, layers, batch, shaped),
        }
        answers = [function().float() for function in functions.values()]  # also warms both up
        torch.testing.assert_close(answers[0], answers[1], atol=3e-2, rtol=3e-2)
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(arguments.rounds):
            for name, function in functions.items():
                start = clock()
                function()
                seconds[name].append(clock() - start)
        ratios = [a / b for a, b in zip(seconds["torch_native"], seconds["portable_cpu"], strict=True)]
        results.append(
            {
                "step": step.name,
                "milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
                "fastest_milliseconds": {name: 1e3 * min(times) for name, times in seconds.items()},
                "ratio": statistics.median(ratios),
            }
        )
        print_row(results[-1])
    return results


def print_row(result: dict[str, object]) -> None:
    times = result["milliseconds"]
    assert isinstance(times, dict)
    print(
        f"{result['step']:52s} torch_native {times['torch_native']:8.1f} ms   "
        f"portable_cpu {times['portable_cpu']:7.1f} ms   {result['ratio']:5.1f}x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--dtype", default="bfloat16", help="of activations")
    parser.add_argument("--kv-dtype", default="bfloat16", help="of the KV cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one-thread", action="store_true", help="measure CPU time on one thread")
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    if arguments.one_thread:
        torch.set_num_threads(1)
    with torch.inference_mode():
        results = measure(arguments)
    if arguments.out:
        record = {
            "machine": {
                "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
                "threads": torch.get_num_threads(),
                "load_average": os.getloadavg()[0],
                "instruction_set": kernel_build.chosen_instruction_set().name,
                "torch": torch.__version__,
            },
            "arguments": {key: value for key, value in vars(arguments).items() if key != "out"},
            "steps": results,
        }
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
