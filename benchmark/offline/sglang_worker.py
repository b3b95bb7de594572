"""Worker with one `sgl.Engine`: the same pool barrier for every policy, so that each sees the whole pool.

The clock runs from the moment the scheduler may admit, with every request in its queue, to the last answer:
start-up, warm-up and submission are not in it. Prompts come and answers go as token ids.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark.offline.pool_file import Pool, check_lengths, read_pool, warm_up_pool
from benchmark.offline.protocol import Message, serve
from benchmark.offline.scheduler_hooks import OUTPUT_TOKENS, run_scheduler, summarise_steps

_IDLE_S = 60.0
"""Seconds that the scheduler may take to finish the last step of a run, on a machine with other work too."""


class MeasuredEngine:
    """An engine and the log of its scheduler's steps.

    Args:
        options: keyword arguments of `sgl.Engine`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        from sglang.srt.entrypoints.engine import Engine

        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "steps.jsonl"
        self._log.touch()
        scheduler = functools.partial(run_scheduler, str(self._log))
        engine_class = type(
            "MeasuredEngine", (Engine,), {"run_scheduler_process_func": staticmethod(scheduler)}
        )
        self._engine = engine_class(**options)
        self._file = self._log.open()

    def run(self, pool: Pool, *, with_answers: bool = False) -> Message:
        """Answer the pool with an empty cache.

        Args:
            with_answers: the message has the token ids of every answer, too.

        Raises:
            RuntimeError: as of `answer`, or an answer has another length than it should.
        """
        self._file.readlines()
        seconds, answers = self.answer(pool)
        usage = [answer["meta_info"] for answer in answers]
        check_lengths(pool, [info["completion_tokens"] for info in usage])
        return {
            "seconds": seconds,
            "cached_tokens": sum(info["cached_tokens"] for info in usage),
            "retractions": sum(info["num_retractions"] for info in usage),
            **summarise_steps(self._file.readlines()),
            **({"answers": [answer["output_ids"] for answer in answers]} if with_answers else {}),
        }

    def answer(self, pool: Pool) -> tuple[float, list[Any]]:
        """Seconds from the first admission to the last answer, and upstream's answers, with an empty cache.

        Raises:
            RuntimeError: the scheduler is still busy after a minute, so that the cache could not be emptied.
        """
        return self._engine.loop.run_until_complete(self._answer_from_empty(pool))

    async def _answer_from_empty(self, pool: Pool) -> tuple[float, list[Any]]:
        # The last answer comes before its step is done with (upstream's overlapped loop runs one more).
        emptied = await self._engine.tokenizer_manager.flush_cache(timeout_s=_IDLE_S)
        if not emptied.success:
            raise RuntimeError(f"the cache could not be emptied: {emptied.message or 'requests are running'}")
        return await self._answer(pool)

    async def _answer(self, pool: Pool) -> tuple[float, list[Any]]:
        from sglang.batch.run.barrier import SchedulerBarrier

        barrier = SchedulerBarrier(self._engine.tokenizer_manager)
        await barrier.close()
        ids = [f"request-{i}" for i in range(len(pool))]
        tasks = [asyncio.ensure_future(self._request(pool, i, rid)) for i, rid in enumerate(ids)]
        await barrier.settle(set(ids), ids)
        start = time.perf_counter()
        await barrier.open()
        answers = await asyncio.gather(*tasks)
        return time.perf_counter() - start, answers

    async def _request(self, pool: Pool, i: int, rid: str) -> Any:
        known = bool(pool.known[i])
        params: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": int(pool.output[i] if known else pool.max_new_tokens[i]),
            "ignore_eos": known,
            "custom_params": {OUTPUT_TOKENS: int(pool.output[i])},
        }
        return await self._engine.async_generate(input_ids=pool.prompts[i], sampling_params=params, rid=rid)

    def kv_capacity(self) -> int:
        """Tokens of the KV pool."""
        state = self._engine.get_server_info()["internal_states"][0]
        return int(state["memory_usage"]["token_capacity"])


def start(options: Message) -> tuple[Callable[[Message], Message], Message]:
    engine = MeasuredEngine(options)
    engine.run(warm_up_pool())

    def handle(message: Message) -> Message:
        return engine.run(read_pool(message["pool"]), with_answers=message.get("answers", False))

    return handle, {"kv_capacity": engine.kv_capacity()}


if __name__ == "__main__":
    serve(start)
