"""Worker of `check`: an engine that answers a pool and shows its answers and what is left in its KV pool."""

from __future__ import annotations

import time

from benchmark.offline.pool_file import Pool, check_lengths, read_pool, warm_up_pool
from benchmark.offline.protocol import Message, serve
from benchmark.offline.sglang_worker import MeasuredEngine

IDLE_SECONDS = 10.0
"""Time after the last answer in which the scheduler may still hold tokens."""


class CheckedEngine(MeasuredEngine):
    """A measured engine that also shows what it answered."""

    def check(self, pool: Pool) -> Message:
        """Answer the pool with an empty cache.

        Returns:
            seconds, answers: token ids of each. held: KV tokens that are neither free nor cached afterwards.
            cached_tokens: prompt tokens that came from the cache.

        Raises:
            RuntimeError: as of `answer`, or an answer has another length than it should.
        """
        seconds, answers = self.answer(pool)
        check_lengths(pool, [answer["meta_info"]["completion_tokens"] for answer in answers])
        return {
            "seconds": seconds,
            "answers": [answer["output_ids"] for answer in answers],
            "cached_tokens": sum(answer["meta_info"]["cached_tokens"] for answer in answers),
            "held": self._held(),
        }

    def _held(self) -> int:
        """KV tokens that nobody can have, once the scheduler has had time to become idle."""
        deadline = time.monotonic() + IDLE_SECONDS
        while (held := self._held_now()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return held

    def _held_now(self) -> int:
        states = self._engine.get_server_info()["internal_states"]
        return sum(int(state["kv_tokens_held"]) for state in states)


def start(options: Message) -> tuple[CheckedEngine, Message]:
    engine = CheckedEngine(options)
    engine.check(warm_up_pool())
    return engine, {"kv_capacity": engine.kv_capacity()}


if __name__ == "__main__":

    def begin(options: Message) -> object:
        engine, ready = start(options)
        return lambda message: engine.check(read_pool(message["pool"])), ready

    serve(begin)  # type: ignore[arg-type]
