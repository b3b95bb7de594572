"""Many lines at once leave the event loop turns for others: counted in turns, no clock is looked at."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from journals import journal
from stand_ins import FakeAnswerer, job, line, work

from sglang.batch.records import Answer, Usage
from sglang.batch.run.committer import CommitLimits, Committer, Finished
from sglang.batch.run.engine.channel import Reply
from sglang.batch.run.engine.supervisor import _Life
from sglang.batch.run.give_way import STRIDE
from sglang.batch.run.journal import Journal, Log
from sglang.batch.run.record_log import RecordLog

LINES = 10 * STRIDE


async def most_in_a_turn(work: Awaitable[Any], done: Callable[[], int]) -> int:
    """Tell how far something came in a turn of the loop at most, while other work had its turns."""
    most = before = 0
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        most, before = max(most, done() - before), done()
    await task
    assert done() == LINES
    return most


def test_lines_are_started_a_few_at_a_time() -> None:
    answerer = FakeAnswerer()
    running = job(answerer, pool=LINES).run(work(line(str(i)) for i in range(LINES)))
    assert asyncio.run(most_in_a_turn(running, lambda: len(answerer.seen))) <= STRIDE


def test_those_who_wait_for_a_group_of_records_are_told_a_few_at_a_time(tmp_path: Path) -> None:
    journal(tmp_path, lines=LINES).close()
    told = 0

    async def commit(committer: Committer, position: int) -> None:
        nonlocal told
        await committer.commit(Finished(position, b"{}\n", None, Usage(1, 0, 1)))
        told += 1

    async def scenario() -> int:
        logs = {Log.ANSWERS: RecordLog(tmp_path / "answers", length=0)}
        committer = Committer(
            Journal(tmp_path / "journal"), logs, limits=CommitLimits(seconds=60, records=LINES)
        )
        most = await most_in_a_turn(
            asyncio.gather(*(commit(committer, position) for position in range(LINES))), lambda: told
        )
        await committer.close()
        return most

    assert asyncio.run(scenario()) <= STRIDE


def test_replies_of_an_engine_that_came_together_are_read_a_few_at_a_time() -> None:
    class Replies:
        def __init__(self) -> None:
            self.left = [str(i) for i in range(LINES)]

        async def receive(self) -> Reply | None:
            return Reply(self.left.pop(), Answer(200, b"{}")) if self.left else None

    class Life(_Life):
        def __init__(self) -> None:
            self._channel: Any = replies
            self._waiting = {id: loop.create_future() for id in replies.left}
            self._death = None
            self._killed = True
            self._process: Any = SimpleNamespace(poll=lambda: 0, wait=lambda: 0)

        def _suspects(self) -> None:
            return None

    async def scenario() -> int:
        nonlocal loop
        loop = asyncio.get_running_loop()
        life = Life()
        return await most_in_a_turn(
            life._listen(), lambda: sum(future.done() for future in life._waiting.values())
        )

    loop: asyncio.AbstractEventLoop
    replies = Replies()
    assert asyncio.run(scenario()) <= STRIDE
