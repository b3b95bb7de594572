"""Kinds of models on a simulated GPU, in a process of its own: prints one JSON object.

SGLANG_PLATFORM=simulated_gpu python simulated_models.py FOLDER     (FOLDER is for the GPU's profile)
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REQUESTS = 24
GPU = "flops = 1e12\nbandwidth = 1e11\nmemory = 64e6\n"
"""So small that the KV cache of a tiny model is a few thousand tokens."""

KEPT: list[object] = []
"""Schedulers that could not be built: one that is collected may wait for a peer of its sockets for ever."""

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama in fp8": LLAMA | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}},
    "llama with kv in fp8": LLAMA,
    "mla": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        **_EXPERTS,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "sliding_window": 64,
    },
    "falcon-h1": {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "num_hidden_layers": 4,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 16,
    },
    "qwen3-next": {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "shared_expert_intermediate_size": 32,
        "num_experts": 8,
        "decoder_sparse_step": 1,
        "full_attention_interval": 4,
        **_EXPERTS,
    },
}

ARGUMENTS: dict[str, dict[str, Any]] = {"llama with kv in fp8": {"kv_cache_dtype": "fp8_e5m2"}}
"""Of the server, beside the usual ones."""


def run(model: str, policy: str, gpu: Path, **arguments: Any) -> dict[str, Any]:
    """Answer REQUESTS requests, half of them with a common prefix."""
    from sglang.srt.hardware_backend.simulated_gpu import lone_scheduler
    from sglang.srt.hardware_backend.simulated_gpu.simulated_scheduler import simulated_scheduler

    ended: dict[str, tuple[str, int]] = {}
    with simulated_scheduler(
        TINY | MODELS[model],
        hardware=str(gpu),
        engine="mixed",
        on_finish=lambda rid, reason, tokens: ended.update({rid: (reason, tokens)}),
        schedule_policy=policy,
        context_length=2048,
        chunked_prefill_size=256,
        **arguments,
    ) as scheduler:
        allocator, cache = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
        for i in range(REQUESTS):
            prompt = [5] * (40 * (i % 2)) + [10 + i] * (20 + 11 * i)
            sampling = {"ignore_eos": True}
            lone_scheduler.submit(scheduler, f"r{i}", prompt, max_new_tokens=10 + i, sampling=sampling)
        turns = 0
        while not scheduler.is_fully_idle() and turns < 5000:
            lone_scheduler.step(scheduler)
            turns += 1
        checker = scheduler.invariant_checker
        stats = scheduler.pool_stats_observer.get_pool_stats()
        leaked, messages = checker._check_all_pools(stats)
        states = scheduler.req_to_token_pool
        return {
            "answered": all(ended.get(f"r{i}") == ("length", 10 + i) for i in range(REQUESTS)),
            "ended": ended,
            "kv_capacity": scheduler.max_total_num_tokens,
            "leaks": messages if leaked else [],
            "states": states.mamba_pool.size if hasattr(states, "mamba_pool") else 0,
            "state_bytes": states.mamba_pool.mem_usage if hasattr(states, "mamba_pool") else 0,
            "allocator": type(allocator).__name__,
            "cache": type(cache).__name__,
        }


def main(folder: Path, models: Iterable[str]) -> None:
    gpu = folder / "tiny-gpu.toml"
    gpu.write_text(GPU)
    results: dict[str, Any] = {}
    for model in models:
        for policy in ("fcfs", "blend"):
            hardware = {"blend_hardware": str(gpu)} if policy == "blend" else {}
            try:
                results[f"{model}, {policy}"] = run(
                    model, policy, gpu, **hardware, **ARGUMENTS.get(model, {})
                )
            except Exception as error:  # one model's failure is its own test's
                traceback.print_exc()
                KEPT.append(error)
                results[f"{model}, {policy}"] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or MODELS)
    os._exit(0)  # see KEPT
