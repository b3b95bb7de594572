"""Worker with vLLM's `LLM`, run by the Python of vLLM's own environment.

Compiled mode, prefix caching, the finest block that its CPU attention takes, no detokenisation. vLLM does not
use output lengths for scheduling, so it gets them plainly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmark.offline.pool_file import Pool, check_lengths, read_pool, warm_up_pool
from benchmark.offline.protocol import Message, serve

BLOCK = 32
"""Tokens in a KV block; vLLM's CPU attention takes multiples of it."""


def start(options: Message) -> tuple[Callable[[Message], Message], Message]:
    from vllm import LLM

    llm = LLM(
        model=options["model_path"],
        dtype=options["dtype"],
        max_model_len=options["context_length"],
        enable_prefix_caching=True,
        block_size=BLOCK,
        # One block is vLLM's own: it stands for "nothing".
        num_gpu_blocks_override=options["kv_capacity"] // BLOCK + 1,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        seed=0,
    )
    run(llm, warm_up_pool())
    return lambda message: run(llm, read_pool(message["pool"])), {"kv_capacity": options["kv_capacity"]}


def run(llm: Any, pool: Pool) -> Message:
    """Answer the pool with an empty cache; the clock runs over all of `generate`."""
    from vllm import SamplingParams

    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be emptied")
    params = [
        SamplingParams(temperature=0, max_tokens=int(length), ignore_eos=True, detokenize=False)
        for length in pool.output
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in pool.prompts]
    preempted = _preemptions(llm)
    start = time.perf_counter()
    answers = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    check_lengths(pool, [len(answer.outputs[0].token_ids) for answer in answers])
    return {
        "seconds": seconds,
        "cached_tokens": sum(answer.num_cached_tokens or 0 for answer in answers),
        "retractions": _preemptions(llm) - preempted,
    }


def _preemptions(llm: Any) -> int:
    return int(sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"))


if __name__ == "__main__":
    serve(start)
