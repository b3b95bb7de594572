"""Ray Data: an engine as a class for `map_batches`, rows in and rows out.

    import ray
    from sglang.batch.ray_data import BlendEngine

    ray.data.read_parquet("questions/").map_batches(
        BlendEngine,
        fn_constructor_kwargs={"model_path": MODEL, "prompt_template": "Answer: {question}"},
        batch_format="pyarrow", batch_size=20_000, concurrency=4, num_gpus=1,
    ).write_parquet("answers/")

Each batch is one pool, which the planner sees whole: the larger `batch_size`, the better the plan. Ray Data
decides which replica gets which batch, so no order holds across replicas and common prefixes are not kept on
one of them. A batch comes out when its slowest row is done, and is computed again when its actor dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from sglang.batch import records
from sglang.batch.input.rows import RowFormat, row_format
from sglang.batch.records import Answer, BatchFailure, BatchRequest
from sglang.batch.run.arguments import ALL_AT_ONCE, ENGINE_RESTARTS, STALL_SECONDS, START_SECONDS
from sglang.batch.run.barrier import Barrier, NoBarrier
from sglang.batch.run.engine.protocol import EngineDied
from sglang.batch.run.engine.restarts import FIRST_WAIT, Restarts
from sglang.batch.run.engine.supervisor import Supervisor
from sglang.batch.run.engine.suspects import CRASHED, in_halves
from sglang.batch.run.parquet import ANSWER, answer_row, output_schema
from sglang.batch.run.ray_replicas.engine import CRASHES
from sglang.batch.server_flags import with_defaults
from sglang.batch.usage import BadUsage

WORKER = ("-m", "sglang.batch.run.engine.worker")
"""Arguments of Python that start an engine."""

COLUMNS = pa.schema([field for field in ANSWER if field.name != "custom_id"])
"""Columns behind those of a batch."""

T = TypeVar("T")


class BlendEngine:
    """SGLang under blend, for `ray.data.Dataset.map_batches`.

    The columns of a batch come back with `response_text`, `finish_reason`, `prompt_tokens`,
    `completion_tokens`, `error_code`, `error_message` and `response` behind them; those of the input that
    have such a name become `input_...`. A row that fails has an error and no answer; it stops no others.

    Args:
        model_path: folder or hub name, or `smollm2`.
        prompt_template: prompt with columns in braces, "Summarise: {text}".
        messages_column: column with a chat's messages instead.
        url: endpoint; chat completions unless given.
        params: fields of each request's body, such as `max_tokens`.
        server: flags of the SGLang server, as on a command line.
        start: seconds that the engine has to start.
        stall: seconds without any progress after which it counts as dead, and is started again.
        worker: arguments of Python that start an engine.

    Raises:
        EngineFailed: the engine did not start.
        BadUsage: the arguments do not say how a row becomes a request.
    """

    def __init__(
        self,
        model_path: str,
        *,
        prompt_template: str | None = None,
        messages_column: str | None = None,
        url: str | None = None,
        params: Mapping[str, Any] | None = None,
        server: Sequence[str] = (),
        start: float = START_SECONDS,
        stall: float = STALL_SECONDS,
        worker: Sequence[str] = WORKER,
    ) -> None:
        self._rows = _row_format(prompt_template, messages_column, url, params or {})
        flags = with_defaults(["--model-path", model_path, *server], ALL_AT_ONCE)
        self._engine = Supervisor(
            [sys.executable, *worker], flags, job=f"data-{secrets.token_hex(8)}", start=start, stall=stall
        )
        self._restarts = Restarts(ENGINE_RESTARTS)
        self._answered = 0
        self._one_pool = asyncio.Lock()
        # Ray Data calls from threads, several at a time if asked to; the engine belongs to one event loop.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._in_loop(self._engine.start())

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table:
        """Answer the rows of a batch.

        Raises:
            EngineDied: the engine died too often in a row without an answer.
        """
        table = batch if isinstance(batch, pa.Table) else _table(batch)
        lines = [self._rows.line(row, number) for number, row in enumerate(table.to_pylist(), start=1)]
        items = [records.parse_line(number, line) for number, line in enumerate(lines, start=1)]
        answers = self._in_loop(self._run_alone(items))
        schema = output_schema(table.schema.remove_metadata(), COLUMNS)
        found = [
            pa.array([answer[i] for answer in answers], field.type)
            for i, field in enumerate(ANSWER)
            if field.name in COLUMNS.names
        ]
        return pa.table([*table.columns, *found], schema=schema)

    def close(self) -> None:
        """Stop the engine; Ray Data, which ends the actor's process, does not call this."""
        self._in_loop(self._engine.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _run_alone(
        self, items: Sequence[BatchRequest | BatchFailure]
    ) -> list[tuple[str | int | None, ...]]:
        async with self._one_pool:
            return await self._run(items)

    async def _run(self, items: Sequence[BatchRequest | BatchFailure]) -> list[tuple[str | int | None, ...]]:
        """Run rows until each has its record, whatever the engine dies of."""
        done = {
            i: records.failure_record(item) for i, item in enumerate(items) if isinstance(item, BatchFailure)
        }
        crashes: Counter[int] = Counter()

        async def run(rows: list[int]) -> list[int]:
            ids = [secrets.token_hex(16) for _ in rows]
            replies = await self._pool([items[i] for i in rows], ids)
            aside = crashes[rows[0]] >= CRASHES
            died: EngineDied | None = None
            for i, name, reply in zip(rows, ids, replies, strict=True):
                if isinstance(reply, EngineDied):
                    died = reply
                    crashes[i] += reply.suspects is None or name in reply.suspects
                if (record := _record(items[i], reply, alone=aside and len(rows) == 1)) is not None:
                    done[i] = record
                    self._answered += 1
            if died is not None:
                await self._start_again(died, expected=aside)
            return [i for i in rows if i not in done]

        while rows := [i for i in range(len(items)) if i not in done and crashes[i] < CRASHES]:
            await run(rows)
        if rows := [i for i in range(len(items)) if i not in done]:
            await in_halves(rows, run)
        return [answer_row(done[i]) for i in range(len(items))]

    async def _pool(self, requests: Iterable[Any], ids: list[str]) -> list[Answer | BaseException]:
        """Run requests together, one pool for the planner."""
        barrier: Barrier = NoBarrier()
        with contextlib.suppress(LookupError, EngineDied):
            barrier = self._engine.barrier()
        running = []
        # An engine that dies meanwhile is heard of through the answers, too.
        with contextlib.suppress(EngineDied):
            await barrier.close()
        for request, name in zip(requests, ids, strict=True):
            running.append(asyncio.ensure_future(self._engine.answer(request, name)))
        await asyncio.sleep(0)  # until all are on their way
        with contextlib.suppress(EngineDied):
            await barrier.settle(ids, ids)
            await barrier.open()
        return await asyncio.gather(*running, return_exceptions=True)

    async def _start_again(self, died: EngineDied, *, expected: bool) -> None:
        wait = FIRST_WAIT if expected else self._restarts.died(self._answered)
        if wait is None:
            raise died
        await asyncio.sleep(wait)
        await self._engine.start()


def _record(item: Any, reply: Answer | BaseException, *, alone: bool) -> bytes | None:
    """Write what becomes of a row; None if it is to run again."""
    if isinstance(reply, Answer):
        return records.answer_record(item, reply)
    if isinstance(reply, Exception) and not isinstance(reply, EngineDied):
        return records.failure_record(BatchFailure.internal(item, reply))
    if alone:
        why = f"it ran alone, and {reply}"
        return records.failure_record(BatchFailure(item.line, item.custom_id, CRASHED, why))
    return None


def _row_format(
    template: str | None, messages: str | None, url: str | None, params: Mapping[str, Any]
) -> RowFormat:
    form = row_format(
        argparse.Namespace(
            prompt_template=template,
            messages_column=messages,
            id_column=None,
            url=url,
            param=[f"{name}={json.dumps(value)}" for name, value in params.items()],
        )
    )
    if form is None:
        raise BadUsage("BlendEngine: give prompt_template or messages_column")
    return form


def _table(batch: Mapping[str, Any]) -> pa.Table:
    """Make a table of columns as NumPy has them, Ray Data's default."""
    return pa.table({name: pa.array(list(column)) for name, column in batch.items()})
